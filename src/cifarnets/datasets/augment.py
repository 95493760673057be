"""Augmentation of whole batches: seeded, restartable at any batch, and the same on every device.

All chance is drawn on the CPU, once an epoch and per image, from `(seed, epoch)`. What a batch looks like thus depends
on neither the batches before it nor the device.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
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
        if not 0 <= self.translate < 32 or self.cutout < 0 or self.mixup < 0 or self.cutmix < 0:
            raise InputError(f"augmentation amounts must not be negative, nor translate above 31: {self}.")
        if self.mixup and self.cutmix:
            raise InputError("mixup and cutmix both replace the labels of a batch; choose one.")


class Augmenter:
    """`Augment` applied to one resident dataset.

    Args:
        augment: What to do.
        images: uint8 `[N, C, H, W]`, where the batches are to appear.
        seed: Of all chance.
    """

    def __init__(self, augment: Augment, images: Tensor, seed: int) -> None:
        self.augment = augment
        self.seed = seed
        self.size = images.shape[-2:]
        self._count = len(images)
        pad = augment.translate
        if pad:
            parts = [F.pad(part.float(), (pad,) * 4, mode="reflect").byte() for part in torch.split(images, 5000)]
            images = torch.cat(parts)
        if augment.flip is not None:
            images = torch.cat([images, images.flip(-1)])  # memory for time: flipping is then a matter of where to read
        self._windows, self._steps = images, (1, 0)
        if pad:
            # All windows of the padded images, overlapping, without a copy: one index_select then shifts, flips and
            # gathers, which is several times faster than indexing pixels.
            _, channels, height, width = images.shape
            reach = (channels - 1) * height * width + (self.size[0] - 1) * width + self.size[1] - 1
            shape, strides = (images.numel() - reach, channels, *self.size), (1, height * width, width, 1)
            self._windows, self._steps = images.as_strided(shape, strides), (channels * height * width, width)

    @property
    def mixes(self) -> bool:
        """Whether images and labels are mixed within a batch."""
        return bool(self.augment.mixup or self.augment.cutmix)

    def start_epoch(self, epoch: int) -> None:
        """Draw this epoch's chances for all images."""
        chance = generator(self.seed, epoch, 1)
        augment, count = self.augment, self._count
        image_step, row_step = self._steps
        source = torch.arange(count)
        if augment.flip == "random":
            source += count * torch.rand(count, generator=chance).lt(0.5)
        elif augment.flip == "alternating":
            first = torch.rand(count, generator=generator(self.seed, 2)).lt(0.5)
            source += count * (first ^ bool(epoch % 2))
        starts = source * image_step
        if augment.translate:
            down, right = torch.randint(0, 2 * augment.translate + 1, (2, count), generator=chance)
            starts += down * row_step + right
        self._starts = starts.to(self._windows.device)
        if augment.cutout:
            sides = torch.tensor(self.size)[:, None]
            self._holes = (torch.rand(2, count, generator=chance) * sides).long().to(self._windows.device)

    def take(self, chosen: Tensor) -> Tensor:
        """The images at `chosen`, shifted and flipped: uint8 `[B, C, H, W]`."""
        return self._windows.index_select(0, self._starts.index_select(0, chosen))

    def blank(self, images: Tensor, chosen: Tensor) -> Tensor:
        """Cut the holes into the float images `[B, C, H, W]` that were taken at `chosen`, in place."""
        if self.augment.cutout:
            rows, columns = (
                (torch.arange(size, device=images.device) - center[:, None] + self.augment.cutout // 2)
                for size, center in zip(self.size, self._holes[:, chosen], strict=True)
            )
            inside = [(line >= 0) & (line < self.augment.cutout) for line in (rows, columns)]
            images.masked_fill_((inside[0][:, :, None] & inside[1][:, None, :])[:, None], 0.0)
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
        images[..., spans[0], spans[1]] = others[..., spans[0], spans[1]]
        area: int = max(spans[0].stop - spans[0].start, 0) * max(spans[1].stop - spans[1].start, 0)
        return 1 - area / (height * width)
