"""The 94 % recipe with and without smaller images first: whole runs, or only steps of each size."""

import json
import statistics
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cifarnets import Trainer, seed_everything
from cifarnets._runtime import describe_machine, kept_memory
from cifarnets.datasets import Augment, BatchLoader, CIFAR10Normalized
from cifarnets.models import create, summary
from cifarnets.recipes import Recipe, load_recipe, run_recipe
from cifarnets.recipes.run import read_run
from cifarnets.training import History
from cifarnets.training.feed import EpochFeed
from cifarnets.weights.index import mean_and_std

RECIPES = ("airbench94", "airbench94.curriculum")
TARGET = 0.94
"""Accuracy with test-time augmentation; the name of the game."""


def sides(recipe: Recipe) -> list[int]:
    """The size of the images in each epoch."""
    augment = Augment(**recipe.augment)
    return [augment.size(epoch, (32, 32))[0] for epoch in range(recipe.epochs)]


def spelled(recipe: Recipe) -> str:
    return ", ".join(f"{epochs} × {side} px" for side, epochs in Counter(sides(recipe)).items())


def compare_runs(seeds: int, folder: Path, device: torch.device) -> str:
    """Train both recipes in turns, each run in a folder of its own, where a second call finds it or resumes it."""
    recipes = {name: load_recipe(name) for name in RECIPES}
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in RECIPES}
    order = list(RECIPES)
    for seed in range(seeds):
        for name in order:
            outcome = run(replace(recipes[name], seed=seed), folder / f"{name}-seed{seed}", device)
            found[name].append(outcome)
            print(f"{name}, seed {seed}: {outcome[0]:,.0f} s, {outcome[1]:.4f}, {outcome[2]:.4f}", file=sys.stderr)
        order.reverse()
    tta = recipes[RECIPES[0]].tta
    lines = [
        f"{describe_machine()}; {seeds} seeds each, in turns\n",
        f"| recipe | epochs | seconds of training | ratio | test accuracy | with {tta} | at least {TARGET:.0%} |",
        "|---|---|---|---|---|---|---|",
    ]
    base = [seconds for seconds, _, _ in found[RECIPES[0]]]
    for name, outcomes in found.items():
        seconds, plain, with_tta = zip(*outcomes, strict=True)
        ratio = statistics.mean(seconds) / statistics.mean(base)
        lines.append(
            f"| `{name}` | {spelled(recipes[name])} | {statistics.mean(seconds):,.0f} | {ratio:.2f} "
            f"| {over_seeds(plain)} | {over_seeds(with_tta)} | {sum(a >= TARGET for a in with_tta)} of {seeds} |"
        )
    return "\n".join(lines)


def over_seeds(values: tuple[float, ...]) -> str:
    return mean_and_std(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


def run(recipe: Recipe, folder: Path, device: torch.device) -> tuple[float, float, float]:
    """Seconds of training, and test accuracy without and with test-time augmentation; a run that is there counts."""
    written, history = folder / "evaluation.json", folder / "history.csv"
    if written.is_file() and len(History.from_csv(history)) == recipe.epochs:
        read_run(folder, recipe)  # refuses another recipe's
    else:
        run_recipe(recipe, folder, resume=True, device=device, checkpoint_every=5)
    accuracies = {name: result["accuracy"] for name, result in json.loads(written.read_text()).items()}
    seconds = sum(History.from_csv(history).column("seconds"))
    return seconds, accuracies["test"], accuracies[f"test ({recipe.tta})"]


def compare_steps(steps: int, rounds: int, batch: int, device: torch.device) -> str:
    """Time steps of each size in turns, and count from them what a whole run of each recipe takes."""
    recipes = {name: load_recipe(name) for name in RECIPES}
    recipe = recipes[RECIPES[-1]]
    part = CIFAR10Normalized().select(range(batch * 2))
    seed_everything(0)
    model: Any = create(recipe.model)
    model.init_from_images(next(iter(BatchLoader(part, device="cpu")))[0])
    trainer = Trainer(model, device=device, progress=False, **recipe.trainer_options())
    trainer.model.train()

    def batches(side: int) -> Any:
        augment = Augment(**{**recipe.augment, "curriculum": [[side, 2**30]]})
        loader = BatchLoader(part, batch, True, device=device, seed=0, augment=augment, channels_last=True)
        return EpochFeed(loader, trainer.world).endless()

    feeds = {side: batches(side) for side in sorted(set(sides(recipe)))}
    seconds: dict[int, list[float]] = {side: [] for side in feeds}

    def turn(side: int) -> float:
        started = time.perf_counter()
        for _ in range(steps):
            trainer.train_step(next(feeds[side]))
        trainer.last_loss.item()  # waits for the device
        return (time.perf_counter() - started) / steps

    with kept_memory(device):  # as in a fit
        for side in feeds:
            turn(side)  # not measured
        for number in range(rounds):
            for side in sorted(feeds, reverse=number % 2 == 1):
                seconds[side].append(turn(side))
    macs = {side: summary(create(recipe.model), side).macs for side in feeds}
    largest = max(feeds)
    ratios = {
        side: statistics.median(a / b for a, b in zip(seconds[side], seconds[largest], strict=True)) for side in feeds
    }
    precision = trainer.dtype or torch.float32
    lines = [
        f"{describe_machine()}; {precision}; {rounds} rounds of {steps} steps of {batch} images\n",
        "| images | multiply-adds an image | ratio | seconds a step (median) | fastest … slowest | ratio (of rounds) |",
        "|---|---|---|---|---|---|",
    ]
    for side, times in seconds.items():
        lines.append(
            f"| {side}×{side} | {macs[side] / 1e6:.1f} M | {macs[side] / macs[largest]:.3f} "
            f"| {statistics.median(times):.2f} | {min(times):.2f} … {max(times):.2f} | {ratios[side]:.3f} |"
        )
    lines += [
        "",
        "| recipe | epochs | ratio of multiply-adds | seconds of its steps, by the above | ratio |",
        "|---|---|---|---|---|",
    ]
    # By ratios within rounds, since a busy machine slows a whole round.
    whole = 50_000 // batch * statistics.median(seconds[largest])
    totals = {name: whole * sum(ratios[side] for side in sides(each)) for name, each in recipes.items()}
    for name, each in recipes.items():
        arithmetic = sum(macs[side] for side in sides(each)) / sum(macs[side] for side in sides(recipes[RECIPES[0]]))
        lines.append(
            f"| `{name}` | {spelled(each)} | {arithmetic:.3f} | {totals[name]:,.0f} "
            f"| {totals[name] / totals[RECIPES[0]]:.3f} |"
        )
    return "\n".join(lines)
