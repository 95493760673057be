"""Figures of matplotlib in the one style of the library, without a screen or any global state.

Every figure has a white ground and dark text, whatever the user's style is, so it reads on a light page and as a card
on a dark one. The colours are those of Okabe and Ito (2008), which the colour-blind tell apart too.
"""

import functools
import io
import os
from typing import TYPE_CHECKING, Any, Literal

from cifarnets._files import as_path, write_atomic
from cifarnets.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, PALE = "#1a1a1a", "#595959", "#d9d9d9"
"""Colours of text, of what is less important, and of grids."""

BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000",
)  # fmt: skip
WRONG = "#B34700"
"""Vermillion dark enough for small text, for what is wrong; what is right is blue."""

COLORS = (BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, BLACK)
"""Colours of classes and lines, in this order."""

SIGNED, UNSIGNED, COUNTS = "RdBu_r", "cividis", "Blues"
"""Colour maps: of values around 0 (red above), of values from low to high, and of shares on white."""

TEXT, SMALL = 9, 8
"""Sizes of text in points."""


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of a size in inches, which a notebook draws if a cell ends with it.

    Examples:
        >>> new_figure(4, 3).get_size_inches().tolist()
        [4.0, 3.0]

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("pictures need matplotlib: pip install 'cifarnets[plots]'.") from error
    figure = Figure(figsize=(width, height), layout="constrained", facecolor="white")
    # A notebook asks for this; without it, only `%matplotlib inline` would draw figures that pyplot does not know.
    figure._repr_png_ = functools.partial(_render, figure, "png", 100)  # type: ignore[attr-defined]
    figure.show = _no_window  # type: ignore[method-assign]
    return figure


def style_picture(axes: "Axes", title: str = "", color: str = INK) -> None:
    """Make axes the place of a picture: no ticks, and a small title.

    Examples:
        >>> axes = new_figure(2, 2).subplots()
        >>> style_picture(axes, "a ship")
        >>> axes.get_title()
        'a ship'
    """
    axes.axis("off")
    axes.set_title(title, fontsize=TEXT, color=color, pad=4)


def style_chart(
    axes: "Axes", *, title: str = "", xlabel: str = "", ylabel: str = "", grid: Literal["x", "y", "both", ""] = "both"
) -> None:
    """Make axes the place of a chart: two spines, a pale grid, small dark text, and a legend for lines with labels.

    Examples:
        >>> axes = new_figure(4, 3).subplots()
        >>> style_chart(axes, xlabel="epoch", ylabel="loss")
        >>> axes.get_xlabel()
        'epoch'
    """
    axes.set_facecolor("white")
    axes.set_title(title, fontsize=TEXT, color=INK)
    axes.set_xlabel(xlabel, fontsize=TEXT, color=INK)
    axes.set_ylabel(ylabel, fontsize=TEXT, color=INK)
    axes.tick_params(which="both", labelsize=SMALL, labelcolor=INK, color=MUTED)
    for name, spine in axes.spines.items():
        spine.set(visible=name in ("left", "bottom"), color=MUTED)
    axes.set_axisbelow(True)
    axes.grid(False)
    if grid:
        axes.grid(True, axis=grid, color=PALE, linewidth=0.6)
    if axes.get_legend_handles_labels()[1]:
        style_legend(axes)


def style_legend(axes: "Axes", **options: Any) -> None:
    """Add a legend without a frame, in small dark text.

    Examples:
        >>> axes = new_figure(4, 3).subplots()
        >>> _ = axes.plot([1, 2], label="loss")
        >>> style_legend(axes, loc="upper left")
        >>> len(axes.get_legend().get_texts())
        1
    """
    axes.legend(fontsize=SMALL, labelcolor=INK, frameon=False, **options)


def save_figure(figure: "Figure", path: str | os.PathLike[str] | None) -> "Figure":
    """Save a figure if a path is given, whose ending chooses PNG, SVG or PDF, and return it.

    Examples:
        >>> figure = new_figure(4, 3)
        >>> save_figure(figure, None) is figure
        True

    Raises:
        InputError: matplotlib knows no such ending.
        OutputError: The file cannot be written.
    """
    from matplotlib.text import Text

    # Names of classes are no formulas: "$100 to $200" would be set as one, and an unknown one is an error. The ticks of
    # a logarithmic axis are some.
    axes = [axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis) if axis.get_scale() != "linear"]
    formulas = {text for axis in axes for text in axis.findobj(Text)}
    for text in figure.findobj(lambda part: isinstance(part, Text) and part not in formulas):
        text.set_parse_math(False)  # type: ignore[attr-defined]
    if path is not None:
        path = as_path(path)
        try:
            content = _render(figure, path.suffix.lstrip(".") or "png", 150)
        except ValueError as error:
            raise InputError(f"a figure cannot be saved as {str(path)!r}: {error}.") from error
        write_atomic(path, content)
    return figure


def _render(figure: "Figure", kind: str, dpi: int) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format=kind, dpi=dpi)
    return image.getvalue()


def _no_window(*_: object, **__: object) -> None:
    """What `figure.show()` does, which matplotlib allows only for figures of pyplot."""
    raise InputError("this figure has no window: end a notebook's cell with it, or save it with path= or .savefig().")
