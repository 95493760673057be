"""What is in a picture, and what a model sees in it."""

import functools
import math
import os
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor, nn

from cifarnets._device import resolve_device
from cifarnets._html import predictions_table
from cifarnets.datasets.images import normalize
from cifarnets.datasets.pictures import SIZE, Picture, find_pictures, to_picture, to_pictures
from cifarnets.errors import InputError, brief, unknown_name
from cifarnets.inference import TTA, check_model, check_probabilities, eval_mode, forward_logits, name_outputs
from cifarnets.models.classifier import head
from cifarnets.models.metadata import get_meta, unwrap


class Prediction(list[tuple[str, float]]):
    """Class names with their probabilities, the likeliest first; a notebook draws them as bars.

    Examples:
        >>> from cifarnets.prediction import Prediction
        >>> Prediction([("cat", 0.75), ("dog", 0.25)])[0]
        ('cat', 0.75)
    """

    def _repr_html_(self) -> str:
        return str(predictions_table([self]))


class Predictions(list[Prediction]):
    """One `Prediction` for each picture; a notebook draws a row of bars for each.

    Examples:
        >>> from cifarnets.prediction import Prediction, Predictions
        >>> Predictions([Prediction([("cat", 0.75)]), Prediction([("dog", 0.5)])])
        [[('cat', 0.75)], [('dog', 0.5)]]
    """

    def _repr_html_(self) -> str:
        return str(predictions_table(self))


BATCH_SIZE = 1000
"""Pictures that go through a model at a time."""

_WHITE = torch.full((1, 1, 1), 255, dtype=torch.float32, device="cpu")
"""A tensor, so that the quotient of uint8 is float32, whatever the default dtype is."""


def predict(
    model: nn.Module,
    images: "Picture | Iterable[Picture]",
    topk: int = 1,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device = "auto",
    tta: TTA | None = None,
) -> Prediction | Predictions:
    """Classify a picture, or several.

    A picture of another size is resized (bilinear, antialiased), a photograph is turned as its EXIF tag says, and all
    are normalised with the constants of the model's training, which are in its weight file. Colours are red, green,
    blue: reverse what OpenCV reads (`image[..., ::-1]`).

    Examples:
        >>> import torch
        >>> import cifarnets
        >>> model = cifarnets.load("convnet")
        >>> grey = torch.full((3, 32, 32), 128, dtype=torch.uint8)
        >>> [name for name, probability in cifarnets.predict(model, grey, topk=2)]
        ['airplane', 'ship']
        >>> len(cifarnets.predict(model, [grey, grey]))
        2
        >>> cifarnets.predict(model, "cat.png", topk=3)  # doctest: +SKIP
        [('cat', 0.93), ('dog', 0.05), ('deer', 0.01)]

    Args:
        model: A trained model.
        images: One picture: a path, the bytes of a file, a file opened in binary mode, a PIL image, a NumPy array
            `[H, W]` or `[H, W, C]`, or a tensor `[C, H, W]`, uint8 or float in 0..1. Or several: a list or an iterator
            of these, an array `[N, H, W, C]`, a tensor `[N, C, H, W]`, or a folder: all pictures in it and in its
            subfolders, in the order of their paths.
        topk: How many classes to name.
        classes: Names of the outputs, for a model that does not know them.
        mean: The mean of each channel of images in 0..1, for a model that does not know it.
        std: The standard deviation of each channel, for a model that does not know it.
        device: Where to compute; `"auto"` takes the first of CUDA, MPS and CPU that is there.
        tta: Test-time augmentation, as in `evaluate`.

    Returns:
        `[(class, probability), …]`, the likeliest first; for several pictures a list of these.

    Raises:
        DataNotFoundError: There is no such file.
        InputError: Something is no picture, and of several the message says which; `topk` is out of range, there are
            more classes than outputs, the model does not know its constants and none are passed, or it gives NaN.
    """
    preprocessing = Preprocessing.of(model, mean, std, classes)
    inputs, single = preprocessing.prepare(images)
    if type(topk) is not int:
        if not isinstance(topk, np.integer):
            raise InputError(f"topk must be a whole number, not {brief(topk)}.")
        topk = int(topk)
    if not inputs.shape[0]:
        return Predictions()
    target = resolve_device(device)
    with eval_mode(model, target) as session:
        parts = [forward_logits(model, part.to(target, session.dtype), tta).cpu() for part in _split(inputs)]
    probabilities = (parts[0] if len(parts) == 1 else torch.cat(parts)).softmax(1)
    outputs, names = probabilities.shape[1], preprocessing.classes
    if classes is not None and names is not None and len(names) > outputs:
        raise InputError(f"{len(names)} classes ({', '.join(names)}) do not fit a model of {outputs} outputs.")
    names = name_outputs(names, outputs)
    if not 1 <= topk <= outputs:
        raise InputError(f"topk must be between 1 and {outputs}, the number of classes, not {topk}.")
    top = probabilities.topk(topk)
    values = top.values.tolist()
    if any(math.isnan(row[0]) for row in values):
        check_probabilities(probabilities)  # raises
    predictions = Predictions(
        Prediction((names[index], probability) for index, probability in zip(row, shares, strict=True))
        for row, shares in zip(top.indices.tolist(), values, strict=True)
    )
    return predictions[0] if single else predictions


