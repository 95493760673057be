"""Charts of a fit and of an evaluation: the figures in them are those of the evaluation."""

import math

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from tests.viz.reading import titles

from cifarnets import Evaluation
from cifarnets.datasets import ImageDataset
from cifarnets.errors import InputError
from cifarnets.training import History
from cifarnets.viz import (
    plot_confusion,
    plot_history,
    plot_per_class,
    plot_projection,
    plot_reliability,
    show_mistakes,
)

CLASSES = ("cat", "dog", "frog")
LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
CHOSEN = torch.tensor([0, 0, 0, 1, 1, 1, 0, 2])
SURE = torch.tensor([0.9, 0.8, 0.7, 0.95, 0.6, 0.99, 0.5, 0.9])


def evaluation() -> Evaluation:
    rest = ((1 - SURE) / 2)[:, None].expand(-1, 3).clone()
    rest[torch.arange(8), CHOSEN] = SURE
    return Evaluation.from_logits(rest.log(), LABELS, CLASSES)


def dataset() -> ImageDataset:
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 4, 4).contiguous()
    return ImageDataset(images, LABELS, CLASSES)


def test_the_history_is_drawn_as_its_own_plot_draws_it() -> None:
    rows = [{"epoch": 1, "loss": 1.5, "accuracy": 0.4}, {"epoch": 2, "loss": 1.1, "accuracy": 0.6}]
    for history in (rows, History(rows)):
        loss, accuracy = plot_history(history).axes
        assert np.asarray(loss.get_lines()[0].get_xydata()).tolist() == [[1, 1.5], [2, 1.1]]
        assert np.asarray(accuracy.get_lines()[0].get_ydata()).tolist() == [0.4, 0.6]
    for wrong in ([3], [{"loss": 1.0}], []):
        with pytest.raises(InputError, match="epoch"):
            plot_history(wrong)


def test_rows_of_the_confusion_are_what_the_label_says() -> None:
    (axes,) = plot_confusion(evaluation()).axes
    assert np.asarray(axes.images[0].get_array()).tolist() == [[75, 25, 0], [0, 100, 0], [50, 0, 50]]
    cells = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "75", (0, 1): "25", (1, 1): "100", (2, 0): "50", (2, 2): "50"}
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(CLASSES)
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("the label says", "the model says")


def test_a_confusion_of_many_classes_has_no_numbers_and_of_too_many_is_refused() -> None:
    result = Evaluation.from_logits(torch.eye(30), torch.arange(30))
    assert not plot_confusion(result).axes[0].texts
    with pytest.raises(InputError, match="41 classes are too many"):
        plot_confusion(Evaluation.from_logits(torch.eye(41), torch.arange(41)))


def test_the_bars_of_the_classes_are_sorted() -> None:
    (axes,) = plot_per_class(evaluation()).axes
    assert [bar.get_width() for bar in axes.patches] == [50, 75, 100]  # type: ignore[attr-defined]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["frog", "cat", "dog"]
    assert [text.get_text() for text in axes.texts] == ["50.0", "75.0", "100.0"]
    assert axes.get_title() == "all images: 75.0 %"


def test_the_bars_and_gaps_of_the_reliability_are_those_of_its_bins() -> None:
    result = evaluation()
    figure = plot_reliability(result)
    above, below = figure.axes
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in above.patches]  # type: ignore[attr-defined]
    last = [right for middle, right in bars if middle > 14 / 15]
    assert last == [0.5]  # of 0.95 and 0.99, one is right
    gaps = [np.asarray(line.get_ydata()) for line in above.get_lines() if len(set(line.get_xdata())) == 1]  # type: ignore[arg-type]
    assert any(np.allclose(gap, [0.5, 0.97]) for gap in gaps)
    shares = [bar.get_height() for bar in below.patches]  # type: ignore[attr-defined]
    assert math.isclose(sum(shares), 100, rel_tol=1e-6)
    assert above.get_title() == f"expected calibration error {result.ece:.3f}"


def test_the_surest_mistakes_come_first() -> None:
    figure = show_mistakes(evaluation(), dataset())
    assert titles(figure) == ["✗ dog 0.95\nis: cat", "✗ cat 0.50\nis: frog"]
    assert [int(np.asarray(axes.images[0].get_array())[0, 0, 0]) for axes in figure.axes] == [3, 6]
    assert len(show_mistakes(evaluation(), dataset(), count=1).axes) == 1


