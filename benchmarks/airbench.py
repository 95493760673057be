"""The 94 % recipe: some steps with our Trainer and in plain PyTorch, side by side, and the speed limit of a matmul.

The plain version follows the code that the recipe's authors run on a GPU, with no change for this machine: eager,
contiguous, batches augmented by indexing, Newton-Schulz in bfloat16 on CUDA. It runs without the library's process
settings. Both versions compute in the precision that `precision="auto"` chooses. Each has its own process, and they
take turns of a few steps. The first step of a turn is not counted, because it reclaims memory from the other process.
The time of an epoch is the time of its 25 steps. `cifarnets train --recipe airbench94` measures the accuracy.

`--curriculum` compares whole runs of the recipe and of `airbench94.curriculum`, which shows smaller images first: time
of training and accuracy. The runs are kept in a folder, and the same command resumes them. With `--steps`, only steps
of each size are timed.
"""

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks._curriculum import compare_runs, compare_steps
from benchmarks._plain import augmented
from cifarnets import Trainer, seed_everything
from cifarnets._runtime import DEFAULTS, SWITCH, describe_machine, kept_memory
from cifarnets.datasets import Augment, BatchLoader, CIFAR10Normalized
from cifarnets.models import create, summary
from cifarnets.recipes import load_recipe
from cifarnets.training.feed import EpochFeed
from cifarnets.training.muon import ConvMuon
from cifarnets.training.optimizers import param_groups
from cifarnets.training.precision import autocast_dtype

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ceiling(dtype: torch.dtype, size: int = 2048) -> float:
    """FLOP/s of a large matrix product."""
    a, b = (torch.randn(size, size, device=DEVICE).to(dtype) for _ in range(2))
    a @ b
    times = []
    for _ in range(5):
        wait()
        started = time.perf_counter()
        a @ b
        wait()
        times.append(time.perf_counter() - started)
    return 2 * size**3 / statistics.median(times)


def wait() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def plain(dataset: CIFAR10Normalized, batch: int) -> Callable[[], None]:
    """One step of the recipe in plain PyTorch."""
    seed_everything(0)
    model: Any = create("airbench94").to(DEVICE)
    dtype = autocast_dtype("auto", DEVICE)
    mean, std = (torch.tensor(column, device=DEVICE).view(3, 1, 1) for column in (dataset.mean, dataset.std))
    images = dataset.images[: batch * 2].to(DEVICE).float().div(255).sub(mean).div(std)
    labels = dataset.labels[: batch * 2].to(DEVICE)
    model.init_from_images(images)
    optimizer = ConvMuon(param_groups(model))
    padded = F.pad(images, (2,) * 4, "reflect")

    def step() -> None:
        chosen = torch.randperm(len(images), device=DEVICE)[:batch]
        inputs = augmented(padded, chosen, torch.rand(batch, device=DEVICE) < 0.5, pad=2)
        with torch.autocast(DEVICE.type, dtype) if dtype else contextlib.nullcontext():
            loss = F.cross_entropy(model(inputs), labels[chosen], label_smoothing=0.2)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        wait()

    return step


def ours(dataset: CIFAR10Normalized, batch: int) -> Callable[[], None]:
    """One step of the recipe with the Trainer, loader included."""
    recipe = load_recipe("airbench94")
    seed_everything(0)
    model: Any = create("airbench94")
    model.init_from_images(next(iter(BatchLoader(dataset, 2000, device="cpu")))[0])
    part = dataset.select(range(batch * 2))
    loader = BatchLoader(
        part, batch, True, device=DEVICE, seed=0, augment=Augment(**recipe.augment), channels_last=True
    )
    trainer = Trainer(model, device=DEVICE, progress=False, **recipe.trainer_options())
    trainer.model.train()
    batches = EpochFeed(loader, trainer.world).endless()

    def step() -> None:
        trainer.train_step(next(batches))
        wait()

    return step


CONTENDERS = {"plain PyTorch": plain, "Trainer and BatchLoader": ours}


def start(name: str, batch: int) -> "subprocess.Popen[str]":
    """Start a process that takes a step for each line of its input; the plain one leaves the process settings alone."""
    environment = {key: value for key, value in os.environ.items() if key not in DEFAULTS}
    if name == "plain PyTorch":
        environment[SWITCH] = "0"
    words = [sys.executable, "-m", "benchmarks.airbench", "--batch-size", str(batch), "--serve", name]
    return subprocess.Popen(words, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def serve(name: str, batch: int) -> None:
    """Take a step for each line of the input, and print how many seconds it took."""
    step = CONTENDERS[name](CIFAR10Normalized(), batch)
    with kept_memory(DEVICE):  # as in a fit; does nothing in the plain process
        for _ in sys.stdin:
            started = time.perf_counter()
            step()
            print(time.perf_counter() - started, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="steps in a turn (default: 3; with --curriculum, whole runs)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=2000)
    parser.add_argument("--curriculum", action="store_true", help="compare the recipe with airbench94.curriculum")
    parser.add_argument("--seeds", type=int, default=2, help="of the whole runs of --curriculum (default: 2)")
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="of the whole runs of --curriculum")
    parser.add_argument("--serve", choices=list(CONTENDERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    batch = options.batch_size
    if options.serve:
        serve(options.serve, batch)
        return
    if options.curriculum:
        if options.steps:
            print(compare_steps(options.steps, options.rounds, batch, DEVICE))
        else:
            print(compare_runs(options.seeds, options.folder, DEVICE))
        return
    steps = options.steps or 3
    dtype = autocast_dtype("auto", DEVICE) or torch.float32
    best = ceiling(dtype)
    flops = 3 * 2 * summary(create("airbench94")).macs * batch
    processes = {name: start(name, batch) for name in CONTENDERS}
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(options.rounds):
        for name, process in processes.items():
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("step\n" * (steps + 1))
            process.stdin.flush()
            seconds[name] += [float(process.stdout.readline()) for _ in range(steps + 1)][1:]
    for process in processes.values():
        process.communicate()
    recipe = load_recipe("airbench94")
    print(f"{describe_machine()}; {dtype}; {options.rounds} rounds of {steps} steps of {batch} images\n")
    print(f"A matrix product of 2048×2048 reaches {best / 1e9:,.0f} GFLOP/s; a step does {flops / 1e12:.2f} TFLOP.\n")
    print(f"| | seconds a step (median) | of the ceiling | seconds an epoch | for {recipe.epochs} epochs | ratio |")
    print("|---|---|---|---|---|---|")
    theirs = seconds["plain PyTorch"]
    for name, runs in seconds.items():
        median = statistics.median(runs)
        epoch = median * 50_000 / batch
        ratio = statistics.median(a / b for a, b in zip(runs, theirs, strict=True))
        print(
            f"| {name} | {median:.2f} | {flops / median / best:.0%} | {epoch:.0f} | {epoch * recipe.epochs:,.0f} "
            f"| {ratio:.2f} |"
        )


if __name__ == "__main__":
    main()
