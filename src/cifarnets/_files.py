"""Paths that can be used, and files that are either whole or untouched."""

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import IO

from cifarnets.errors import InputError, OutputError

try:
    import fcntl
except ImportError:  # Windows, which refuses to delete a file that is open
    fcntl = None  # type: ignore[assignment]

PREFIX, SUFFIX = ".cifarnets-", ".tmp"
"""How the names of our temporary files begin and end."""

LONGEST_NAME, LONGEST_PATH = 255, 4096
"""Bytes that common file systems allow for one name, and for a whole path."""


def as_path(path: str | os.PathLike[str]) -> Path:
    """The path that a user means: `~` is the home folder.

    Examples:
        >>> as_path("~/model.safetensors") == Path.home() / "model.safetensors"
        True

    Raises:
        InputError: No file system can have such a path, or it begins with the home of an unknown user.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str):  # bytes are no text either
        raise InputError(f"a path must be text or a pathlib.Path, not {type(path).__name__}.")
    shown = repr(text) if len(text) <= 100 else f"{text[:80]!r}… ({len(text):,} characters)"
    if "\0" in text:
        raise InputError(f"the path {shown} cannot be used: it contains the character NUL.")
    try:
        expanded = Path(text).expanduser()
        longest = max((len(os.fsencode(part)) for part in expanded.parts), default=0)
        total = len(os.fsencode(expanded))
    except UnicodeError as error:
        raise InputError(f"the path {shown} cannot be used: this system cannot encode it.") from error
    except RuntimeError as error:
        raise InputError(
            f"the path {shown} cannot be used: {error} For a file whose name begins with '~', write './~…'."
        ) from error
    if longest > LONGEST_NAME or total > LONGEST_PATH:
        raise InputError(
            f"the path {shown} cannot be used: a name may have {LONGEST_NAME} bytes and a path {LONGEST_PATH:,}."
        )
    return expanded


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write a whole file: to a temporary name beside it, flushed to disk, then renamed.

    Missing parent folders are made. A reader sees the old file or the new one, never a part. If anything fails, the
    old file survives. A file that is replaced keeps its permissions.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(f"{folder}/new/notes.txt", "hello").read_text()
        'hello'

    Raises:
        OutputError: The folder cannot be made or written, or the disk is full.
        InputError: As for `as_path`.
    """
    path = as_path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_dir():  # such as /dev/null, which root could replace
            raise OSError(0, "it is no regular file")
        mode = _mode(path)
        # Short whatever the file is called, and recognisable.
        temporary = path.parent / f"{PREFIX}{secrets.token_hex(8)}{SUFFIX}"
        try:
            with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode or 0o666)) as file:
                _lock(file)
                file.write(data)
                file.flush()
                if mode is not None:  # the umask took some of it, and not every file system knows permissions
                    with contextlib.suppress(OSError):
                        temporary.chmod(mode)
                os.fsync(file.fileno())
                if fcntl is not None:
                    temporary.replace(path)  # locked until it has its name
            if fcntl is None:
                temporary.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        blocked = next((parent for parent in path.parents if parent.exists() and not parent.is_dir()), None)
        if blocked is not None:
            raise OutputError(f"cannot write {str(path)!r}: {str(blocked)!r} is a file, not a folder.") from error
        kept = " The file that was there is unchanged." if path.is_file() else ""
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}.{kept}") from error
    return path


def clear_leftovers(folder: str | os.PathLike[str]) -> None:
    """Delete the temporary files that killed processes have left in a folder.

    Only files that `write_atomic` made are deleted, and only those whose writer has ended: a living one holds a lock.
    """
    for leftover in Path(folder).glob(f"{PREFIX}*{SUFFIX}"):
        with contextlib.suppress(OSError), open_regular(leftover) as file:
            # A writer locks its file before it writes into it, so an empty one may belong to a living writer.
            if os.fstat(file.fileno()).st_size and _lock(file):
                if fcntl is None:
                    file.close()
                leftover.unlink()


def is_leftover(path: Path) -> bool:
    """Whether the file has the name of a temporary file of `write_atomic`."""
    return path.name.startswith(PREFIX) and path.name.endswith(SUFFIX)


def open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file for reading; a pipe or a device, where reading could wait for ever, is an OSError."""
    file = open(  # noqa: SIM115
        path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))
    )
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, "it is no regular file", str(path))
    return file


def _mode(path: Path) -> int | None:
    """The permissions of a file that is there."""
    try:
        found = path.stat().st_mode
    except OSError:
        return None
    return stat.S_IMODE(found) if stat.S_ISREG(found) else None


def _lock(file: IO[bytes]) -> bool:
    """Hold a file until it is closed; false if another holds it, or if this file system has no locks."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
