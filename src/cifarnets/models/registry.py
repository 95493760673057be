"""One dict of models: every name that `create` knows."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from cifarnets.errors import CifarNetsError, InputError, unknown_name
from cifarnets.models.metadata import ModelMeta

Class = TypeVar("Class", bound=type[nn.Module])
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
            self.meta = ModelMeta(name, config)  # type: ignore[assignment]

        cls.__init__ = remember  # type: ignore[method-assign]
        _MODELS[name] = cls
        return cls

    return decorate


def registered() -> list[str]:
    """All registered names, sorted."""
    return sorted(_MODELS)


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
