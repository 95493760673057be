"""Arguments of public functions, checked against their type hints."""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, get_type_hints

import numpy as np
from torch import Tensor, nn

from cifarnets._fields import fits, name_of
from cifarnets.errors import InputError, brief

P = ParamSpec("P")
R = TypeVar("R")


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments that their type hints do not allow, with an `InputError` that names them.

    NumPy's numbers are taken as Python's. A hint that cannot be resolved, or that says nothing, allows everything.
    """
    signature = inspect.signature(function)
    hints: dict[str, Any] | None = None

    @functools.wraps(function)
    def door(*args: P.args, **kwargs: P.kwargs) -> R:
        nonlocal hints
        if hints is None:  # at the first call, when every module is there to look names up in
            hints = {name: _resolve(parameter, function) for name, parameter in signature.parameters.items()}
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return function(*args, **kwargs)  # which says itself what is missing, or too much
        for name, value in bound.arguments.items():
            hint = hints[name]
            if hint is not Any and not fits(value, hint):
                plain = _plain(value)
                if not fits(plain, hint):
                    owner = function.__qualname__.removesuffix(".__init__")
                    advice = f": load it first, cifarnets.load({_shown(value)})" if _is_named(value, hint) else ""
                    raise InputError(f"{name} of {owner} must be {name_of(hint)}, not {_shown(value)}{advice}.")
                bound.arguments[name] = plain
        return function(*bound.args, **bound.kwargs)

    return door


def _shown(value: Any) -> str:
    """A value in a message, on one line: tensors and arrays by dtype and shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of {value.dtype} {list(value.shape)}"
    return " ".join(brief(value).split())


def _is_named(value: Any, hint: Any) -> bool:
    """Whether this is the name or the path of a model where the model itself is wanted."""
    return isinstance(value, str) and isinstance(hint, type) and issubclass(hint, nn.Module)


def _plain(value: Any) -> Any:
    """NumPy's numbers, and short lines of numbers of NumPy and torch, as Python's."""
    if isinstance(value, (np.integer, np.floating)):
        return value.item()
    if isinstance(value, (np.ndarray, Tensor)) and value.ndim == 1 and len(value) <= 64:
        return value.tolist()
    return value


def _resolve(parameter: inspect.Parameter, function: Callable[..., Any]) -> Any:
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or parameter.annotation is parameter.empty:
        return Any
    holder = types.SimpleNamespace(__annotations__={"value": parameter.annotation})
    try:
        return get_type_hints(holder, inspect.unwrap(function).__globals__)["value"]
    except Exception:  # a name that only type checkers see
        return Any
