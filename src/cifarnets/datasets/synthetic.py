"""Drawn pictures in the shape of CIFAR-10, for demos, tests and first steps without a download."""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifarnets.datasets.images import ARTICLE_MEAN, ARTICLE_STD, ImageDataset, View
from cifarnets.errors import InputError
from cifarnets.seeding import generator


class SyntheticCIFAR10(ImageDataset):
    """Shapes and textures as `[3, 32, 32]` pictures of ten classes: made in a moment, easy to learn, no photographs.

    Position, size, angle, colours, light and noise follow the same distribution in every class, and either colour of a
    pair is as often the background. So the mean colour tells a linear classifier nothing, and the pixels tell it
    little: only the form tells the classes apart. The first three classes (disc, cross, stripes) make a good small
    task.

    Examples:
        >>> from cifarnets.datasets import SyntheticCIFAR10
        >>> SyntheticCIFAR10(train=False)
        SyntheticCIFAR10(1,000 images, 10 classes, view='normalized', split='test')

    Args:
        train: True for the training set, False for the test set; no picture is in both.
        size: How many pictures; 5,000 to train and 1,000 to test by default. Every class has as many, to one picture.
        seed: Which pictures. They depend on `(seed, train, size)` alone, on every machine; a larger set does not begin
            with the smaller one.
        mean: Per channel, for the normalised view.
        std: Per channel, for the normalised view.
        transform: Called with an item's picture, as `view` gives it, when the item is read.
        view: `"normalized"`, `"unit"` or `"pil"`, as in `ImageDataset`.

    Raises:
        InputError: `size` is below 1, or an argument is of a wrong kind.
    """

    def __init__(
        self,
        train: bool = True,
        *,
        size: int | None = None,
        seed: int = 0,
        mean: Sequence[float] = ARTICLE_MEAN,
        std: Sequence[float] = ARTICLE_STD,
        transform: Callable[[Any], Any] | None = None,
        view: View = "normalized",
    ) -> None:
        if not isinstance(train, (bool, np.bool_)):
            raise InputError(f"train must be True or False, not {train!r}.")
        if size is None:
            size = 5000 if train else 1000
        try:
            size = operator.index(size)
        except TypeError as error:
            raise InputError(f"size must be a whole number of pictures, not {size!r}.") from error
        if not 1 <= size <= 10_000_000:
            raise InputError(f"size must be at least 1 picture, not {size}, and at most 10 million.")
        random = generator(seed, bool(train), size)
        with torch.device("cpu"):  # whatever the default device is
            labels = torch.arange(size).remainder(len(_FORMS)).sort().values
            counts = labels.bincount(minlength=len(_FORMS)).tolist()
            images = torch.cat([_draw(form, n, random) for form, n in zip(_FORMS.values(), counts, strict=True)])
            order = torch.randperm(size, generator=random)
        super().__init__(
            images[order],
            labels[order],
            tuple(_FORMS),
            mean=mean,
            std=std,
            transform=transform,
            view=view,
            split="train" if train else "test",
        )


def _draw(form: Callable[[Tensor, Tensor], Tensor], count: int, random: torch.Generator) -> Tensor:
    """`count` pictures of one form, uint8 `[count, 3, 32, 32]`."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        # Machines differ in the last bit of a result; in double precision, rounding to 256 steps hides that.
        return low + (high - low) * torch.rand(count, *shape, generator=random, dtype=torch.float64)

    axis = (torch.arange(32, dtype=torch.float64) - 15.5) / 16
    across, down = axis.view(1, 1, 32), axis.view(1, 32, 1)
    scale, angle = uniform(0.5, 0.8, 1, 1), uniform(0, 2 * math.pi, 1, 1)
    x, y = across - uniform(-0.2, 0.2, 1, 1), down - uniform(-0.2, 0.2, 1, 1)
    cos, sin = angle.cos() / scale, angle.sin() / scale
    distance = form(x * cos + y * sin, y * cos - x * sin) * scale
    # -1 is the background and +1 the form, with an edge between them one pixel (1/16) wide, so that slants look smooth.
    mask = (distance * -32).clamp_(-1, 1).unsqueeze(1)

    contrast = uniform(-1, 1, 3, 1, 1)
    contrast *= uniform(0.2, 0.4, 1, 1, 1) / contrast.abs().amax(1, keepdim=True)
    light = 1 + uniform(-0.3, 0.3, 1, 1, 1) * across + uniform(-0.3, 0.3, 1, 1, 1) * down
    pictures = (uniform(0.3, 0.7, 3, 1, 1) + contrast * mask) * light + uniform(-0.1, 0.1, 3, 32, 32)
    return pictures.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def _edges(x: Tensor, y: Tensor, sides: int, inner: float) -> Tensor:
    """The distance of each point to the sides of a regular polygon, which touch a circle of radius `inner`."""
    angles = [2 * math.pi * side / sides for side in range(sides)]
    return torch.stack([x * math.cos(angle) + y * math.sin(angle) for angle in angles]) - inner


def _cell(x: Tensor) -> Tensor:
    """The distance to the nearest whole number, which repeats a form without end."""
    return (x - x.round()).abs()


_FORMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    # Class name to signed distance, below 0 inside. A form reaches about 1 from the centre; a texture has no end.
    "disc": lambda x, y: x.hypot(y) - 0.9,
    "cross": lambda x, y: torch.minimum(x.abs(), y.abs()).sub(0.25).maximum(torch.maximum(x.abs(), y.abs()) - 0.95),
    "stripes": lambda x, _: (_cell(x * 1.5) - 0.25) / 1.5,
    "ring": lambda x, y: (x.hypot(y) - 0.75).abs() - 0.2,
    "square": lambda x, y: _edges(x, y, 4, 0.75).amax(0),
    "triangle": lambda x, y: _edges(x, y, 3, 0.5).amax(0),
    # A point of a five-pointed star lies outside one of its five lines at most.
    "star": lambda x, y: _edges(x, y, 5, math.cos(2 * math.pi / 5)).sort(0).values[3],
    "crescent": lambda x, y: torch.maximum(x.hypot(y) - 0.95, 0.75 - (x - 0.5).hypot(y)),
    "checkerboard": lambda x, y: torch.sin(x * 4) * torch.sin(y * 4) / 4,
    "dots": lambda x, y: (torch.hypot(_cell(x * 1.5), _cell(y * 1.5)) - 0.3) / 1.5,
}
