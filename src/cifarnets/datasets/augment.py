"""Augmentation of whole batches: seeded, restartable at any batch, and the same on every device.

All chance is drawn on the CPU, once an epoch and for each image, from `(seed, epoch)`. A batch therefore depends
neither on the batches before it nor on the device.
"""

import numbers
import operator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cifarnets.errors import InputError
from cifarnets.seeding import generator


@dataclass(frozen=True)
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

    Raises:
        InputError: A value is out of range, or both mixup and cutmix are chosen.
    """

    flip: Literal["random", "alternating"] | None = "random"
    translate: int = 0
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

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
        if not 0 <= self.translate < 32 or self.cutout < 0 or self.mixup < 0 or self.cutmix < 0:
            raise InputError(f"augmentation amounts must not be negative, nor translate above 31: {self}.")
        if self.mixup and self.cutmix:
            raise InputError("mixup and cutmix both replace the labels of a batch; choose one.")


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
        self.size = images.shape[self._rows : self._columns + 1]
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
        self._starts = starts.to(self._windows.device)
        if augment.cutout:
            sides = torch.tensor(self.size, device="cpu")[:, None]
            self._holes = (_uniform(chance, 2, count) * sides).long().to(self._windows.device)

    def take(self, indices: Tensor) -> Tensor:
        """The images at `indices`, shifted and flipped: uint8, `[B, C, H, W]` or `[B, H, W, C]`."""
        starts = self._starts.index_select(0, indices)
        if self._offsets is None:
            return self._windows.index_select(0, starts)
        pixels = starts[:, None, None, None] + self._offsets
        return self._windows.index_select(0, pixels.flatten()).view(pixels.shape)

    def blank(self, images: Tensor, indices: Tensor) -> Tensor:
        """Cut the holes into images that `take(indices)` gave, float by now, in place."""
        side = self.augment.cutout
        if side:
            starts = self._holes[:, indices, None] - side // 2
            lines = [
                torch.arange(size, device=images.device) - start for size, start in zip(self.size, starts, strict=True)
            ]
            down, across = ((line >= 0) & (line < side) for line in lines)
            if self._rows == 1:  # in memory a row is all channels of all its pixels
                across = across.repeat_interleave(images.shape[3], 1)
                images.flatten(2).masked_fill_(down[:, :, None] & across[:, None, :], 0.0)
            else:
                images.masked_fill_((down[:, :, None] & across[:, None, :])[:, None], 0.0)
        return images

    def mix(self, images: Tensor, others: Tensor, epoch: int, batch: int) -> float:
        """Mix `others` into the float images, in place.

        A batch has one weight, and for cutmix one rectangle.

        Returns:
            The weight of the images themselves, 0..1; that of the others is the rest.
        """
        chance = np.random.default_rng([self.seed % 2**64, epoch, batch])
        alpha = self.augment.mixup or self.augment.cutmix
        weight, center = float(chance.beta(alpha, alpha)), chance.random(2).tolist()
        if self.augment.mixup:
            images.lerp_(others, 1 - weight)
            return weight
        height, width = self.size
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


def _reads_through_views(device: torch.device) -> bool:
    """Whether index_select reads a view without a copy; Metal's copies it first, which would take a thousand GB."""
    return device.type != "mps"


def _reflection(size: int, pad: int) -> Tensor:
    """Which rows of a picture make up the one that is padded with its reflection, int64 `[size + 2 * pad]`."""
    rows = torch.arange(-pad, size + pad, device="cpu").abs()
    return size - 1 - (size - 1 - rows).abs()
