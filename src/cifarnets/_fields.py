"""The fields of a dataclass: whether a value fits its type hint, and what the docstring says of it."""

import inspect
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def hints_of(cls: type) -> dict[str, Any]:
    """The type hint of each field."""
    return get_type_hints(cls)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value of JSON or TOML is what a type hint asks for; True and False are no numbers."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Any:
        return True
    if kind is Literal:
        return value in parts
    if kind in (Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if kind in (tuple, Sequence):
        return isinstance(value, (list, tuple)) and all(fits(item, parts[0]) for item in value)
    if kind is Mapping:
        return isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    if kind is type(None) or hint is None:
        return value is None
    if kind in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def name_of(hint: Any) -> str:
    """A type hint in words, for an error message."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if kind in (Union, types.UnionType):
        return " or ".join(name_of(part) for part in parts)
    if kind in (tuple, Sequence):
        return f"a list of {name_of(parts[0])}"
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Mapping: "a table"}
    return "nothing" if kind in (type(None), None) else words.get(kind, getattr(kind, "__name__", str(kind)))


def help_of(cls: type) -> dict[str, str]:
    """What the `Attributes:` of a Google-style docstring say of each field."""
    _, _, section = (inspect.getdoc(cls) or "").partition("Attributes:\n")
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in entries}
