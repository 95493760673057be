"""The resident dataset: what its items are, and the arithmetic between bytes, 0..1 and normalised values."""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Subset, random_split
from torchvision.datasets import CIFAR10
from torchvision.transforms import Compose, Normalize, ToTensor

from cifarnets.datasets import (
    ARTICLE_MEAN,
    ARTICLE_STD,
    CIFAR10Normalized,
    ImageDataset,
    channel_stats,
    denormalize,
    normalize,
)
from cifarnets.datasets.images import as_image_dataset, to_pil, to_unit
from cifarnets.errors import InputError

CLASSES = ("cat", "dog", "ship")


def pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def small(n: int = 6, *, channels: int = 3, **options: Any) -> ImageDataset:
    return ImageDataset(pixels(n, channels, 4, 5), [i % 3 for i in range(n)], CLASSES, **options)


channels3 = st.tuples(*[st.floats(0.1, 0.9)] * 3)
spreads3 = st.tuples(*[st.floats(0.05, 1)] * 3)


# --- construction


def test_attributes() -> None:
    images = pixels(4, 3, 32, 32)
    dataset = ImageDataset(images, [2, 0, 1, 2], list(CLASSES), split="train")
    assert len(dataset) == 4
    assert dataset.images is images
    assert dataset.labels.dtype == torch.int64
    assert dataset.targets == dataset.labels.tolist() == [2, 0, 1, 2]
    assert dataset.classes == CLASSES
    assert dataset.class_to_idx == {"cat": 0, "dog": 1, "ship": 2}
    assert (dataset.mean, dataset.std) == (ARTICLE_MEAN, ARTICLE_STD)
    assert repr(dataset) == "ImageDataset(4 images, 3 classes, view='normalized', split='train')"
    assert repr(small(0)) == "ImageDataset(0 images, 3 classes, view='normalized')"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(2, 3, 4, 4)}, r"images must be uint8 \[N, C, H, W\], not torch.float32 \[2, 3, 4, 4\]"),
        ({"images": pixels(2, 4, 4)}, r"images must be uint8 \[N, C, H, W\], not torch.uint8 \[2, 4, 4\]"),
        ({"labels": [0]}, r"2 images need as many labels, not \[1\]"),
        ({"labels": [[0, 1]]}, r"2 images need as many labels, not \[1, 2\]"),
        ({"labels": [0, 3]}, "labels run from 0 to 3, but 3 classes allow 0 … 2"),
        ({"labels": [-1, 2]}, "labels run from -1 to 2, but 3 classes allow 0 … 2"),
        ({"labels": [0.5, 1]}, r"labels must be whole numbers, not torch.float32 \[2\]"),
        ({"labels": ["a", "b"]}, r"labels must be whole numbers, not \['a', 'b'\]"),
        ({"images": pixels(2, 3, 4, 4).numpy()}, r"a uint8 tensor \[N, C, H, W\], not ndarray; torch.from_numpy"),
        ({"classes": range(3)}, r"class names must be text, not int \(0\): \[str\(name\) for name in classes\]"),
        ({"classes": "abc"}, "classes must be a list of names, not 'abc'"),
        ({"classes": 3}, "classes must be a list of names, not 3"),
        ({"classes": {"cat"}}, r"classes must be in an order, which a set has not: sorted\(\{'cat'\}\)"),
        ({"images": pixels(2, 2, 4, 4), "mean": (0, 0), "std": (1, 1), "view": "pil"}, "1 or 3 channels here, not 2"),
        ({"mean": 0.5}, "mean and std must be lists of numbers, one for each channel, not 0.5"),
        ({"mean": "123"}, "mean and std must be lists of numbers, one for each channel, not '123'"),
        ({"std": {1, 2, 3}}, "mean and std must be lists of numbers"),
        ({"std": (1, float("inf"), 1)}, "mean and std must be finite"),
        ({"view": "tensor"}, "view must be 'normalized', 'unit' or 'pil', not 'tensor'"),
        ({"mean": (0.5,)}, "images of 3 channels need 3 means and stds"),
        ({"std": (1, 1, 1, 1)}, "images of 3 channels need 3 means and stds"),
        ({"std": (1, 0, 1)}, "every std must be above 0"),
        ({"std": (1, float("nan"), 1)}, "every std must be above 0"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"images": pixels(2, 3, 4, 4), "labels": [0, 1], "classes": CLASSES, **change}
    with pytest.raises(InputError, match=message):
        ImageDataset(**arguments)


