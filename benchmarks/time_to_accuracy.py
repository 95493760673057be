"""Time to the article's accuracy on CIFAR-3: its loop of 100 epochs, and the recipe `convnet.cifar3_fast`.

Both start with the images in memory and end with the last epoch; loading and evaluating are not timed. The loop runs
once. After every fifth of it, the recipe runs once, each time with another seed.
"""

import argparse
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks._article import CLASSES, Loop, pairs
from cifarnets import seed_everything
from cifarnets._runtime import describe_machine, kept_memory
from cifarnets.datasets import CIFAR10Normalized, cifar_subset
from cifarnets.recipes import load_recipe, run_recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=100, help="of the article's loop")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--recipe", default="convnet.cifar3_fast")
    options = parser.parse_args()
    train, test = (cifar_subset(CIFAR10Normalized(train=part), CLASSES) for part in (True, False))
    seed_everything(0)
    loop = Loop(pairs(train))
    recipe = load_recipe(options.recipe)
    theirs, ours, accuracies = 0.0, [], []
    for seed in range(options.seeds):
        for _ in range(options.epochs * seed // options.seeds, options.epochs * (seed + 1) // options.seeds):
            started = time.perf_counter()
            with kept_memory(torch.device("cpu")):  # as in a fit
                loop()
            theirs += time.perf_counter() - started
        with tempfile.TemporaryDirectory() as folder:
            result = run_recipe(replace(recipe, seed=seed), Path(folder) / "run", device="cpu", progress=False)
        ours.append(sum(result.history.column("seconds")))
        accuracies.append(result.evaluations["test"].accuracy)
    mean, spread = statistics.mean(accuracies), statistics.stdev(accuracies)
    print(f"{describe_machine()}\n")
    print("| | epochs | seeds | test accuracy | seconds (median) | ratio |\n|---|---|---|---|---|---|")
    print(f"| the article's loop | {options.epochs} | 1 | {loop.accuracy(pairs(test)):.4f} | {theirs:.1f} | 1 |")
    seconds = statistics.median(ours)
    print(
        f"| `{options.recipe}` | {recipe.epochs} | {options.seeds} | {mean:.4f} ± {spread:.4f} | {seconds:.1f} | "
        f"1/{theirs / seconds:.0f} |"
    )


if __name__ == "__main__":
    main()
