"""Facts about models and released weights, without building the models in memory."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from torch.nn.parameter import UninitializedParameter

from cifarnets._checked import checked
from cifarnets._html import facts_table, html
from cifarnets.errors import InputError
from cifarnets.models.profile import summary
from cifarnets.models.registry import model_class, registered, skeleton, unknown_model
from cifarnets.models.storage import unknown_weights
from cifarnets.weights.index import Release, find_release, mean_and_std, releases, stem_of

Sort = Literal["name", "parameters", "macs", "accuracy"]


class _UncountableError(InputError):
    """A model whose parameters or multiply-adds cannot be counted."""


@dataclass(frozen=True)
class ModelInfo:
    """Facts about a model.

    Examples:
        >>> from cifarnets.models import info
        >>> facts = info("convnet")
        >>> facts.config["widths"], facts.parameters, facts.macs
        ((16, 8), 18354, 753984)

    Attributes:
        name: What `create` takes.
        description: One line.
        config: Every argument of `create` with its default.
        parameters: Number of parameters of the default model, frozen ones included.
        release: The released weights of that name; None if there are none.
        variants: The names of all released weights of that name: older versions and further seeds are among them.
    """

    name: str
    description: str
    config: Mapping[str, Any]
    parameters: int
    release: Release | None
    variants: tuple[str, ...]

    @functools.cached_property
    def macs(self) -> int:
        """Multiply-adds of the default model for one image, counted at the first use.

        Examples:
            >>> from cifarnets.models import info
            >>> info("resnet20").macs
            40551040

        Raises:
            InputError: The model cannot run on an image of 32×32.
        """
        if self.release is not None:
            return self.release.macs
        try:
            return summary(skeleton(self.name, self.config)).macs
        except Exception as error:  # a user's model may raise anything
            raise _UncountableError(f"the multiply-adds of {self.name!r} cannot be counted: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """All facts, `macs` included, as plain values for JSON.

        Examples:
            >>> import json
            >>> from cifarnets.models import info
            >>> json.loads(json.dumps(info("fcnet").to_dict()))["macs"]
            3736832
        """
        facts = asdict(self)
        release, variants = facts.pop("release"), facts.pop("variants")
        return {**facts, "macs": self.macs, "release": release, "variants": list(variants)}

    def _repr_html_(self) -> str:
        facts: dict[str, object] = {"parameters": f"{self.parameters:,}"}
        with contextlib.suppress(_UncountableError):
            facts["multiply-adds an image"] = f"{self.macs:,}"
        if self.release is not None:
            facts["test accuracy"] = mean_and_std(self.release.accuracy, self.release.accuracy_std)
            facts["classes"] = ", ".join(self.release.classes)
        facts["arguments of create"] = ", ".join(f"{key}={value!r}" for key, value in self.config.items())
        return str(html("<p><b>{}</b>: {}</p>{}", self.name, self.description, facts_table(facts)))


@checked
def list_models(
    pattern: str = "*",
    *,
    pretrained: bool = False,
    max_params: int | None = None,
    max_macs: int | None = None,
    sort: Sort = "name",
) -> list[str]:
    """List the models that `create` knows, or the released weights, whose names match a shell pattern.

    Examples:
        >>> from cifarnets.models import list_models
        >>> list_models("conv*")
        ['convnet', 'convnet_functional']
        >>> list_models("conv*", pretrained=True)
        ['convnet', 'convnet.cifar3']

    Args:
        pattern: Such as `"resnet*"`; upper and lower case are the same.
        pretrained: List the released weights, which `create(name, pretrained=True)` and `load` take. Older versions and
            further seeds are left out: `info(name).variants` lists these.
        max_params: Leave out models with more parameters.
        max_macs: Leave out models with more multiply-adds for an image.
        sort: `"name"`; `"parameters"` or `"macs"`, the smallest first; or, for released weights, `"accuracy"`: those of
            the most classes first, and the best of these first.

    A model whose numbers cannot be counted before its first batch (`nn.LazyLinear`) is left out where they are asked
    for.

    Raises:
        InputError: There is no such order.
    """
    if sort not in get_args(Sort):
        raise InputError(f"sort must be one of {get_args(Sort)}, not {sort!r}.")
    if sort == "accuracy" and not pretrained:
        raise InputError("only released weights have an accuracy: list_models(…, pretrained=True, sort='accuracy').")
    known = [name for name, release in releases().items() if release.is_default] if pretrained else registered()
    names = sorted(name for name in known if fnmatchcase(name.lower(), pattern.lower()))
    if max_params is None and max_macs is None and sort == "name":
        return names  # no model needs to be built
    keys: dict[str, Callable[[Any], Any]] = {
        "name": lambda facts: facts.name,
        "parameters": lambda facts: facts.parameters,
        "macs": lambda facts: facts.macs,
        "accuracy": lambda facts: (-len(facts.classes), -facts.accuracy),
    }
    found = []
    for name in names:
        with contextlib.suppress(_UncountableError):
            facts = releases()[name] if pretrained else info(name)
            if max_params is not None and facts.parameters > max_params:
                continue
            if max_macs is not None and facts.macs > max_macs:
                continue
            found.append((keys[sort](facts), name))
    return [name for _, name in sorted(found)]


@checked
def info(name: str) -> ModelInfo:
    """Facts about a model or about released weights, without building the model in memory.

    Examples:
        >>> from cifarnets.models import info
        >>> info("convnet").parameters
        18354
        >>> info("convnet.cifar3").release.classes
        ('airplane', 'automobile', 'ship')

    Args:
        name: One of `list_models()` or `list_models(pretrained=True)`.

    Raises:
        UnknownNameError: There is no such model and there are no such weights.
        InputError: The parameters cannot be counted, because layers take their sizes from the first batch.
    """
    release = find_release(name)
    if name not in registered() and release is None:
        raise unknown_weights(name) if "." in name else unknown_model(name)
    architecture, config = (
        (name, {}) if name in registered() or release is None else (release.architecture, release.config)
    )
    cls, model = model_class(architecture), skeleton(architecture, config)
    description = (inspect.getdoc(cls) or "").partition("\n")[0]
    lazy = [name for name, parameter in model.named_parameters() if isinstance(parameter, UninitializedParameter)]
    if lazy:
        raise _UncountableError(f"the parameters of {name!r} cannot be counted: {lazy[0]} gets its size from a batch.")
    parameters = sum(p.numel() for p in model.parameters())
    variants = tuple(
        other.name for other in releases().values() if release and stem_of(other.name) == stem_of(release.name)
    )
    return ModelInfo(name, description, dict(model.meta.config), parameters, release, variants)  # type: ignore[union-attr, arg-type]
