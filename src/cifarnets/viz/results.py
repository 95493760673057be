"""Charts of a fit and of an evaluation, and what a model got wrong."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifarnets._checked import checked
from cifarnets._figures import (
    BLUE,
    COLORS,
    COUNTS,
    INK,
    MUTED,
    PALE,
    SMALL,
    VERMILLION,
    WRONG,
    new_figure,
    save_figure,
    style_chart,
    style_legend,
)
from cifarnets.datasets.images import ImageDataset
from cifarnets.datasets.pictures import check_dense
from cifarnets.errors import InputError, brief
from cifarnets.evaluation import MISTAKES, Evaluation
from cifarnets.training.history import History
from cifarnets.viz.pictures import grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NUMBERS = 20
"""Classes of a confusion matrix whose cells have room for numbers."""

MOST_CLASSES = 40
"""Classes whose names have room in a chart."""

LONGEST_NAME = 32
"""Characters of a class's name; a longer one would leave no room for the chart."""

MARKERS = "osD^vP*X"
"""Shapes of points, one more than there are colours: no two of 56 classes share both."""


@checked
def plot_history(history: Sequence[Any], *, path: str | os.PathLike[str] | None = None) -> "Figure":
    """Plot loss and accuracy over the epochs of a fit, of training and validation; the same as `history.plot()`.

    Examples:
        >>> from cifarnets import viz
        >>> from cifarnets.training import History
        >>> history = History([{"epoch": 1, "loss": 1.5, "accuracy": 0.4}, {"epoch": 2, "loss": 1.1, "accuracy": 0.6}])
        >>> figure = viz.plot_history(history)

    Args:
        history: What `Trainer.fit` returns, or a list with a dict for each epoch.
        path: Where to save the figure too.

    Raises:
        InputError: There is no epoch, or an entry is no dict with the number of its epoch.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    for row in history:
        if not isinstance(row, dict) or "epoch" not in row:
            raise InputError(f"a history has a dict with 'epoch' for each epoch, not {brief(row)}.")
    return History(history).plot(path)


@checked
def plot_confusion(evaluation: Evaluation, *, path: str | os.PathLike[str] | None = None) -> "Figure":
    """Plot the confusion matrix: what share of the images of each class (row) the model took for which (column).

    Examples:
        >>> import torch
        >>> from cifarnets import Evaluation, viz
        >>> logits, labels = torch.randn(50, 3), torch.arange(50) % 3
        >>> figure = viz.plot_confusion(Evaluation.from_logits(logits, labels, ("cat", "dog", "frog")))

    Args:
        evaluation: What `evaluate` returns.
        path: Where to save the figure too.

    Raises:
        InputError: There are more classes than fit.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    names = _class_names(evaluation)
    counts = torch.tensor(evaluation.confusion)
    shares = 100 * counts / counts.sum(1, keepdim=True).clamp_min(1)
    k = len(names)
    side = 1.5 + max(0.38 * min(k, MOST_NUMBERS) + 0.2 * max(k - MOST_NUMBERS, 0), 1.6)
    figure = new_figure(side, side)
    axes = figure.subplots()
    axes.imshow(shares.numpy(), cmap=COUNTS, vmin=0, vmax=100, interpolation="nearest")
    if k <= MOST_NUMBERS:
        for row, column in counts.nonzero().tolist():
            share = float(shares[row, column])
            text = f"{share:.0f}" if share >= 0.5 else "<1"
            axes.text(column, row, text, ha="center", va="center", fontsize=SMALL, color="white" if share > 50 else INK)
    style_chart(axes, title="% of each class", xlabel="the model says", ylabel="the label says", grid="")
    axes.set_xticks(range(k), names, rotation=90)
    axes.set_yticks(range(k), names)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set(visible=True, color=PALE)
    return save_figure(figure, path)


