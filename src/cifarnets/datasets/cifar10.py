"""CIFAR-10 (Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"), checked and resident."""

import io
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cifarnets._files import open_regular
from cifarnets.datasets.files import FOLDER, TEST_FILES, TRAIN_FILES, check_md5, data_root, is_complete
from cifarnets.datasets.images import ARTICLE_MEAN, ARTICLE_STD, ImageDataset, View
from cifarnets.errors import DataNotFoundError, InputError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

DATA_LICENSE = (
    "none stated; its authors ask to cite Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images"
)
"""The terms of CIFAR-10, as its page has them: https://www.cs.toronto.edu/~kriz/cifar.html"""


class CIFAR10Normalized(ImageDataset):
    """CIFAR-10, normalised per channel (article, steps 1-7): 50,000 training or 10,000 test images.

    Items are `(float32 tensor [3, 32, 32], int label)`. All images stay in memory as one uint8 tensor, so a plain
    `torch.utils.data.DataLoader` is fast without workers, and `BatchLoader` is faster still.

    Examples:
        >>> from cifarnets.datasets import CIFAR10Normalized
        >>> train = CIFAR10Normalized(train=True, download=True)  # doctest: +SKIP
        >>> image, label = train[79]  # doctest: +SKIP
        >>> image.shape, train.classes[label]  # doctest: +SKIP
        (torch.Size([3, 32, 32]), 'automobile')

    Args:
        root: The folder that holds `cifar-10-batches-py`, as torchvision lays it out. None means the
            folder `$CIFARNETS_DATA`, or the user's cache folder where that is not set.
        train: True for the training images, False for the test images (which the article calls validation).
        download: Fetch the files (170 MB) if they are not there.
        transform: Called with an item's picture, as `view` gives it.
        mean: Per channel; the article's constants by default. `channel_stats` computes the exact ones.
        std: Per channel; the article's constants by default.
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
        *,
        download: bool = False,
        transform: Callable[[Any], Any] | None = None,
        mean: Sequence[float] = ARTICLE_MEAN,
        std: Sequence[float] = ARTICLE_STD,
        view: View = "normalized",
    ) -> None:
        for name, value in (("train", train), ("download", download)):
            if not isinstance(value, (bool, np.bool_)):  # a transform in the wrong place, say
                raise InputError(f"{name} must be True or False, not {value!r}.")
        folder = data_root(root)
        if download and not is_complete(folder):
            from cifarnets.datasets.download import download_cifar10

            download_cifar10(folder)
        files = TRAIN_FILES if train else TEST_FILES
        batches = [_read_batch(folder / FOLDER / name, md5) for name, md5 in files.items()]
        super().__init__(
            torch.from_numpy(np.concatenate([images for images, _ in batches])),
            [label for _, labels in batches for label in labels],
            CLASSES,
            mean=mean,
            std=std,
            transform=transform,
            view=view,
            split="train" if train else "test",
        )
        self.root = folder


def _read_batch(path: Path, md5: str) -> tuple[np.ndarray[Any, np.dtype[np.uint8]], list[int]]:
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise DataNotFoundError(
            f"no CIFAR-10 at {str(path)!r} ({error.strerror}). Pass root=, the folder that holds {FOLDER!r}, or set "
            "CIFARNETS_DATA to it, or use download=True (or `cifarnets download`)."
        ) from error
    # The files are pickles, which can run code: only the published bytes are ever opened.
    check_md5(str(path), content, md5, "delete it and use download=True (or `cifarnets download`)")
    batch = pickle.load(io.BytesIO(content), encoding="bytes")
    return batch[b"data"].reshape(-1, 3, 32, 32), batch[b"labels"]
