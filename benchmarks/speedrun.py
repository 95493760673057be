"""Time to 94 % or 96 %: whole runs of an airbench recipe with our Trainer and in plain PyTorch, in turns, seed by seed.

    python -m benchmarks.speedrun --recipe airbench94 --seeds 20
    python -m benchmarks.speedrun --profile                        where the time of one run of ours goes
    python -m benchmarks.speedrun --steps 2 --test-images 500      a dry run, on any machine

The time includes the whitening layer, all steps with their augmentation, and the predictions for the test images with
test-time augmentation. On CUDA, events measure it. The images are on the device before the clock starts. One run of
each comes first and is not counted: it compiles, chooses algorithms and fills caches. The plain version has the same
net, optimizer and schedule in a simple loop: eager, with batches augmented by indexing.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity

from benchmarks._plain import augmented
from cifarnets import Trainer, seed_everything
from cifarnets._runtime import describe_machine
from cifarnets.datasets import BatchLoader, CIFAR10Normalized, ImageDataset
from cifarnets.inference import eval_mode, forward_logits
from cifarnets.models import create
from cifarnets.recipes import Recipe, load_recipe
from cifarnets.training import make_optimizer, make_schedule
from cifarnets.training.precision import autocast_dtype
from cifarnets.weights.index import mean_and_std

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Outcome = tuple[float, float, float]
"""Seconds, test accuracy, test accuracy with test-time augmentation."""


class Clock:
    """Seconds that a `with` block takes."""

    def __enter__(self) -> "Clock":
        if DEVICE.type == "cuda":
            self.events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
            self.events[0].record()
        self.started = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        if DEVICE.type == "cuda":
            self.events[1].record()
            torch.cuda.synchronize()
            self.seconds = self.events[0].elapsed_time(self.events[1]) / 1000
        else:
            self.seconds = time.perf_counter() - self.started


class Ours:
    """The recipe on the Trainer, through the public API."""

    def __init__(self, recipe: Recipe, train: ImageDataset, test: ImageDataset) -> None:
        self.recipe = recipe
        layout = recipe.channels_last
        self.few = next(iter(BatchLoader(train, min(5000, len(train)), device=DEVICE, channels_last=layout)))[0]
        self.loader = BatchLoader(
            train,
            recipe.batch_size,
            shuffle=True,
            drop_last=recipe.drop_last,
            device=DEVICE,
            seed=0,
            augment=recipe.augmentation(),
            channels_last=layout,
        )
        self.test = list(BatchLoader(test, 2000, device=DEVICE, channels_last=layout))

    def __call__(self, seed: int) -> Outcome:
        seed_everything(seed)
        self.loader.load_state_dict({"seed": seed, "epoch": 0})
        model: Any = create(self.recipe.model).to(DEVICE)
        options = {**self.recipe.trainer_options(), "seed": None}
        with Clock() as clock:
            model.init_from_images(self.few)
            trainer = Trainer(model, device=DEVICE, progress=False, **options)
            trainer.fit(self.loader, epochs=self.recipe.epochs)
            with_tta = share_of_right(model, self.test, self.recipe)
        return clock.seconds, share_of_right(model, self.test, replace(self.recipe, tta=None)), with_tta


class Plain:
    """The recipe in a simple loop."""

    def __init__(self, recipe: Recipe, train: ImageDataset, test: ImageDataset) -> None:
        self.recipe = recipe
        mean, std = (torch.tensor(column, device=DEVICE).view(3, 1, 1) for column in (train.mean, train.std))
        self.images = train.images.to(DEVICE).float().div(255).sub(mean).div(std)
        self.labels = train.labels.to(DEVICE)
        self.test = list(BatchLoader(test, 2000, device=DEVICE))

    def __call__(self, seed: int) -> Outcome:
        recipe = self.recipe
        seed_everything(seed)
        model: Any = create(recipe.model).to(DEVICE)
        dtype = autocast_dtype(recipe.precision, DEVICE)
        steps = len(self.images) // recipe.batch_size
        pad, cutout = recipe.augment["translate"], recipe.augment.get("cutout", 0)
        with Clock() as clock:
            model.init_from_images(self.images[:5000])
            optimizer = make_optimizer(model, recipe.optimizer, recipe.lr, recipe.optimizer_options)
            schedule = make_schedule(optimizer, recipe.schedule, recipe.epochs * steps, recipe.schedule_options)
            padded = F.pad(self.images, (pad,) * 4, "reflect")
            mirrored = torch.rand(len(padded), device=DEVICE) < 0.5
            model.train()
            for epoch in range(recipe.epochs):
                order = torch.randperm(len(padded), device=DEVICE)
                for batch in range(steps):
                    chosen = order[batch * recipe.batch_size : (batch + 1) * recipe.batch_size]
                    inputs = augmented(padded, chosen, mirrored[chosen] ^ bool(epoch % 2), pad, cutout)
                    with torch.autocast(DEVICE.type, dtype) if dtype else contextlib.nullcontext():
                        logits = model(inputs)
                        loss = F.cross_entropy(logits, self.labels[chosen], label_smoothing=recipe.label_smoothing)
                    optimizer.zero_grad()
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
                    schedule.step()
            with_tta = share_of_right(model, self.test, recipe)
        return clock.seconds, share_of_right(model, self.test, replace(recipe, tta=None)), with_tta


def share_of_right(model: torch.nn.Module, batches: list[tuple[Tensor, Tensor]], recipe: Recipe) -> float:
    """Test accuracy in the recipe's precision, with its test-time augmentation."""
    dtype = autocast_dtype(recipe.precision, DEVICE)
    right, images = torch.zeros((), device=DEVICE), 0
    with eval_mode(model, DEVICE), torch.autocast(DEVICE.type, dtype) if dtype else contextlib.nullcontext():
        for inputs, labels in batches:
            right += (forward_logits(model, inputs, recipe.tta).argmax(1) == labels).sum()
            images += len(labels)
    return right.item() / images


