"""Parts of a dataset: some of its classes, or a split of its images."""

import math
import operator
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any

import torch

from cifarnets.datasets.images import ImageDataset, as_image_dataset
from cifarnets.errors import InputError, UnknownNameError, unknown_name
from cifarnets.seeding import generator

ALSO_CALLED = {
    "aeroplane": "airplane",
    "aircraft": "airplane",
    "plane": "airplane",
    "auto": "automobile",
    "car": "automobile",
    "kitten": "cat",
    "puppy": "dog",
    "toad": "frog",
    "pony": "horse",
    "boat": "ship",
    "lorry": "truck",
}
"""Other words for the classes of CIFAR-10, for which spelling alone would suggest the wrong one ('car', 'cat')."""


def cifar_subset(dataset: Any, classes: Sequence[str | int]) -> ImageDataset:
    """The images of some classes, relabelled 0, 1, 2 … in the order given (article, step 19).

    Examples:
        >>> from cifarnets.datasets import SyntheticCIFAR10, cifar_subset
        >>> part = cifar_subset(SyntheticCIFAR10(size=100), ["stripes", "disc"])
        >>> part.class_to_idx, len(part)
        ({'stripes': 0, 'disc': 1}, 20)

    Args:
        dataset: One of ours (a subset too), or torchvision's `CIFAR10`, which keeps its transform.
        classes: Names, or labels of `dataset`.

    Raises:
        UnknownNameError: There is no such class.
        InputError: No class is given, one is given twice, they have no order (a set), or no image is left.
    """
    source = as_image_dataset(dataset)
    if isinstance(classes, (Set, Mapping)):
        raise InputError(
            f"classes are labelled in their order, which a {type(classes).__name__} has not: pass a list, such as "
            "['cat', 'dog']."
        )
    is_list = (
        isinstance(classes, Iterable) and not isinstance(classes, (str, bytes)) and getattr(classes, "ndim", 1) > 0
    )
    named = list(classes) if is_list else []
    if not named:
        raise InputError(
            f"classes must be a list of at least one name or label, such as ['cat', 'dog'], not {classes!r}."
        )
    labels_of = source.class_to_idx
    chosen = [_label(source.classes, labels_of, name) for name in named]
    repeated = sorted(source.classes[label] for label, count in Counter(chosen).items() if count > 1)
    if repeated:
        raise InputError(f"each class may be given once; repeated: {', '.join(repeated)}.")
    relabel = torch.full((len(source.classes),), -1, dtype=torch.int64, device=source.labels.device)
    for label, old in enumerate(chosen):
        relabel[old] = label
    labels = relabel[source.labels]
    kept = (labels >= 0).nonzero().flatten()
    if not len(kept):
        raise InputError(f"the dataset has no image of {', '.join(source.classes[label] for label in chosen)}.")
    return source.select(kept, labels=labels[kept], classes=[source.classes[label] for label in chosen])


def train_val_split(dataset: Any, val: float = 5000, seed: int = 0) -> tuple[ImageDataset, ImageDataset]:
    """Hold out training images to choose on, so that the test set never has to serve for that (stratified by class).

    Both parts keep the proportions of the classes, to one image a class. The images of each part stay in the order of
    the dataset.

    Examples:
        >>> from cifarnets.datasets import SyntheticCIFAR10, train_val_split
        >>> train, val = train_val_split(SyntheticCIFAR10(size=100), val=0.2)
        >>> len(train), len(val)
        (80, 20)

    Args:
        dataset: One of ours, or torchvision's `CIFAR10`.
        val: How many images to hold out: a whole number, or a fraction between 0 and 1.
        seed: Which ones.

    Returns:
        `(train, val)`.

    Raises:
        InputError: `val` leaves one part empty, or the dataset is a test set.
    """
    source = as_image_dataset(dataset)
    count = _count(val, len(source))
    if not 0 < count < len(source):
        raise InputError(f"val must be between 1 and {len(source) - 1} for {len(source)} images, not {val}.")
    if source.split == "test":
        raise InputError("choices are made on a part of the training set; this is the test set.")
    # Each class gives its part rounded down; the classes that lose most by that give the images still wanting.
    labels = source.labels.cpu()
    parts = labels.bincount(minlength=len(source.classes)) * count
    counts, rest = parts // len(source), parts % len(source)
    counts[rest.argsort(descending=True, stable=True)[: count - int(counts.sum())]] += 1
    shuffled = torch.randperm(len(source), generator=generator(seed), device="cpu")
    held_out = torch.zeros(len(source), dtype=torch.bool, device="cpu")
    for label, wanted in enumerate(counts.tolist()):
        held_out[shuffled[labels[shuffled] == label][:wanted]] = True
    train, validation = source.select(~held_out), source.select(held_out)
    validation.split = "val"
    return train, validation


def _count(val: float, size: int) -> int:
    """How many of `size` images `val` means."""
    try:
        return operator.index(val)  # type: ignore[arg-type]
    except TypeError:
        pass
    try:
        fraction = float(val)
    except (TypeError, ValueError):
        fraction = math.nan
    if not 0 < fraction < 1:
        raise InputError(f"val must be a whole number of images, or a fraction between 0 and 1, not {val!r}.")
    return round(fraction * size)


def _label(classes: Sequence[str], labels: Mapping[str, int], name: str | int) -> int:
    if isinstance(name, str):
        label = labels.get(name, -1)
    else:  # whatever counts as a whole number, NumPy's too
        try:
            label = operator.index(name)
        except TypeError:
            label = -1
    if 0 <= label < len(classes):
        return label
    other = ALSO_CALLED.get(str(name).lower())
    if other in labels:
        raise UnknownNameError(
            f"unknown class {name!r}. Did you mean {other!r}? Available: {', '.join(sorted(classes))}."
        )
    raise unknown_name("class", name, classes)