@checked
def plot_per_class(evaluation: Evaluation, *, path: str | os.PathLike[str] | None = None) -> "Figure":
    """Plot the accuracy on the images of each class as bars, the best at the top, with a line at that of all images.

    Examples:
        >>> import torch
        >>> from cifarnets import Evaluation, viz
        >>> logits, labels = torch.randn(50, 3), torch.arange(50) % 3
        >>> figure = viz.plot_per_class(Evaluation.from_logits(logits, labels, ("cat", "dog", "frog")))

    Args:
        evaluation: What `evaluate` returns.
        path: Where to save the figure too.

    Raises:
        InputError: There are more classes than fit.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    _class_names(evaluation)
    rows = sorted(((_shortened(name), share) for name, share in evaluation.per_class.items()), key=lambda row: row[1])
    figure = new_figure(4.8, 0.8 + 0.25 * len(rows))
    axes = figure.subplots()
    axes.barh(range(len(rows)), [100 * accuracy for _, accuracy in rows], 0.7, color=BLUE)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows])
    axes.axvline(100 * evaluation.accuracy, color=VERMILLION, linestyle="--", linewidth=1.4)
    for place, (_, accuracy) in enumerate(rows):
        axes.text(101, place, f"{100 * accuracy:.1f}", va="center", fontsize=SMALL, color=INK)
    style_chart(axes, title=f"all images: {100 * evaluation.accuracy:.1f} %", xlabel="accuracy, %", grid="x")
    axes.title.set_color(WRONG)
    axes.set(xlim=(0, 100), ylim=(-0.6, len(rows) - 0.4))
    axes.tick_params(axis="y", length=0)
    return save_figure(figure, path)


@checked
def plot_reliability(evaluation: Evaluation, *, path: str | os.PathLike[str] | None = None) -> "Figure":
    """Plot how often the model is right where it is how sure, and how many images that is.

    A calibrated model's bars end at the dashed line: of the images that it is 80 % sure of, it gets 80 % right. The
    gaps, weighted by their images, are the expected calibration error (Guo et al. 2017, fig. 4).

    Examples:
        >>> import torch
        >>> from cifarnets import Evaluation, viz
        >>> logits, labels = torch.randn(50, 3), torch.arange(50) % 3
        >>> figure = viz.plot_reliability(Evaluation.from_logits(logits, labels))

    Args:
        evaluation: What `evaluate` or `Evaluation.from_logits` returns.
        path: Where to save the figure too.

    Raises:
        InputError: The evaluation has no bins of confidence.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    parts = [(place, part) for place, part in enumerate(evaluation.reliability) if part.images]
    if not parts:
        raise InputError("this evaluation has no bins of confidence: make it with evaluate.")
    count = len(evaluation.reliability)
    middles = [(place + 0.5) / count for place, _ in parts]
    figure = new_figure(4.2, 4.4)
    above, below = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    above.bar(middles, [part.accuracy for _, part in parts], 0.9 / count, color=BLUE, label="accuracy")
    for middle, (_, part) in zip(middles, parts, strict=True):
        above.plot([middle, middle], [part.accuracy, part.confidence], color=VERMILLION, linewidth=2.2)
    above.plot([], [], color=VERMILLION, linewidth=2.2, label="gap to the confidence")
    above.plot([0, 1], [0, 1], color=INK, linestyle="--", linewidth=1, label="calibrated")
    below.bar(middles, [100 * part.images / evaluation.n for _, part in parts], 0.9 / count, color=MUTED)
    style_chart(above, title=f"expected calibration error {evaluation.ece:.3f}", ylabel="accuracy")
    style_chart(below, xlabel="confidence: the probability of the predicted class", ylabel="% of images")
    above.set(xlim=(0, 1), ylim=(0, 1))
    return save_figure(figure, path)


