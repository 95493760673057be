"""Pictures in class folders: what is read, what is named as bad, and what is refused."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from cifarnets.datasets import ARTICLE_MEAN, CIFAR10Normalized, ImageDataset, channel_stats
from cifarnets.datasets.pictures import to_picture
from cifarnets.errors import DataNotFoundError, InputError, UnknownNameError

Make = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three cats and two dogs of several sizes and kinds, one in a subfolder, and files that are no pictures."""
    rng = np.random.default_rng(0)
    root = tmp_path / "pets"
    names = ("dog/rex.png", "dog/old/bo.JPG", "cat/1.jpg", "cat/2.gif", "cat/tiny.bmp")
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + 30 * index, 150 - 20 * index, 3), dtype=np.uint8)
        PIL.Image.fromarray(pixels).save(path)
    for name in ("cat/notes.txt", "cat/.thumb.png", ".git/x.png", "__MACOSX/x.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("no picture")
    return root


ORDER = ("cat/1.jpg", "cat/2.gif", "cat/tiny.bmp", "dog/old/bo.JPG", "dog/rex.png")


def test_class_folders_are_classes_and_their_pictures_what_predict_sees(folder: Path) -> None:
    dataset = ImageDataset.from_folder(folder)
    assert dataset.classes == ("cat", "dog")
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    assert dataset.images.shape == (5, 3, 32, 32)
    for image, name in zip(dataset.images, ORDER, strict=True):
        assert torch.equal(image / 255, to_picture(folder / name, 3)), name
    assert dataset.mean == ARTICLE_MEAN


def test_size_and_channels_are_chosen(folder: Path) -> None:
    assert ImageDataset.from_folder(str(folder), size=48).images.shape == (5, 3, 48, 48)
    grey = ImageDataset.from_folder(folder, size=(24, 40), mean=[0.5], std=[0.25])
    assert grey.images.shape == (5, 1, 24, 40)


def test_statistics_of_the_pictures_are_computed_as_of_any_dataset(folder: Path) -> None:
    mean, std = channel_stats(ImageDataset.from_folder(folder))
    again = ImageDataset.from_folder(folder, mean=mean, std=std, split="train", view="normalized")
    pictures = torch.stack([item for item, _ in (again[index] for index in range(5))])
    assert pictures.mean().abs() < 1e-4
    assert again.split == "train"


def test_a_subclass_gives_a_plain_dataset(folder: Path) -> None:
    assert type(CIFAR10Normalized.from_folder(folder)) is ImageDataset


def test_the_order_of_the_labels_may_be_given(folder: Path) -> None:
    dataset = ImageDataset.from_folder(folder, classes=["dog", "bird", "cat"])
    assert (dataset.classes, dataset.labels.tolist()) == (("dog", "bird", "cat"), [2, 2, 2, 0, 0])
    with pytest.raises(UnknownNameError, match=r"has 'cat', which is none of the classes 'dog', 'bird'"):
        ImageDataset.from_folder(folder, classes=["dog", "bird"])


# --- bad files


@pytest.fixture
def spoilt(folder: Path) -> Path:
    (folder / "cat" / "empty.png").touch()
    (folder / "dog" / "page.jpg").write_text("<html>please log in</html>")
    whole = (folder / "dog" / "rex.png").read_bytes()
    (folder / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    return folder


BAD = ("empty.png", "page.jpg", "cut.png")


def test_every_bad_file_is_named_at_once(spoilt: Path) -> None:
    with pytest.raises(InputError, match=r"3 of 8 pictures in .* cannot be used:") as info:
        ImageDataset.from_folder(spoilt)
    assert all(name in str(info.value) for name in BAD)
    assert "skip_bad=True" in str(info.value)


def test_bad_files_can_be_left_out_and_cost_the_others_nothing(spoilt: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "cifarnets"):
        dataset = ImageDataset.from_folder(spoilt, skip_bad=True)
    assert dataset.labels.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(dataset.images[4] / 255, to_picture(spoilt / "dog" / "rex.png", 3))
    (record,) = caplog.records
    assert "3 of 8 pictures" in record.getMessage()
    assert all(name in record.getMessage() for name in BAD)


def test_pictures_outside_of_class_folders_are_not_left_out_in_silence(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "dog" / "rex.png").rename(folder / "rex.png")
    with caplog.at_level(logging.WARNING, "cifarnets"):
        assert len(ImageDataset.from_folder(folder)) == 4
    assert "1 pictures in" in caplog.text
    assert "lie in no class folder, and are left out" in caplog.text


def test_a_folder_of_bad_files_only_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for index in range(30):
        (tmp_path / "cat" / f"{index}.png").touch()
    with pytest.raises(InputError, match=r"30 of 30 pictures") as info:
        ImageDataset.from_folder(tmp_path, skip_bad=True)
    assert "and 20 more" in str(info.value)


# --- folders that cannot be used


def test_what_is_no_folder_of_class_folders_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match=r"cannot read the folder .*none"):
        ImageDataset.from_folder(tmp_path / "none")
    with pytest.raises(DataNotFoundError, match="cannot read the folder"):
        ImageDataset.from_folder(folder / "cat" / "1.jpg")
    with pytest.raises(DataNotFoundError, match=r"holds no class folders: put .* cats/1\.jpg"):
        ImageDataset.from_folder(folder / "cat")
    (folder / "fish").mkdir()
    with pytest.raises(InputError, match=r"the class folder .*fish' holds no picture"):
        ImageDataset.from_folder(folder)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 0}, "size must be"),
        ({"size": (32, 32, 3)}, "size must be"),
        ({"size": 10**6}, "size must be"),
        ({"size": "32"}, "size of"),
        ({"mean": [0.5, 0.5], "std": [0.5, 0.5]}, "1 or 3 channels"),
        ({"mean": [0.5]}, "means and stds"),
        ({"std": [0.0] * 3}, "above 0"),
        ({"classes": "cat"}, "classes of"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(InputError, match=message):
        ImageDataset.from_folder(folder, **arguments)
