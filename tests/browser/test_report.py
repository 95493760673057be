"""The page of a run in a browser: from a file, without a network, for every reader and screen."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from playwright.sync_api import Page, ViewportSize
from tests.browser.helpers import DESKTOP, PHONE, accessibility_faults, sideways_scroll
from tests.report.helpers import copied, few, small_run

from cifarnets.report import write_report
from cifarnets.training import History

FIGURES = "main svg, main img, main table, main pre"
UNSEEN = """figures => figures
    .filter(figure => !figure.closest("details:not([open])"))
    .filter(figure => {
        const box = figure.getBoundingClientRect();
        const scrolled = figure.closest(".scroll") !== null;
        const inside = box.left >= 0 && (scrolled || box.right <= innerWidth + 0.5);
        const drawn = figure.tagName !== "IMG" || figure.naturalWidth > 0;
        return !(box.width > 0 && box.height > 0 && inside && drawn);
    })
    .map(figure => figure.outerHTML.slice(0, 100))"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """The page of one run of 100 epochs, and of three runs."""
    folder = tmp_path_factory.mktemp("pages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cifarnets.recipes.recipe.SyntheticCIFAR10", few)
        first = small_run(folder / "first")
        runs = [
            copied(first, folder / "run", epochs=100),
            copied(first, folder / "run2", epochs=3, recipe={"lr": 0.1}),
            copied(first, folder / "run3", without="evaluation.json", recipe={"optimizer": "adamw"}),
        ]
        yield {
            "one": write_report(runs[:1], folder / "one.html"),
            "three": write_report(runs, folder / "three.html"),
        }


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", ["one", "three"])
def test_every_figure_is_visible(page: Page, pages: dict[str, Path], name: str, size: ViewportSize) -> None:
    page.set_viewport_size(size)
    page.goto(pages[name].as_uri())
    assert page.locator(FIGURES).count() > 50
    assert page.eval_on_selector_all(FIGURES, UNSEEN) == []
    assert sideways_scroll(page) == 0


@pytest.mark.parametrize(("name", "scheme"), [("one", "light"), ("three", "dark")])
def test_axe_finds_nothing_that_keeps_people_out(
    page: Page, pages: dict[str, Path], name: str, scheme: Literal["light", "dark"]
) -> None:
    page.emulate_media(color_scheme=scheme)
    page.goto(pages[name].as_uri())
    for closed in page.locator("details").all():
        closed.evaluate("element => element.open = true")
    assert accessibility_faults(page) == []


def values(page: Page) -> list[str]:
    return page.locator("figure.chart").first.locator("li b").all_inner_texts()


def test_the_pointer_reads_the_values_of_an_epoch(page: Page, pages: dict[str, Path]) -> None:
    history = History.from_csv(pages["one"].parent / "run" / "history.csv")
    page.goto(pages["one"].as_uri())
    figure = page.locator("figure.chart").first

    def expected(row: dict[str, Any]) -> list[Any]:
        return [pytest.approx(row[key], rel=1e-3) for key in ("loss", "val_loss")]

    assert [float(text) for text in values(page)] == expected(history[-1])
    chart = figure.locator("svg").first
    box = chart.bounding_box()
    assert box is not None
    # The 25th of 100 epochs, by the axis: it runs from 42 to 390 of 400 units.
    chart.hover(position={"x": box["width"] * (42 + 348 * 24 / 99) / 400, "y": box["height"] / 2})
    assert figure.locator("output").inner_text() == "epoch 25"
    assert [float(text) for text in values(page)] == expected(history[24])


def test_the_keyboard_reads_them_too(page: Page, pages: dict[str, Path]) -> None:
    page.goto(pages["one"].as_uri())
    figure = page.locator("figure.chart").first
    slider = figure.get_by_role("slider")
    slider.focus()
    slider.press("Home")
    assert figure.locator("output").inner_text() == "epoch 1"
    slider.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "epoch 2, training 1, validation 1.05"
    assert values(page) == ["1", "1.05"]


def test_a_run_without_a_value_there_has_none(page: Page, pages: dict[str, Path]) -> None:
    page.goto(pages["three"].as_uri())
    assert values(page)[2:] == ["–"] * 4  # at epoch 100, of the runs of three epochs and of one
    page.locator("figure.chart").first.get_by_role("slider").press("Home")
    assert all(float(text) > 0 for text in values(page))


def test_without_scripts_and_on_paper_the_last_values_stand_there(page: Page, pages: dict[str, Path]) -> None:
    page.goto(pages["one"].as_uri())
    page.emulate_media(media="print")
    assert not page.locator("nav").is_visible()
    assert not page.get_by_role("slider").first.is_visible()
    assert page.locator("figure.chart").first.is_visible()
    assert page.eval_on_selector_all(FIGURES, UNSEEN) == []


def test_hostile_names_run_no_script_and_stay_on_the_screen(page: Page, pages: dict[str, Path], tmp_path: Path) -> None:
    evil = '"><img src=x onerror="window.hit=1"><script>window.hit=2</script>' + "x" * 200
    run = copied(
        pages["one"].parent / "run2", tmp_path / "<img src=x onerror=window.hit=3>", recipe={"config": {evil: 1}}
    )
    for name, old in (("evaluation.json", '"disc"'), ("run.json", '"torch"')):
        (run / name).write_text((run / name).read_text().replace(old, json.dumps(evil)))
    page.set_viewport_size(PHONE)
    page.goto(write_report(run, tmp_path / "page.html").as_uri())
    assert page.get_by_text("window.hit=2").count() > 0
    assert page.evaluate("window.hit") is None
    assert sideways_scroll(page) == 0
