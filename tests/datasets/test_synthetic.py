"""Drawn pictures: repeatable, balanced, and told apart by their form alone."""

import hashlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cifarnets.datasets.images import ImageDataset, channel_stats, normalize
from cifarnets.datasets.synthetic import SyntheticCIFAR10
from cifarnets.errors import InputError


@pytest.fixture(scope="module")
def train() -> SyntheticCIFAR10:
    return SyntheticCIFAR10(train=True)


@pytest.fixture(scope="module")
def test() -> SyntheticCIFAR10:
    return SyntheticCIFAR10(train=False)


def pictures(dataset: ImageDataset) -> set[bytes]:
    return {image.numpy().tobytes() for image in dataset.images}


def first_three(dataset: ImageDataset) -> ImageDataset:
    return dataset.select((dataset.labels < 3).nonzero().flatten(), classes=dataset.classes[:3])


def fitted_accuracy(model: nn.Module, train: ImageDataset, test: ImageDataset, *, epochs: int, lr: float) -> float:
    """Of a classifier trained as the article does: SGD, momentum 0.9, batches of 64."""
    random = torch.Generator().manual_seed(0)
    images, unseen = normalize(train.images), normalize(test.images)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(images), generator=random).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), train.labels[batch]).backward()
            optimizer.step()
    with torch.no_grad():
        return (model(unseen).argmax(1) == test.labels).double().mean().item()


def linear(*before: nn.Module, features: int, classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*before, nn.Flatten(), nn.Linear(features, classes))


def small_convnet(classes: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(2), nn.Tanh()),
        *(nn.Conv2d(16, 8, 3, padding=1), nn.MaxPool2d(2), nn.Tanh()),
        *(nn.Flatten(), nn.Linear(512, 32), nn.Tanh(), nn.Linear(32, classes)),
    )


def test_same_arguments_same_pictures() -> None:
    torch.manual_seed(1)
    one = SyntheticCIFAR10(size=50, seed=3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    two = SyntheticCIFAR10(size=50, seed=3)
    assert torch.equal(one.images, two.images)
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(torch.get_rng_state(), before), "drawing must not advance torch's own random numbers"


def test_same_pictures_on_every_machine() -> None:
    dataset = SyntheticCIFAR10(size=100)
    content = dataset.images.numpy().tobytes() + bytes(dataset.targets)
    assert hashlib.sha256(content).hexdigest()[:16] == "62d86e81523cbc3a"


def test_no_picture_twice(train: SyntheticCIFAR10, test: SyntheticCIFAR10) -> None:
    assert len(pictures(train) | pictures(test)) == len(train) + len(test) == 6000


def test_every_part_of_the_key_counts() -> None:
    base = pictures(SyntheticCIFAR10(size=40))
    assert not base & pictures(SyntheticCIFAR10(size=40, seed=1))
    assert not base & pictures(SyntheticCIFAR10(size=40, train=False))
    assert not base & pictures(SyntheticCIFAR10(size=41))


def test_looks_like_cifar10(train: SyntheticCIFAR10, test: SyntheticCIFAR10) -> None:
    assert isinstance(train, ImageDataset)
    assert (train.images.dtype, train.images.shape) == (torch.uint8, (5000, 3, 32, 32))
    assert (test.labels.dtype, test.labels.shape) == (torch.int64, (1000,))
    assert (train.split, test.split) == ("train", "test")
    assert len(set(train.classes)) == 10
    assert train.classes[:3] == ("disc", "cross", "stripes")
    assert train.class_to_idx == {name: label for label, name in enumerate(train.classes)}
    assert repr(test) == "SyntheticCIFAR10(1,000 images, 10 classes, view='normalized', split='test')"


@pytest.mark.parametrize("size", [1, 7, 10, 1003])
def test_labels_are_balanced(size: int) -> None:
    dataset = SyntheticCIFAR10(size=size)
    counts = dataset.labels.bincount(minlength=10)
    assert len(dataset) == counts.sum() == size
    assert counts.max() - counts.min() <= 1


def test_labels_are_shuffled(test: SyntheticCIFAR10) -> None:
    assert test.labels[:200].unique().numel() == 10
    assert (test.labels.diff() < 0).float().mean() > 0.4


def test_views_and_transform() -> None:
    image = SyntheticCIFAR10(size=1).images[0]
    normalized, label = SyntheticCIFAR10(size=1)[0]
    assert (normalized.dtype, normalized.shape, label) == (torch.float32, (3, 32, 32), 0)
    assert torch.equal(SyntheticCIFAR10(size=1, view="unit")[0][0], image / 255)
    assert SyntheticCIFAR10(size=1, view="pil")[0][0].size == (32, 32)
    assert SyntheticCIFAR10(size=1, view="pil", transform=lambda picture: picture.mode)[0] == ("RGB", 0)
    half = (0.5, 0.5, 0.5)
    assert torch.allclose(SyntheticCIFAR10(size=1, mean=half, std=half)[0][0], image / 127.5 - 1, atol=1e-6)


def test_the_articles_constants_suit(train: SyntheticCIFAR10) -> None:
    mean, std = channel_stats(train)
    assert mean == pytest.approx(train.mean, abs=0.06)
    assert std == pytest.approx(train.std, abs=0.02)


@pytest.mark.parametrize("size", [0, -5])
def test_a_size_below_one_is_refused(size: int) -> None:
    with pytest.raises(InputError, match=f"at least 1 picture, not {size}"):
        SyntheticCIFAR10(size=size)


def test_mean_colour_is_no_help_to_a_linear_classifier(train: SyntheticCIFAR10, test: SyntheticCIFAR10) -> None:
    mean_colour = linear(nn.AvgPool2d(32), features=3, classes=10)
    assert fitted_accuracy(mean_colour, train, test, epochs=3, lr=0.05) < 0.15


def test_classes_share_their_colours(train: SyntheticCIFAR10) -> None:
    def mean_colour(label: int) -> Tensor:
        return train.images[train.labels == label].double().mean((0, 2, 3)) / 255

    assert all((mean_colour(label) - 0.5).abs().max() < 0.04 for label in range(10))


def test_pixels_alone_tell_little(train: SyntheticCIFAR10, test: SyntheticCIFAR10) -> None:
    assert fitted_accuracy(linear(features=3072, classes=10), train, test, epochs=3, lr=0.001) < 0.3


def test_the_small_convnet_learns_the_first_three(train: SyntheticCIFAR10, test: SyntheticCIFAR10) -> None:
    parts = first_three(train), first_three(test)
    pixels = fitted_accuracy(linear(features=3072, classes=3), *parts, epochs=6, lr=0.001)
    convnet = fitted_accuracy(small_convnet(3), *parts, epochs=6, lr=0.05)
    assert pixels < 0.6
    assert convnet > 0.85


def test_default_dtype_and_device_and_numpys_numbers_have_no_say() -> None:
    expected = SyntheticCIFAR10(size=40, seed=3)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            found = SyntheticCIFAR10(size=np.int64(40), seed=np.int32(3))
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found.images, expected.images)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(found[0][0], expected[0][0])


def test_arguments_of_a_wrong_kind() -> None:
    with pytest.raises(InputError, match="train must be True or False, not 'test'"):
        SyntheticCIFAR10("test")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"size must be a whole number of pictures, not 10\.0"):
        SyntheticCIFAR10(size=10.0)  # type: ignore[arg-type]
