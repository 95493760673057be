"""What is in a picture, and what a model sees in it."""

import threading
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from cifarnets._device import resolve_device
from cifarnets.datasets.images import normalize
from cifarnets.datasets.pictures import SIZE, Picture, to_picture
from cifarnets.errors import InputError, unknown_name
from cifarnets.inference import TTA, check_probabilities, eval_mode, forward_logits, name_outputs
from cifarnets.models.metadata import get_meta, in_channels, input_dtype, unwrap

Prediction: TypeAlias = list[tuple[str, float]]
"""Class names with their probabilities, the likeliest first."""

BATCH_SIZE = 1000
"""Pictures that go through a model at a time."""


def predict(
    model: nn.Module,
    images: "Picture | Sequence[Picture]",
    topk: int = 1,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device = "auto",
    tta: TTA | None = None,
) -> Prediction | list[Prediction]:
    """Classify a picture, or several.

    Pictures of any size are turned as their EXIF tag says, resized to 32×32 (bilinear, antialiased) and normalised
    with the constants that the model was trained with, which travel with its weights. Transparency is dropped.

    Examples:
        >>> predict(model, "cat.png", topk=3)  # doctest: +SKIP
        [('cat', 0.93), ('dog', 0.05), ('deer', 0.01)]

    Args:
        model: A trained model.
        images: A path, a PIL image, a NumPy array `[H, W]` or `[H, W, C]`, or a tensor `[C, H, W]`: uint8, or float
            in 0..1. A list of these, an array `[N, H, W, C]` or a tensor `[N, C, H, W]` for several.
        topk: How many classes to name.
        classes: Names of the outputs, for a model that does not know them.
        mean: Normalising constants, for a model that does not know them.
        std: Likewise.
        device: Where to compute.
        tta: Test-time augmentation, as in `evaluate`.

    Returns:
        `[(class, probability), …]`, likeliest first; for several pictures a list of these.

    Raises:
        DataNotFoundError: There is no such file.
        InputError: A file is no picture, an array has an unusable shape or range, `topk` is out of range, there are
            more classes than outputs, the model does not know its constants and none are given, or it answers NaN.
    """
    inputs, single = _inputs(model, images, mean, std)
    if not len(inputs):
        return []
    target, dtype = resolve_device(device), input_dtype(model)
    with eval_mode(model, target):
        parts = [forward_logits(model, part.to(target, dtype), tta).cpu() for part in torch.split(inputs, BATCH_SIZE)]
    probabilities = torch.cat(parts).softmax(1)
    check_probabilities(probabilities)
    meta, outputs = get_meta(model), probabilities.shape[1]
    if classes is not None and len(classes) > outputs:
        raise InputError(f"{len(classes)} classes ({', '.join(classes)}) do not fit a model of {outputs} outputs.")
    names = name_outputs(classes or (meta.classes if meta else None), outputs)
    if not 1 <= topk <= len(names):
        raise InputError(f"topk must be between 1 and {len(names)}, the number of classes, not {topk}.")
    top = probabilities.topk(topk)
    predictions = [
        [(names[index], probability) for index, probability in zip(row, values, strict=True)]
        for row, values in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    return predictions[0] if single else predictions


def features(
    model: nn.Module,
    images: "Picture | Sequence[Picture]",
    layer: str | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device = "auto",
) -> Tensor:
    """What a layer inside a model makes of a picture, or of several: feature maps, or a vector for each.

    Examples:
        >>> model = cifarnets.load("convnet")
        >>> features(model, torch.zeros(3, 32, 32), "conv2").shape
        torch.Size([8, 16, 16])

    Args:
        model: A trained model.
        images: As `predict` takes them, and prepared in the same way.
        layer: Name of a module, one of `dict(model.named_modules())`; None for what the last linear layer is fed, the
            vector that a new head would learn from.
        mean: Normalising constants, for a model that does not know them.
        std: Likewise.
        device: Where to compute.

    Returns:
        The layer's output `[C, H, W]` or `[D]`, on the CPU; `[N, …]` for several pictures.

    Raises:
        UnknownNameError: The model has no such layer; the near match is suggested.
        InputError: As `predict`; or there is no linear layer, or the layer's output is no tensor.
    """
    model = unwrap(model)
    layers = {name: module for name, module in model.named_modules() if name}
    if layer is not None and layer not in layers:
        raise unknown_name("layer", layer, layers)
    linear = [module for module in layers.values() if isinstance(module, nn.Linear)]
    if layer is None and not linear:
        raise InputError(f"{type(model).__name__} has no linear layer: name one of {', '.join(layers)}.")
    inputs, single = _inputs(model, images, mean, std)
    target, parts = resolve_device(device), []
    found: Any = None
    caller = threading.get_ident()

    def note(_: nn.Module, arguments: tuple[Any, ...], output: Any = None) -> None:
        nonlocal found
        if threading.get_ident() != caller:  # another thread runs pictures of its own through the model
            return
        found = arguments[0] if layer is None else output
        found = found.clone() if isinstance(found, Tensor) else found  # the next layer may work in place

    handle = linear[-1].register_forward_pre_hook(note) if layer is None else layers[layer].register_forward_hook(note)
    try:
        with eval_mode(model, target):
            for part in torch.split(inputs, BATCH_SIZE):
                model(part.to(target, input_dtype(model)))
                if not isinstance(found, Tensor):
                    kind = "nothing" if found is None else type(found).__name__
                    raise InputError(f"the layer {layer!r} gives {kind}, not a tensor.")
                parts.append(found.float().cpu())
    finally:
        handle.remove()
    return parts[0][0] if single else torch.cat(parts)


def _inputs(
    model: nn.Module, images: "Picture | Sequence[Picture]", mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Tensor, bool]:
    """Pictures as a model is fed them, float32 `[N, C, 32, 32]`, and whether it was a single one."""
    meta = get_meta(model)
    mean = mean if mean is not None else meta.mean if meta else None
    std = std if std is not None else meta.std if meta else None
    if mean is None or std is None:
        raise InputError(
            "the model does not say how its images were normalised: train it with a Trainer on a dataset of "
            "cifarnets, annotate it with cifarnets.models.annotate, or pass mean= and std=."
        )
    channels = in_channels(model)
    if channels is not None and len(mean) != channels:
        raise InputError(f"{len(mean)} constants {tuple(mean)} do not fit images of {channels} channels.")
    single = not isinstance(images, (list, tuple)) and not _is_batch(images)
    batch = [images] if single else list(images)  # type: ignore[arg-type]
    if not batch:
        return torch.empty(0, len(mean), SIZE, SIZE), False
    return normalize(torch.stack([to_picture(image, len(mean)) for image in batch]), mean, std), single  # type: ignore[arg-type]


def _is_batch(images: object) -> bool:
    return isinstance(images, (Tensor, np.ndarray)) and images.ndim == 4
