"""CIFAR-10 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"), checked and resident."""

import hashlib
import io
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cifarnets.datasets.images import ARTICLE_MEAN, ARTICLE_STD, ImageDataset, View
from cifarnets.errors import DataCorruptError, DataNotFoundError, InputError

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
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class CIFAR10Normalized(ImageDataset):
    """CIFAR-10, normalised per channel (article, steps 1-7): 50,000 training or 10,000 test images.

    Items are `(float32 tensor [3, 32, 32], int label)`. All images stay in memory as one uint8 tensor, so a plain
    `torch.utils.data.DataLoader` is fast without workers, and `BatchLoader` faster still.

    Args:
        root: The folder that holds `cifar-10-batches-py`, as torchvision lays it out. None is the
            folder of `$CIFARNETS_DATA`, and where that is not set the user's cache folder.
        train: The training images, or the test images (which the article calls validation).
        download: Fetch the files (170 MB) if they are not there.
        mean: Per channel; by default the article's constants. `channel_stats` gives the exact ones.
        std: Likewise.
        transform: Called with an item's picture, as `view` gives it.
        view: `"normalized"`; `"unit"` for tensors in 0..1; `"pil"` for PIL images as in step 2.

    Raises:
        DataNotFoundError: There is no CIFAR-10 in the folder, and `download` is false.
        DataCorruptError: A file is not the published one (MD5); it is not unpickled.
        DownloadError: `download` is true and no source delivered the files.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        train: bool = True,
        download: bool = False,
        mean: Sequence[float] = ARTICLE_MEAN,
        std: Sequence[float] = ARTICLE_STD,
        transform: Callable[[Any], Any] | None = None,
        *,
        view: View = "normalized",
    ) -> None:
        folder = data_root(root)
        if download and not is_complete(folder):
            from cifarnets.datasets.download import download_cifar10

            download_cifar10(folder)
        files = TRAIN_FILES if train else TEST_FILES
        batches = [_read_batch(folder / FOLDER / name, md5) for name, md5 in files.items()]
        super().__init__(
            torch.from_numpy(np.concatenate([images for images, _ in batches])),
            torch.tensor([label for _, labels in batches for label in labels]),
            CLASSES,
            mean=mean,
            std=std,
            transform=transform,
            view=view,
            split="train" if train else "test",
        )
        self.root = folder


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """The folder that `root=None` stands for: `$CIFARNETS_DATA`, else the user's cache folder.

    Raises:
        InputError: It begins with the home of a user that there is not.
    """
    named = root if root is not None else os.environ.get("CIFARNETS_DATA") or None
    if named is not None:
        try:
            return Path(named).expanduser()
        except RuntimeError as error:
            raise InputError(f"there is no folder {str(named)!r}: {error}") from error
    from platformdirs import user_cache_path

    return user_cache_path("cifarnets", appauthor=False)


def is_complete(root: Path) -> bool:
    """Whether all files of CIFAR-10 are below `root` (their content is checked when they are read)."""
    return all((root / FOLDER / name).is_file() for name in TRAIN_FILES | TEST_FILES)


def check_md5(name: str, content: bytes, md5: str) -> None:
    """Refuse anything but the published bytes.

    Raises:
        DataCorruptError: They differ.
    """
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if found != md5:
        raise DataCorruptError(
            f"{name} is damaged: its MD5 is {found} instead of {md5} ({len(content):,} bytes). It was not opened; "
            "delete it and use download=True (or `cifarnets download`)."
        )


def _read_batch(path: Path, md5: str) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[int]]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataNotFoundError(
            f"no CIFAR-10 at {str(path)!r} ({error.strerror}). Pass root=, the folder that holds {FOLDER!r}, or set "
            "CIFARNETS_DATA to it, or use download=True (or `cifarnets download`)."
        ) from error
    # The files are pickles, which can run code: only the published bytes are ever opened.
    check_md5(str(path), content, md5)
    batch = pickle.load(io.BytesIO(content), encoding="bytes")
    return batch[b"data"].reshape(-1, 3, 32, 32), batch[b"labels"]
