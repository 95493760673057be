"""Arguments of public functions, checked against their type hints."""

import functools
import inspect
import numbers
import os
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

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
            if hint is not Any:
                bound.arguments[name] = value = _plain(value)
                if not allows(hint, value):
                    owner = function.__qualname__.removesuffix(".__init__")
                    raise InputError(f"{name} of {owner} must be {describe(hint)}, not {_shown(value)}.")
        return function(*bound.args, **bound.kwargs)

    return door


def allows(hint: Any, value: Any) -> bool:
    """Whether a type hint allows a value, as far as a quick look tells; True and False are no numbers."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if hint is None or kind is type(None):
        return value is None
    if kind is Literal:
        return isinstance(value, (str, int, float, type(None))) and value in parts
    if kind in (Union, types.UnionType):
        return any(allows(part, value) for part in parts)
    if kind in (int, float):
        return isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
    if kind is tuple and parts and parts[-1] is not ...:
        return isinstance(value, tuple) and len(value) == len(parts) and all(map(allows, parts, value))
    if kind in (list, tuple, Sequence):
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence if kind is Sequence else kind):
            return False
        return not parts or len(value) > 1000 or all(allows(parts[0], item) for item in value)
    if kind is Mapping:
        return isinstance(value, Mapping)
    if kind is Iterable:
        return hasattr(value, "__iter__") or hasattr(value, "__getitem__")
    if kind is type:
        return isinstance(value, type)
    if kind is Callable:
        return callable(value)
    if kind is os.PathLike:
        return hasattr(value, "__fspath__")
    return isinstance(value, kind) if isinstance(kind, type) else True


def describe(hint: Any) -> str:
    """A type hint in words."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if hint is None or kind is type(None):
        return "None"
    if kind is Literal:
        return ", ".join(map(repr, parts[:-1])) + (" or " if parts[:-1] else "") + repr(parts[-1])
    if kind in (Union, types.UnionType):
        words = list(dict.fromkeys(describe(part) for part in parts))
        return ", ".join(words[:-1]) + (" or " if words[:-1] else "") + words[-1]
    if kind in (list, tuple, Sequence) and parts:
        return f"a list of {describe(parts[0])}s"
    words_of = {int: "whole number", float: "number", str: "text", bool: "True or False"}
    return words_of.get(kind, "path" if kind is os.PathLike else getattr(kind, "__name__", str(kind)))


def _shown(value: Any) -> str:
    """A value in a message, on one line: tensors and arrays by dtype and shape."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{type(value).__name__} of {value.dtype} {list(value.shape)}"
    return " ".join(brief(value).split())


def _plain(value: Any) -> Any:
    """NumPy's numbers and lines of numbers as Python's."""
    if isinstance(value, (bool, int, float, str)) or value is None:
        return value
    if type(value).__module__ == "numpy":
        if getattr(value, "ndim", None) == 0 and isinstance(value, numbers.Number):
            return value.item()  # type: ignore[attr-defined]
        if getattr(value, "ndim", None) == 1 and len(value) <= 64:
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
