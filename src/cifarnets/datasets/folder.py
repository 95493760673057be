"""Pictures in class folders: `cats/1.jpg`, `dogs/rex.png`."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cifarnets._files import as_path
from cifarnets._progress import progress_bar
from cifarnets.datasets.pictures import find_pictures, read_ahead, to_picture
from cifarnets.errors import CifarNetsError, DataNotFoundError, InputError, UnknownNameError, brief

NOT_CLASSES = ("__MACOSX", "__pycache__")
"""Folders that programs leave in others."""

NAMED = 10
"""Bad files that a message names."""

_LOG = logging.getLogger("cifarnets")


def class_folders(folder: str | os.PathLike[str]) -> list[Path]:
    """List the class folders in a folder, sorted by name; hidden ones are left out.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("dog", "cat", ".git"):
        ...         Path(folder, name).mkdir()
        ...     [path.name for path in class_folders(folder)]
        ['cat', 'dog']

    Raises:
        DataNotFoundError: There is no such folder, or there is none in it.
        InputError: The name of a class cannot be printed.
    """
    root = as_path(folder)
    try:
        found = [path for path in root.iterdir() if path.is_dir()]
    except OSError as error:
        raise DataNotFoundError(f"cannot read the folder {str(root)!r}: {error.strerror or error}.") from error
    found = sorted(path for path in found if not path.name.startswith(".") and path.name not in NOT_CLASSES)
    if not found:
        raise DataNotFoundError(
            f"the folder {str(root)!r} holds no class folders: put the pictures of each class into a folder of its "
            "name, such as cats/1.jpg and dogs/1.jpg."
        )
    if strange := [path.name for path in found if not path.name.isprintable()]:
        raise InputError(f"the class folder {strange[0]!r} has a name that cannot be printed: rename it.")
    return found


def read_folder(
    folder: str | os.PathLike[str],
    size: tuple[int, int],
    channels: int,
    classes: Sequence[str] | None,
    skip_bad: bool,
    progress: bool,
) -> tuple[Tensor, list[int], tuple[str, ...]]:
    """Read all pictures in class folders: uint8 `[N, C, H, W]`, their labels, and the class names.

    Raises:
        DataNotFoundError: There is no folder, or no class folder in it.
        UnknownNameError: A folder is none of the classes.
        InputError: A class folder holds no picture; or files are bad, and are not to be skipped.
    """
    found = class_folders(folder)
    names = [path.name for path in found] if classes is None else list(classes)
    if strange := [path.name for path in found if path.name not in names]:
        raise UnknownNameError(
            f"the folder {str(folder)!r} has {', '.join(map(brief, strange[:NAMED]))}, which is none of the classes "
            f"{', '.join(map(brief, names[:NAMED]))}: the name of a class folder is that of its class."
        )
    files: list[str] = []
    labels: list[int] = []
    for path in found:
        pictures = find_pictures(path)
        if not pictures:
            raise InputError(f"the class folder {str(path)!r} holds no picture: fill it, or remove it.")
        files += map(str, pictures)
        labels += [names.index(path.name)] * len(pictures)
    root = as_path(folder)
    if outside := [path for path in find_pictures(root) if path.parent == root]:
        _LOG.warning("%d pictures in %r lie in no class folder, and are left out.", len(outside), str(folder))
    images = torch.empty(len(files), channels, *size, dtype=torch.uint8, device="cpu")
    good, bad = [], []
    with progress_bar(
        None if progress else False,
        total=len(files),
        desc=f"pictures in {Path(folder).name}",
        delay=0.5,
        unit="picture",
        leave=False,
    ) as bar:
        for index, (_, picture) in enumerate(read_ahead(files, lambda file: to_picture(file, channels, size))):
            if isinstance(picture, CifarNetsError):
                bad.append(str(picture))
            else:
                images[index] = (picture * 255).round()
                good.append(index)
            bar.update()
    if bad:
        listed = "\n".join(f"  {message}" for message in bad[:NAMED])
        more = f"\n  and {len(bad) - NAMED:,} more" if len(bad) > NAMED else ""
        counted = f"{len(bad):,} of {len(files):,} pictures in {str(folder)!r} cannot be used"
        if not skip_bad or not good:
            raise InputError(f"{counted}:\n{listed}{more}\nRemove them, or leave them out with skip_bad=True.")
        _LOG.warning("%s, and are left out:\n%s%s", counted, listed, more)
        images, labels = images[good], [labels[index] for index in good]
    return images, labels, tuple(names)