# --- items


def test_the_views() -> None:
    options = {"mean": (0.1, 0.2, 0.3), "std": (1, 2, 4)}
    unit = small()[4][0].new_tensor(small().images[4].tolist()) / 255
    normalized, label = small(**options)[4]
    assert (type(label), label, normalized.dtype) == (int, 1, torch.float32)
    expected = (unit - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([1, 2, 4]).view(3, 1, 1)
    assert torch.equal(normalized, expected)
    assert torch.equal(small(view="unit", **options)[4][0], unit)
    picture, label = small(view="pil", **options)[4]
    assert (picture.mode, picture.size, label) == ("RGB", (5, 4), 1)
    assert np.array_equal(np.asarray(picture), small().images[4].permute(1, 2, 0).numpy())


def test_constants_tell_how_to_undo_the_view() -> None:
    assert small(mean=(0.1, 0.2, 0.3)).constants == ((0.1, 0.2, 0.3), ARTICLE_STD)
    assert small(view="unit").constants == ((0, 0, 0), (1, 1, 1))
    assert small(view="pil").constants is None


def test_one_channel() -> None:
    dataset = small(channels=1, mean=[0.5], std=[0.5], view="pil")
    picture, _ = dataset[2]
    assert picture.mode == "L"
    assert np.array_equal(np.asarray(picture), dataset.images[2, 0].numpy())


def test_indices_as_of_a_list() -> None:
    dataset = small(view="unit")
    assert torch.equal(dataset[-1][0], dataset[5][0])
    assert len(list(dataset)) == 6  # iteration ends at the first IndexError
    for index in (6, -7):
        with pytest.raises(IndexError):
            dataset[index]


@pytest.mark.parametrize("view", ["normalized", "unit"])
def test_many_items_at_once_are_the_single_ones(view: Any) -> None:
    dataset = small(view=view, transform=lambda picture: picture.flip(-1))
    chosen = [5, 0, 0, 3]
    for (many, label), index in zip(dataset.__getitems__(chosen), chosen, strict=True):
        assert torch.equal(many, dataset[index][0])
        assert label == dataset[index][1] == dataset.targets[index]


def test_items_can_be_changed_without_harm() -> None:
    before = small().images.clone()
    for view in ("normalized", "unit"):
        dataset = small(view=view)
        for picture, _ in dataset:
            picture.zero_()
        assert torch.equal(dataset.images, before)


def test_transform_sees_what_the_view_gives() -> None:
    assert small(view="pil", transform=lambda picture: picture.size)[0] == ((5, 4), 0)
    doubled = small(view="unit", transform=lambda picture: picture * 2)
    assert torch.equal(doubled[1][0], small(view="unit")[1][0] * 2)


def test_plain_dataloader_fetches_whole_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_by_one(self: ImageDataset, index: int) -> None:
        pytest.fail("the DataLoader asked for single items, which is slow")

    dataset = small(10)
    expected = normalize(dataset.images)
    monkeypatch.setattr(ImageDataset, "__getitem__", one_by_one)
    batches = list(DataLoader(dataset, batch_size=4))
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    assert torch.equal(torch.cat([images for images, _ in batches]), expected)
    assert torch.equal(torch.cat([labels for _, labels in batches]), dataset.labels)


def test_dataset_can_be_sent_to_a_worker() -> None:
    sent = pickle.loads(pickle.dumps(small(split="val")))
    assert torch.equal(sent[3][0], small()[3][0])
    assert (sent.classes, sent.split) == (CLASSES, "val")


def test_select_keeps_the_rest() -> None:
    dataset = small(mean=(0.1, 0.2, 0.3), std=(1, 2, 3), transform=abs, view="unit", split="train")
    part = dataset.select([4, 1, 1])
    assert torch.equal(part.images, dataset.images[[4, 1, 1]])
    assert part.targets == [1, 1, 1]
    for name in ("classes", "mean", "std", "transform", "view", "split"):
        assert getattr(part, name) == getattr(dataset, name)
    renamed = dataset.select([4, 2], labels=torch.tensor([0, 1]), classes=["hound", "boat"])
    assert (renamed.targets, renamed.classes) == ([0, 1], ("hound", "boat"))


# --- arithmetic


def test_unit_is_torchvisions_totensor_for_every_value() -> None:
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    assert torch.equal(to_unit(image), ToTensor()(to_pil(image)))


@given(channels3, spreads3, st.integers(0, 99))
def test_normalize_is_torchvisions_and_denormalize_undoes_it(
    mean: tuple[float, ...], std: tuple[float, ...], seed: int
) -> None:
    images = pixels(2, 3, 4, 4, seed=seed)
    normalized = normalize(images, mean, std)
    assert torch.equal(normalized, Normalize(mean, std)(to_unit(images)))
    assert torch.equal(normalized, normalize(to_unit(images), mean, std))
    back = denormalize(normalized, mean, std)
    torch.testing.assert_close(back, to_unit(images), rtol=0, atol=1e-6)
    assert torch.equal((back * 255).round().to(torch.uint8), images)


@pytest.mark.parametrize("shape", [(3, 4, 4), (2, 3, 4, 4), (5, 2, 3, 1, 7)])
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape)
    before = images.clone()
    normalized = normalize(images)
    assert normalized.shape == shape
    torch.testing.assert_close(denormalize(normalized), before)
    assert torch.equal(images, before), "the input is the caller's"


