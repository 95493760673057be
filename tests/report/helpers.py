"""Folders of runs: one real run, and others made of it."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cifarnets.datasets import SyntheticCIFAR10
from cifarnets.recipes import Recipe, run_recipe
from cifarnets.training import History


def small_run(folder: Path) -> Path:
    """A run of a second: the article's net on a few drawn pictures."""
    recipe = Recipe("convnet", epochs=1, batch_size=250, lr=0.05, val=50, synthetic=True)
    return run_recipe(recipe, folder, device="cpu", progress=False).folder


def copied(
    run: Path, folder: Path, *, epochs: int = 1, without: str | None = None, recipe: Mapping[str, Any] | None = None
) -> Path:
    """Another run: a copy with so many epochs, another recipe, or without a file."""
    shutil.copytree(run, folder)
    content = json.loads((folder / "run.json").read_text())
    content["recipe"] |= {"epochs": epochs, **(recipe or {})}
    (folder / "run.json").write_text(json.dumps(content))
    row = {"lr": 0.05, "seconds": 2.0, "images_per_second": 500.0}
    History(
        {"epoch": n, "loss": 2 / n, "accuracy": 1 - 0.9 / n, "val_loss": 2.1 / n, "val_accuracy": 1 - 0.95 / n, **row}
        for n in range(1, epochs + 1)
    ).to_csv(folder / "history.csv")
    if without is not None:
        (folder / without).unlink()
    return folder


def few(train: bool = True, **_: Any) -> SyntheticCIFAR10:
    """Drawn pictures, as few as do."""
    return SyntheticCIFAR10(train, size=300 if train else 100)
