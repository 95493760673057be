"""A Chromium of the system, and pages that may neither fail nor ask the network."""

import os
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright
from tests.browser.helpers import find_chromium, watched_page


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for the tests of a module.

    Not for all of them: as long as Playwright runs, this thread has an event loop, and tests elsewhere need their own.
    """
    program = find_chromium()
    if program is None:
        reason = "there is no Chromium: install one, or name its program in CIFARNETS_CHROMIUM"
        if os.environ.get("CI") or os.environ.get("CIFARNETS_REQUIRE_CHROMIUM"):
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_playwright() as playwright:
        # Chromium's sandbox needs what a container seldom allows; the pages are ours.
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page without a network; errors on its console, and whatever it asks of another host, fail the test."""
    with watched_page(chromium) as opened:
        yield opened
