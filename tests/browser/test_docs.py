"""The documentation, opened from its files as a reader does who has no server."""

from pathlib import Path

import pytest
from playwright.sync_api import Page, ViewportSize
from tests.browser.helpers import DESKTOP, PHONE, accessibility_faults, sideways_scroll


@pytest.mark.parametrize("screen", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", ["index", "article", "lesson", "speed"])
def test_a_page_fits_the_screen_and_shows_its_pictures(site: Path, page: Page, name: str, screen: ViewportSize) -> None:
    page.set_viewport_size(screen)
    page.goto((site / f"{name}.html").as_uri())
    assert sideways_scroll(page) == 0
    pictures = page.locator("article img")
    assert pictures.count() > 0 or name in ("lesson", "speed")
    empty = pictures.evaluate_all("all => all.filter(one => !one.naturalWidth || !one.clientWidth).map(one => one.src)")
    assert empty == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["index", "article"])
def test_a_page_shuts_nobody_out(site: Path, page: Page, name: str, scheme: str) -> None:
    page.emulate_media(color_scheme="dark" if scheme == "dark" else "light")
    page.goto((site / f"{name}.html").as_uri())
    assert accessibility_faults(page) == []


def test_links_and_search_work_without_a_server(site: Path, page: Page) -> None:
    page.goto((site / "index.html").as_uri())
    page.locator("article a", has_text="Give this lesson").click()
    assert page.url.endswith("/lesson.html")
    page.locator("[data-md-component=search-query]").click()
    page.keyboard.type("receptive")
    page.locator(".md-search-result__link", has_text="13. Down-sampling").first.click()
    page.wait_for_url("**/article.html*")