def test_mistakes_of_other_images_are_refused() -> None:
    for other in (dataset().select(range(7)), dataset().select([7, 6, 5, 4, 3, 2, 1, 0])):
        with pytest.raises(InputError, match=r"is not one of these \d in this order: evaluate BatchLoader"):
            show_mistakes(evaluation(), other)
    perfect = Evaluation.from_logits(torch.eye(3)[LABELS], LABELS, CLASSES)
    with pytest.raises(InputError, match="no mistake to show: all 8 images are right"):
        show_mistakes(perfect, dataset())
    with pytest.raises(InputError, match="count must be 1 to 16"):
        show_mistakes(evaluation(), dataset(), count=17)


class TestPlotProjection:
    def test_the_first_axis_is_where_the_points_differ_most(self) -> None:
        across = torch.tensor([-3.0, -1, 1, 3])
        features = torch.stack([torch.tensor([1.0, -1, -1, 1]), across + 7, torch.zeros(4)], 1)
        (axes,) = plot_projection(features, [0, 1, 0, 1], classes=["cat", "dog"]).axes
        cats, dogs = (np.asarray(points.get_offsets()) for points in axes.collections)
        np.testing.assert_allclose(cats[:, 0], [-3, 1], atol=1e-5)
        np.testing.assert_allclose(dogs[:, 0], [-1, 3], atol=1e-5)
        np.testing.assert_allclose(np.abs(np.concatenate([cats, dogs])[:, 1]), 1, atol=1e-5)
        assert axes.get_xlabel() == "first component, 83 % of the variance"
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()] == ["cat", "dog"]

    def test_ten_classes_have_ten_looks(self) -> None:
        (axes,) = plot_projection(torch.randn(20, 4), torch.arange(20) % 10).axes
        looks = {
            (tuple(points.get_facecolor()[0]), tuple(map(tuple, points.get_paths()[0].vertices)))
            for points in axes.collections
        }
        assert len(looks) == 10

    def test_what_has_no_plane_is_refused(self) -> None:
        for features, labels, message in (
            (torch.zeros(4, 3), [0, 1], r"features must be \[N, D\] and labels \[N\], not \[4, 3\] and \[2\]"),
            (torch.zeros(2, 3), [0, 1], "a plane needs three vectors of two numbers"),
            (torch.zeros(3, 1), [0, 1, 1], "a plane needs three vectors of two numbers"),
            (torch.full((3, 2), math.nan), [0, 1, 1], "NaN or infinite"),
            (torch.zeros(3, 2), [0, 1, 5], r"labels \[0, 1, 5\] are not all numbers of the 2 classes"),
        ):
            with pytest.raises(InputError, match=message):
                plot_projection(features, labels, classes=["cat", "dog"])
        with pytest.raises(InputError, match="41 classes are too many"):
            plot_projection(torch.randn(41, 2), range(41))  # type: ignore[arg-type]

    def test_it_is_the_exact_projection_and_leaves_the_random_numbers_alone(self) -> None:
        features = torch.randn(60, 40, dtype=torch.float64) * 0.7 ** torch.arange(40, dtype=torch.float64)
        state = torch.get_rng_state()
        (axes,) = plot_projection(features, torch.zeros(60, dtype=torch.long)).axes
        assert torch.equal(torch.get_rng_state(), state)
        exact = torch.linalg.svd(features - features.mean(0), full_matrices=False)
        shown = torch.from_numpy(np.asarray(axes.collections[0].get_offsets())).abs()
        torch.testing.assert_close(shown, (exact.U * exact.S)[:, :2].abs(), atol=1e-3, rtol=0, check_dtype=False)


def test_names_are_text_and_no_formulas() -> None:
    names = ("$100 to $200", "$\\frac$", "x" * 200)
    result = Evaluation.from_logits(torch.eye(3)[CHOSEN], LABELS, names)
    points = plot_projection(torch.randn(8, 4), LABELS, classes=names)
    for figure in (plot_confusion(result), plot_per_class(result), show_mistakes(result, dataset()), points):
        assert figure._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]
        assert not any(text.get_parse_math() for text in figure.findobj(Text))  # type: ignore[attr-defined]
    (axes,) = plot_confusion(result).axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [*names[:2], "x" * 31 + "…"]


def test_vectors_too_large_for_a_variance_and_labels_too_large_for_a_number() -> None:
    with pytest.raises(InputError, match="too large to square"):
        plot_projection(torch.randn(8, 4) * 1e30, LABELS)
    with pytest.raises(InputError, match="labels are a whole number for each vector"):
        plot_projection(torch.randn(8, 4), [10**30] * 8)
