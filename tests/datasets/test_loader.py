"""Batches from memory: the right images, in an order that can be repeated."""

import weakref
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset

from cifarnets import seed_everything
from cifarnets._batch import Batch
from cifarnets.datasets import Augment, BatchLoader, CIFAR10Normalized, ImageDataset
from cifarnets.errors import InputError


def numbered(n: int, **options: Any) -> ImageDataset:
    """Images of one channel, 32 × 32, all pixels of which are the image's number; labels are number mod 3."""
    images = torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 32, 32).contiguous()
    options = {"mean": [0], "std": [1], **options}
    return ImageDataset(images, torch.arange(n) % 3, ("a", "b", "c"), **options)


def numbers(images: Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def passed(loader: BatchLoader) -> list[int]:
    """The numbers of the images of one pass; each must come with its label."""
    seen = []
    for images, labels in loader:
        assert [number % 3 for number in numbers(images)] == labels.tolist()
        seen += numbers(images)
    return seen


@pytest.mark.parametrize("view", ["normalized", "unit"])
@pytest.mark.parametrize("drop_last", [False, True])
def test_without_shuffling_it_is_the_plain_dataloader(view: Any, drop_last: bool) -> None:
    dataset = numbered(10, view=view, mean=[0.3], std=[0.7])
    ours = BatchLoader(dataset, batch_size=4, drop_last=drop_last, device="cpu")
    theirs = DataLoader(dataset, batch_size=4, drop_last=drop_last)
    assert len(ours) == len(theirs) == (2 if drop_last else 3)
    for _ in range(2):  # every pass is the same
        for (images, labels), (expected, expected_labels) in zip(ours, theirs, strict=True):
            assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
            assert torch.equal(images, expected)
            assert torch.equal(labels, expected_labels)


@pytest.mark.parametrize("shuffle", [False, True])
def test_channels_last_changes_the_layout_alone(shuffle: bool) -> None:
    dataset = ImageDataset(torch.randint(0, 256, (8, 3, 4, 5), dtype=torch.uint8), [0] * 8, ("a",))
    plain = BatchLoader(dataset, 4, shuffle=shuffle, device="cpu", seed=0)
    laid_out = BatchLoader(dataset, 4, shuffle=shuffle, device="cpu", seed=0, channels_last=True)
    for (images, _), (same, _) in zip(plain, laid_out, strict=True):
        assert torch.equal(images, same)
        assert images.is_contiguous()
        assert same.is_contiguous(memory_format=torch.channels_last)


@given(st.integers(1, 60), st.integers(1, 70), st.integers(-(2**31), 2**31 - 1))
def test_each_image_once_an_epoch(n: int, batch_size: int, seed: int) -> None:
    loader = BatchLoader(numbered(n), batch_size, shuffle=True, device="cpu", seed=seed)
    assert sorted(passed(loader)) == list(range(n))
    assert sum(1 for _ in loader) == len(loader)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 9))
