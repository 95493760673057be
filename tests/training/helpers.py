"""What several tests of training use: comparisons, callbacks and batches."""

import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifarnets import Trainer
from cifarnets.training import Callback

MakeNet = Callable[..., nn.Module]
HOOKS = ("on_fit_start", "on_epoch_start", "on_batch_start", "on_batch_end", "on_epoch_end", "on_fit_end")


def assert_same_weights(one: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance)


def without_times(history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The history without what a clock measured, which differs between equal fits."""
    return [{key: value for key, value in row.items() if "second" not in key} for row in history]


def random_numbers() -> tuple[float, float, float]:
    """A number from every global generator; equal if nothing drew from them meanwhile."""
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002 (users draw from it)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def batches_of(*images_and_labels: tuple[Any, Any]) -> list[tuple[Tensor, Tensor]]:
    """Batches of two images; None stands for images, or labels, that are right."""
    good = (torch.zeros(2, 3, 32, 32), torch.tensor([0, 2]))
    return [
        (good[0] if images is None else images, good[1] if labels is None else torch.as_tensor(labels))
        for images, labels in images_and_labels
    ]


class OnEveryHook(Callback):
    """Calls a function at every hook, with the hook's name."""

    def __init__(self, function: Callable[[str, Trainer], object]) -> None:
        self.function = function

    def on_fit_start(self, trainer: Trainer) -> None:
        self.function("on_fit_start", trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        self.function("on_fit_end", trainer)

    def on_epoch_start(self, trainer: Trainer) -> None:
        self.function("on_epoch_start", trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.function("on_epoch_end", trainer)

    def on_batch_start(self, trainer: Trainer) -> None:
        self.function("on_batch_start", trainer)

    def on_batch_end(self, trainer: Trainer) -> None:
        self.function("on_batch_end", trainer)


class StopAt(Callback):
    """Stops the fit after some batches of an epoch."""

    def __init__(self, batch: int, epoch: int = 0) -> None:
        self.batch = batch
        self.epoch = epoch

    def on_batch_end(self, trainer: Trainer) -> None:
        if (trainer.epoch, trainer.batches_done) == (self.epoch, self.batch):
            trainer.stop()


class AnySizeNet(nn.Sequential):
    """A net for images of any size."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=4),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        )


class BatchNormNet(nn.Sequential):
    """A net with state beside its weights, and with random numbers in its forward pass."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=4),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(256, 3),
        )
