"""Files that are either whole or untouched."""

import contextlib
import os
import tempfile
from pathlib import Path

from cifarnets.errors import OutputError


def write_atomic(path: str | os.PathLike[str], content: bytes | str) -> Path:
    """Write a whole file: to a temporary name beside it, flushed to disk, then renamed.

    Missing parent folders are made. A reader sees the old file or the new one, never a part; on any
    failure the old file survives.

    Raises:
        OutputError: The folder cannot be made or written, or the disk is full.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).chmod(0o666 & ~_umask())
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except OSError as error:
        kept = " The file that was there is unchanged." if path.is_file() else ""
        raise OutputError(f"cannot write {str(path)!r}: {error.strerror or error}.{kept}") from error
    return path


def clear_leftovers(folder: Path) -> None:
    """Delete the temporary files that processes killed while they wrote have left in a folder."""
    for leftover in folder.glob(".*.*.tmp"):
        leftover.unlink(missing_ok=True)


def _umask() -> int:
    """The process's umask; mkstemp makes files private, which a shared run folder should not be."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
