"""Batches straight from memory."""

import copy
import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnets._batch import Batch
from cifarnets._device import resolve_device
from cifarnets.datasets.augment import Augment, Augmenter
from cifarnets.datasets.images import ImageDataset, as_image_dataset
from cifarnets.errors import InputError, brief
from cifarnets.seeding import generator

EVAL_BATCH_SIZE = 1000
"""Images a batch where nothing is trained: larger batches are no faster."""

BLOCK = 256
"""Images that are converted together: it is cheaper to convert several small batches at once, while the caches hold
them."""
BLOCK_ON_CUDA = 4096
"""The same on a GPU, where starting an operation costs more than most of them take."""


class BatchLoader:
    """Whole batches of a resident dataset, normalised as they are taken: no workers, no copies per image.

    Iterating gives `(float32 images [B, C, H, W], int64 labels [B])` on `device`. With `shuffle`, the order of a pass
    depends on `(seed, epoch)` alone: every pass has its own, and it is the same on every device.

    Examples:
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> loader = BatchLoader(SyntheticCIFAR10(size=100), batch_size=64, shuffle=True, device="cpu")
        >>> [tuple(images.shape) for images, labels in loader]
        [(64, 3, 32, 32), (36, 3, 32, 32)]

    Args:
        dataset: One of ours, in the normalised or unit view and without a transform, or a torch `Subset` of it.
        batch_size: Images a batch.
        shuffle: A new order in every pass.
        drop_last: Leave out a last batch that is not full.
        device: Where the images live and the batches appear; `"auto"` is the Trainer's choice too.
        seed: Of the order and the augmentation. None draws one from torch's random numbers, so `seed_everything`
            decides it.
        augment: What to do to training images. Labels become float32 `[B, K]` where it mixes them.
        channels_last: Lay batches out as `[B, H, W, C]` in memory, as a Trainer of that setting wants them.
        labels: Labels in place of the dataset's: int64 `[N]`, or soft ones, float32 `[N, K]`, such as those of
            `cifarnets.distillation.soft_labels`. Batches have soft labels then too.

    Attributes:
        epoch: How many passes have been started. Set it to repeat a pass.
        image_shapes: `(C, H, W)` of the images that passes show, each once and that of whole images last: a single one,
            unless `augment` has a curriculum.

    Raises:
        InputError: The dataset is empty, serves PIL images or has a transform; `batch_size` is below 1; there is not
            one label for each image; or a curriculum has larger images than the dataset.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 64,
        shuffle: bool = False,
        *,
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
        for name, flag in (("shuffle", shuffle), ("drop_last", drop_last), ("channels_last", channels_last)):
            if not isinstance(flag, (bool, np.bool_)):
                raise InputError(f"{name} must be True or False, not {brief(flag)}.")
        batch_size = _whole(batch_size, "batch_size")
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1, not {batch_size}.")
        if not len(source) or (drop_last and len(source) < batch_size):
            raise InputError(f"{len(source)} images do not fill one batch of {batch_size}.")
        if augment is not None and not isinstance(augment, Augment):
            raise InputError(f"augment must be an Augment or None, not {brief(augment)}.")
        self.dataset: ImageDataset = source
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.device = resolve_device(device)
        self.seed = int(torch.randint(2**31, (), device="cpu")) if seed is None else _whole(seed, "seed")
        self.epoch = 0
        self.augment = augment
        self.image_shapes = _shapes(source, augment)
        self.channels_last = channels_last
        images = source.images.to(self.device)
        # In memory as the batches are to be, so that nothing is rearranged for each.
        self._images = (images.permute(0, 2, 3, 1) if channels_last else images).contiguous()
        self._labels = (source.labels if labels is None else _checked_labels(labels, source)).to(self.device)
        # A constant for every number of an image, in the order of memory: computing with one long line is faster than
        # with a plane for each channel.
        area = images.shape[2] * images.shape[3]
        mean, self._std = (
            column.repeat(area) if channels_last else column.repeat_interleave(area)
            for column in torch.tensor(source.constants, dtype=torch.float32, device=self.device)
        )
        self._minus_mean, self._all_255 = -mean, torch.full_like(mean, 255)
        self._augmenter: Augmenter | None = None
        # The CPU draws the next pass while a GPU is still at work on this one.
        self._draws_ahead = self.device.type == "cuda"
        self._drawn: tuple[tuple[Any, ...], tuple[Tensor, Augmenter | None]] | None = None

    def __len__(self) -> int:
        full, rest = divmod(len(self.dataset), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(itemgetter(0, 1), self.shard(0, 1))

    def shard(self, rank: int, size: int) -> Iterator[Batch]:
        """One pass, of which this process gets every `size`-th image of each batch, beginning with the `rank`-th.

        Loaders of one seed in several processes thus share every batch; the Trainer calls this.

        Examples:
            >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
            >>> loader = BatchLoader(SyntheticCIFAR10(size=100), batch_size=50, device="cpu")
            >>> [(len(batch.images), batch.size) for batch in loader.shard(0, 2)]
            [(25, 50), (25, 50)]

        Yields:
            This process's images and labels, and the size of the whole batch.
        """
        epoch, self.epoch = self.epoch, self.epoch + 1
        order, augmenter = self._draw(epoch)
        order = order[: len(self) * self.batch_size]
        mixes = augmenter is not None and augmenter.mixes
        # Cut up once an epoch: a view costs as much as a small computation, and an epoch has hundreds of each.
        indices = torch.split(order, self.batch_size)
        labels = torch.split(self._labels.index_select(0, order), self.batch_size)
        own_indices, own_labels = (
            parts if size == 1 else tuple(part[rank::size] for part in parts) for parts in (indices, labels)
        )
        step = max(1, (BLOCK_ON_CUDA if self.device.type == "cuda" else BLOCK) // self.batch_size)
        for first in range(0, len(indices), step):
            block = slice(first, first + step)
            images, targets = self._take(torch.cat(own_indices[block]), augmenter), list(own_labels[block])
            lengths = [len(part) for part in own_indices[block]]
            if augmenter is not None and mixes:
                for number, part in enumerate(torch.split(images, lengths), first):
                    # Each image's partner is the one before it in the whole batch.
                    own = size == 1
                    partners = part.roll(1, 0) if own else self._take(indices[number].roll(1)[rank::size], augmenter)
                    weight = augmenter.mix(part, partners, epoch, number)
                    partner_labels = self._soft(labels[number].roll(1, 0)[rank::size])
                    targets[number - first] = self._soft(own_labels[number]).lerp(partner_labels, 1 - weight)
                del part, partners
            parts = torch.split(self._as_batch(images), lengths)
            sizes = [len(part) for part in indices[block]]
            batches = [Batch(*fields) for fields in zip(parts, targets, sizes, strict=True)]
            batches.reverse()
            # No variable may hold a block while the next one is made: it is made in the memory of the last.
            del images, targets, parts
            while batches:
                yield batches.pop()
        if self._draws_ahead:
            self._drawn = self._key(epoch + 1), self._draw(epoch + 1)

    def state_dict(self) -> dict[str, int]:
        """What the order of the next pass depends on.

        Examples:
            >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
            >>> BatchLoader(SyntheticCIFAR10(size=100), seed=7).state_dict()
            {'seed': 7, 'epoch': 0}
        """
        return {"seed": self.seed, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Make the next pass the one that `state_dict` was called before.

        Examples:
            >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
            >>> loader = BatchLoader(SyntheticCIFAR10(size=100))
            >>> loader.load_state_dict({"seed": 7, "epoch": 3})
            >>> loader.epoch
            3

        Raises:
            InputError: It is no such state. The loader has not changed then.
        """
        try:
            seed, epoch = (_whole(state[name], name) for name in ("seed", "epoch"))
            if epoch < 0:
                raise InputError(f"epoch must be at least 0, not {epoch}.")
        except (KeyError, TypeError, InputError) as error:
            raise InputError(f"the state of a BatchLoader has a seed and an epoch, not this: {error}.") from error
        self.seed, self.epoch = seed, epoch

    def order(self, epoch: int) -> Tensor:
        """The order of the images in a shuffled pass, int64 `[N]`.

        Examples:
            >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
            >>> sorted(BatchLoader(SyntheticCIFAR10(size=4), seed=0).order(epoch=0).tolist())
            [0, 1, 2, 3]
        """
        drawn = torch.randperm(len(self.dataset), generator=generator(self.seed, epoch), device="cpu")
        return drawn.to(self.device)

    def _draw(self, epoch: int) -> tuple[Tensor, Augmenter | None]:
        """All chance of a pass: the order of the images, and what happens to each."""
        drawn, self._drawn = self._drawn, None
        if drawn is not None and drawn[0] == self._key(epoch):
            return drawn[1]
        order = self.order(epoch) if self.shuffle else torch.arange(len(self.dataset), device=self.device)
        return order, self._start_augmenter(epoch)

    def _key(self, epoch: int) -> tuple[Any, ...]:
        return self.seed, epoch, self.shuffle, self.augment

    def _start_augmenter(self, epoch: int) -> Augmenter | None:
        if self.augment is None:
            return None
        if self._augmenter is None or self._augmenter.seed != self.seed:
            self._augmenter = Augmenter(self.augment, self._images, self.seed, self.channels_last)
        of_this_pass = copy.copy(self._augmenter)  # two passes may run at once
        of_this_pass.start_epoch(epoch)
        return of_this_pass

    def _take(self, indices: Tensor, augmenter: Augmenter | None) -> Tensor:
        """Some images as the model sees them, in the order of memory."""
        if augmenter is not None:
            images = self._convert(augmenter.distort(augmenter.take(indices), indices))
            return augmenter.resize(augmenter.blank(images, indices))
        # index_select copies whole images; indexing with a tensor would go pixel by pixel.
        return self._convert(self._images.index_select(0, indices))

    def _convert(self, images: Tensor) -> Tensor:
        """Values from 0 to 255 to float32 as the dataset's view has it, in the order of memory."""
        lines = images.flatten(1).to(torch.float32)
        if self.dataset.view == "normalized":  # -mean + v / 255 in one pass, rounded as if it were two
            torch.addcdiv(self._minus_mean, lines, self._all_255, out=lines).div_(self._std)
        else:
            lines.div_(255)
        return lines.view(images.shape)

    def _soft(self, labels: Tensor) -> Tensor:
        """Labels as probabilities of the classes, `[B, K]`."""
        return F.one_hot(labels, len(self.dataset.classes)).float() if labels.ndim == 1 else labels

    def _as_batch(self, images: Tensor) -> Tensor:
        """Images in the order of memory as `[B, C, H, W]`."""
        return images.permute(0, 3, 1, 2) if self.channels_last else images

    def __repr__(self) -> str:
        return f"BatchLoader({self.dataset!r}, batch_size={self.batch_size}, shuffle={self.shuffle}, seed={self.seed})"


