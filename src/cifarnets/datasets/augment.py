"""Augmentation of whole batches: seeded, restartable at any batch, and the same on every device.

All chance is drawn on the CPU, once an epoch and for each image, from `(seed, epoch)`. A batch therefore depends
neither on the batches before it nor on the device.
"""

import math
import numbers
import operator
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnets.datasets.distort import add_contrast, brighten, rotate, saturate, sharpen, turn_hue
from cifarnets.errors import InputError, brief
from cifarnets.seeding import generator

LARGEST_AMOUNTS = {
    "rotate": 180.0,
    "sharpness": 10.0,
    "brightness": 10.0,
    "contrast": 10.0,
    "saturation": 10.0,
    "hue": 0.5,
    "erase": 1.0,
}
SMALLEST_SIDE = 8
"""Of the images of a curriculum, in pixels."""
ERASED_AREA, ERASED_ASPECT = (0.02, 0.33), (0.3, 3.3)
"""Of an erased rectangle: its share of the image, and its height over its width (section 3.2 of the paper)."""


@dataclass(frozen=True, repr=False)
class Augment:
    """What `BatchLoader` does to training images.

    Examples:
        >>> from cifarnets.datasets import Augment, BatchLoader, SyntheticCIFAR10
        >>> augment = Augment(flip="alternating", translate=2, cutout=8)
        >>> loader = BatchLoader(SyntheticCIFAR10(size=100), batch_size=50, shuffle=True, augment=augment)
        >>> len(list(loader))
        2

    Attributes:
        flip: Mirror left and right: `"random"` for each image and epoch; `"alternating"` for a random half in the
            first epoch and the other half in the next, so that two epochs show both sides of every image (Jordan
            2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.6); None for never.
        translate: Shift by up to this many pixels in each direction, filled up with the image's reflection.
        cutout: Side in pixels of a square that is blanked at a random position, cut off at the borders (DeVries &
            Taylor 2017).
        mixup: Mix each image with another of its batch, and their labels, with a weight from Beta(a, a) (Zhang et al.
            2018); 0 for never.
        cutmix: Paste a rectangle of another image of the batch, whose area is drawn from Beta(a, a), and mix the
            labels (Yun et al. 2019); 0 for never.
        mix_ramp: Epochs in which the share of the other image grows from nothing to that of mixup or cutmix.
        mix_epochs: Mix in this many first epochs only; 0 for all. Training often ends with whole images.
        rotate: Rotate by up to this many degrees in each direction; corners fill up with the reflection.
        sharpness: Sharpen by a factor between 1 and 1 plus this.
        brightness: Multiply values by a factor between 1 minus and 1 plus this.
        contrast: Move values from their mean grey by such a factor.
        saturation: Move colours from grey by such a factor.
        hue: Turn the colour wheel by up to this much of a turn in each direction, at most 0.5.
        erase: Probability of blanking a random rectangle of 2 to 33 % of the image (Zhong et al. 2020, "Random Erasing
            Data Augmentation").
        curriculum: Pairs of a size and a number of epochs: `((24, 3), (28, 3))` makes images of 24×24 in the first
            three epochs, of 28×28 in the next three, and leaves them whole after these (progressive resizing, Howard
            2018, "Training Imagenet in 3 hours for $25; and CIFAR10 for $0.26"). Images are resized as a whole, after
            all that is done to each, so amounts in pixels are those of whole images. A size is that of the shorter
            side. The model must take images of all these sizes.

    Raises:
        InputError: A value is out of range, or both mixup and cutmix are chosen.
    """

    flip: Literal["random", "alternating"] | None = "random"
    translate: int = 0
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_ramp: int = 0
    mix_epochs: int = 0
    rotate: float = 0.0
    sharpness: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    erase: float = 0.0
    curriculum: tuple[tuple[int, int], ...] = ()

    def __repr__(self) -> str:
        # Checkpoints of before these fields hold the text of the first five, and must resume.
        shown = [f for number, f in enumerate(fields(self)) if number < 5 or getattr(self, f.name) != f.default]
        return f"Augment({', '.join(f'{f.name}={getattr(self, f.name)!r}' for f in shown)})"

    def __post_init__(self) -> None:
        if not (self.flip is None or (isinstance(self.flip, str) and self.flip in ("random", "alternating"))):
            raise InputError(f"flip must be 'random', 'alternating' or None, not {self.flip!r}.")
        pixels = {"translate": self.translate, "cutout": self.cutout}
        if any(isinstance(value, bool) or not isinstance(value, numbers.Integral) for value in pixels.values()):
            raise InputError(f"translate and cutout must be whole numbers of pixels, not {pixels}.")
        strengths = {"mixup": self.mixup, "cutmix": self.cutmix}
        if any(isinstance(value, bool) or not isinstance(value, numbers.Real) for value in strengths.values()):
            raise InputError(f"mixup and cutmix must be numbers, not {strengths}.")
        if not all(abs(value) < 1e6 for value in strengths.values()):  # which infinity and NaN are not either
            raise InputError("mixup and cutmix must be finite, and below a million.")
        for name, amount in pixels.items():  # NumPy's numbers become Python's, which can be written to a file
            object.__setattr__(self, name, operator.index(amount))
        for name, strength in strengths.items():
            object.__setattr__(self, name, float(strength))
        for name in ("mix_ramp", "mix_epochs"):
            epochs: Any = getattr(self, name)
            if isinstance(epochs, bool) or not isinstance(epochs, numbers.Integral) or not 0 <= int(epochs) < 2**31:
                raise InputError(f"{name} must be a whole number of epochs, at least 0, not {brief(epochs)}.")
            object.__setattr__(self, name, operator.index(epochs))
        for name, largest in LARGEST_AMOUNTS.items():
            value: Any = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= float(value) <= largest:
                raise InputError(f"{name} must be a number from 0 to {largest:g}, not {brief(value)}.")
            object.__setattr__(self, name, float(value))
        if not 0 <= self.translate < 32 or self.cutout < 0 or self.mixup < 0 or self.cutmix < 0:
            raise InputError(f"augmentation amounts must not be negative, nor translate above 31: {self}.")
        if self.mixup and self.cutmix:
            raise InputError("mixup and cutmix both replace the labels of a batch; choose one.")
        if (self.mix_ramp or self.mix_epochs) and not (self.mixup or self.cutmix):
            raise InputError("mix_ramp and mix_epochs are about mixup or cutmix: choose one of these too.")
        object.__setattr__(self, "curriculum", _checked_curriculum(self.curriculum))

    def size(self, epoch: int, whole: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the images in an epoch, whose number counts from 0.

        Examples:
            >>> from cifarnets.datasets import Augment
            >>> augment = Augment(curriculum=((24, 3), (28, 3)))
            >>> [augment.size(epoch, (32, 32)) for epoch in (0, 3, 6)]
            [(24, 24), (28, 28), (32, 32)]

        Args:
            epoch: How many passes came before.
            whole: Height and width of the images themselves.
        """
        for side, epochs in self.curriculum:
            if epoch < epochs:
                height, width = (length * side // min(whole) for length in whole)  # as torchvision rounds it
                return height, width
            epoch -= epochs
        return whole

    def distortions(self) -> "dict[str, tuple[_Distortion, float, float]]":
        """What is done to the values of images: the function, and the range of its amount.

        Examples:
            >>> from cifarnets.datasets import Augment
            >>> {name: bounds for name, (_, *bounds) in Augment(rotate=15, contrast=0.1).distortions().items()}
            {'rotate': [-15.0, 15.0], 'contrast': [0.9, 1.1]}
        """
        around_one: dict[str, _Distortion] = {
            "brightness": brighten,
            "contrast": add_contrast,
            "saturation": saturate,
        }
        ranges: dict[str, tuple[_Distortion, float, float]] = {
            "rotate": (rotate, -self.rotate, self.rotate),
            "sharpness": (sharpen, 1.0, 1 + self.sharpness),
            **{
                name: (function, max(0.0, 1 - getattr(self, name)), 1 + getattr(self, name))
                for name, function in around_one.items()
            },
            "hue": (turn_hue, -self.hue, self.hue),
        }
        return {name: found for name, found in ranges.items() if getattr(self, name)}


_Distortion = Callable[[Tensor, Tensor], Tensor]


class Augmenter:
    """`Augment` applied to one resident dataset.

    Args:
        augment: What to do.
        images: uint8 `[N, C, H, W]`, or `[N, H, W, C]`, on the device of the batches.
        seed: Of all chance.
        channels_last: Whether the images are `[N, H, W, C]`.
    """

    def __init__(self, augment: Augment, images: Tensor, seed: int, channels_last: bool = False) -> None:
        self.augment = augment
        self.seed = seed
        self._rows, self._columns = (1, 2) if channels_last else (2, 3)
        height, width = images.shape[self._rows : self._columns + 1]
        self.size = height, width
        self._channels = images.shape[3 if channels_last else 1]
        self._count = len(images)
        pad, shape = augment.translate, images.shape[1:]
        if pad:
            for axis in (self._rows, self._columns):
                images = images.index_select(axis, _reflection(images.shape[axis], pad).to(images.device))
        if augment.flip is not None:  # memory for time: the mirror image is read instead of made
            images = torch.cat([images, images.flip(self._columns)])
        self._windows, self._steps = images, (1, 0, 0)
        if pad:
            # All windows of the padded images, which overlap, without a copy: a single index_select then shifts, flips
            # and gathers. That is several times faster than indexing pixels.
            steps = images.stride()
            reach = sum((size - 1) * step for size, step in zip(shape, steps[1:], strict=True))
            self._windows = images.as_strided((images.numel() - reach, *shape), (1, *steps[1:]))
            self._steps = steps[0], steps[self._rows], steps[self._columns]
        self._offsets: Tensor | None = None
        if pad and not _reads_through_views(images.device):
            first, second, third = (
                torch.arange(size, device="cpu") * step for size, step in zip(shape, steps[1:], strict=True)
            )
            offsets = first[:, None, None] + second[:, None] + third
            self._offsets = offsets.to(images.device)
            self._windows = images.flatten()

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed within a batch."""
        return bool(self.augment.mixup or self.augment.cutmix)

    def start_epoch(self, epoch: int) -> None:
        """Draw what happens to each image in this epoch."""
        chance = generator(self.seed, epoch, 1)
        augment, count = self.augment, self._count
        image_step, row_step, column_step = self._steps
        source = torch.arange(count, device="cpu")
        if augment.flip == "random":
            source += count * _uniform(chance, count).lt(0.5)
        elif augment.flip == "alternating":
            first = _uniform(generator(self.seed, 0, 2), count).lt(0.5)
            source += count * (first ^ bool(epoch % 2))
        starts = source * image_step
        if augment.translate:
            down, right = torch.randint(0, 2 * augment.translate + 1, (2, count), generator=chance, device="cpu")
            starts += down * row_step + right * column_step
        device = self._windows.device
        self._starts = starts.to(device)
        holes = []  # first rows and columns, and sides, int64 [2, N] each
        sides = torch.tensor(self.size, device="cpu")[:, None]
        if augment.cutout:
            centers = (_uniform(chance, 2, count) * sides).long()
            holes.append((centers - augment.cutout // 2, torch.full_like(centers, augment.cutout)))
        if augment.erase:
            holes.append(_rectangles(generator(self.seed, epoch, 3), augment.erase, sides, count))
        self._weights = None
        if (shown := augment.size(epoch, self.size)) != self.size:
            down, across = (_resizing(size, new) for size, new in zip(self.size, shown, strict=True))
            if self._rows == 1:  # in memory a row is all channels of all its pixels
                across = torch.kron(across, torch.eye(self._channels, device="cpu"))
            self._weights = down.to(device), across.T.contiguous().to(device)
        self._holes = [(first.to(device), spans.to(device)) for first, spans in holes]
        self._amounts = []
        numbers_of = {name: number for number, name in enumerate(LARGEST_AMOUNTS)}
        for name, (function, low, high) in augment.distortions().items():
            amounts = low + (high - low) * _uniform(generator(self.seed, epoch, 4, numbers_of[name]), count)
            self._amounts.append((function, amounts.to(device)))

    def take(self, indices: Tensor) -> Tensor:
        """The images at `indices`, shifted and flipped: uint8, `[B, C, H, W]` or `[B, H, W, C]`."""
        starts = self._starts.index_select(0, indices)
        if self._offsets is None:
            return self._windows.index_select(0, starts)
        pixels = starts[:, None, None, None] + self._offsets
        return self._windows.index_select(0, pixels.flatten()).view(pixels.shape)

    def distort(self, images: Tensor, indices: Tensor) -> Tensor:
        """Rotate, sharpen and recolour images that `take(indices)` gave: float from 0 to 255 where there is any."""
        if not self._amounts:
            return images
        # To the functions, channels come first in shape; in memory they may come last.
        moved = images.float() if self._rows == 2 else images.float().permute(0, 3, 1, 2)
        for function, amounts in self._amounts:
            moved = function(moved, amounts.index_select(0, indices))
        return (moved if self._rows == 2 else moved.permute(0, 2, 3, 1)).contiguous()

    def blank(self, images: Tensor, indices: Tensor) -> Tensor:
        """Cut the holes into images that `take(indices)` gave, float and normalised by now, in place."""
        for first, spans in self._holes:
            lines = [
                torch.arange(size, device=images.device) - start
                for size, start in zip(self.size, first[:, indices, None], strict=True)
            ]
            down, across = (
                (line >= 0) & (line < span) for line, span in zip(lines, spans[:, indices, None], strict=True)
            )
            if self._rows == 1:  # in memory a row is all channels of all its pixels
                across = across.repeat_interleave(images.shape[3], 1)
                images.flatten(2).masked_fill_(down[:, :, None] & across[:, None, :], 0.0)
            else:
                images.masked_fill_((down[:, :, None] & across[:, None, :])[:, None], 0.0)
        return images

    def resize(self, images: Tensor) -> Tensor:
        """Resize the images of a batch to this epoch's size: bilinear, with antialiasing.

        It comes last, and batch by batch. So a shift by two pixels stays one of a sixteenth of the picture, and nothing
        before it knows about sizes. On a CPU it takes some 10 µs an image, where a step of a small ResNet takes a
        millisecond and more. Resizing is linear in rows and in columns, so two matrix products do it: on every device,
        in both layouts, and in half the time of torch's own `interpolate`, whose weights they have.
        """
        if self._weights is None:
            return images
        down, across = self._weights
        height, row = images.shape[self._rows], across.shape[0]
        shape = list(images.shape)
        shape[self._rows], shape[self._columns] = len(down), across.shape[1] * shape[self._columns] // row
        with torch.autocast(images.device.type, enabled=False):  # of the caller's, which would round to half precision
            lines = torch.bmm(down.expand(images.numel() // (height * row), -1, -1), images.view(-1, height, row))
            return torch.mm(lines.view(-1, row), across).view(shape)

    def mix(self, images: Tensor, others: Tensor, epoch: int, batch: int) -> float:
        """Mix `others` into the float images, in place.

        A batch has one weight, and for cutmix one rectangle.

        Returns:
            The weight of the images themselves, 0..1; that of the others is the rest.
        """
        chance = np.random.default_rng([self.seed % 2**64, epoch, batch])
        alpha = self.augment.mixup or self.augment.cutmix
        weight, center = float(chance.beta(alpha, alpha)), chance.random(2).tolist()
        if self.augment.mix_ramp:
            weight = 1 - (1 - weight) * min(1.0, (epoch + 1) / self.augment.mix_ramp)
        if 0 < self.augment.mix_epochs <= epoch:
            return 1.0
        if self.augment.mixup:
            images.lerp_(others, 1 - weight)
            return weight
        height, width = images.shape[self._rows : self._columns + 1]
        side = (1 - weight) ** 0.5
        spans = []
        for size, middle in zip((height, width), center, strict=True):
            low = round(middle * size - side * size / 2)
            spans.append(slice(max(low, 0), min(low + round(side * size), size)))
        rectangle = (slice(None),) * self._rows + tuple(spans)
        images[rectangle] = others[rectangle]
        area: int = max(spans[0].stop - spans[0].start, 0) * max(spans[1].stop - spans[1].start, 0)
        return 1 - area / (height * width)


def _uniform(chance: torch.Generator, *shape: int) -> Tensor:
    """Random numbers in 0..1, the same whatever torch's default dtype and device are."""
    return torch.rand(*shape, generator=chance, dtype=torch.float32, device="cpu")


def _rectangles(chance: torch.Generator, probability: float, sides: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Rectangles within images: first rows and columns, and sides, int64 `[2, N]`; sides of 0 for most images."""
    chosen, area, aspect = _uniform(chance, 3, count)
    area = (ERASED_AREA[0] + (ERASED_AREA[1] - ERASED_AREA[0]) * area) * sides.prod()
    low, high = (math.log(bound) for bound in ERASED_ASPECT)
    aspect = (low + (high - low) * aspect).exp()
    spans = torch.stack([(area * aspect).sqrt(), (area / aspect).sqrt()]).round().long()
    spans = torch.minimum(spans, sides) * (chosen < probability)
    first = (_uniform(chance, 2, count) * (sides - spans + 1)).long()
    return first, spans


def _resizing(size: int, new: int) -> Tensor:
    """How much each of `size` rows gives to each of `new` ones, float32 `[new, size]`; as torch's `interpolate`."""
    unit = torch.eye(size, dtype=torch.float32, device="cpu")[None, None]
    return F.interpolate(unit, (new, size), mode="bilinear", antialias=True)[0, 0]


def _checked_curriculum(given: Any) -> tuple[tuple[int, int], ...]:
    """Pairs of a size and a number of epochs, as tuples of Python's numbers; lists of JSON or TOML will do."""
    pairs = []
    for pair in given if isinstance(given, (list, tuple)) else [given]:
        numbers_only = isinstance(pair, (list, tuple)) and all(
            isinstance(value, numbers.Integral) and not isinstance(value, bool) for value in pair
        )
        if not numbers_only or len(pair) != 2 or not (SMALLEST_SIDE <= pair[0] < 2**31 and 1 <= pair[1] < 2**31):
            raise InputError(
                "curriculum must be pairs of a size in pixels, at least 8, and a number of epochs, at least 1, such as "
                f"((24, 3), (28, 3)), not {brief(given)}."
            )
        pairs.append((operator.index(pair[0]), operator.index(pair[1])))
    return tuple(pairs)


def _reads_through_views(device: torch.device) -> bool:
    """Whether index_select reads a view without a copy; Metal's copies it first, which would take a thousand GB."""
    return device.type != "mps"


def _reflection(size: int, pad: int) -> Tensor:
    """Which rows of a picture make up the one that is padded with its reflection, int64 `[size + 2 * pad]`."""
    rows = torch.arange(-pad, size + pad, device="cpu").abs()
    return size - 1 - (size - 1 - rows).abs()
