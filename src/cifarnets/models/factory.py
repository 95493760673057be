"""Models by name: fresh ones, and released weights under the head that is asked for."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

from cifarnets.errors import InputError, unknown_name
from cifarnets.models.metadata import annotate, get_meta
from cifarnets.models.registry import build, model_class, registered
from cifarnets.models.storage import load_release
from cifarnets.weights.index import releases

_LOG = logging.getLogger("cifarnets")


def create(
    name: str,
    *,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_channels: int | None = None,
    **config: Any,
) -> nn.Module:
    """A model by name: freshly initialised (seed torch first to get the same one again), or with released weights.

    Examples:
        >>> create("convnet", num_classes=3).meta.architecture
        'convnet'
        >>> create("convnet.cifar3", pretrained=True).meta.classes
        ('airplane', 'automobile', 'ship')

    Args:
        name: One of `list_models()`, or of `list_models(pretrained=True)`: released weights, whose arguments are then
            the defaults.
        pretrained: With the released weights of that name, in eval mode.
        num_classes: Outputs; None for the model's default, ten. Another number than that of the weights keeps the
            trunk and starts a new head, and says so (`logging`, `cifarnets`).
        in_channels: Channels of the images; None for three.
        config: The model's other arguments, such as `widths`; `info(name).config` lists them.

    Raises:
        UnknownNameError: There is no such model, or no weights of that name; the near match is suggested.
        InputError: The model has no such argument, or refuses its value, or the weights were made with another.
        WeightsError: The file of the weights is not the one that was released.
    """
    sizes = {"num_classes": num_classes, "in_channels": in_channels}
    given = {key: value for key, value in sizes.items() if value is not None} | config
    for key, value in sizes.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise InputError(f"{key} must be a whole number of at least 1, not {value!r}.")
    if pretrained:
        if name not in releases():
            model_class(name.partition(".")[0])  # a misspelt architecture is the likelier mistake
            raise unknown_name("weights", name, releases())
        return _with_head(name, load_release(name), given)
    if name not in registered() and name in releases():
        release = releases()[name]
        return build(release.architecture, {**release.config, **given})
    return build(name, given)


def _with_head(name: str, model: nn.Module, given: Mapping[str, Any]) -> nn.Module:
    """Released weights as they are, or under a new head if that is all that the arguments ask for."""
    meta = get_meta(model)
    assert meta is not None  # load gives registered models only
    if not given:
        return model
    fresh = build(meta.architecture, {**meta.config, **given})
    wanted: Mapping[str, Any] = fresh.meta.config  # type: ignore[union-attr, assignment]
    if wanted == meta.config:
        return model
    changed = [key for key in meta.config if wanted[key] != meta.config[key] and key != "num_classes"]
    if changed:
        theirs = ", ".join(f"{key}={meta.config[key]!r}" for key in changed)
        raise InputError(
            f"the weights {name!r} were made with {theirs}: only num_classes may differ. For a fresh model, leave out "
            "pretrained=True."
        )
    state, trunk = fresh.state_dict(), model.state_dict()
    head = [key for key in state if state[key].shape != trunk[key].shape]
    fresh.load_state_dict({**trunk, **{key: state[key] for key in head}})
    annotate(fresh, mean=meta.mean, std=meta.std)
    _LOG.warning(
        "%s: %s start anew, for %d classes instead of %d: train them before use.",
        name,
        ", ".join(head),
        wanted["num_classes"],
        meta.config["num_classes"],
    )
    return fresh.eval()
