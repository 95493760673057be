"""What is known of each model and of released weights, without building them in memory."""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, get_args

from cifarnets.errors import InputError, unknown_name
from cifarnets.models.profile import summary
from cifarnets.models.registry import model_class, registered, skeleton
from cifarnets.weights.index import Release, releases

Sort = Literal["name", "parameters", "macs", "accuracy"]


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model before it is built.

    Attributes:
        name: What `create` takes.
        description: One line.
        config: Every argument of `create` with its default.
        parameters: Numbers of the default model that are trained, or frozen.
        release: What is known of the released weights of that name; None if there are none.
    """

    name: str
    description: str
    config: Mapping[str, Any]
    parameters: int
    release: Release | None

    @functools.cached_property
    def macs(self) -> int:
        """Multiply-adds for one image, counted when they are first asked for."""
        if self.release is not None:
            return self.release.macs
        return summary(skeleton(self.name, self.config)).macs


def list_models(
    pattern: str = "*",
    *,
    pretrained: bool = False,
    max_params: int | None = None,
    max_macs: int | None = None,
    sort: Sort = "name",
) -> list[str]:
    """The names that match a shell pattern: of the models that `create` knows, or of all released weights.

    Examples:
        >>> list_models("conv*")
        ['convnet', 'convnet_functional']
        >>> list_models("conv*", pretrained=True)
        ['convnet', 'convnet.cifar3']

    Args:
        pattern: Such as `"resnet*"`.
        pretrained: List released weights instead, which `create(name, pretrained=True)` and `load` take.
        max_params: Leave out those with more parameters.
        max_macs: Leave out those with more multiply-adds an image.
        sort: By `"name"`; by `"parameters"` or `"macs"`, the smallest first; or, released weights only, by
            `"accuracy"`, the best first, those of the most classes before others.

    Raises:
        InputError: There is no such order.
    """
    if sort not in get_args(Sort):
        raise InputError(f"sort must be one of {get_args(Sort)}, not {sort!r}.")
    if sort == "accuracy" and not pretrained:
        raise InputError("only released weights have an accuracy: list_models(…, pretrained=True, sort='accuracy').")
    names = sorted(name for name in (releases() if pretrained else registered()) if fnmatchcase(name, pattern))
    if max_params is None and max_macs is None and sort == "name":
        return names  # no model needs to be built
    facts: dict[str, Any] = {name: releases()[name] if pretrained else info(name) for name in names}
    within = [
        name
        for name in names
        if (max_params is None or facts[name].parameters <= max_params)
        and (max_macs is None or facts[name].macs <= max_macs)
    ]
    orders: dict[str, Any] = {
        "name": lambda name: name,
        "parameters": lambda name: facts[name].parameters,
        "macs": lambda name: facts[name].macs,
        "accuracy": lambda name: (-len(facts[name].classes), -facts[name].accuracy),
    }
    return sorted(within, key=orders[sort])


def info(name: str) -> ModelInfo:
    """Facts about a model or released weights, without building it in memory.

    Examples:
        >>> info("convnet").parameters
        18354

    Args:
        name: One of `list_models()` or `list_models(pretrained=True)`.

    Raises:
        UnknownNameError: There is no such model, and no such weights.
    """
    release = releases().get(name)
    if name not in registered() and release is None:
        raise unknown_name("weights" if "." in name else "model", name, releases() if "." in name else registered())
    architecture, config = (
        (name, {}) if name in registered() or release is None else (release.architecture, release.config)
    )
    cls, model = model_class(architecture), skeleton(architecture, config)
    description = (inspect.getdoc(cls) or "").partition("\n")[0]
    parameters = sum(p.numel() for p in model.parameters())
    return ModelInfo(name, description, dict(model.meta.config), parameters, release)  # type: ignore[union-attr, arg-type]
