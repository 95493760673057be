"""The fixtures of this folder: a fault of a page is a failure of its test."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from tests.browser.helpers import accessibility_faults, sideways_scroll, watched_page

FAULTS = {
    "an error": "<script>throw new Error('oops')</script>",
    "an error on the console": "<script>console.error('oops')</script>",
    "a picture of another host": "<img src='https://example.org/oops.png'>",
    "a question to another host": "<script>fetch('https://example.org/oops').catch(() => 0)</script>",
    "a file that is not there": "<img src='oops.png'>",
}


@pytest.mark.parametrize("body", FAULTS.values(), ids=FAULTS)
def test_a_fault_of_the_page_fails_the_test(chromium: Browser, tmp_path: Path, body: str) -> None:
    (tmp_path / "page.html").write_text(f"<!doctype html><title>A page</title>{body}", encoding="utf-8")
    with pytest.raises(AssertionError, match="oops"), watched_page(chromium) as page:
        page.goto((tmp_path / "page.html").as_uri(), wait_until="load")


def test_the_checks_see_what_they_are_for(page: Page) -> None:
    page.set_content("<!doctype html><html lang='en'><title>A page</title><main><h1>Good</h1></main>")
    assert accessibility_faults(page) == []
    assert sideways_scroll(page) == 0
    page.set_content("<!doctype html><html><main style='width: 2000px'><button></button></main>")
    assert {fault.split(":")[0] for fault in accessibility_faults(page)} >= {"button-name", "html-has-lang"}
    assert sideways_scroll(page) == 728
