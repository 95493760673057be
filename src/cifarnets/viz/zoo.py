"""Accuracy against size: the released weights, and what others have published."""

import functools
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal

from cifarnets._checked import checked
from cifarnets._figures import BLUE, INK, MUTED, TEXT, VERMILLION, new_figure, save_figure, style_chart, style_legend
from cifarnets.weights.index import releases

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

CIFAR10_CLASSES = 10
SIDES = (
    (1, 0, "left"), (-1, 0, "right"), (0, 1, "center"), (0, -1, "center"),
    (0.7, 0.7, "left"), (0.7, -0.7, "left"), (-0.7, 0.7, "right"), (-0.7, -0.7, "right"),
)  # fmt: skip
"""Where a name may stand beside its point: right, up, and how the name is aligned there."""
TICKS = (50, 60, 70, 80, 85, 90, 92, 94, 95, 96, 97, 98, 99)
"""Accuracies in percent that the axis may name."""


@dataclass(frozen=True)
class Peer:
    """A published figure: a row of `peers.json`.

    Attributes:
        name: What it is called in the chart.
        parameters: Number of parameters.
        macs: Multiply-adds for one image; None where they are not published.
        accuracy: Top-1 on the test set, in percent.
        tta: Whether that is with test-time augmentation.
        source: Where it is published.
        note: What one must know to compare.
    """

    name: str
    parameters: int
    macs: int | None
    accuracy: float
    tta: bool
    source: str
    note: str


@functools.cache
def peers() -> tuple[Peer, ...]:
    """The published figures, the smallest net first.

    Examples:
        >>> peers()[0].name
        'ThriftyNet'
    """
    text = (resources.files("cifarnets.viz") / "peers.json").read_text(encoding="utf-8")
    return tuple(Peer(**row) for row in json.loads(text))


@checked
def plot_zoo(x: Literal["params", "macs"] = "params", *, path: str | os.PathLike[str] | None = None) -> "Figure":
    """Plot accuracy on CIFAR-10 over parameters or multiply-adds: our released weights and what others have published.

    Circles are without test-time augmentation, triangles with it; a line joins both of the same weights. Ours are means
    over the seeds after the last epoch; others may publish the best epoch or the best run. The sources are in
    `cifarnets/viz/peers.json`. Both axes are logarithmic, that of the accuracy in the error, since from 95 to 96 % is
    a longer way than from 70 to 71 %.

    Examples:
        >>> from cifarnets import viz
        >>> figure = viz.plot_zoo("macs")

    Args:
        x: `"params"` for the number of parameters, `"macs"` for the multiply-adds for one image.
        path: Where to save the figure too.

    Raises:
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    figure = new_figure(5.6, 5)
    axes = figure.subplots()
    points: list[tuple[float, float]] = []
    labels: list[tuple[float, float, str, str]] = []
    for name, release in releases().items():
        if len(release.classes) != CIFAR10_CLASSES or not release.is_default:
            continue
        across = release.parameters if x == "params" else release.macs
        heights = [(100 - 100 * release.accuracy, "o")]
        if release.tta_accuracy is not None:
            heights.append((100 - 100 * release.tta_accuracy, "^"))
            axes.plot([across, across], [height for height, _ in heights], color=BLUE, linewidth=1)
        for height, marker in heights:
            axes.plot(across, height, marker, color=BLUE, markersize=7, zorder=4)
            points.append((across, height))
        labels.append((across, heights[0][0], name, BLUE))
    for peer in peers():
        size = peer.parameters if x == "params" else peer.macs
        if size is not None:
            across = size
            height = 100 - peer.accuracy
            axes.plot(
                across, height, "^" if peer.tta else "o", markersize=6, markerfacecolor="none",
                markeredgecolor=VERMILLION, zorder=5,
            )  # fmt: skip
            points.append((across, height))
            labels.append((across, height, peer.name, INK))
    _scales(axes, points, "parameters" if x == "params" else "multiply-adds for one image")
    _legend(axes)
    _place_labels(figure, axes, points, labels)
    return save_figure(figure, path)


def _scales(axes: "Axes", points: Sequence[tuple[float, float]], xlabel: str) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    style_chart(axes, xlabel=xlabel, ylabel="test accuracy, % (log scale of the error)")
    errors, sizes = [height for _, height in points], [across for across, _ in points]
    axes.set(xscale="log", yscale="log", xlim=(min(sizes) / 2, max(sizes) * 2.6))
    axes.set_ylim(max(errors) * 1.25, min(errors) / 1.35)  # the smallest error on top
    axes.yaxis.set_major_locator(FixedLocator([100 - tick for tick in TICKS]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda error, _: f"{100 - error:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(_short))


def _legend(axes: "Axes") -> None:
    empty: list[Any] = []
    for color, face, text in ((BLUE, BLUE, "cifarnets"), (VERMILLION, "white", "published by others")):
        axes.plot(empty, empty, "s", color=face, markeredgecolor=color, markersize=6, label=text)
    for marker, text in (("o", "no test-time augmentation"), ("^", "with test-time augmentation")):
        axes.plot(empty, empty, marker, color="white", markeredgecolor=MUTED, markersize=6, label=text)
    style_legend(axes, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)


def _short(value: float, _: object = None) -> str:
    """A number as an axis names it: 10 k, 1 M."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= unit:
            return f"{value / unit:g}{name}"
    return f"{value:g}"


def _place_labels(
    figure: "Figure",
    axes: "Axes",
    points: Sequence[tuple[float, float]],
    labels: Iterable[tuple[float, float, str, str]],
) -> None:
    """Write each name beside its point, at the first place that is free of other names and points."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    renderer: Any = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    figure.draw_without_rendering()  # settles where the axes are
    frame = axes.get_window_extent(renderer)
    size = figure.dpi / 72
    taken: list[Bbox] = [Bbox.from_extents(x - 5 * size, y - 5 * size, x + 5 * size, y + 5 * size)
                         for x, y in axes.transData.transform(points)]  # fmt: skip
    places = [(right * far, up * far, align) for far in (8, 14, 22) for right, up, align in SIDES]
    for across, height, name, color in labels:
        text = axes.annotate(
            name, (across, height), (0, 0), textcoords="offset points", fontsize=TEXT, color=color, va="center",
            fontweight="bold" if color == BLUE else "normal",
        )  # fmt: skip

        def box_at(place: tuple[float, float, str], text: "Annotation" = text) -> Bbox:
            text.set(position=place[:2], horizontalalignment=place[2])
            return text.get_window_extent(renderer)

        def crowding(place: tuple[float, float, str], box_at: Callable[..., Bbox] = box_at) -> int:
            box = box_at(place)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            return box.count_overlaps(taken) + (0 if inside else len(taken))

        best = min(places, key=crowding)  # of equal ones the nearest
        taken.append(box_at(best))
        if best not in places[: len(SIDES)]:  # so far off that a line must say whose name it is
            line = {"arrowstyle": "-", "color": MUTED, "linewidth": 0.6, "shrinkA": 6, "shrinkB": 3}
            axes.annotate("", (across, height), best[:2], textcoords="offset points", arrowprops=line)
    figure.set_layout_engine("none")  # the names were placed for this layout
