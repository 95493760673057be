"""Parts of a dataset: some of its classes, or a split of its images."""

import operator
from collections.abc import Sequence
from typing import Any

import torch

from cifarnets.datasets.images import ImageDataset, as_image_dataset
from cifarnets.errors import InputError, unknown_name
from cifarnets.seeding import generator


def cifar_subset(dataset: Any, classes: Sequence[str | int]) -> ImageDataset:
    """The images of some classes, relabelled 0, 1, 2 … in the order given (article, step 19).

    Examples:
        >>> cifar3 = cifar_subset(train, ["airplane", "automobile", "ship"])  # doctest: +SKIP

    Args:
        dataset: One of ours (a subset too), or torchvision's `CIFAR10`, whose transform goes on working.
        classes: Names, or labels of `dataset`.

    Raises:
        UnknownNameError: There is no such class.
        InputError: No class is given, one is given twice, or no image is left.
    """
    source = as_image_dataset(dataset)
    if isinstance(classes, str) or not len(classes):
        raise InputError(
            f"classes must be a list of at least one name or label, such as ['cat', 'dog'], not {classes!r}."
        )
    chosen = [_label(source, name) for name in classes]
    repeated = sorted({source.classes[label] for label in chosen if chosen.count(label) > 1})
    if repeated:
        raise InputError(f"each class may be given once; repeated: {', '.join(repeated)}.")
    relabel = torch.full((len(source.classes),), -1)
    relabel[chosen] = torch.arange(len(chosen))
    labels = relabel[source.labels]
    kept = (labels >= 0).nonzero().flatten()
    if not len(kept):
        raise InputError(f"the dataset has no image of {', '.join(source.classes[label] for label in chosen)}.")
    return source.select(kept, labels=labels[kept], classes=[source.classes[label] for label in chosen])


def train_val_split(dataset: Any, val: int = 5000, seed: int = 0) -> tuple[ImageDataset, ImageDataset]:
    """Hold out `val` training images to choose on, so that the test set never is (stratified by class).

    Every class gives its share, so both parts keep the proportions of the whole (to one image a class). The images
    of each part stay in the order of the dataset.

    Args:
        dataset: One of ours, or torchvision's `CIFAR10`.
        val: How many images to hold out.
        seed: Which ones.

    Returns:
        `(train, val)`.

    Raises:
        InputError: `val` leaves one part empty, or the dataset is a test set.
    """
    source = as_image_dataset(dataset)
    if not 0 < val < len(source):
        raise InputError(f"val must be between 1 and {len(source) - 1} for {len(source)} images, not {val}.")
    if source.split == "test":
        raise InputError("choices are made on a part of the training set; this is the test set.")
    # Each class gives its share rounded down; the classes that lose most by that give the images still wanting.
    shares = source.labels.bincount(minlength=len(source.classes)) * val
    counts, rest = shares // len(source), shares % len(source)
    counts[rest.argsort(descending=True, stable=True)[: val - int(counts.sum())]] += 1
    shuffled = torch.randperm(len(source), generator=generator(seed))
    held_out = torch.zeros(len(source), dtype=torch.bool)
    for label, count in enumerate(counts.tolist()):
        held_out[shuffled[source.labels[shuffled] == label][:count]] = True
    train = source.select((~held_out).nonzero().flatten())
    validation = source.select(held_out.nonzero().flatten())
    validation.split = "val"
    return train, validation


def _label(dataset: ImageDataset, name: str | int) -> int:
    if isinstance(name, str):
        label = dataset.class_to_idx.get(name, -1)
    else:  # whatever counts as a whole number, NumPy's too
        label = operator.index(name) if hasattr(name, "__index__") else -1
    if 0 <= label < len(dataset.classes):
        return label
    raise unknown_name("class", name, dataset.classes)
