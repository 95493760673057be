"""What the tests of training share: one thread, a small net that is quick to train, and a little data."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

import cifarnets
from cifarnets.datasets import BatchLoader, ImageDataset


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Nets this small gain nothing from a second thread, and lose much where the cores have other work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def net() -> Callable[..., nn.Module]:
    """Makes the article's net, thinner, for three classes; the same one for the same seed."""

    def make(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return cifarnets.models.create("convnet", num_classes=3, widths=(4, 4), hidden=8)

    return make


@pytest.fixture(scope="session")
def train(synthetic3: ImageDataset) -> ImageDataset:
    """40 images: three batches of 16, of which the last is half full."""
    return synthetic3.select(range(40))


@pytest.fixture(scope="session")
def val(synthetic3: ImageDataset) -> ImageDataset:
    """24 images that are not in `train`, and not a test set."""
    held_out = synthetic3.select(range(40, 64))
    held_out.split = "val"
    return held_out


@pytest.fixture
def loader(train: ImageDataset) -> BatchLoader:
    return BatchLoader(train, 16, shuffle=True, device="cpu", seed=0)


@pytest.fixture
def val_loader(val: ImageDataset) -> BatchLoader:
    return BatchLoader(val, 24, device="cpu")
