"""The fields of a dataclass: whether a value fits its type hint, what a word means, and what the docstring says."""

import inspect
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LONG = 1000
"""Items of a list that are looked at one by one; a longer one is left to whom it is for."""


def hints_of(cls: type) -> dict[str, Any]:
    """Return the type hint of each field.

    Examples:
        >>> from cifarnets.recipes import Recipe
        >>> hints_of(Recipe)["lr"]
        <class 'float'>
    """
    return get_type_hints(cls)


def without_none(hint: Any) -> Any:
    """Return the hint of a value that is there: `int` for `int | None`.

    Examples:
        >>> without_none(float | None)
        <class 'float'>
    """
    parts = [part for part in get_args(hint) if part is not type(None)]
    return parts[0] if get_origin(hint) in (Union, types.UnionType) and len(parts) == 1 else hint


def kind_of(hint: Any) -> Any:
    """Return the class, or `Literal`, that a hint is built on: `Mapping` for `Mapping[str, Any]`.

    Examples:
        >>> kind_of(list[str])
        <class 'list'>
    """
    return get_origin(hint) or hint


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value is what a type hint asks for; True and False are no numbers.

    A tuple does for a list, and any sequence for another one but text; a hint that is no class allows everything.

    Examples:
        >>> fits(3, float | None), fits(True, int), fits(["cat"], list[str])
        (True, False, True)
    """
    kind, parts = kind_of(hint), get_args(hint)
    if kind is Any:
        return True
    if kind is Literal:
        return isinstance(value, (str, int, float, type(None))) and value in parts
    if kind in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if kind in (list, tuple, Sequence):
        if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
            return False
        return not parts or len(value) > LONG or all(fits(item, parts[0]) for item in value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if kind is type(None) or hint is None:
        return value is None
    if kind in (int, float) and isinstance(value, bool):
        return False
    if kind is Iterable:
        return getattr(value, "ndim", 1) > 0 and (hasattr(value, "__iter__") or hasattr(value, "__getitem__"))
    if kind is Callable:
        return callable(value)
    return isinstance(value, (int, float) if kind is float else kind) if isinstance(kind, type) else True


def from_text(text: str, hint: Any) -> Any:
    """Read a value of a command line as the type hint of its field says: numbers, text, or words between commas.

    Examples:
        >>> from_text("0.5", float | None), from_text("cat,dog", list[str])
        (0.5, ('cat', 'dog'))

    Raises:
        ValueError: It is no such value.
    """
    hint = without_none(hint)
    kind = kind_of(hint)
    if kind in (list, tuple, Sequence):
        return tuple(from_text(part, get_args(hint)[0]) for part in text.split(","))
    if kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            raise ValueError(f"must be {name_of(hint)}, not {text!r}") from None
    return text


def name_of(hint: Any) -> str:
    """Say in words what a type hint asks for, for an error message.

    Examples:
        >>> name_of(int | None)
        'a whole number or nothing'
    """
    kind, parts = kind_of(hint), get_args(hint)
    if kind is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if kind in (Union, types.UnionType):
        return " or ".join(name_of(part) for part in parts)
    if kind in (list, tuple, Sequence):
        many = {int: "whole numbers", float: "numbers"}
        return f"a list of {many.get(parts[0], name_of(parts[0]))}" if parts else "a list"
    words: dict[Any, str] = {
        int: "a whole number",
        float: "a number",
        str: "text",
        bool: "true or false",
        Mapping: "a table",
    }
    words |= {os.PathLike: "a path", Callable: "a function", Iterable: "a loader, or a list"}
    return "nothing" if kind in (type(None), None) else words.get(kind, getattr(kind, "__name__", str(kind)))


def help_of(cls: type) -> dict[str, str]:
    """Return what the `Attributes:` of a class's docstring say of each field.

    Examples:
        >>> from cifarnets.recipes import Recipe
        >>> help_of(Recipe)["epochs"]
        'passes over the training images'
    """
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
