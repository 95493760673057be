"""Fixtures of the datasets' tests: the real sets, read once, and a stand-in for torchvision's."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision

from cifarnets.datasets import CIFAR10Normalized

Torchvision = Callable[..., torchvision.datasets.CIFAR10]


@cache
def _ours(root: Path, train: bool) -> CIFAR10Normalized:
    return CIFAR10Normalized(root, train=train)


@cache
def _theirs(root: Path, train: bool) -> torchvision.datasets.CIFAR10:
    return torchvision.datasets.CIFAR10(root, train=train)


@pytest.fixture
def real_train(real_root: Path) -> CIFAR10Normalized:
    """The real training set; the test must carry the mark `cifar10`, and leave it as it is."""
    return _ours(real_root, True)


@pytest.fixture
def real_test(real_root: Path) -> CIFAR10Normalized:
    """The real test set, likewise."""
    return _ours(real_root, False)


@pytest.fixture
def torchvision_real(real_root: Path) -> Callable[[bool], torchvision.datasets.CIFAR10]:
    """torchvision's reading of the real set, likewise; for `train` true or false."""
    return lambda train: _theirs(real_root, train)


@pytest.fixture(scope="session")
def torchvision_tiny() -> Torchvision:
    """torchvision's class around random images: `(labels, train=True, **attributes)`."""

    class InMemory(torchvision.datasets.CIFAR10):
        def __init__(self, labels: list[int], train: bool = True, **attributes: Any) -> None:
            self.data = np.random.default_rng(0).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
            self.targets = labels
            self.train = train
            self.classes = ["airplane", "automobile", "bird", "cat"]
            self.transform = self.target_transform = None
            vars(self).update(attributes)

    return InMemory