def test_denormalize_clips_for_showing() -> None:
    wild = torch.tensor([-100.0, 0, 100]).view(3, 1, 1)
    shown = denormalize(wild, (0.5, 0.5, 0.5), (1, 1, 1))
    assert shown.flatten().tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("convert", [normalize, denormalize])
def test_constants_must_fit_the_channels(convert: Callable[..., Tensor]) -> None:
    with pytest.raises(InputError, match="images of 1 channels need 1 means and stds"):
        convert(torch.rand(1, 4, 4))
    with pytest.raises(InputError, match="every std must be above 0"):
        convert(torch.rand(3, 4, 4), (0, 0, 0), (1, 1, -1))


@given(st.integers(1, 20), st.integers(0, 99))
def test_stats_are_torchs(n: int, seed: int) -> None:
    dataset = ImageDataset(pixels(n, 3, 2, 3, seed=seed), [0] * n, CLASSES)
    values = dataset.images.transpose(0, 1).flatten(1).double() / 255
    mean, std = channel_stats(dataset)
    assert mean == pytest.approx(values.mean(1).tolist(), abs=1e-12)
    assert std == pytest.approx(values.std(1).tolist(), abs=1e-12)


def test_stats_need_an_image() -> None:
    with pytest.raises(InputError, match="channel_stats needs at least one image"):
        channel_stats(small(0))


# --- torchvision's dataset


def test_ours_are_taken_as_they_are() -> None:
    dataset = small()
    assert as_image_dataset(dataset) is dataset


@pytest.mark.parametrize(("train", "split"), [(True, "train"), (False, "test"), (None, None)])
def test_torchvisions_items_stay_what_they_were(torchvision_tiny: Any, train: bool | None, split: str | None) -> None:
    transform = Compose([ToTensor(), Normalize(ARTICLE_MEAN, ARTICLE_STD)])
    theirs = torchvision_tiny([0, 3, 1, 3], train=train, transform=transform)
    ours = as_image_dataset(theirs)
    assert ours.split == split
    assert (ours.classes, ours.targets) == (tuple(theirs.classes), theirs.targets)
    for (one, one_label), (two, two_label) in zip(theirs, ours, strict=True):
        assert torch.equal(one, two)
        assert one_label == two_label


@pytest.mark.parametrize("dataset", [[1, 2], "data", None, torch.zeros(2, 3, 4, 4)])
def test_anything_else_is_refused(dataset: object) -> None:
    message = rf"expected a dataset of cifarnets or torchvision's CIFAR10 .*not {type(dataset).__name__}\.$"
    with pytest.raises(InputError, match=message):
        as_image_dataset(dataset)


def test_datasets_like_mnist_are_refused(torchvision_tiny: Any) -> None:
    with pytest.raises(InputError, match="not InMemory"):
        as_image_dataset(torchvision_tiny([0, 1], data=np.zeros((2, 28, 28), dtype=np.uint8)))


