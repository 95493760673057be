"""Batches straight from memory."""

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnets._batch import Batch
from cifarnets._device import resolve_device
from cifarnets.datasets.augment import Augment, Augmenter
from cifarnets.datasets.images import ImageDataset, as_image_dataset
from cifarnets.errors import InputError
from cifarnets.seeding import generator

BLOCK = 256
"""Images that are converted at once: small batches cost less a few together, as long as the caches hold them."""


class BatchLoader:
    """Whole batches of a resident dataset, normalised as they are taken: no workers, no copies per image.

    Iterating gives `(float32 images [B, C, H, W], int64 labels [B])` on `device`, and keeps no batch. With `shuffle`,
    every pass has an order of its own that depends on `(seed, epoch)` alone, so it is the same on every device and can
    be repeated.

    Args:
        dataset: One of ours, in the normalised or unit view and without a transform.
        batch_size: Images a batch.
        shuffle: A new order in every pass.
        drop_last: Leave out a last batch that is not full.
        device: Where the images live and the batches appear; `"auto"` is the Trainer's choice too.
        seed: Of the order and the augmentation; None draws one from torch's random numbers, so `seed_everything`
            governs it.
        augment: What to do to training images; labels become float32 `[B, K]` where it mixes them.
        channels_last: Lay batches out as `[B, H, W, C]` in memory, as a Trainer of that setting wants them.
        labels: Others than the dataset's: int64 `[N]`, or shares of the classes, float32 `[N, K]`, which batches then
            have too; such as those of `cifarnets.training.soft_labels`.

    Attributes:
        epoch: How many passes have been started; set it to repeat one or to go on from one.

    Raises:
        InputError: The dataset is empty, serves PIL images or has a transform; `batch_size` is below 1; or there is not
            one label for each image.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 64,
        shuffle: bool = False,
        drop_last: bool = False,
        device: str | torch.device = "auto",
        seed: int | None = None,
        augment: Augment | None = None,
        channels_last: bool = False,
        labels: Tensor | None = None,
    ) -> None:
        source = as_image_dataset(dataset)
        if source.view == "pil" or source.transform is not None:
            raise InputError(
                "BatchLoader converts whole batches, so it can serve neither PIL images nor a per-image transform; "
                "use CIFAR10Normalized(...) without either, or torch.utils.data.DataLoader."
            )
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}.")
        if not len(source) or (drop_last and len(source) < batch_size):
            raise InputError(f"{len(source)} images do not fill one batch of {batch_size}.")
        given = source.labels if labels is None else torch.as_tensor(labels)
        hard, soft = (len(source),), (len(source), len(source.classes))
        if (given.dtype, tuple(given.shape)) not in ((torch.int64, hard), (torch.float32, soft)):
            raise InputError(
                f"labels must be int64 {list(hard)} or float32 {list(soft)}, not {given.dtype} {list(given.shape)}."
            )
        beyond = len(source.classes) if given.ndim == 1 else math.inf
        if not ((given >= 0) & (given < beyond)).all():  # nor NaN
            raise InputError(f"labels must be 0 … {len(source.classes) - 1}, and shares finite and not negative.")
        self.dataset: ImageDataset = source
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.device = resolve_device(device)
        self.seed = int(torch.randint(2**31, ()).item()) if seed is None else seed
        self.epoch = 0
        self.augment = augment
        self.channels_last = channels_last
        images = source.images.to(self.device)
        # In memory as the batches are to be, so that nothing is rearranged for each.
        self._images = (images.permute(0, 2, 3, 1) if channels_last else images).contiguous()
        self._labels = given.to(self.device)
        # For every number of an image, in the order of memory: one long line is faster than a plane a channel.
        area = images.shape[2] * images.shape[3]
        mean, self._std = (
            column.repeat(area) if channels_last else column.repeat_interleave(area)
            for column in torch.tensor(source.constants, device=self.device)
        )
        self._below, self._white = -mean, torch.full_like(mean, 255)
        self._augmenter: Augmenter | None = None

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(itemgetter(0, 1), self.shard(0, 1))

    def shard(self, rank: int, size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
        """One pass, of which only each `size`-th image of every batch is taken, from the `rank`-th on.

        Several processes with loaders of one seed share every batch so; the Trainer calls this.

        Yields:
            Images and labels of the share, and how many images the whole batch has.
        """
        epoch, self.epoch = self.epoch, self.epoch + 1
        order = self.order(epoch) if self.shuffle else torch.arange(len(self.dataset), device=self.device)
        augmenter = self._start_augmenter(epoch)
        # Cut up once an epoch: a view costs as much as a small computation, and an epoch has hundreds of each.
        order = order[: len(self) * self.batch_size]
        places = torch.split(order, self.batch_size)
        labels = torch.split(self._labels.index_select(0, order), self.batch_size)
        sizes = [len(batch) for batch in places]
        own = slice(rank, None, size)
        mine, answers = (parts if size == 1 else [part[own] for part in parts] for parts in (places, labels))
        together = 1 if augmenter is not None and augmenter.mixes else max(1, BLOCK // self.batch_size)

        def make(chosen: Tensor) -> Tensor:
            if augmenter is not None:
                return augmenter.blank(self._convert(augmenter.take(chosen)), chosen)
            # index_select copies whole images; indexing with a tensor would go pixel by pixel.
            return self._convert(self._images.index_select(0, chosen))

        def take(first: int) -> Iterator[tuple[Tensor, Tensor, int]]:
            block = slice(first, first + together)
            images, given = make(torch.cat(mine[block])), answers[block]
            if augmenter is not None and augmenter.mixes:
                share = augmenter.mix(images, make(places[first].roll(1)[own]), epoch, first)
                given = [self._shares(given[0]).lerp(self._shares(labels[first].roll(1, 0)[own]), 1 - share)]
            batches = torch.split(self._view(images), [len(part) for part in mine[block]])
            return zip(batches, given, sizes[block], strict=True)

        # Nothing here holds a block while the next one is made.
        yield from map(Batch._make, chain.from_iterable(map(take, range(0, len(self), together))))

    def state_dict(self) -> dict[str, int]:
        """What the order of the next pass depends on."""
        return {"seed": self.seed, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Make the next pass the one that `state_dict` was taken before."""
        self.seed, self.epoch = state["seed"], state["epoch"]

    def order(self, epoch: int) -> Tensor:
        """The order of the images in a shuffled pass, int64 `[N]`."""
        return torch.randperm(len(self.dataset), generator=generator(self.seed, epoch)).to(self.device)

    def _start_augmenter(self, epoch: int) -> Augmenter | None:
        if self.augment is None:
            return None
        if self._augmenter is None or self._augmenter.seed != self.seed:
            self._augmenter = Augmenter(self.augment, self._images, self.seed, self.channels_last)
        chances = copy.copy(self._augmenter)  # of its own, for two passes may run at once
        chances.start_epoch(epoch)
        return chances

    def _convert(self, images: Tensor) -> Tensor:
        """uint8 to what the model sees, in the order of memory."""
        lines = images.flatten(1).to(torch.float32)
        if self.dataset.view == "normalized":  # -mean + v / 255, in one pass; both are rounded as they are one by one
            torch.addcdiv(self._below, lines, self._white, out=lines).div_(self._std)
        else:
            lines.div_(255)
        return lines.view(images.shape)

    def _shares(self, labels: Tensor) -> Tensor:
        """Labels as shares of the classes, `[B, K]`."""
        return F.one_hot(labels, len(self.dataset.classes)).float() if labels.ndim == 1 else labels

    def _view(self, images: Tensor) -> Tensor:
        """A batch as `[B, C, H, W]`."""
        return images.permute(0, 3, 1, 2) if self.channels_last else images

    def __repr__(self) -> str:
        return f"BatchLoader({self.dataset!r}, batch_size={self.batch_size}, shuffle={self.shuffle}, seed={self.seed})"
