"""Which learning rate to try first (Smith 2017, "Cyclical Learning Rates for Training Neural Networks", § 3.3)."""

import itertools
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cifarnets._figures import new_figure, save_figure
from cifarnets.errors import DivergedError, InputError
from cifarnets.inference import Batches

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cifarnets.training.trainer import Trainer


@dataclass(frozen=True)
class LRSearch:
    """What `find_lr` saw.

    Attributes:
        rates: Learning rates, rising.
        losses: The loss of the batch at each, smoothed.
        suggestion: The rate at which the loss fell fastest on the way to its lowest; a peak for a schedule may be
            some times higher.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Loss over learning rate, with the suggestion marked.

        Args:
            path: Where to save the picture too.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure = new_figure(5, 3.5)
        axes = figure.subplots()
        axes.plot(self.rates, self.losses)
        axes.axvline(self.suggestion, linestyle="--", color="gray", label=f"suggestion {self.suggestion:.2g}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="loss")
        axes.legend()
        return save_figure(figure, path)


def find_lr(trainer: "Trainer", loader: Batches, low: float = 1e-5, high: float = 1.0, steps: int = 100) -> LRSearch:
    """Train on some batches with a rising learning rate, watch the loss, and put everything back.

    Args:
        trainer: Its model, optimizer and random numbers are afterwards as they were.
        loader: Gone through as often as needed.
        low: The first rate, of the first group; other groups keep their ratio to it.
        high: The last; the search ends before it where the loss has grown to four times its lowest.
        steps: Batches.

    Raises:
        InputError: The rates are not `0 < low < high`, there are fewer than ten steps, or the loss never falls.
    """
    if not 0 < low < high or steps < 10:
        raise InputError(f"find_lr needs 0 < low < high and at least 10 steps, not {low}, {high} and {steps}.")
    rates, losses, average = [], [], 0.0
    with trainer.rehearsal(loader) as batches:
        first, *_ = own = [group["lr"] for group in trainer.optimizer.param_groups]
        ratios = [rate / first if first else 1.0 for rate in own]  # groups keep their ratios to the first
        for step, batch in enumerate(itertools.islice(batches, steps)):
            rate = low * (high / low) ** (step / (steps - 1))
            for group, ratio in zip(trainer.optimizer.param_groups, ratios, strict=True):
                group["lr"] = rate * ratio
            try:
                trainer.train_step(batch)
            except DivergedError:
                break
            # Bias-corrected exponential average: single batches are too noisy to read.
            loss = trainer.world.sum(trainer.last_loss).item() / trainer.world.size  # all must stop at one step
            average = 0.9 * average + 0.1 * loss
            smooth = average / (1 - 0.9 ** (step + 1))
            if not math.isfinite(smooth):
                break
            rates.append(rate)
            losses.append(smooth)
            if smooth > 4 * min(losses):
                break
    # A tenth of the way is what tells a fall from noise, and the average of the first few batches is little else.
    window = max(len(losses) // 10, 1)
    seen = torch.tensor(losses[window:], dtype=torch.float64)
    falls = seen[: seen.argmin() + 1] if len(seen) else seen
    window = min(window, len(falls) - 1)
    if window < 1:
        raise InputError(f"the loss never falls between {low} and {rates[-1] if rates else high}; try lower rates.")
    steepest = int((falls[window:] - falls[:-window]).argmin())
    middle = len(losses) - len(seen) + steepest + window // 2
    return LRSearch(tuple(rates), tuple(losses), rates[middle])