@checked
def show_mistakes(
    evaluation: Evaluation,
    dataset: ImageDataset,
    *,
    count: int = MISTAKES,
    path: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Show the images that the model got wrong, those first of which it was surest.

    Some of them are mistakes of the labels.

    Examples:
        >>> from cifarnets import create, evaluate, viz
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> data = SyntheticCIFAR10(size=100)
        >>> figure = viz.show_mistakes(evaluate(create("convnet"), BatchLoader(data)), data, count=8)

    Args:
        evaluation: What `evaluate` returns for a loader of `dataset` that does not shuffle.
        dataset: The images, in the same order.
        count: How many to show at most, 1 to 16.
        path: Where to save the figure too.

    Raises:
        InputError: The evaluation is one of other images, or of another order, or there is no mistake.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    if not 1 <= count <= MISTAKES:
        raise InputError(f"count must be 1 to {MISTAKES}, not {count}.")
    mistakes, names = evaluation.mistakes[:count], _class_names(evaluation)
    if len(dataset) != evaluation.n or any(int(dataset.labels[place]) != label for place, label, _, _ in mistakes):
        raise InputError(
            f"the evaluation of {evaluation.n} images is not one of these {len(dataset)} in this order: evaluate "
            "BatchLoader(dataset), which does not shuffle."
        )
    if not mistakes:
        raise InputError(f"there is no mistake to show: all {evaluation.n} images are right.")
    pictures = [dataset.images[mistake.image].cpu().permute(1, 2, 0).squeeze(-1) for mistake in mistakes]
    titles = [f"✗ {names[guess]} {sure:.2f}\nis: {names[label]}" for _, label, guess, sure in mistakes]
    return grid(pictures, titles, path, colors=[WRONG] * len(mistakes))


@checked
def plot_projection(
    features: Tensor,
    labels: Tensor | Sequence[int],
    *,
    classes: Sequence[str] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Plot vectors as points on the plane along which they differ most (principal component analysis).

    Examples:
        >>> from cifarnets import features, load, viz
        >>> from cifarnets.datasets import SyntheticCIFAR10
        >>> data = SyntheticCIFAR10(size=100)
        >>> vectors = features(load("convnet"), data.images)
        >>> figure = viz.plot_projection(vectors, data.labels, classes=data.classes)

    Args:
        features: `[N, D]`, a vector for each image, such as `cifarnets.features` returns; maps `[N, C, H, W]` are taken
            as vectors too.
        labels: The class of each image.
        classes: The names of the classes; by default their numbers.
        path: Where to save the figure too.

    Raises:
        InputError: Features and labels do not fit together, there are fewer than three vectors or two numbers in each,
            one is not finite or its square is not, or a class has no name.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    check_dense(features)
    points = features.detach().cpu()
    try:
        known = torch.as_tensor(labels).detach().cpu()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"labels are a whole number for each vector, not {brief(labels)}.") from error
    if points.ndim < 2 or known.ndim != 1 or len(points) != len(known) or points.is_complex() or known.is_complex():
        raise InputError(f"features must be [N, D] and labels [N], not {list(features.shape)} and {list(known.shape)}.")
    points = points.flatten(1).float()
    if len(points) < 3 or points.shape[1] < 2:
        raise InputError(f"a plane needs three vectors of two numbers, and these are {list(points.shape)}.")
    if not points.square().sum().isfinite():  # which the variance is not then
        raise InputError("some features are NaN or infinite, or too large to square.")
    numbers = sorted(set(known.tolist()))
    names = [str(number) for number in numbers] if classes is None else list(classes)
    if classes is not None:
        if not all(isinstance(number, int) and 0 <= number < len(names) for number in numbers):
            raise InputError(f"labels {brief(numbers)} are not all numbers of the {len(names)} classes.")
        names = [_shortened(names[number]) for number in numbers]
    if len(numbers) > MOST_CLASSES:
        raise InputError(f"{len(numbers)} classes are too many to tell apart: choose at most {MOST_CLASSES}.")
    centered = points - points.mean(0)
    with torch.random.fork_rng(devices=[]):  # it starts from random vectors, and is much faster than an exact SVD
        torch.manual_seed(0)
        _, lengths, directions = torch.pca_lowrank(centered, min(8, *points.shape), center=False, niter=6)
    plane = directions[:, :2].T
    # The sign of an axis means nothing; this one is the same on every machine.
    plane = plane * plane.gather(1, plane.abs().argmax(1, keepdim=True)).sign()
    places = centered @ plane.T
    shares = 100 * lengths**2 / centered.square().sum().clamp_min(1e-12)
    figure = new_figure(5.4, 4)
    axes = figure.subplots()
    for index, (number, name) in enumerate(zip(numbers, names, strict=True)):
        chosen = places[known == number].numpy()
        axes.scatter(
            chosen[:, 0], chosen[:, 1], s=14, alpha=0.75, label=name, color=COLORS[index % len(COLORS)],
            marker=MARKERS[index % len(MARKERS)], linewidths=0,
        )  # fmt: skip
    style_chart(
        axes,
        xlabel=f"first component, {shares[0]:.0f} % of the variance",
        ylabel=f"second component, {shares[1]:.0f} %",
    )
    style_legend(axes, loc="center left", bbox_to_anchor=(1, 0.5), ncols=1 + (len(names) - 1) // 20)
    return save_figure(figure, path)


def _class_names(evaluation: Evaluation) -> tuple[str, ...]:
    names = evaluation.classes
    if len(names) > MOST_CLASSES:
        raise InputError(f"{len(names)} classes are too many for one figure, which has room for {MOST_CLASSES}.")
    return tuple(map(_shortened, names))


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