@overload
def features(
    model: nn.Module,
    images: "Picture | Iterable[Picture]",
    layer: str | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device = "auto",
) -> Tensor: ...
@overload
def features(
    model: nn.Module,
    images: "Picture | Iterable[Picture]",
    layer: list[str] | tuple[str, ...],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device = "auto",
) -> dict[str, Tensor]: ...
def features(
    model: nn.Module,
    images: "Picture | Iterable[Picture]",
    layer: str | list[str] | tuple[str, ...] | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | torch.device = "auto",
) -> Tensor | dict[str, Tensor]:
    """Compute what layers inside a model make of a picture, or of several: feature maps, or a vector for each.

    Examples:
        >>> import torch
        >>> from cifarnets import features, load
        >>> model, picture = load("convnet"), torch.zeros(3, 32, 32)
        >>> features(model, picture, "conv2").shape
        torch.Size([8, 16, 16])
        >>> {name: list(maps.shape) for name, maps in features(model, picture, ["conv1", "conv2"]).items()}
        {'conv1': [16, 32, 32], 'conv2': [8, 16, 16]}
        >>> features(model, [picture, picture]).shape
        torch.Size([2, 32])

    Args:
        model: A trained model.
        images: As `predict` takes them, and prepared in the same way.
        layer: The name of a module, one of `dict(model.named_modules())`; several names for all of these in one pass;
            None for what the head is fed, the vector that a new head would learn from.
        mean: The mean of each channel of images in 0..1, for a model that does not know it.
        std: The standard deviation of each channel, for a model that does not know it.
        device: Where to compute; `"auto"` takes the first of CUDA, MPS and CPU that is there.

    Returns:
        The output of the layer `[C, H, W]` or `[D]`, float32 on the CPU; `[N, …]` for several pictures. For several
        names a dict of these.

    Raises:
        UnknownNameError: The model has no such layer; the near match is suggested.
        InputError: As `predict`; or the model has no head, or the output of a layer is no tensor.
    """
    check_model(model)
    model = unwrap(model)
    layers = {name: module for name, module in model.named_modules() if name}
    if layer is not None and not isinstance(layer, (str, list, tuple)):
        raise InputError(f"layer must be the name of a module, or a list of names, not {brief(layer)}.")
    names = list(layer) if isinstance(layer, (list, tuple)) else [layer]
    for name in names:
        if name is not None and (not isinstance(name, str) or name not in layers):
            raise unknown_name("layer", name, layers)
    inputs, single = Preprocessing.of(model, mean, std).prepare(images)
    watched = {name: head(model) if name is None else layers[name] for name in names}
    target = resolve_device(device)
    parts: dict[str | None, list[Tensor]] = {name: [] for name in names}
    probes = {name: _Probe(module, before=name is None) for name, module in watched.items()}
    try:
        with eval_mode(model, target) as session:
            for part in _split(inputs):
                model(part.to(target, session.dtype))
                for name, probe in probes.items():
                    if not isinstance(probe.seen, Tensor):
                        kind = "nothing" if probe.seen is None else type(probe.seen).__name__
                        raise InputError(f"the layer {name!r} gives {kind}, not a tensor.")
                    parts[name].append(probe.seen.float().cpu())
    finally:
        for probe in probes.values():
            probe.close()
    found = {name: values[0][0] if single else torch.cat(values) for name, values in parts.items()}
    return found if isinstance(layer, (list, tuple)) else found[layer]  # type: ignore[return-value]


class _Probe:
    """Notes what passes a layer in this thread; other threads may run pictures of their own through the model."""

    def __init__(self, module: nn.Module, before: bool) -> None:
        self.seen: Any = None
        self._thread = threading.get_ident()
        if before:
            self._handle = module.register_forward_pre_hook(lambda _, arguments: self._note(arguments[0]))
        else:
            self._handle = module.register_forward_hook(lambda _, __, output: self._note(output))

    def _note(self, value: Any) -> None:
        if threading.get_ident() == self._thread:
            # A copy, since the next layer may work in place.
            self.seen = value.clone() if isinstance(value, Tensor) else value

    def close(self) -> None:
        self._handle.remove()


