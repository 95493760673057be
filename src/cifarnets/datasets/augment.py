"""Augmentation of whole batches: seeded, restartable at any batch, and the same on every device.

All chance is drawn on the CPU, once an epoch and per image, from `(seed, epoch)`. What a batch looks like thus depends
on neither the batches before it nor the device.
"""

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

    Attributes:
        flip: Mirror left and right: `"random"` for each image and epoch; `"alternating"` for a random half in the
            first epoch and the other half in the next, so that two epochs show both sides of every image (Jordan
            2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU", section 3.6); None for never.
        translate: Shift by up to so many pixels in each direction, filling up with the image's reflection.
        cutout: Side of a square that is blanked at a random place, cut off at the borders (DeVries & Taylor 2017).
        mixup: Beta(a, a) mixes each image with another of its batch, and their labels (Zhang et al. 2018); 0 for not.
        cutmix: Likewise, by pasting a rectangle of the other (Yun et al. 2019).

    Raises:
        InputError: A value is out of range, or both mixup and cutmix are asked for.
    """

    flip: Literal["random", "alternating"] | None = "random"
    translate: int = 0
    cutout: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        if self.flip not in ("random", "alternating", None):
            raise InputError(f"flip must be 'random', 'alternating' or None, not {self.flip!r}.")
        whole = {"translate": self.translate, "cutout": self.cutout}
        if any(isinstance(value, bool) or not isinstance(value, int) for value in whole.values()):
            raise InputError(f"translate and cutout must be whole numbers of pixels, not {whole}.")
        shares = {"mixup": self.mixup, "cutmix": self.cutmix}
        if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in shares.values()):
            raise InputError(f"mixup and cutmix must be numbers, not {shares}.")
        if not 0 <= self.translate < 32 or self.cutout < 0 or self.mixup < 0 or self.cutmix < 0:
            raise InputError(f"augmentation amounts must not be negative, nor translate above 31: {self}.")
        if self.mixup and self.cutmix:
            raise InputError("mixup and cutmix both replace the labels of a batch; choose one.")


class Augmenter:
    """`Augment` applied to one resident dataset.

    Args:
        augment: What to do.
        images: uint8 `[N, C, H, W]`, or `[N, H, W, C]`, where the batches are to appear.
        seed: Of all chance.
        channels_last: Which of the two.
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
        if augment.flip is not None:  # memory for time: flipping is then a matter of where to read
            images = torch.cat([images, images.flip(self._columns)])
        self._windows, self._steps = images, (1, 0, 0)
        if pad:
            # All windows of the padded images, overlapping, without a copy: one index_select then shifts, flips and
            # gathers, which is several times faster than indexing pixels.
            steps = images.stride()
            reach = sum((size - 1) * step for size, step in zip(shape, steps[1:], strict=True))
            self._windows = images.as_strided((images.numel() - reach, *shape), (1, *steps[1:]))
            self._steps = steps[0], steps[self._rows], steps[self._columns]
        self._places: Tensor | None = None
        if pad and not _reads_through_views(images.device):
            first, second, third = (torch.arange(size) * step for size, step in zip(shape, steps[1:], strict=True))
            places = first[:, None, None] + second[:, None] + third
            self._places = places.to(images.device)
            self._windows = images.flatten()

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed within a batch."""
        return bool(self.augment.mixup or self.augment.cutmix)

    def start_epoch(self, epoch: int) -> None:
        """Draw this epoch's chances for all images."""
        chance = generator(self.seed, epoch, 1)
        augment, count = self.augment, self._count
        image_step, row_step, column_step = self._steps
        source = torch.arange(count)
        if augment.flip == "random":
            source += count * torch.rand(count, generator=chance).lt(0.5)
        elif augment.flip == "alternating":
            first = torch.rand(count, generator=generator(self.seed, 0, 2)).lt(0.5)
            source += count * (first ^ bool(epoch % 2))
        starts = source * image_step
        if augment.translate:
            down, right = torch.randint(0, 2 * augment.translate + 1, (2, count), generator=chance)
            starts += down * row_step + right * column_step
        self._starts = starts.to(self._windows.device)
        if augment.cutout:
            sides = torch.tensor(self.size)[:, None]
            self._holes = (torch.rand(2, count, generator=chance) * sides).long().to(self._windows.device)

    def take(self, chosen: Tensor) -> Tensor:
        """The images at `chosen`, shifted and flipped: uint8, `[B, C, H, W]` or `[B, H, W, C]`."""
        starts = self._starts.index_select(0, chosen)
        if self._places is None:
            return self._windows.index_select(0, starts)
        places = starts[:, None, None, None] + self._places
        return self._windows.index_select(0, places.flatten()).view(places.shape)

    def blank(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Cut the holes into the float images, laid out as `take` gives them, that were taken at `chosen`, in place."""
        side = self.augment.cutout
        if side:
            starts = self._holes[:, chosen, None] - side // 2
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
        """Mix `others` into the float images, in place, and say which share of them is left, 0..1.

        One share, and for cutmix one rectangle, is drawn for the batch.
        """
        chance = np.random.default_rng([self.seed % 2**64, epoch, batch])
        alpha = self.augment.mixup or self.augment.cutmix
        share, place = float(chance.beta(alpha, alpha)), chance.random(2).tolist()
        if self.augment.mixup:
            images.lerp_(others, 1 - share)
            return share
        height, width = self.size
        side = (1 - share) ** 0.5
        spans = []
        for size, at in zip((height, width), place, strict=True):
            low = round(at * size - side * size / 2)
            spans.append(slice(max(low, 0), min(low + round(side * size), size)))
        rectangle = (slice(None),) * self._rows + tuple(spans)
        images[rectangle] = others[rectangle]
        area: int = max(spans[0].stop - spans[0].start, 0) * max(spans[1].stop - spans[1].start, 0)
        return 1 - area / (height * width)


def _reads_through_views(device: torch.device) -> bool:
    """Whether index_select reads from a view where it is; Metal's copies the view first, here a thousand GB."""
    return device.type != "mps"


def _reflection(size: int, pad: int) -> Tensor:
    """Where each row of a picture comes from that is filled up by its reflection, int64 `[size + 2 * pad]`."""
    places = torch.arange(-pad, size + pad).abs()
    return size - 1 - (size - 1 - places).abs()
