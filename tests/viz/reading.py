"""What a reader sees of a figure: its texts, and whether they can be read."""

import itertools
from typing import TYPE_CHECKING, Any
from unittest import mock

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SMALLEST = 6
"""Points of text that can still be read."""


def written(figure: "Figure") -> list[tuple[Text, Any]]:
    """Every text that is drawn, with its box in pixels: no tick beyond an axis, nothing hidden."""
    found = []
    draw = Text.draw

    def note(text: Text, renderer: Any, *rest: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            found.append((text, text.get_window_extent(renderer)))
        draw(text, renderer, *rest)

    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # settles the layout
    with mock.patch.object(Text, "draw", note):
        canvas.draw()
    return found


def assert_readable(figure: "Figure") -> None:
    """No text lies over another, leaves the figure, is tiny, or is too pale for a white page."""
    texts = written(figure)
    assert texts, "the figure says nothing"
    whole = figure.bbox
    for text, box in texts:
        beyond = max(whole.x0 - box.x0, whole.y0 - box.y0, box.x1 - whole.x1, box.y1 - whole.y1)
        assert beyond <= 1, f"{text.get_text()!r} leaves the figure by {beyond:.0f} pixels"
        assert text.get_fontsize() >= SMALLEST, f"{text.get_text()!r} has {text.get_fontsize()} points"
    for (one, box), (other, second) in itertools.combinations(texts, 2):
        across = min(box.x1, second.x1) - max(box.x0, second.x0)
        down = min(box.y1, second.y1) - max(box.y0, second.y0)
        assert across <= 1 or down <= 1, f"{one.get_text()!r} and {other.get_text()!r} overlap"


def titles(figure: "Figure") -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.get_title()]