class Preprocessing(NamedTuple):
    """What becomes of a picture before a model sees it, and what its outputs are called.

    Examples:
        >>> import torch
        >>> import cifarnets
        >>> preprocessing = Preprocessing.of(cifarnets.load("convnet"))
        >>> preprocessing.size
        (32, 32)
        >>> inputs, single = preprocessing.prepare(torch.zeros(3, 64, 64))
        >>> inputs.shape, single
        (torch.Size([1, 3, 32, 32]), True)

    Attributes:
        mean: The mean of each channel of images in 0..1.
        std: The standard deviation of each channel.
        size: Height and width.
        classes: The names of the outputs; None where they are unknown.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int]
    classes: tuple[str, ...] | None

    @classmethod
    def of(
        cls,
        model: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        classes: Sequence[str] | None = None,
    ) -> "Preprocessing":
        """What a model knows, with what is passed instead.

        Examples:
            >>> import cifarnets
            >>> Preprocessing.of(cifarnets.create("convnet"), mean=[0.5] * 3, std=[0.25] * 3).std
            (0.25, 0.25, 0.25)

        Raises:
            InputError: The model does not know its constants and none are passed, or they do not fit its channels.
        """
        check_model(model)
        meta = get_meta(model)
        try:
            mean = None if mean is None else tuple(map(float, mean))
            std = None if std is None else tuple(map(float, std))
        except (TypeError, ValueError):
            raise InputError(
                "mean and std must be a number for each channel, such as (0.5, 0.5, 0.5), not "
                f"{brief(mean)} and {brief(std)}."
            ) from None
        if meta is not None:
            mean = meta.mean if mean is None else mean
            std = meta.std if std is None else std
            classes = meta.classes if classes is None else classes
        if mean is None or std is None:
            raise InputError(
                "the model does not say how its images were normalised: train it with a Trainer on a dataset of "
                "cifarnets, annotate it with cifarnets.models.annotate, or pass mean= and std=."
            )
        channels = meta.config.get("in_channels") if meta is not None else None
        if channels is not None and len(mean) != channels:
            raise InputError(f"{len(mean)} constants {mean} do not fit images of {channels} channels.")
        size = (meta.size if meta is not None else None) or (SIZE, SIZE)
        return cls(mean, std, size, classes if isinstance(classes, tuple) else _class_names(classes))

    def read(self, picture: Picture) -> Tensor:
        """Any picture as float32 `[C, H, W]` in 0..1, not normalised yet.

        Examples:
            >>> import torch
            >>> import cifarnets
            >>> Preprocessing.of(cifarnets.load("convnet")).read(torch.zeros(1, 5, 5)).shape
            torch.Size([3, 32, 32])
        """
        return to_picture(picture, len(self.mean), self.size)

    def prepare(self, images: "Picture | Iterable[Picture]") -> tuple[Tensor, bool]:
        """Pictures as a model is fed them.

        Examples:
            >>> import torch
            >>> import cifarnets
            >>> Preprocessing.of(cifarnets.load("convnet")).prepare(torch.zeros(2, 3, 32, 32))[0].shape
            torch.Size([2, 3, 32, 32])

        Returns:
            float32 `[N, C, H, W]`, and whether it was a single picture.
        """
        shape = (len(self.mean), *self.size)
        if isinstance(images, Tensor) and images.dtype == torch.uint8 and images.shape == shape and _is_plain(images):
            # Nothing to check or to resize, and the checks would take as long as a small net.
            pictures, single = (images / _WHITE).unsqueeze_(0), True
        else:
            if isinstance(images, (str, os.PathLike)) and os.path.isdir(images):  # noqa: PTH112 (NUL is no error here)
                images = find_pictures(images)
            pictures, single = to_pictures(images, shape[0], self.size)  # type: ignore[arg-type]
            # A copy, since they may be the user's own; in one layout, so that a picture has one answer.
            pictures = pictures.clone(memory_format=torch.contiguous_format)
        center, spread = _columns(self.mean, self.std)
        return pictures.sub_(center).div_(spread), single


def _is_plain(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.layout == torch.strided and tensor.is_contiguous()


@functools.lru_cache(maxsize=64)
def _columns(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The constants as `[C, 1, 1]`, made once, since that takes longer than to use them on one picture."""
    like = torch.zeros(len(mean), 1, 1, dtype=torch.float32, device="cpu")
    normalize(like, mean, std)  # refuses what no image can be normalised with
    return like + like.new_tensor(mean).view(-1, 1, 1), like + like.new_tensor(std).view(-1, 1, 1)


def _split(inputs: Tensor) -> Sequence[Tensor]:
    return (inputs,) if inputs.shape[0] <= BATCH_SIZE else torch.split(inputs, BATCH_SIZE)


def _class_names(classes: Any) -> tuple[str, ...] | None:
    """Class names out of a list, a tuple, an array, or whatever else has an order."""
    if classes is None:
        return None
    try:
        if isinstance(classes, (str, bytes, set, frozenset)):
            raise TypeError
        return tuple(map(str, classes.tolist() if isinstance(classes, Tensor) else classes))
    except TypeError:
        raise InputError(
            f"classes must be a list of names in the order of the outputs, not {brief(classes)}."
        ) from None
