"""The images that a model was trained for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cifarnets.datasets import ARTICLE_MEAN, ARTICLE_STD, CIFAR10Normalized, SyntheticCIFAR10, dataset_for, download
from cifarnets.errors import DataNotFoundError, UnknownNameError


def meta(**facts: Any) -> Any:
    return SimpleNamespace(**{"classes": None, "mean": None, "std": None, "training": {}, **facts})


def test_classes_in_the_models_order_and_its_constants(tiny_root: Path) -> None:
    constants: dict[str, Any] = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6)}
    found = dataset_for(meta(classes=("ship", "cat"), **constants), tiny_root)
    assert (found.classes, found.split, found.mean, found.std) == (("ship", "cat"), "test", *constants.values())
    assert len(found) == 4
    assert dataset_for(meta(classes=("ship", "cat")), tiny_root, train=True).split == "train"


def test_a_model_that_knows_nothing_gets_all_of_it(tiny_root: Path) -> None:
    found = dataset_for(meta(), tiny_root)
    assert isinstance(found, CIFAR10Normalized)
    assert (len(found), found.mean, found.std) == (20, ARTICLE_MEAN, ARTICLE_STD)
    row = SimpleNamespace(classes=found.classes, mean=found.mean, std=found.std)  # of the index: no training
    assert torch.equal(dataset_for(row, tiny_root).images, found.images)


def test_drawn_images_for_a_model_of_drawn_images() -> None:
    found = dataset_for(meta(training={"synthetic": True}, classes=("ring", "disc")), "no/such/folder")
    drawn = SyntheticCIFAR10(train=False)
    assert torch.equal(found.images, drawn.images[(drawn.labels == 3) | (drawn.labels == 0)])
    assert found.classes == ("ring", "disc")


def test_what_is_not_there(tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataNotFoundError):
        dataset_for(meta(), tmp_path)
    with pytest.raises(UnknownNameError, match="unknown class 'sea'"):
        dataset_for(meta(classes=("sea",)), tiny_root)
    asked: list[Path] = []
    monkeypatch.setattr(download, "download_cifar10", asked.append)
    with pytest.raises(DataNotFoundError):
        dataset_for(meta(), tmp_path, download=True)
    assert asked == [tmp_path]
