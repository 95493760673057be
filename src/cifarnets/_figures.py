"""matplotlib figures, without a screen or any global state."""

import functools
import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from cifarnets._files import write_atomic
from cifarnets.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches; a notebook draws what a cell ends with.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("pictures need matplotlib: pip install 'cifarnets[plots]'.") from error
    figure = Figure(figsize=(width, height), layout="constrained")
    # What a notebook asks for; it draws figures that pyplot does not know only after `%matplotlib inline`.
    figure._repr_png_ = functools.partial(_render, figure, "png", 100)  # type: ignore[attr-defined]
    return figure


def save_figure(figure: "Figure", path: str | os.PathLike[str] | None) -> "Figure":
    """Write a figure atomically where a path is given (its ending chooses PNG, SVG or PDF), and hand it back.

    Raises:
        InputError: matplotlib knows no such ending.
        OutputError: The file cannot be written.
    """
    if path is not None:
        try:
            content = _render(figure, Path(path).suffix.lstrip(".") or "png", 150)
        except ValueError as error:
            raise InputError(f"a figure cannot be saved as {str(path)!r}: {error}.") from error
        write_atomic(path, content)
    return figure


def _render(figure: "Figure", kind: str, dpi: int) -> bytes:
    image = io.BytesIO()
    figure.savefig(image, format=kind, dpi=dpi)
    return image.getvalue()
