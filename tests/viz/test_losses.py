"""Step 18: softmax against plain normalising, cross-entropy against squared error."""

import math

import numpy as np
import pytest

from cifarnets.errors import InputError
from cifarnets.viz import plot_losses, plot_softmax


def test_the_softmax_of_the_article_s_scores_has_its_true_values() -> None:
    (axes,) = plot_softmax().axes
    shown = [text.get_text() for text in axes.texts]
    assert shown == ["0.500", "0.300", "0.200", "0.980", "0.018", "0.002"]  # not 0.84, 0.11 and 0.04
    heights = [bar.get_height() for bar in axes.patches]  # type: ignore[attr-defined]
    assert math.isclose(sum(heights[:3]), 1)
    assert math.isclose(sum(heights[3:]), 1)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["10", "6", "4"]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["score / sum", "softmax"]


def test_the_article_s_printed_softmax_is_that_of_half_its_scores() -> None:
    shown = [text.get_text() for text in plot_softmax((5, 3, 2)).axes[0].texts]
    assert [f"{float(text):.2f}" for text in shown[3:]] == ["0.84", "0.11", "0.04"]


def test_scores_without_shares_are_refused() -> None:
    for scores in ((1,), (1,) * 11):
        with pytest.raises(InputError, match="scores must be 2 to 10 numbers"):
            plot_softmax(scores)
    for scores in ((1, -2), (0, 0), (1, math.nan), (1, math.inf)):
        with pytest.raises(InputError, match="plain normalising needs scores from 0"):
            plot_softmax(scores)


def test_the_curves_are_cross_entropy_and_squared_error() -> None:
    (axes,) = plot_losses().axes
    for line, loss in zip(axes.get_lines()[:2], (lambda p: -np.log(p), lambda p: (1 - p) ** 2), strict=True):
        probability, height = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        np.testing.assert_allclose(height, loss(probability))
        assert probability[-1] == 1
    assert [text.get_text() for text in axes.texts] == ["4.61 at p = 0.01", "0.98 at p = 0.01"]
    assert axes.get_xlabel() == "p, the probability of the true class"