def _shapes(dataset: ImageDataset, augment: Augment | None) -> tuple[tuple[int, int, int], ...]:
    """`(C, H, W)` of the images that the passes show, each once; whole images are the last."""
    channels, height, width = dataset.images.shape[1:]
    curriculum = augment.curriculum if augment is not None else ()
    for side, _ in curriculum:
        if side > min(height, width):
            raise InputError(f"curriculum has images of {side} pixels, and the dataset's have {height}×{width}.")
    starts = itertools.accumulate((epochs for _, epochs in curriculum), initial=0)
    sizes = [augment.size(epoch, (height, width)) for epoch in starts] if augment is not None else [(height, width)]
    return tuple((channels, *size) for size in dict.fromkeys(reversed(sizes)))[::-1]


def _checked_labels(given: Tensor | Sequence[int], dataset: ImageDataset) -> Tensor:
    """Labels in place of the dataset's, int64 `[N]` or float32 `[N, K]`."""
    try:
        labels = given if isinstance(given, Tensor) else torch.from_numpy(np.array(given))
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"labels must be a tensor, or a list of numbers, not {brief(given)}.") from error
    classes = len(dataset.classes)
    hard, soft = (len(dataset),), (len(dataset), classes)
    if (labels.dtype, tuple(labels.shape)) not in ((torch.int64, hard), (torch.float32, soft)):
        raise InputError(
            f"labels must be int64 {list(hard)} or float32 {list(soft)}, not {labels.dtype} {list(labels.shape)}."
        )
    limit = classes if labels.ndim == 1 else math.inf
    if not ((labels >= 0) & (labels < limit)).all():  # which NaN is not either
        raise InputError(f"labels must be 0 … {classes - 1}, and soft labels finite and not negative.")
    return labels


def _whole(value: int, name: str) -> int:
    """Whatever counts as a whole number, NumPy's too, as an int."""
    try:
        return operator.index(value)
    except TypeError as error:
        raise InputError(f"{name} must be a whole number, not {value!r}.") from error
