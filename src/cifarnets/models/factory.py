"""Models by name: fresh ones, and ones with trained weights."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from cifarnets._checked import checked
from cifarnets.errors import InputError
from cifarnets.models.classifier import Classifier, checked_count
from cifarnets.models.metadata import get_meta
from cifarnets.models.registry import build, registered, skeleton
from cifarnets.models.storage import load, load_release, unknown_weights
from cifarnets.weights import hub
from cifarnets.weights.index import find_release

_LOG = logging.getLogger("cifarnets")


@checked
def create(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_channels: int | None = None,
    **config: Any,
) -> nn.Module:
    """Create a model by name, freshly initialised or with trained weights.

    Call `torch.manual_seed` or `seed_everything` first to get the same fresh model again.

    Examples:
        >>> from cifarnets.models import create
        >>> create("convnet", num_classes=3).meta.architecture
        'convnet'
        >>> create("convnet.cifar3", pretrained=True).meta.classes
        ('airplane', 'automobile', 'ship')
        >>> features = create("resnet20", pretrained=True, num_classes=0)
        >>> model = create("hf://owner/repo", pretrained=True)  # doctest: +SKIP

    Args:
        name: One of `list_models()` or of `list_models(pretrained=True)`, or an address on the Hugging Face Hub as
            `load` takes it. The arguments of released weights are the defaults of the model, fresh or not.
        pretrained: Load the weights of that name, and give the model in eval mode.
        num_classes: Number of outputs; None for the default of the model, which is ten here. With 0 the model has no
            head and gives features `[N, num_features]`. Weights of another number keep their trunk and get a fresh
            head, and a warning says so (`logging`, logger `cifarnets`).
        in_channels: Channels of the images; None for the default of the model, which is three here.
        config: Other arguments of the model, such as `widths`; `info(name).config` lists them.

    Raises:
        UnknownNameError: There is no such model, or there are no weights of that name; the message suggests names.
        InputError: The model has no such argument, or refuses its value; or the weights were made with another value.
        WeightsError: The file of the weights is not the released one, or is damaged.
        DownloadError: The Hub cannot be reached.
    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    given = {key: value for key, value in sizes.items() if value is not None} | config
    for key, least in (("num_classes", 0), ("in_channels", 1)):
        if key in given:
            checked_count(key, given[key], least)
    if name.startswith(hub.SCHEME):
        if not pretrained:
            raise InputError(f"{name!r} is an address of weights: pass pretrained=True.")
        return _with_head(name, load(name), given)
    if pretrained:
        release = find_release(name)
        if release is None:
            raise unknown_weights(name)
        return _with_head(name, load_release(release), given)
    if name not in registered() and (release := find_release(name)):
        return build(release.architecture, {**release.config, **given})
    return build(name, given)


def _with_head(name: str, model: nn.Module, given: Mapping[str, Any]) -> nn.Module:
    """A loaded model as it is, or with a fresh head if the arguments ask for another number of classes only."""
    meta = get_meta(model)
    assert meta is not None  # only registered models can be loaded
    # The constructor may change what it is given, such as a list to a tuple.
    wanted = get_meta(skeleton(meta.architecture, {**meta.config, **given}))
    assert wanted is not None
    changed = [key for key in meta.config if wanted.config[key] != meta.config[key]]
    if not changed:
        return model
    if changed != ["num_classes"]:
        theirs = ", ".join(f"{key}={meta.config[key]!r}" for key in changed if key != "num_classes")
        raise InputError(
            f"the weights {name!r} were made with {theirs}: only num_classes may differ. For a fresh model, leave out "
            "pretrained=True."
        )
    if not isinstance(model, Classifier):
        raise InputError(
            f"the weights {name!r} were made with num_classes={meta.config['num_classes']}, and "
            f"{type(model).__name__} cannot change its head: derive it from cifarnets.models.Classifier."
        )
    classes = wanted.config["num_classes"]
    model.reset_classifier(classes)
    if fresh := [key for key in model.state_dict() if key.startswith(f"{model.head_name}.")]:
        _LOG.warning(
            "%s: %s start anew, for %d classes instead of %d: train them before use.",
            name,
            ", ".join(fresh),
            classes,
            meta.config["num_classes"],
        )
    return model
