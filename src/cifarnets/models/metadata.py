"""What a model knows about itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from cifarnets.errors import InputError


@dataclass(frozen=True)
class ModelMeta:
    """All that is needed to build a model again and to feed it; the header of a weight file, and `model.meta`.

    Attributes:
        architecture: The registered name.
        config: Every argument the model was built with, defaults included.
        classes: The class names of the first outputs, as a rule of all; None until it was trained or told.
        mean: Per channel: the images that the model is fed are `(v - mean) / std` of images in 0..1.
        std: Likewise.
        training: Facts about the training: epochs, seed, optimizer …
        results: What was measured of released weights: accuracy, seeds, calibration …
        size: Height and width of the images that it was trained on; None where nobody knows, which means 32×32.
    """

    architecture: str
    config: Mapping[str, Any]
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, out of `torch.compile` and (distributed) data parallel."""
    while True:
        # A compiled model passes on what the inner one knows, so only its own attribute tells it apart; and a
        # registered model may have a layer that it calls `module`.
        inner = getattr(model, "_orig_mod", None)
        if inner is None and not isinstance(getattr(model, "meta", None), ModelMeta):
            inner = getattr(model, "module", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def get_meta(model: nn.Module) -> ModelMeta | None:
    """The model's `ModelMeta`; None for a model that was not made by this library."""
    found = getattr(unwrap(model), "meta", None)
    return found if isinstance(found, ModelMeta) else None


def annotate(
    model: nn.Module,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    training: Mapping[str, Any] | None = None,
    results: Mapping[str, Any] | None = None,
    size: Sequence[int] | None = None,
) -> None:
    """Tell a model about its classes and its preprocessing, in place; what is None stays.

    The Trainer does this from its loader's dataset; it travels with the weights from then on.

    Raises:
        InputError: The model is not of this library, or has fewer outputs than classes, or other channels.
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
    changes |= {
        key: dict(value) for key, value in {"training": training, "results": results}.items() if value is not None
    }
    unwrap(model).meta = replace(meta, **changes)  # type: ignore[assignment]


def annotate_from(model: nn.Module, dataset: Any) -> None:
    """Note the classes and the preprocessing of the images that a model is about to learn from.

    What an earlier training left is forgotten, even where the dataset says nothing: it would not be true any more.
    """
    meta = get_meta(model)
    if meta is None:
        return
    unwrap(model).meta = replace(meta, classes=None, mean=None, std=None, training={}, results={}, size=None)  # type: ignore[assignment]
    mean, std = constants_of(dataset) or (None, None)
    classes = getattr(dataset, "classes", None)
    try:
        classes = classes if isinstance(classes, (list, tuple)) else None
        annotate(model, classes=classes, mean=mean, std=std, size=size_of(dataset))
    except InputError:
        unwrap(model).meta = meta  # type: ignore[assignment]
        raise


def constants_of(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """The `(mean, std)` that a dataset, or torch's `Subset` of one, normalises with; None where it is unknown."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return getattr(dataset, "constants", None)


def size_of(dataset: Any) -> tuple[int, int] | None:
    """The height and width of the images of a dataset, or of torch's `Subset` of one; None where it is unknown."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    images = getattr(dataset, "images", None)
    if not isinstance(images, Tensor) or images.ndim != 4 or getattr(dataset, "transform", None) is not None:
        return None
    return images.shape[2], images.shape[3]


def in_channels(model: nn.Module) -> int | None:
    """The channels of a model's images; None for a model of another library."""
    meta = get_meta(model)
    return meta.config.get("in_channels") if meta else None


def input_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that a model computes in: that of its first floating-point parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