def test_a_target_transform_is_refused(torchvision_tiny: Any) -> None:
    with pytest.raises(InputError, match="a target_transform cannot be relabelled; drop it first"):
        as_image_dataset(torchvision_tiny([0, 1], target_transform=lambda label: label + 1))


# --- the article's steps, on the real set


@pytest.mark.cifar10
def test_steps_1_to_4(
    real_train: CIFAR10Normalized, real_test: CIFAR10Normalized, torchvision_real: Callable[[bool], CIFAR10]
) -> None:
    assert (len(real_train), len(real_test)) == (50_000, 10_000)
    raw = ImageDataset(real_train.images, real_train.labels, real_train.classes, view="pil")
    picture, label = raw[79]
    assert isinstance(picture, Image.Image)
    assert (picture.mode, picture.size) == ("RGB", (32, 32))
    assert (label, raw.classes[label]) == (1, "automobile")
    theirs, their_label = torchvision_real(True)[79]
    assert (picture.tobytes(), label) == (theirs.tobytes(), their_label)
    unit = to_unit(real_train.images[79])
    assert torch.equal(unit, ToTensor()(theirs))
    assert (unit.dtype, unit.shape) == (torch.float32, (3, 32, 32))
    assert torch.equal(unit.permute(1, 2, 0), torch.from_numpy(np.array(theirs)) / 255)


@pytest.mark.cifar10
def test_steps_5_and_6(real_train: CIFAR10Normalized, torchvision_real: Callable[[bool], CIFAR10]) -> None:
    mean, std = channel_stats(real_train)
    assert [f"{value:.4f}" for value in mean] == ["0.4914", "0.4822", "0.4465"]
    assert [f"{value:.4f}" for value in std] == ["0.2470", "0.2435", "0.2616"]
    assert channel_stats(torchvision_real(True)) == (mean, std)


@pytest.mark.cifar10
def test_stats_as_the_article_computes_them(real_train: CIFAR10Normalized) -> None:
    """Stacked floats, flattened by channel: on a sample, for they take much memory."""
    sample = real_train.select(range(0, 50_000, 50))
    stacked = torch.stack([to_unit(image) for image in sample.images], dim=3)
    mean, std = channel_stats(sample)
    assert mean == pytest.approx(stacked.view(3, -1).mean(dim=1).tolist(), abs=1e-6)
    assert std == pytest.approx(stacked.view(3, -1).std(dim=1).tolist(), abs=1e-6)


@pytest.mark.cifar10
@pytest.mark.parametrize("train", [True, False])
def test_step_7_bit_for_bit_as_torchvision(
    train: bool,
    real_train: CIFAR10Normalized,
    real_test: CIFAR10Normalized,
    torchvision_real: Callable[[bool], CIFAR10],
) -> None:
    ours = real_train if train else real_test
    theirs = torchvision_real(train)
    convert = Compose([ToTensor(), Normalize(ARTICLE_MEAN, ARTICLE_STD)])
    assert ours.targets == theirs.targets
    assert ours.class_to_idx == theirs.class_to_idx
    for index in [0, 79, len(ours) - 1, *range(1, len(ours), 97)]:
        picture, label = ours[index]
        expected, expected_label = theirs[index]
        assert torch.equal(picture, convert(expected))
        assert label == expected_label


def test_a_transform_of_the_unit_view_may_normalise_so_nobody_knows() -> None:
    images, labels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0, 0]
    plain = ImageDataset(images, labels, ("a",), view="unit")
    assert plain.constants == ((0, 0, 0), (1, 1, 1))
    assert ImageDataset(images, labels, ("a",), view="unit", transform=abs).constants is None


# --- what must not matter


