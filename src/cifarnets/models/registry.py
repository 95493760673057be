"""The dict of models by name."""

import functools
import inspect
import re
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from cifarnets._checked import checked
from cifarnets.errors import CifarNetsError, InputError, UnknownNameError, brief, unknown_name
from cifarnets.models.metadata import ModelMeta

Class = TypeVar("Class", bound=type[nn.Module])
_MODELS: dict[str, type[nn.Module]] = {}


@checked
def register(name: str) -> Callable[[Class], Class]:
    """Class decorator that makes a `torch.nn.Module` known to `create`, `list_models` and `load`.

    Each instance then has `meta`: the name, and every argument of its constructor. These must be plain values: numbers,
    strings, booleans, None, and lists or tuples of them.

    A class that is defined again, as when a cell of a notebook runs twice, replaces the former one.

    Examples:
        >>> import torch
        >>> from cifarnets.models import create, register
        >>> @register("softmax_regression")
        ... class SoftmaxRegression(torch.nn.Module):
        ...     def __init__(self, num_classes=10):
        ...         super().__init__()
        ...         self.head = torch.nn.Linear(3072, num_classes)
        ...
        ...     def forward(self, x):
        ...         return self.head(x.flatten(1))
        >>> create("softmax_regression", num_classes=3).meta.config
        {'num_classes': 3}

    Args:
        name: What `create` takes.

    Raises:
        InputError: Another class has the name; or the constructor has `*args`, `**kwargs` or an argument without a
            default, so that `create(name)` would fail.
    """

    def decorate(cls: Class) -> Class:
        if name in _MODELS and not is_same_class(_MODELS[name], cls):
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

        is_ours = cls.__module__.startswith("cifarnets.")  # others' hints may be looser than what they take
        construct: Any = checked(initialise) if is_ours else initialise

        @functools.wraps(initialise)
        def remember(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            bound = signature.bind(self, *args, **kwargs)
            try:
                construct(self, *args, **kwargs)
            except CifarNetsError:
                raise
            except Exception as error:  # of torch's, for a value that no layer takes
                if not is_ours:
                    raise
                given = brief(dict(list(bound.arguments.items())[1:]))
                raise InputError(f"{cls.__qualname__} cannot be built from {given}: {error}.") from error
            bound.apply_defaults()
            _, *arguments = bound.arguments.items()
            config = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments}
            self.meta = ModelMeta(name, config)  # type: ignore[assignment]

        cls.__init__ = remember  # type: ignore[method-assign]
        _MODELS[name] = cls
        return cls

    return decorate


def is_same_class(one: type, other: type) -> bool:
    """Whether two classes have one definition: the same name in the same module.

    Examples:
        >>> from cifarnets.models import ConvNet, FCNet
        >>> from cifarnets.models.registry import is_same_class
        >>> is_same_class(ConvNet, ConvNet), is_same_class(ConvNet, FCNet)
        (True, False)
    """
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def registered() -> list[str]:
    """All registered names, sorted.

    Examples:
        >>> from cifarnets.models.registry import registered
        >>> "convnet" in registered()
        True
    """
    return sorted(_MODELS)


def model_class(name: str) -> type[nn.Module]:
    """The class registered under a name.

    Examples:
        >>> from cifarnets.models.registry import model_class
        >>> model_class("fcnet").__name__
        'FCNet'

    Raises:
        UnknownNameError: There is none; the message suggests names.
    """
    if name not in _MODELS:
        raise unknown_model(name)
    return _MODELS[name]


def paper_of(name: str) -> str | None:
    """The address of the paper that a registered model is from: the first one that its module's docstring cites.

    Examples:
        >>> from cifarnets.models.registry import paper_of
        >>> paper_of("resnet20")
        'https://arxiv.org/abs/1512.03385'

    Raises:
        UnknownNameError: There is no such model.
    """
    text = getattr(sys.modules.get(model_class(name).__module__), "__doc__", None) or ""
    found = re.search(r"arXiv:(\d{4}\.\d{4,5})|https?://[^\s)>]+", text)
    if found is None:
        return None
    return f"https://arxiv.org/abs/{found[1]}" if found[1] else found[0]


def unknown_model(name: str) -> UnknownNameError:
    """The error for a name that no model has: it suggests the nearest name, or lists the family of the model.

    Examples:
        >>> from cifarnets.models.registry import unknown_model
        >>> print(str(unknown_model("vgg13_bn")).partition(" Available")[0])
        unknown model 'vgg13_bn'. Of this family there are vgg11_bn, vgg16_bn.
    """
    # A number tells two nets of a family apart: resnet110 is no misspelt resnet101.
    family = sorted((known for known in _MODELS if _family(known) == _family(str(name))), key=lambda n: (len(n), n))
    if not family:
        return unknown_name("model", name, _MODELS)
    return UnknownNameError(
        f"unknown model {brief(name)}. Of this family there are {', '.join(family)}. "
        f"Available: {', '.join(registered())}."
    )


def _family(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower())


def build(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A registered model from its arguments.

    Examples:
        >>> from cifarnets.models.registry import build
        >>> build("convnet", {"num_classes": 3}).num_classes
        3

    Raises:
        InputError: The model has no such argument, or refuses its value.
    """
    try:
        return model_class(name)(**config)
    except CifarNetsError:
        raise
    except Exception as error:  # a constructor may raise anything for a value that it does not expect
        raise InputError(f"{name!r} cannot be built from {dict(config)}: {error}.") from error


def skeleton(name: str, config: Mapping[str, Any]) -> nn.Module:
    """A registered model on torch's meta device: shapes without memory, so a hostile header cannot ask for any.

    A model that reads numbers (`.item()`) in its constructor gets memory, because shapes have no numbers.

    Examples:
        >>> from cifarnets.models.registry import skeleton
        >>> skeleton("vgg16_bn", {}).head.weight.device
        device(type='meta')

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
