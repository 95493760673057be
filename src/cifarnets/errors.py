"""Every error that cifarnets raises on purpose.

Catch `CifarNetsError` to catch all of them. Most classes also derive from the built-in class in brackets,
so `except FileNotFoundError` works too:

    CifarNetsError
    ├── DataNotFoundError      (FileNotFoundError)  no CIFAR-10 in the folder
    ├── DataCorruptError       (ValueError)         a data file is not the published one
    ├── DownloadError          (OSError)            no source could deliver a file
    ├── UploadError            (OSError)            the Hub did not take a model
    ├── UnknownNameError       (KeyError)           no such model, class, optimizer …
    ├── InputError             (ValueError)         a value that cannot be used
    ├── WeightsError           (ValueError)         a weight file that cannot be trusted or does not fit
    ├── OutputError            (OSError)            a file or folder that cannot be written
    ├── MissingExtraError      (ImportError)        an optional package is not installed
    └── TrainingError          (RuntimeError)       a fit that cannot continue
        ├── CallbackError                           a callback raised an error, which is the `__cause__`
        └── DivergedError                           the loss is no longer a finite number
"""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 1200
"""Characters of a message."""


class CifarNetsError(Exception):
    """Base of all errors of this library. The message repeats what was passed and says what to do.

    Examples:
        >>> import cifarnets
        >>> try:
        ...     cifarnets.create("convnet", num_classes=-1)
        ... except cifarnets.CifarNetsError as error:
        ...     print(type(error).__name__)
        InputError
    """

    def __str__(self) -> str:
        # KeyError would print its message in quotes.
        message = str(self.args[0]) if len(self.args) == 1 else super().__str__()
        if len(message) > LONGEST:  # it repeats what was passed, and what to do stands at its end
            message = f"{message[: LONGEST // 2]} … {message[-LONGEST // 3 :]}"
        return _printable(message)


class DataNotFoundError(CifarNetsError, FileNotFoundError):
    """The dataset's files are not in the folder."""


class DataCorruptError(CifarNetsError, ValueError):
    """A dataset file differs from the published one; the library did not unpickle it."""


class DownloadError(CifarNetsError, OSError):
    """No source of a download delivered the file."""


class UploadError(CifarNetsError, OSError):
    """The Hub did not take what was pushed. The message says what it lacks: a token, a right, a network."""


class UnknownNameError(CifarNetsError, KeyError):
    """A name that is not registered."""


class InputError(CifarNetsError, ValueError):
    """An argument, image or batch that cannot be used."""


class WeightsError(CifarNetsError, ValueError):
    """A weight file that is damaged, unsafe, of another format, or does not fit the model."""


class OutputError(CifarNetsError, OSError):
    """A file or folder that could not be written; the old content is unchanged."""


class MissingExtraError(CifarNetsError, ImportError):
    """A feature needs a package that an optional extra installs."""


class TrainingError(CifarNetsError, RuntimeError):
    """A fit that cannot continue."""


class CallbackError(TrainingError):
    """A callback raised an error. The message names callback and hook; `__cause__` is the callback's own error."""


class DivergedError(TrainingError):
    """The loss became NaN or infinite."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> UnknownNameError:
    """Make the error for a misspelt name: it repeats the name, suggests the nearest one and lists the known ones."""
    choices = sorted(known)
    near = get_close_matches(str(name).lower(), choices, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return UnknownNameError(f"unknown {kind} {name!r}.{hint} Available: {', '.join(choices)}.")


def brief(value: object, length: int = 200, *, quotes: bool = True) -> str:
    r"""A value as a message shows it: its `repr`, which is cut where it is long, and never fails.

    Examples:
        >>> from cifarnets.errors import brief
        >>> brief("a\x1b[31m"), brief(list(range(1000)), 20)
        ("'a\\x1b[31m'", '[0, 1, 2, 3, 4, 5, 6… (4,890 characters)')

    Args:
        value: What a user passed, or what a file holds.
        length: The characters from which on it is cut.
        quotes: False for text that is shown without quotes.
    """
    try:
        # A text may have gigabytes, and its repr four times as many.
        text = value[: 4 * length] if isinstance(value, str) else repr(value)
        whole = len(value) if isinstance(value, str) else len(text)
    except Exception as error:  # a whole number of 5,000 digits has no repr, and a class may have a broken one
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"
    shown = repr(text[:length]) if isinstance(value, str) and quotes else _printable(text[:length])
    return shown if whole <= length else f"{shown}… ({whole:,} characters)"


def _printable(text: str) -> str:
    """Text without control characters, which a terminal would obey: they are escaped as in a `repr`."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
