"""One dict of models: every name that `create` knows."""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from cifarnets.errors import CifarNetsError, InputError, unknown_name
from cifarnets.models.meta import Meta
from cifarnets.models.summary import summary
from cifarnets.weights.index import Release, releases

Class = TypeVar("Class", bound=type[nn.Module])
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


_MODELS: dict[str, type[nn.Module]] = {}


def register(name: str) -> Callable[[Class], Class]:
    """Class decorator: make a `torch.nn.Module` known to `create`, `list_models` and `load`.

    From then on each instance, however it is made, carries `meta`: this name and every argument of its
    constructor, which must be plain values (numbers, strings, booleans, None, and lists or tuples of them).

    Raises:
        InputError: The name is taken, or the constructor has `*args` or `**kwargs`, or an argument without default,
            so that `create(name)` would not do.
    """

    def decorate(cls: Class) -> Class:
        if name in _MODELS:
            raise InputError(f"a model named {name!r} is registered already ({_MODELS[name].__qualname__}).")
        initialise = cls.__init__
        signature = inspect.signature(initialise)
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in signature.parameters.values()):
            raise InputError(
                f"{cls.__qualname__} must name each of its arguments: they are what a weight file records."
            )
        _, *arguments = signature.parameters.values()
        needed = [argument.name for argument in arguments if argument.default is argument.empty]
        if needed:
            raise InputError(
                f"give {', '.join(needed)} of {cls.__qualname__} a default, so that create({name!r}) works."
            )

        @functools.wraps(initialise)
        def remember(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            initialise(self, *args, **kwargs)
            bound = signature.bind(self, *args, **kwargs)
            bound.apply_defaults()
            _, *arguments = bound.arguments.items()
            config = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments}
            self.meta = Meta(name, config)  # type: ignore[assignment]

        cls.__init__ = remember  # type: ignore[method-assign]
        _MODELS[name] = cls
        return cls

    return decorate


def model_class(name: str) -> type[nn.Module]:
    """The class registered under a name.

    Raises:
        UnknownNameError: There is none; the near match is suggested.
    """
    if name not in _MODELS:
        raise unknown_name("model", name, _MODELS)
    return _MODELS[name]


def build(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A registered model from its arguments.

    Raises:
        InputError: It has no such argument, or refuses its value.
    """
    try:
        return model_class(name)(**config)
    except CifarNetsError:
        raise
    except Exception as error:  # a constructor may stumble in any way over what it does not expect
        raise InputError(f"{name!r} cannot be built from {dict(config)}: {error}.") from error


def skeleton(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A registered model as shapes without memory, however large a hostile header says it is.

    With memory where it reads numbers (`.item()`) while it is built, which shapes alone do not have.

    Raises:
        InputError: As `build`.
    """
    try:
        with torch.device("meta"):
            return build(name, config)
    except InputError as error:
        if isinstance(error.__cause__, RuntimeError) and "meta tensors" in str(error.__cause__):
            return build(name, config)
        raise


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
    names = sorted(name for name in (releases() if pretrained else _MODELS) if fnmatchcase(name, pattern))
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
    if name not in _MODELS and release is None:
        raise unknown_name("weights" if "." in name else "model", name, releases() if "." in name else _MODELS)
    architecture, config = (name, {}) if name in _MODELS or release is None else (release.architecture, release.config)
    cls, model = model_class(architecture), skeleton(architecture, config)
    description = (inspect.getdoc(cls) or "").partition("\n")[0]
    parameters = sum(p.numel() for p in model.parameters())
    return ModelInfo(name, description, dict(model.meta.config), parameters, release)  # type: ignore[union-attr, arg-type]