def test_default_dtype_and_device_have_no_say() -> None:
    images, labels = pixels(3, 3, 4, 4), [0, 1, 2]
    expected = normalize(images), normalize(images.double() / 255), denormalize(normalize(images))
    stats = channel_stats(ImageDataset(images, labels, CLASSES))
    try:
        for dtype in (torch.bfloat16, torch.float64):
            torch.set_default_dtype(dtype)
            with torch.device("meta"):
                found = normalize(images), normalize(images.double() / 255), denormalize(normalize(images))
                dataset = ImageDataset(images, labels, CLASSES)
                assert channel_stats(dataset) == stats
                part = dataset.select([2, 0])
                item, label = part[0]
            for one, other in zip(found, expected, strict=True):
                assert one.dtype == other.dtype
                assert torch.equal(one, other)
            assert torch.equal(item, expected[0][2])
            assert (label, part.labels.device.type) == (2, "cpu")
    finally:
        torch.set_default_dtype(torch.float32)


def test_double_precision_is_kept() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.7, 0.8, 0.9)
    image = torch.rand(3, 4, 4, dtype=torch.float64)
    expected = (image.numpy() - np.array(mean)[:, None, None]) / np.array(std)[:, None, None]
    assert np.array_equal(normalize(image, mean, std).numpy(), expected)


@pytest.mark.parametrize("wrong", [np.zeros((3, 4, 4)), torch.zeros(3, 4, 4, dtype=torch.int64), None])
def test_what_cannot_be_normalised(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"images must be a tensor, uint8 or float in 0\.\.1, not"):
        normalize(wrong)
    with pytest.raises(InputError, match="normalised images are a float tensor, not"):
        denormalize(wrong)
    with pytest.raises(InputError, match="images of 0 channels need"):
        normalize(torch.zeros(4, 4))


# --- indices


@pytest.mark.parametrize("index", [slice(0, 5), [0, 1], "0", 0.5, None, np.array([0, 1])])
def test_one_index_at_a_time(index: Any) -> None:
    with pytest.raises(
        InputError, match=r"an index must be one whole number, not .*dataset\.select\(…\) takes several"
    ):
        small()[index]


@pytest.mark.parametrize("index", [np.int64(3), torch.tensor(3), True + 2])
def test_whatever_counts_as_a_whole_number(index: Any) -> None:
    assert torch.equal(small()[index][0], small()[3][0])


@pytest.mark.parametrize(
    "kind",
    [list, tuple, np.array, torch.tensor, lambda chosen: np.array(chosen, np.uint8), iter],
    ids=["list", "tuple", "array", "tensor", "uint8", "iterator"],  # text that is the same in every process
)
def test_select_takes_any_list_of_numbers(kind: Callable[[list[int]], Any]) -> None:
    part = small().select(kind([4, 0, 0, 5]))
    assert torch.equal(part.images, small().images[[4, 0, 0, 5]])
    assert part.targets == [1, 0, 0, 2]


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_select_takes_a_mask(kind: Callable[[list[bool]], Any]) -> None:
    part = small().select(kind([label == 1 for label in small().targets]))
    assert torch.equal(part.images, small().images[[1, 4]])


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([0.5], "indices must be whole numbers"),
        ([6], "a list of numbers from 0 to 5, not"),
        ([-7], "a list of numbers from 0 to 5, not"),
        ([[0, 1]], "a list of numbers from 0 to 5, not"),
        ([True, False], r"a mask for 6 images must have that length, not \[2\]"),
        ({0, 1}, "indices must be a list, an array or a tensor, not"),
        (3, "indices must be a list, an array or a tensor, not 3"),
        ("ab", "indices must be whole numbers"),
    ],
)
def test_select_refuses(indices: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        small().select(indices)


# --- torch's parts of datasets


def test_a_subset_of_torch_is_a_selection(torchvision_tiny: Any) -> None:
    nested = Subset(Subset(small(split="train"), [5, 3, 1]), [2, 0])
    part = as_image_dataset(nested)
    assert torch.equal(part.images, small().images[[1, 5]])
    assert part.split == "train"
    one, other = random_split(small(10), [7, 3])
    assert len(as_image_dataset(one)) + len(as_image_dataset(other)) == 10
    theirs = Subset(torchvision_tiny([0, 3, 1, 3]), [3, 0])
    assert as_image_dataset(theirs).targets == [3, 0]


def test_a_concatenation_of_torch_names_the_way() -> None:
    with pytest.raises(
        InputError, match=r"ConcatDataset cannot be taken apart: .*ImageDataset\(torch\.cat.*DataLoader"
    ):
        as_image_dataset(ConcatDataset([small(), small()]))
