"""Facts about a model that travel with it and its weight file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset

from cifarnets._checked import checked
from cifarnets.errors import InputError


@dataclass(frozen=True)
class ModelMeta:
    """The facts that a model is built again from, and that its images are prepared with: `model.meta`.

    A weight file has them in its header.

    Examples:
        >>> from cifarnets import load
        >>> meta = load("convnet.cifar3").meta
        >>> meta.architecture, meta.classes
        ('convnet', ('airplane', 'automobile', 'ship'))

    Attributes:
        architecture: The registered name.
        config: Every argument of the constructor, defaults included.
        classes: The class names of the outputs, or of the first ones; None if unknown.
        mean: Mean of each channel; the model takes `(images - mean) / std` of images in 0..1. None if unknown.
        std: Standard deviation of each channel; None if unknown.
        training: Facts about the training: epochs, seed, optimizer …
        results: Measurements on the test images: accuracy, seeds, calibration …
        size: Height and width of the images of the training; None if unknown, which means 32×32.
        provenance: Where the weights come from, as far as it is known: `license` and `version` of the weights,
            `recipe`, `commit` of the source, `paper`, `versions`, `machine`, `data` and `data_license`.
    """

    architecture: str
    config: Mapping[str, Any]
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without the wrappers of `torch.compile` and (distributed) data parallel.

    Examples:
        >>> import torch
        >>> from cifarnets.models.metadata import unwrap
        >>> layer = torch.nn.Linear(2, 2)
        >>> unwrap(torch.nn.DataParallel(layer)) is layer
        True
    """
    while True:
        # A compiled model has the attributes of the inner one, so only `_orig_mod` shows what it is. A registered model
        # may have a layer of the name `module`, which is no wrapped model.
        inner = getattr(model, "_modules", {}).get("_orig_mod")  # `getattr` of what is not there takes long
        if inner is None and not isinstance(getattr(model, "meta", None), ModelMeta):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def get_meta(model: nn.Module) -> ModelMeta | None:
    """The `ModelMeta` of a model; None for a model whose class is not registered.

    Examples:
        >>> from cifarnets.models import create
        >>> from cifarnets.models.metadata import get_meta
        >>> get_meta(create("fcnet")).architecture
        'fcnet'
    """
    found = getattr(unwrap(model), "meta", None)
    return found if isinstance(found, ModelMeta) else None


