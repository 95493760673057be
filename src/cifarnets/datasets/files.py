"""The files of CIFAR-10 as they are published: names, checksums, and where they lie."""

import hashlib
import os
from pathlib import Path

from cifarnets._checked import checked
from cifarnets._files import as_path
from cifarnets.errors import DataCorruptError

FOLDER = "cifar-10-batches-py"
TRAIN_FILES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
TEST_FILES = {"test_batch": "40351d587109b95175f43aff81a1287e"}
META_FILES = {"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"}
"""File names and their MD5."""


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder that `root=None` means: `$CIFARNETS_DATA`, else the user's cache folder.

    Examples:
        >>> data_root("data") == Path("data")
        True

    Raises:
        InputError: No file system can have such a path.
    """
    named = root if root is not None else os.environ.get("CIFARNETS_DATA") or None
    if named is not None:
        return as_path(named)
    from platformdirs import user_cache_path

    return user_cache_path("cifarnets", appauthor=False)


def is_complete(root: Path) -> bool:
    """Whether all files of CIFAR-10 are below `root`; their content is checked when they are read."""
    return all((root / FOLDER / name).is_file() for name in TRAIN_FILES | TEST_FILES)


@checked
def find_cifar10(root: str | os.PathLike[str] | None = None) -> Path | None:
    """The folder that holds CIFAR-10, if it is there.

    Examples:
        >>> from cifarnets.datasets import find_cifar10
        >>> find_cifar10("no/such/folder") is None
        True

    Args:
        root: As in `CIFAR10Normalized`.

    Returns:
        The folder, which can be passed as `root`; None where a file is missing.
    """
    folder = data_root(root)
    return folder if is_complete(folder) else None


def check_md5(name: str, content: bytes, md5: str, advice: str) -> None:
    """Refuse anything but the published bytes.

    Args:
        name: What the content is.
        content: All of it.
        md5: What it must have.
        advice: What to do about it, for the message.

    Raises:
        DataCorruptError: They differ.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataCorruptError(
            f"{name} is damaged: its MD5 is {found} instead of {md5} ({len(content):,} bytes). It was not opened; "
            f"{advice}."
        )
