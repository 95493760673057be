"""Softmax against plain normalising, and cross-entropy against squared error (article, step 18)."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from cifarnets._checked import checked
from cifarnets._figures import (
    BLUE,
    INK,
    MUTED,
    ORANGE,
    SMALL,
    VERMILLION,
    new_figure,
    save_figure,
    style_chart,
    style_legend,
)
from cifarnets.errors import InputError, brief

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_SCORES = 10
"""Scores whose bars have room for their numbers."""


@checked
def plot_softmax(scores: Sequence[float] = (10, 6, 4), *, path: str | os.PathLike[str] | None = None) -> "Figure":
    """Plot the shares that scores get by dividing by their sum, and by the softmax, which sharpens them (step 18).

    The article prints 0.84, 0.11 and 0.04 for its scores 10, 6 and 4. Those are the softmax of 5, 3 and 2; that of 10,
    6 and 4 is 0.980, 0.018 and 0.002.

    Examples:
        >>> from cifarnets import viz
        >>> figure = viz.plot_softmax((10, 6, 4))

    Args:
        scores: Two to ten numbers of which none is below 0, for others have no shares by their sum.
        path: Where to save the figure too.

    Raises:
        InputError: There are fewer or more, or one is below 0 or not finite, or all are 0.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    if not 2 <= len(scores) <= MOST_SCORES:
        raise InputError(f"scores must be 2 to {MOST_SCORES} numbers, not {len(scores)}.")
    if not all(0 <= score <= 1e6 for score in scores) or not sum(scores):
        raise InputError(f"plain normalising needs scores from 0 to a million that are not all 0, not {brief(scores)}.")
    plain = [score / sum(scores) for score in scores]
    powers = [math.exp(score - max(scores)) for score in scores]
    softmax = [power / sum(powers) for power in powers]
    figure = new_figure(max(4.4, 1.15 * len(scores)), 3.1)
    axes = figure.subplots()
    for shift, values, label, color in ((-0.2, plain, "score / sum", ORANGE), (0.2, softmax, "softmax", BLUE)):
        places = [place + shift for place in range(len(scores))]
        axes.bar(places, values, 0.38, label=label, color=color)
        for place, value in zip(places, values, strict=True):
            axes.text(place, value + 0.015, f"{value:.3f}", ha="center", fontsize=SMALL, color=INK)
    style_chart(axes, xlabel="score", ylabel="share", grid="y")
    axes.set_xticks(range(len(scores)), [f"{score:g}" for score in scores])
    axes.set_ylim(0, 1.12)
    style_legend(axes, loc="upper right")
    return save_figure(figure, path)


@checked
def plot_losses(*, path: str | os.PathLike[str] | None = None) -> "Figure":
    """Plot cross-entropy and squared error over the probability of the true class (article, step 18).

    The nearer the probability comes to 0, the steeper cross-entropy rises, without end. Squared error stays below 1,
    and flat, so a confident wrong answer teaches the net little.

    Examples:
        >>> from cifarnets import viz
        >>> figure = viz.plot_losses()

    Args:
        path: Where to save the figure too.

    Raises:
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    probability = np.linspace(0.005, 1, 400)
    figure = new_figure(4.8, 3.4)
    axes = figure.subplots()
    axes.plot(probability, -np.log(probability), color=VERMILLION, linewidth=2, label="cross-entropy: −ln p")
    axes.plot(probability, (1 - probability) ** 2, "--", color=BLUE, linewidth=2, label="squared error: (1 − p)²")
    sure = 0.01
    for value, place in ((-math.log(sure), (0.1, 4.6)), ((1 - sure) ** 2, (0.05, 0.3))):
        axes.plot(sure, value, "o", color=INK, markersize=4)
        axes.annotate(
            f"{value:.2f} at p = {sure}", (sure, value), place, fontsize=SMALL, color=INK, va="center",
            arrowprops={"arrowstyle": "-", "color": MUTED, "linewidth": 0.7},
        )  # fmt: skip
    style_chart(axes, xlabel="p, the probability of the true class", ylabel="loss of one image")
    axes.set(xlim=(0, 1), ylim=(0, 5.4))
    return save_figure(figure, path)
