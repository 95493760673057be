"""Some of the classes, and a held-out part of the images."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.datasets import CIFAR10
from torchvision.transforms import ToTensor

from cifarnets.datasets import CIFAR10Normalized, ImageDataset, cifar_subset, train_val_split
from cifarnets.errors import InputError, UnknownNameError

NAMES = ("airplane", "automobile", "bird", "cat", "ship")


def numbered(labels: list[int], **options: Any) -> ImageDataset:
    """Images of one pixel that holds the image's own number, in two channels."""
    numbers = torch.arange(len(labels))
    images = torch.stack([numbers // 256, numbers % 256], 1).to(torch.uint8).view(-1, 2, 1, 1)
    options = {"mean": (0.5, 0.5), "std": (1, 1), **options}
    return ImageDataset(images, labels, NAMES, **options)


def numbers(dataset: ImageDataset) -> list[int]:
    """Which images of a `numbered` dataset are here."""
    pixels = dataset.images.flatten(1).to(torch.int64)
    return (pixels[:, 0] * 256 + pixels[:, 1]).tolist()


# --- cifar_subset


@st.composite
def labels_and_classes(draw: st.DrawFn) -> tuple[list[int], list[int]]:
    """Labels, and some of those that occur, in any order."""
    labels = draw(st.lists(st.integers(0, 4), min_size=1, max_size=40))
    chosen = draw(st.lists(st.sampled_from(sorted(set(labels))), min_size=1, unique=True))
    return labels, chosen


@given(labels_and_classes())
def test_keeps_the_order_of_the_images_and_relabels(case: tuple[list[int], list[int]]) -> None:
    labels, chosen = case
    subset = cifar_subset(numbered(labels), chosen)
    assert numbers(subset) == [number for number, label in enumerate(labels) if label in chosen]
    assert subset.targets == [chosen.index(label) for label in labels if label in chosen]
    assert subset.classes == tuple(NAMES[label] for label in chosen)
    by_name = cifar_subset(numbered(labels), [NAMES[label] for label in chosen])
    assert (numbers(by_name), by_name.targets) == (numbers(subset), subset.targets)


def test_labels_count_in_the_callers_order() -> None:
    subset = cifar_subset(numbered([0, 1, 4, 2, 1]), ["ship", 1])
    assert subset.class_to_idx == {"ship": 0, "automobile": 1}
    assert subset.targets == [1, 0, 1]
    assert [label for _, label in subset] == [1, 0, 1]


def test_the_rest_stays() -> None:
    whole = numbered([0, 1, 4], mean=(0.25, 0.5), std=(2, 4), transform=torch.neg, view="unit", split="test")
    subset = cifar_subset(whole, ["ship"])
    for name in ("mean", "std", "transform", "view", "split"):
        assert getattr(subset, name) == getattr(whole, name)
    assert torch.equal(subset[0][0], whole[2][0])


def test_subset_of_a_subset() -> None:
    first = cifar_subset(numbered([3, 0, 4, 1, 4]), ["ship", "cat", "airplane"])
    second = cifar_subset(first, ["airplane", 0])  # label 0 is now the ship
    assert second.classes == ("airplane", "ship")
    assert (numbers(second), second.targets) == ([1, 2, 4], [0, 1, 1])
    with pytest.raises(UnknownNameError, match=r"unknown class 'bird'\. Available: airplane, cat, ship\."):
        cifar_subset(first, ["bird"])


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["airplane", "automobil"], r"unknown class 'automobil'\. Did you mean 'automobile'\? Available: airplane, "),
        (["Ship"], r"unknown class 'Ship'\. Did you mean 'ship'\?"),
        (["car"], r"unknown class 'car'\. Did you mean 'automobile'\? Available: airplane, "),
        (["Plane"], r"unknown class 'Plane'\. Did you mean 'airplane'\?"),
        ([None], r"unknown class None\. Available"),
        ([1.0], r"unknown class 1\.0\. Available"),
        ([5], r"unknown class 5\. Available: airplane, automobile, bird, cat, ship\."),
        ([-1], r"unknown class -1\."),
    ],
)
def test_unknown_class(classes: list[str | int], message: str) -> None:
    with pytest.raises(UnknownNameError, match=message) as info:
        cifar_subset(numbered([0, 1]), classes)
    assert isinstance(info.value, KeyError)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "ship", "cat"], r"each class may be given once; repeated: cat\."),
        (["ship", 4, 3, "cat"], r"repeated: cat, ship\."),
        ([], r"a list of at least one name or label, such as \['cat', 'dog'\], not \[\]\."),
        ("cat", r"a list of at least one name or label, .*not 'cat'\."),
        ({"cat", "ship"}, r"classes are labelled in their order, which a set has not: pass a list"),
        (frozenset({"cat"}), "which a frozenset has not"),
        ({"cat": 0}, "which a dict has not"),
        (3, "a list of at least one name or label, .*not 3"),
        ([1] * 100_000, r"each class may be given once; repeated: automobile\."),
        (["bird", "cat"], r"the dataset has no image of bird, cat\."),
    ],
)
def test_classes_that_cannot_be_used(classes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cifar_subset(numbered([0, 1, 4]), classes)


def test_torchvisions_transform_goes_on_working(torchvision_tiny: Any) -> None:
    theirs = torchvision_tiny([3, 0, 1, 3], transform=ToTensor())
    subset = cifar_subset(theirs, ["cat", "airplane"])
    for (picture, label), (index, expected) in zip(subset, [(0, 0), (1, 1), (3, 0)], strict=True):
        assert torch.equal(picture, theirs[index][0])
        assert label == expected


# --- train_val_split


@st.composite
def labels_and_val(draw: st.DrawFn) -> tuple[list[int], int]:
    """Classes of very different sizes, and any number to hold out."""
    counts = draw(st.lists(st.sampled_from([0, 1, 2, 7, 100]), min_size=5, max_size=5).filter(lambda c: sum(c) > 1))
    labels = draw(st.permutations([label for label, count in enumerate(counts) for _ in range(count)]))
    return labels, draw(st.integers(1, len(labels) - 1))


@given(labels_and_val(), st.integers(-(2**31), 2**31 - 1))
def test_split_is_a_stratified_partition(case: tuple[list[int], int], seed: int) -> None:
    labels, val = case
    whole = numbered(labels)
    train, held_out = train_val_split(whole, val, seed)
    assert len(held_out) == val
    assert sorted(numbers(train) + numbers(held_out)) == list(range(len(labels)))
    for part in (train, held_out):
        assert numbers(part) == sorted(numbers(part)), "the images must stay in their order"
        assert part.targets == [labels[number] for number in numbers(part)]
        assert part.classes == NAMES
    for label in range(5):
        share = labels.count(label) * val / len(labels)
        assert abs(held_out.targets.count(label) - share) < 1


def test_split_depends_on_the_seed_alone() -> None:
    whole = numbered([0, 1, 2, 3, 4] * 40)
    first = numbers(train_val_split(whole, 50)[1])
    torch.manual_seed(123)
    assert numbers(train_val_split(whole, 50, seed=0)[1]) == first
    others = [numbers(train_val_split(whole, 50, seed)[1]) for seed in (1, 2, -1)]
    assert all(other != first for other in others)
    assert numbers(whole) == list(range(200)), "the whole must stay as it was"


def test_every_image_is_held_out_by_some_seed() -> None:
    whole = numbered([0, 1] * 10)
    drawn = [number for seed in range(60) for number in numbers(train_val_split(whole, 4, seed)[1])]
    assert sorted(set(drawn)) == list(range(20))
    # 60 × 4 draws of 20 images: 12 each.
    assert max(drawn.count(number) for number in range(20)) < 25


def test_parts_know_what_they_are() -> None:
    whole = numbered([0, 1] * 10, view="unit", split="train")
    train, held_out = train_val_split(whole, 4)
    assert (whole.split, train.split, held_out.split) == ("train", "train", "val")
    assert train.view == held_out.view == "unit"


def test_a_part_can_be_split_again() -> None:
    train, _ = train_val_split(numbered([0, 1] * 10, split="train"), 4)
    again, held_out = train_val_split(train, 2)
    assert sorted(numbers(again) + numbers(held_out)) == numbers(train)


def test_split_of_torchvisions(torchvision_tiny: Any) -> None:
    train, held_out = train_val_split(torchvision_tiny([0, 1, 2, 3] * 5), 8)
    assert (len(train), len(held_out)) == (12, 8)
    assert held_out.labels.bincount().tolist() == [2, 2, 2, 2]


@pytest.mark.parametrize("val", [0, -1, 4, 5])
def test_no_part_may_be_empty(val: int) -> None:
    with pytest.raises(InputError, match=rf"val must be between 1 and 3 for 4 images, not {val}\."):
        train_val_split(numbered([0, 1, 0, 1]), val)


@pytest.mark.parametrize(("val", "count"), [(0.1, 20), (0.25, 50), (np.float32(0.5), 100)])
def test_a_fraction_of_the_images(val: float, count: int) -> None:
    whole = numbered([0, 1, 2, 3, 4] * 40)
    train, held_out = train_val_split(whole, val=val)
    assert (len(train), len(held_out)) == (200 - count, count)
    assert numbers(held_out) == numbers(train_val_split(whole, count)[1])


@pytest.mark.parametrize("val", [0.999, 0.001])
def test_a_fraction_that_leaves_one_part_empty(val: float) -> None:
    with pytest.raises(InputError, match=rf"val must be between 1 and 199 for 200 images, not {val}"):
        train_val_split(numbered([0, 1] * 100), val)


@pytest.mark.parametrize("val", [1.5, 20.0, -0.1, float("nan"), "20", None])
def test_neither_a_number_of_images_nor_a_fraction(val: Any) -> None:
    with pytest.raises(InputError, match="val must be a whole number of images, or a fraction between 0 and 1, not"):
        train_val_split(numbered([0, 1] * 20), val)


def test_defaults_and_numpys_numbers_have_no_say() -> None:
    whole = numbered([0, 1, 2, 3, 4] * 40)
    expected = numbers(train_val_split(whole, 50, 1)[1])
    assert numbers(train_val_split(whole, np.int32(50), np.int64(1))[1]) == expected
    with torch.device("meta"):
        assert numbers(train_val_split(whole, 50, 1)[1]) == expected
        part = cifar_subset(whole, ["ship", "cat"])
    assert part.targets == cifar_subset(whole, ["ship", "cat"]).targets


def test_classes_are_found_fast() -> None:
    started = time.perf_counter()
    with pytest.raises(InputError, match="each class may be given once"):
        cifar_subset(numbered([0, 1]), [1] * 100_000)
    assert time.perf_counter() - started < 2


def test_any_iterable_in_an_order_will_do() -> None:
    assert cifar_subset(numbered([0, 1, 4]), (name for name in ("ship", "airplane"))).targets == [1, 0]


def test_the_test_set_is_not_to_choose_on(torchvision_tiny: Any) -> None:
    for test in (numbered([0, 1] * 10, split="test"), torchvision_tiny([0, 1] * 10, train=False)):
        with pytest.raises(InputError, match="this is the test set"):
            train_val_split(test, 4)


# --- the article's step 19, on the real set


@pytest.mark.cifar10
def test_step_19(
    real_train: CIFAR10Normalized, real_test: CIFAR10Normalized, torchvision_real: Callable[[bool], CIFAR10]
) -> None:
    for ours, train, size in ((real_train, True, 15_000), (real_test, False, 3_000)):
        subset = cifar_subset(ours, ["airplane", "automobile", "ship"])
        assert len(subset) == size
        assert subset.class_to_idx == {"airplane": 0, "automobile": 1, "ship": 2}
        assert subset.labels.bincount().tolist() == [size // 3] * 3
        # The article's own way, by hand.
        relabel = {0: 0, 1: 1, 8: 2}
        theirs = torchvision_real(train)
        assert subset.targets == [relabel[label] for label in theirs.targets if label in relabel]
        from_theirs = cifar_subset(theirs, ["airplane", "automobile", "ship"])
        assert torch.equal(from_theirs.images, subset.images)
        assert from_theirs.targets == subset.targets
        indices = [index for index, label in enumerate(theirs.targets) if label in relabel]
        for position in range(0, size, 499):
            picture, label = from_theirs[position]
            expected, their_label = theirs[indices[position]]
            assert picture.tobytes() == expected.tobytes()
            assert label == relabel[their_label]


@pytest.mark.cifar10
def test_held_out_part_of_the_real_set(real_train: CIFAR10Normalized) -> None:
    train, held_out = train_val_split(real_train)
    assert train.labels.bincount().tolist() == [4500] * 10
    assert held_out.labels.bincount().tolist() == [500] * 10


def test_numpys_numbers_name_classes_too(tiny_root: Path) -> None:
    dataset = CIFAR10Normalized(tiny_root)
    part = cifar_subset(dataset, np.array([8, 1]))  # type: ignore[arg-type]
    assert part.classes == ("ship", "automobile")
