"""What the tests of pages share: widths of screens, and the checks that every page must pass."""

import base64
import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, ViewportSize

PHONE: ViewportSize = {"width": 390, "height": 844}
DESKTOP: ViewportSize = {"width": 1280, "height": 900}
LOCAL = ("file:", "data:", "blob:", "about:")

COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
APPLICATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    r"C:\Program Files\Google\Chrome\Application\chrome.exe",
    r"C:\Program Files (x86)\Google\Chrome\Application\chrome.exe",
)


def find_chromium() -> str | None:
    """The program of a Chromium or Chrome of this system, or `$CIFARNETS_CHROMIUM`."""
    named = os.environ.get("CIFARNETS_CHROMIUM")
    found = [named] if named else [shutil.which(name) for name in COMMANDS]
    return next((path for path in (*found, *APPLICATIONS) if path and Path(path).is_file()), None)


@contextlib.contextmanager
def watched_page(browser: Browser) -> Iterator[Page]:
    """A page without a network; at its end, an error on its console or a question to a host is an AssertionError."""
    faults: list[str] = []

    def note_message(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            faults.append(f"{message.type} on the console: {message.text} ({message.location['url']})")

    def note_request(request: Request) -> None:
        if not request.url.startswith(LOCAL):
            faults.append(f"asked for {request.url}")

    context = browser.new_context(viewport=DESKTOP, offline=True)
    context.on("console", note_message)
    context.on("weberror", lambda error: faults.append(f"error of the page: {error.error}"))
    context.on("request", note_request)
    page = context.new_page()
    page.on("websocket", lambda socket: faults.append(f"opened {socket.url}"))
    page.set_default_timeout(20_000)
    yield page
    context.close()
    assert not faults, "\n".join(faults)


def accessibility_faults(page: Page) -> list[str]:
    """What axe finds that keeps people out: faults it calls serious or critical, each with the elements."""
    response: dict[str, Any] = Axe().run(page, options={"preload": False}).response
    return [
        f"{fault['id']}: {fault['help']}: " + " | ".join(str(node["target"]) for node in fault["nodes"][:5])
        for fault in response["violations"]
        if fault["impact"] in ("serious", "critical")
    ]


def sideways_scroll(page: Page) -> int:
    """How many pixels the page is wider than the screen: 0, or a phone's reader must scroll sideways."""
    wider: int = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    return max(0, wider)


def drop_file(page: Page, content: bytes, name: str = "picture.png") -> None:
    """Drop a file on the page, as a hand does."""
    data = base64.b64encode(content).decode()
    page.evaluate(
        """([data, name]) => {
            const bytes = Uint8Array.from(atob(data), (c) => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
        }""",
        [data, name],
    )
