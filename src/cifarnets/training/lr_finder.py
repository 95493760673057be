"""A search for a learning rate (Smith 2017, "Cyclical Learning Rates for Training Neural Networks", § 3.3)."""

import itertools
import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from cifarnets._checked import checked
from cifarnets._figures import BLUE, VERMILLION, new_figure, save_figure, style_chart
from cifarnets.errors import DivergedError, InputError
from cifarnets.inference import Batches
from cifarnets.training.trainer import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LRSearch:
    """The result of `find_lr`.

    Examples:
        >>> from cifarnets.training import LRSearch
        >>> search = LRSearch(rates=(0.001, 0.01, 0.1), losses=(2.3, 1.9, 2.5), suggestion=0.01)
        >>> search.suggestion
        0.01

    Attributes:
        rates: The learning rates, rising.
        losses: The smoothed loss at each rate.
        suggestion: The rate at which the loss fell fastest before its minimum. The peak of a schedule can be a few
            times higher.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    suggestion: float

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Plot the loss over the learning rate, and mark the suggestion. This needs the extra `plots`.

        Examples:
            >>> from cifarnets.training import LRSearch
            >>> search = LRSearch(rates=(0.001, 0.01, 0.1), losses=(2.3, 1.9, 2.5), suggestion=0.01)
            >>> figure = search.plot("search.png")

        Args:
            path: A file for the picture.

        Raises:
            MissingExtraError: matplotlib is not installed.
        """
        figure = new_figure(4.8, 3.2)
        axes = figure.subplots()
        axes.plot(self.rates, self.losses, color=BLUE)
        axes.axvline(self.suggestion, linestyle="--", color=VERMILLION, label=f"suggestion {self.suggestion:.2g}")
        axes.set_xscale("log")
        style_chart(axes, xlabel="learning rate", ylabel="loss")
        return save_figure(figure, path)


@checked
def find_lr(trainer: Trainer, loader: Batches, low: float = 1e-5, high: float = 1.0, steps: int = 100) -> LRSearch:
    """Train on some batches with a rising learning rate, record the loss, and restore the trainer.

    Examples:
        >>> from cifarnets import Trainer, create, seed_everything
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> from cifarnets.training import find_lr
        >>> seed_everything(0)
        >>> trainer = Trainer(create("convnet"), progress=False)
        >>> search = find_lr(trainer, BatchLoader(SyntheticCIFAR10(size=500), 50, shuffle=True, seed=0))
        >>> 1e-5 < search.suggestion < 1
        True

    Args:
        trainer: Its model, optimizer and random numbers are the same afterwards.
        loader: The search repeats its batches as often as it needs.
        low: The first rate of the first parameter group; the other groups keep their ratio to it.
        high: The last rate. The search ends earlier if the loss grows to four times its minimum.
        steps: The number of batches.

    Raises:
        InputError: The rates are not `0 < low < high`, there are fewer than ten steps, or the loss never falls.
    """
    if not 0 < low < high < math.inf or not 10 <= steps < 2**31:
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
    seen = torch.tensor(losses[window:], dtype=torch.float64, device="cpu")
    falls = seen[: seen.argmin() + 1] if len(seen) else seen
    window = min(window, len(falls) - 1)
    if window < 1:
        raise InputError(f"the loss never falls between {low} and {rates[-1] if rates else high}; try lower rates.")
    steepest = int((falls[window:] - falls[:-window]).argmin())
    middle = len(losses) - len(seen) + steepest + window // 2
    return LRSearch(tuple(rates), tuple(losses), rates[middle])