@checked
def annotate(
    model: nn.Module,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    training: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    size: Sequence[int] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> None:
    """Note facts in `model.meta`, from where they travel with the weights. A fact that is None stays as it was.

    The Trainer does this with the dataset of its loader.

    Examples:
        >>> from cifarnets.models import annotate, create
        >>> model = create("convnet", num_classes=2)
        >>> annotate(model, classes=["cat", "dog"], mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
        >>> model.meta.classes
        ('cat', 'dog')

    Args:
        model: A model of a registered class; wrappers are looked through.
        classes: The class names of the outputs, in order.
        mean: Mean of each channel of images in 0..1.
        std: Standard deviation of each channel.
        training: Facts about the training, as plain values.
        results: Measurements, as plain values.
        size: Height and width of the images.
        provenance: Where the weights come from, as plain values; see `ModelMeta`.

    Raises:
        InputError: The class of the model is not registered, or there are more classes than outputs, or not one
            constant for each channel.
    """
    meta = get_meta(model)
    if meta is None:
        raise InputError(f"{type(model).__name__} has no meta: register its class, or build it with create().")
    outputs = meta.config.get("num_classes")
    if classes is not None and outputs is not None and len(classes) > outputs:
        raise InputError(
            f"{len(classes)} classes ({', '.join(classes)}) do not fit a model of {outputs} outputs: "
            f"create it with num_classes={len(classes)}, or choose classes with cifar_subset."
        )
    channels = meta.config.get("in_channels")
    for constants in (mean, std):
        if constants is not None and channels is not None and len(constants) != channels:
            raise InputError(f"{len(constants)} constants {tuple(constants)} do not fit images of {channels} channels.")
    changes: dict[str, Any] = {} if classes is None else {"classes": tuple(classes)}
    # Plain floats, whatever the figures were computed with: they are written into the weight file.
    changes |= {key: tuple(map(float, value)) for key, value in {"mean": mean, "std": std}.items() if value is not None}
    if size is not None:
        if len(size) != 2 or not all(isinstance(side, int) and side > 0 for side in size):
            raise InputError(f"size must be the height and the width of images, not {size!r}.")
        changes["size"] = tuple(size)
    tables = {"training": training, "results": results, "provenance": provenance}
    changes |= {key: dict(value) for key, value in tables.items() if value is not None}
    unwrap(model).meta = replace(meta, **changes)  # type: ignore[assignment]


def annotate_from(model: nn.Module, dataset: Any) -> None:
    """Note the classes and the preprocessing of the images that a model is about to learn from.

    What an earlier training left is forgotten, even where the dataset says nothing: it would not be true any more.

    Examples:
        >>> from cifarnets.datasets import SyntheticCIFAR10
        >>> from cifarnets.models import create
        >>> from cifarnets.models.metadata import annotate_from
        >>> model = create("convnet")
        >>> annotate_from(model, SyntheticCIFAR10(size=100))
        >>> model.meta.classes[:2]
        ('disc', 'cross')
    """
    meta = get_meta(model)
    if meta is None:
        return
    forgotten = replace(meta, classes=None, mean=None, std=None, training={}, results={}, size=None, provenance={})
    unwrap(model).meta = forgotten  # type: ignore[assignment]
    mean, std = constants_of(dataset) or (None, None)
    try:
        annotate(model, classes=classes_of(dataset), mean=mean, std=std, size=size_of(dataset))
    except InputError:
        unwrap(model).meta = meta  # type: ignore[assignment]
        raise


def constants_of(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The `(mean, std)` that a dataset normalises with; None where it is unknown.

    It looks through torch's `Subset`, and takes what all parts of a `ConcatDataset` agree on.

    Examples:
        >>> from cifarnets.datasets import SyntheticCIFAR10
        >>> from cifarnets.models.metadata import constants_of
        >>> constants_of(SyntheticCIFAR10(size=100, mean=(0.5,) * 3, std=(0.25,) * 3))
        ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    """
    found: tuple[tuple[float, ...], tuple[float, ...]] | None = _look_through(
        dataset, lambda source: getattr(source, "constants", None)
    )
    return found


def size_of(dataset: Any) -> tuple[int, int] | None:
    """The height and width of the images of a dataset; None where it is unknown. It looks where `constants_of` does."""

    def read(source: Any) -> tuple[int, int] | None:
        images = getattr(source, "images", None)
        if not isinstance(images, Tensor) or images.ndim != 4 or getattr(source, "transform", None) is not None:
            return None
        return images.shape[2], images.shape[3]

    found: tuple[int, int] | None = _look_through(dataset, read)
    return found


def classes_of(dataset: Any) -> tuple[str, ...] | None:
    """The class names of a dataset; None where they are unknown, or where labels are changed on the way.

    It looks where `constants_of` does.

    Examples:
        >>> from torch.utils.data import ConcatDataset, Subset
        >>> from cifarnets.datasets import SyntheticCIFAR10
        >>> from cifarnets.models.metadata import classes_of
        >>> classes_of(Subset(SyntheticCIFAR10(size=100), range(10)))[:2]
        ('ring', 'disc')
    """

    def read(source: Any) -> tuple[str, ...] | None:
        classes = getattr(source, "classes", None)  # some datasets call the number of classes so
        relabelled = getattr(source, "target_transform", None) is not None
        return tuple(map(str, classes)) if isinstance(classes, (list, tuple)) and not relabelled else None

    found: tuple[str, ...] | None = _look_through(dataset, read)
    return found


def _look_through(dataset: Any, read: Callable[[Any], Any]) -> Any:
    """What `read` finds in the dataset itself, in torch's `Subset` of one, or alike in all parts of a concatenation."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if isinstance(dataset, ConcatDataset):
        first, *others = [_look_through(part, read) for part in dataset.datasets]
        return first if all(other == first for other in others) else None
    return read(dataset)


def in_channels(model: nn.Module) -> int | None:
    """The channels of a model's images; None for a model of another library.

    Examples:
        >>> from cifarnets.models import create
        >>> from cifarnets.models.metadata import in_channels
        >>> in_channels(create("convnet", in_channels=1))
        1
    """
    meta = get_meta(model)
    return meta.config.get("in_channels") if meta else None


def input_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that a model computes in: that of its first floating-point parameter.

    Examples:
        >>> from cifarnets.models import create
        >>> from cifarnets.models.metadata import input_dtype
        >>> input_dtype(create("convnet").half())
        torch.float16
    """
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
