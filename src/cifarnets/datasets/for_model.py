"""The images that a model was trained for."""

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from cifarnets._checked import checked
from cifarnets.datasets.cifar10 import CIFAR10Normalized
from cifarnets.datasets.images import ARTICLE_MEAN, ARTICLE_STD, ImageDataset
from cifarnets.datasets.subset import cifar_subset
from cifarnets.datasets.synthetic import SyntheticCIFAR10


@runtime_checkable
class TrainedOn(Protocol):
    """Facts about a model's images: `model.meta`, a row of the index of weights, or a look-alike.

    `training`, where there is one, says whether the images were drawn (`{"synthetic": True}`).
    """

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the outputs, in their order; None for all classes."""

    @property
    def mean(self) -> Sequence[float] | None:
        """Per channel; None for the article's constants."""

    @property
    def std(self) -> Sequence[float] | None:
        """Per channel; None for the article's constants."""


@checked
def dataset_for(
    meta: TrainedOn, root: str | os.PathLike[str] | None = None, train: bool = False, *, download: bool = False
) -> ImageDataset:
    """The images that a model was trained for: its classes, in its order, normalised with its constants.

    Examples:
        >>> from types import SimpleNamespace
        >>> from cifarnets.datasets import dataset_for
        >>> meta = SimpleNamespace(classes=("ring", "disc"), mean=None, std=None, training={"synthetic": True})
        >>> dataset_for(meta).classes
        ('ring', 'disc')

    Args:
        meta: `model.meta`.
        root: Where CIFAR-10 lies; see `CIFAR10Normalized`.
        train: The training images, or the test images.
        download: Fetch CIFAR-10 if it is not there.

    Raises:
        UnknownNameError: The model has a class that CIFAR-10 has not.
        DataNotFoundError: CIFAR-10 is not there.
    """
    training: Mapping[str, Any] = getattr(meta, "training", None) or {}
    mean, std = meta.mean or ARTICLE_MEAN, meta.std or ARTICLE_STD
    full: ImageDataset
    if training.get("synthetic"):
        full = SyntheticCIFAR10(train, mean=mean, std=std)
    else:
        full = CIFAR10Normalized(root, train, download=download, mean=mean, std=std)
    if not meta.classes or tuple(meta.classes) == full.classes:
        return full
    return cifar_subset(full, meta.classes)