def profile(once: Callable[[int], Outcome]) -> str:
    """The operations that take most of the time of one run, after a run that is not counted."""
    once(0)
    activity, where = (ProfilerActivity.CUDA, "device") if DEVICE.type == "cuda" else (ProfilerActivity.CPU, "cpu")
    with torch.profiler.profile(activities=[activity]) as found:
        once(0)
    return str(found.key_averages().table(sort_by=f"self_{where}_time_total", row_limit=15))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="airbench94")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--profile", action="store_true", help="only print where the time of one run of ours goes")
    parser.add_argument("--compile", action="store_true", help="torch.compile ours")
    parser.add_argument("--steps", type=int, help="dry run: this many batches of 100 in one epoch, with one seed")
    parser.add_argument("--test-images", type=int, default=10_000)
    options = parser.parse_args()
    if DEVICE.type == "cpu" and not options.steps:
        print("A whole run takes about an hour on a CPU: this is for CUDA. Add --steps 2 to try it.")
        return
    recipe = load_recipe(options.recipe)
    recipe = replace(recipe, compile=options.compile, epochs=options.epochs or recipe.epochs)
    train: ImageDataset = CIFAR10Normalized()
    test = CIFAR10Normalized(train=False).select(range(options.test_images))
    if options.steps:
        recipe = replace(recipe, epochs=1, batch_size=100)
        train, options.seeds = train.select(range(options.steps * 100)), 1
    if options.profile:
        print(profile(Ours(recipe, train, test)))
        return
    contenders: dict[str, Callable[[int], Outcome]] = {
        "plain PyTorch": Plain(recipe, train, test),
        "Trainer and BatchLoader": Ours(recipe, train, test),
    }
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contenders}
    for seed in range(-1, options.seeds):
        for name, once in contenders.items():
            outcome = once(max(seed, 0))
            if seed >= 0:
                outcomes[name].append(outcome)
                print(f"seed {seed}, {name}: {outcome[0]:.2f} s, {outcome[1]:.4f}, {outcome[2]:.4f}", flush=True)
    precision = autocast_dtype(recipe.precision, DEVICE) or torch.float32
    print(f"\n{describe_machine()}; `{options.recipe}`, {recipe.epochs} epochs, {precision}, {options.seeds} seeds\n")
    print(f"| | seconds (median) | fastest … slowest | ratio | test accuracy | with {recipe.tta} |")
    print("|---|---|---|---|---|---|")
    base = [outcome[0] for outcome in outcomes["plain PyTorch"]]
    for name, found in outcomes.items():
        seconds, plain, with_tta = zip(*found, strict=True)
        ratio = statistics.median(a / b for a, b in zip(seconds, base, strict=True))
        print(
            f"| {name} | {statistics.median(seconds):.2f} | {min(seconds):.2f} … {max(seconds):.2f} | {ratio:.2f} "
            f"| {over_seeds(plain)} | {over_seeds(with_tta)} |"
        )


def over_seeds(values: tuple[float, ...]) -> str:
    return mean_and_std(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None)


if __name__ == "__main__":
    main()
