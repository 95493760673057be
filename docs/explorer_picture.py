"""The picture of the explorer in README and docs: python -m docs.explorer_picture."""

import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from tests.browser.helpers import find_chromium

import cifarnets
from cifarnets.report import write_explorer

PICTURE = Path(__file__).parent / "img" / "explorer.png"


def main() -> None:
    """Open the page of the article's net, choose a pixel, and save what is seen."""
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        path = write_explorer(cifarnets.load("convnet.cifar3"), Path(folder, "page.html"), title="convnet.cifar3")
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 850}, color_scheme="light")
        page.goto(path.as_uri())
        page.locator("#pictures button[title=ship]").click()
        page.evaluate("settled()")
        # A pixel at the bow, and the sum that made it.
        page.evaluate("look(1, 2 * 1024 + 17 * 32 + 3, { pin: true })")
        page.screenshot(path=PICTURE)
        browser.close()
    print(f"{PICTURE} ({PICTURE.stat().st_size:,} bytes)")


if __name__ == "__main__":
    main()
