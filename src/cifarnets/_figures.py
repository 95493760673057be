"""Figures of matplotlib, without a screen or any global state."""

import functools
import io
import os
from typing import TYPE_CHECKING

from cifarnets._files import as_path, write_atomic
from cifarnets.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    figure = Figure(figsize=(width, height), layout="constrained")
    # A notebook asks for this; without it, only `%matplotlib inline` would draw figures that pyplot does not know.
    figure._repr_png_ = functools.partial(_render, figure, "png", 100)  # type: ignore[attr-defined]
    figure.show = _no_window  # type: ignore[method-assign]
    return figure


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