def test_dropping_the_last_leaves_whole_batches(n: int, batch_size: int, seed: int) -> None:
    if n < batch_size:
        with pytest.raises(InputError, match=f"{n} images do not fill one batch of {batch_size}"):
            BatchLoader(numbered(n), batch_size, drop_last=True, device="cpu")
        return
    loader = BatchLoader(numbered(n), batch_size, shuffle=True, drop_last=True, device="cpu", seed=seed)
    assert [len(images) for images, _ in loader] == [batch_size] * (n // batch_size)
    assert len(set(passed(loader))) == n - n % batch_size


@given(st.integers(-(2**31), 2**31 - 1), st.integers(0, 10**6))
def test_order_follows_from_seed_and_epoch(seed: int, epoch: int) -> None:
    def loader(seed: int) -> BatchLoader:
        return BatchLoader(numbered(50), 16, shuffle=True, device="cpu", seed=seed)

    first = loader(seed).order(epoch).tolist()
    assert sorted(first) == list(range(50))
    torch.manual_seed(epoch)  # which must not matter
    repeated = loader(seed)
    repeated.epoch = epoch
    assert passed(repeated) == first
    assert repeated.epoch == epoch + 1
    assert passed(repeated) == loader(seed).order(epoch + 1).tolist() != first
    assert loader(seed + 1).order(epoch).tolist() != first


def test_batch_size_does_not_change_the_order() -> None:
    orders = {tuple(passed(BatchLoader(numbered(50), size, shuffle=True, device="cpu", seed=3))) for size in (1, 7, 64)}
    assert len(orders) == 1


def test_without_a_seed_the_global_one_governs() -> None:
    def order() -> list[int]:
        return passed(BatchLoader(numbered(50), shuffle=True, device="cpu"))

    seed_everything(5)
    first, second = order(), order()
    assert first != second, "two loaders must not share their order"
    seed_everything(5)
    assert [order(), order()] == [first, second]


def test_passes_do_not_disturb_each_other() -> None:
    loader = BatchLoader(numbered(30), 10, shuffle=True, device="cpu", seed=0)
    expected = [loader.order(0).tolist(), loader.order(1).tolist()]
    seen: list[list[int]] = [[], []]
    for (one, _), (two, _) in zip(loader, loader, strict=True):
        seen[0] += numbers(one)
        seen[1] += numbers(two)
    assert seen == expected


def test_going_on_where_it_was_left() -> None:
    loader = BatchLoader(numbered(50), shuffle=True, device="cpu", seed=3)
    passed(loader)
    state = loader.state_dict()
    assert state == {"seed": 3, "epoch": 1}
    expected = passed(loader)
    again = BatchLoader(numbered(50), shuffle=True, device="cpu", seed=99)
    again.load_state_dict(state)
    assert passed(again) == expected


@pytest.mark.parametrize("shuffle", [False, True])
@given(n=st.integers(1, 40), batch_size=st.integers(1, 20), size=st.integers(1, 5))
def test_processes_share_each_batch(shuffle: bool, n: int, batch_size: int, size: int) -> None:
    def loader() -> BatchLoader:
        return BatchLoader(numbered(n), batch_size, shuffle=shuffle, device="cpu", seed=1)

    shares = [list(loader().shard(rank, size)) for rank in range(size)]
    for batch, (images, labels) in enumerate(loader()):
        mine = [share[batch] for share in shares]
        assert [total for _, _, total in mine] == [len(images)] * size
        assert sorted(numbers(torch.cat([part for part, _, _ in mine]))) == sorted(numbers(images))
        assert sorted(torch.cat([part for _, part, _ in mine]).tolist()) == sorted(labels.tolist())
        sizes = [len(part) for part, _, _ in mine]
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("shuffle", [False, True])
def test_batches_can_be_changed_without_harm(shuffle: bool) -> None:
    dataset = numbered(8)
    for images, _ in BatchLoader(dataset, 4, shuffle=shuffle, device="cpu"):
        images.fill_(7)
    assert torch.equal(dataset.images, numbered(8).images)


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        (numbered(0), {}, "0 images do not fill one batch of 64"),
        (numbered(3), {"batch_size": 0}, "batch_size must be at least 1, not 0"),
        (numbered(3, view="pil"), {}, "neither PIL images nor a per-image transform; use .*DataLoader"),
        (numbered(3, transform=abs), {}, "neither PIL images nor a per-image transform; use .*DataLoader"),
        (numbered(3), {"batch_size": 2.0}, r"batch_size must be a whole number, not 2\.0"),
        (numbered(3), {"seed": "1"}, "seed must be a whole number, not '1'"),
        (numbered(3), {"labels": [0, 1, 3]}, r"labels must be 0 … 2"),
        (numbered(3), {"labels": [0, 1]}, r"labels must be int64 \[3\] or float32 \[3, 3\], not torch.int64 \[2\]"),
        (ConcatDataset([numbered(3)]), {}, "ConcatDataset cannot be taken apart"),
        (numbered(3), {"device": "gpu"}, "device 'gpu' cannot be used here"),
        ([1, 2, 3], {}, "expected a dataset of cifarnets .*not list"),
    ],
)
def test_what_cannot_be_served(dataset: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        BatchLoader(dataset, **options)


@pytest.mark.parametrize(
    "options", [{}, {"shuffle": True}, {"augment": Augment("random")}, {"augment": Augment(mixup=1.0), "shuffle": True}]
)
def test_it_keeps_no_block(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is let go is gone, so that the next block is made in its memory."""
    monkeypatch.setattr("cifarnets.datasets.loader.BLOCK", 4)
    loader = BatchLoader(numbered(12), 2, device="cpu", seed=0, **options)
    given: list[weakref.ref[Tensor]] = []
    convert, blocks = loader._convert, []

    def watched(images: Tensor) -> Tensor:
        assert all(batch() is None for batch in given)
        blocks.append(len(images))
        return convert(images)

    monkeypatch.setattr(loader, "_convert", watched)
    batches = iter(loader)
    while (batch := next(batches, None)) is not None:
        given.append(weakref.ref(batch[0]))
        del batch
    assert blocks == [4] * 3


@pytest.mark.parametrize("augment", [None, Augment("random", translate=2, cutout=8), Augment(cutmix=1.0)])
@pytest.mark.parametrize("shuffle", [False, True])
@settings(max_examples=20)
@given(n=st.integers(1, 30), batch_size=st.integers(1, 9), block=st.integers(1, 20), drop_last=st.booleans())
def test_blocks_do_not_show(
    augment: Augment | None, shuffle: bool, n: int, batch_size: int, block: int, drop_last: bool
) -> None:
    n = max(n, batch_size)
    passes = []
    for size in (1, block):
        loader = BatchLoader(
            numbered(n), batch_size, shuffle, drop_last=drop_last, device="cpu", seed=3, augment=augment
        )
        with mock.patch("cifarnets.datasets.loader.BLOCK", size):
            passes.append(list(loader))
    assert len(passes[0]) == len(loader)
    for (images, labels), (others, their_labels) in zip(*passes, strict=True):
        assert torch.equal(images, others)
        assert torch.equal(labels, their_labels)


def test_repr() -> None:
    assert repr(BatchLoader(numbered(3), 2, shuffle=True, seed=4, device="cpu")) == (
        "BatchLoader(ImageDataset(3 images, 3 classes, view='normalized'), batch_size=2, shuffle=True, seed=4)"
    )


@pytest.mark.parametrize("augment", [None, Augment("random", translate=2)])
def test_passes_that_are_drawn_ahead_are_the_same(augment: Augment | None) -> None:
    loaders = [BatchLoader(numbered(20), 8, True, device="cpu", seed=3, augment=augment) for _ in range(2)]
    loaders[0]._draws_ahead = True  # as on CUDA
    for loader in loaders:
        list(loader)  # the next pass is drawn

    def both() -> None:
        for (images, labels), (others, their_labels) in zip(*loaders, strict=True):
            assert torch.equal(images, others)
            assert torch.equal(labels, their_labels)

    both()
    for loader in loaders:
        loader.epoch = 7  # and is not the one that comes
    both()
    for loader in loaders:
        loader.seed, loader.augment = 4, Augment("random", cutout=4)
    both()


@pytest.mark.gpu
def test_on_cuda_the_batches_are_those_of_the_cpu() -> None:
    loaders = [BatchLoader(numbered(50), 16, shuffle=True, device=device, seed=3) for device in ("cpu", "cuda")]
    for (images, labels), (on_cuda, labels_on_cuda) in zip(*loaders, strict=True):
        assert on_cuda.device == labels_on_cuda.device == loaders[1].device
        torch.testing.assert_close(on_cuda.cpu(), images)
        assert torch.equal(labels_on_cuda.cpu(), labels)


@pytest.mark.cifar10
def test_real_batches_are_those_of_the_plain_dataloader(real_test: CIFAR10Normalized) -> None:
    part = real_test.select(range(2000))
    ours = BatchLoader(part, batch_size=256, device="cpu")
    theirs = DataLoader(part, batch_size=256)
    assert len(ours) == len(theirs) == 8
    for (images, labels), (expected, expected_labels) in zip(ours, theirs, strict=True):
        assert torch.equal(images, expected)
        assert torch.equal(labels, expected_labels)


def test_default_dtype_and_device_have_no_say() -> None:
    augment = Augment(flip="random", translate=2, cutout=8, mixup=0.5)
    dataset = numbered(20)

    def batches() -> list[tuple[Tensor, Tensor]]:
        torch.manual_seed(5)
        plain = BatchLoader(dataset, 6, shuffle=True, device="cpu")
        return [*plain, *BatchLoader(dataset, 6, shuffle=True, device="cpu", seed=2, augment=augment)]

    expected = batches()
    try:
        for dtype in (torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            with torch.device("meta"):
                found = batches()
            for (images, labels), (same, same_labels) in zip(found, expected, strict=True):
                assert images.dtype == torch.float32
                assert torch.equal(images, same)
                assert torch.equal(labels, same_labels)
    finally:
        torch.set_default_dtype(torch.float32)


def test_numpys_numbers_will_do() -> None:
    ours = BatchLoader(numbered(20), np.int64(6), True, seed=np.uint8(3), device="cpu")
    assert passed(ours) == passed(BatchLoader(numbered(20), 6, True, seed=3, device="cpu"))
    assert (type(ours.batch_size), type(ours.seed)) == (int, int)


def test_a_batch_has_named_fields() -> None:
    batch = next(BatchLoader(numbered(10), 4, device="cpu").shard(1, 2))
    assert isinstance(batch, Batch)
    assert (numbers(batch.images), batch.labels.tolist(), batch.size) == ([1, 3], [1, 0], 4)


def test_a_subset_of_torch() -> None:
    loader = BatchLoader(Subset(numbered(20), [7, 3, 12]), 2, device="cpu")
    assert passed(loader) == [7, 3, 12]


@pytest.mark.parametrize("state", [{}, {"seed": 1}, {"seed": 1.5, "epoch": 0}, {"seed": 1, "epoch": -1}, None, [1, 2]])
def test_a_damaged_state_changes_nothing(state: Any) -> None:
    loader = BatchLoader(numbered(10), seed=3, device="cpu")
    with pytest.raises(InputError, match="the state of a BatchLoader has a seed and an epoch, not this"):
        loader.load_state_dict(state)
    assert loader.state_dict() == {"seed": 3, "epoch": 0}
