"""The explorer: the bytes of its page, and the time from a dropped picture to the answer and to all maps."""

import argparse
import io
import statistics
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from playwright.sync_api import Browser, sync_playwright
from tests.browser.helpers import drop_file, find_chromium

from cifarnets import load
from cifarnets._runtime import describe_machine
from cifarnets.prediction import Preprocessing
from cifarnets.report import write_explorer


def picture(seed: int) -> bytes:
    """A PNG of 640×480 pixels."""
    small = np.random.default_rng(seed).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()


def row(browser: Browser, name: str, folder: Path, drops: int) -> str:
    model = load(name)
    path = write_explorer(model, folder / f"{name}.html", title=name)
    page = browser.new_page()
    page.goto(path.as_uri())
    page.locator("#answer li").first.wait_for()
    page.wait_for_timeout(500)  # as long as a quick hand needs
    gap = 0.0
    for seed in range(drops):
        file = picture(seed)
        drop_file(page, file)
        page.locator("#status:has-text('640 × 480')").wait_for()
        page.evaluate("settled()")
        with torch.no_grad():
            expected = model.eval()(Preprocessing.of(model).prepare(file)[0])[0]
        gap = max(gap, (torch.tensor(page.evaluate("Array.from(logits)")) - expected).abs().max().item())
        page.locator("#pictures button").first.click()
        page.evaluate("settled()")
        page.evaluate("byId('status').textContent = ''")
    # Every second answer is that to the drawing in between.
    answers, maps = (page.evaluate(f"timings.{name}")[::2] for name in ("answers", "maps"))
    page.close()
    times = (answers[0], statistics.median(answers[1:]), max(answers[1:]), statistics.median(maps[1:]))
    return f"| {name} | {path.stat().st_size:,} | {' | '.join(f'{time:.0f}' for time in times)} | {gap:.1e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["convnet.cifar3", "convnet", "fcnet", "resnet20", "airbench94"])
    parser.add_argument("--drops", type=int, default=12)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        print(f"{describe_machine()}; Chromium {browser.version}; {options.drops} PNG files of 640×480 pixels\n")
        print("| model | bytes | first answer, ms | later ones, median | slowest | all maps | largest gap of a logit |")
        print("|---|---|---|---|---|---|---|")
        for name in options.models:
            print(row(browser, name, Path(folder), options.drops), flush=True)
        browser.close()


if __name__ == "__main__":
    main()
