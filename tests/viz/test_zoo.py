"""The zoo's chart: ours as the index says, others as the file of published figures says."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from cifarnets.models import info, list_models
from cifarnets.viz import plot_zoo
from cifarnets.viz.zoo import peers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def points(figure: "Figure") -> set[tuple[float, float, str]]:
    """Size, accuracy in percent and marker of each point."""
    found = set()
    for line in figure.axes[0].get_lines():
        across, errors = list(line.get_xdata()), list(line.get_ydata())  # type: ignore[arg-type]
        if len(across) == 1:
            found.add((float(across[0]), round(100 - float(errors[0]), 3), str(line.get_marker())))
    return found


def texts(figure: "Figure") -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize(("x", "field"), [("params", "parameters"), ("macs", "macs")])
def test_every_net_of_ten_classes_is_at_its_place(x: Any, field: str) -> None:
    figure = plot_zoo(x)
    shown = points(figure)
    for name in list_models(pretrained=True):
        release = info(name).release
        assert release is not None
        assert (name in texts(figure)) == (len(release.classes) == 10)
        if len(release.classes) == 10:
            assert (getattr(release, field), round(100 * release.accuracy, 3), "o") in shown
            assert release.tta_accuracy is not None
            assert (getattr(release, field), round(100 * release.tta_accuracy, 3), "^") in shown
    for peer in peers():
        size = getattr(peer, field)
        if size is not None:
            assert (size, peer.accuracy, "^" if peer.tta else "o") in shown
            assert peer.name in texts(figure)
        else:
            assert peer.name not in texts(figure)


def test_the_chart_follows_the_index(edit_index: Callable[[Callable[[dict[str, Any]], object]], None]) -> None:
    edit_index(lambda rows: rows["convnet"].update(accuracy=0.75))
    assert (18_354, 75.0, "o") in points(plot_zoo())


def test_more_accurate_is_higher_and_the_axis_says_percent() -> None:
    (axes,) = plot_zoo().axes
    low, high = axes.transData.transform([(1e5, 100 - 90), (1e5, 100 - 95)])[:, 1]
    assert high > low
    axes.figure.draw_without_rendering()  # type: ignore[union-attr]
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    assert {"70", "90", "95"} <= set(ticks)
    assert axes.get_xlabel() == "parameters"
    legend = axes.get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 4


def test_published_figures_have_a_source_and_are_plausible() -> None:
    found = peers()
    assert [peer.parameters for peer in found] == sorted(peer.parameters for peer in found)
    assert len({peer.name for peer in found}) == len(found) >= 10
    for peer in found:
        assert peer.source.startswith("https://")
        assert 50 < peer.accuracy < 100
        assert peer.macs is None or peer.macs > peer.parameters
        assert peer.note
