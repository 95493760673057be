"""Text for a terminal: harmless characters, a sensible number of digits, and the words of the command line."""

import re
from collections.abc import Mapping
from typing import Any

DIGITS = 6
"""Significant digits of a printed figure; float32 has about seven."""

_QUOTED = r"(?<!\w)'[^']*'"
_COMMAND_BESIDE = r"[a-z_]+=[\w.]* \(or (?P<command>`cifarnets [^`]+`)\)"
_ARGUMENT = r"(?<![\w/.-])(?P<name>[a-z_]+)=(?P<value>'[^']*'|[\w.-]*\w)?"
_BARE = (
    r"(?<![\w/.-])(?P<bare>[a-z]+(?:_[a-z]+)+(?![\w/-]|\.\w)|[a-z]+(?=(?: of (?:a recipe|[a-z_]+))? (?:must|has)\b))"
    r"(?: of (?:a recipe|[a-z_]+)(?= (?:must|has)\b))?"  # the parameter of a function, or the field of a recipe
)
_WORDS = re.compile("|".join((_QUOTED, _COMMAND_BESIDE, _ARGUMENT, _BARE)))

ALIASES = {"root": "data_root", "cifar_subset": "classes", "train_val_split": "val"}
"""What the library calls some arguments of the command line."""


def printable(text: object, keep: str = "") -> str:
    r"""Write out the characters that a terminal would obey instead of show, as Python's `repr` does.

    Names come from files and servers. One with an escape sequence could rename the window, hide lines, or worse.

    Examples:
        >>> printable("ship \x1b[2J")
        'ship \\x1b[2J'

    Args:
        text: What to print.
        keep: Characters to leave alone, such as `"\n"` in a whole text.
    """
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in str(text))


def rounded(value: Any) -> Any:
    """Round every float in a nesting of plain values to six significant digits.

    Examples:
        >>> rounded({"accuracy": 0.9980000257492065, "top": [("ship", 1 / 3)]})
        {'accuracy': 0.998, 'top': [['ship', 0.333333]]}
    """
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    return value


def in_options(message: str, flags: Mapping[str, str]) -> str:
    """Say a message of the library in the words of a command: `num_classes=10` is `--num-classes 10` there.

    What stands in quotes is a name or a value, and stays. Where a message names a command beside an argument, as in
    "download=True (or `cifarnets download`)", the command is left.

    Examples:
        >>> in_options("create it with num_classes=10.", {"num_classes": "--num-classes"})
        'create it with --num-classes 10.'
        >>> in_options("epochs must be at least 1, not 0.", {"epochs": "--epochs"})
        '--epochs must be at least 1, not 0.'

    Args:
        message: What an error says.
        flags: The options of the command, by the arguments of the library that they stand for.
    """

    def say(match: "re.Match[str]") -> str:
        if match["command"]:
            return match["command"]
        name = match["name"] or match["bare"]
        flag = flags.get(ALIASES.get(name, name)) if name else None
        if flag is None:
            return match[0]
        value = (match["value"] or "").strip("'")
        return flag if value in ("", "True") else f"{flag} {value}"

    return _WORDS.sub(say, message)
