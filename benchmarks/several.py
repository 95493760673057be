"""Several small nets at once on one device, each in its own process: total images/s, compared with one net alone.

    python -m benchmarks.several
    python -m benchmarks.several --counts 1 2 --images 2000 --epochs 1     a dry run, on any machine

Each process trains the article's net on all ten classes, batch 512, in channels_last. It first trains an epoch that is
not counted; then all processes start the counted epochs together. On a CPU they share its threads.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from cifarnets import Trainer, seed_everything
from cifarnets._runtime import describe_machine
from cifarnets.datasets import BatchLoader, CIFAR10Normalized
from cifarnets.models import create

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def worker(images: int, epochs: int) -> None:
    """Get ready, wait for a line, train."""
    seed_everything(0)
    data = CIFAR10Normalized().select(range(images))
    loader = BatchLoader(data, 512, shuffle=True, device=DEVICE, seed=0, channels_last=True)
    model = create("convnet")
    trainer = Trainer(model, precision="auto", channels_last=True, device=DEVICE, progress=False)
    trainer.fit(loader, epochs=1)
    print("ready", flush=True)
    if sys.stdin.readline():  # empty if the parent process has ended
        trainer.fit(loader, epochs=epochs)
        print("done", flush=True)


def seconds_of(count: int, images: int, epochs: int) -> float:
    """Seconds until `count` processes, started together, are done."""
    threads = str(max((os.cpu_count() or 2) // count, 1))
    arguments = ["--worker", "--images", str(images), "--epochs", str(epochs)]
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.several", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": threads} if DEVICE.type == "cpu" else None,
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(count)
    ]
    await_all(running, "ready")
    started = time.perf_counter()
    for process in running:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    await_all(running, "done")
    seconds = time.perf_counter() - started
    for process in running:
        process.wait()
    return seconds


def await_all(running: list["subprocess.Popen[str]"], word: str) -> None:
    """Wait until each process has printed the word."""
    for process in running:
        assert process.stdout is not None
        if process.stdout.readline().strip() != word:
            raise SystemExit(f"a process ended before it was {word}; its error is above.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    on_cuda = DEVICE.type == "cuda"
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2, 4, 8] if on_cuda else [1, 2])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--epochs", type=int, default=20 if on_cuda else 2)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.images, options.epochs)
    print(f"{describe_machine()}; {options.epochs} epochs\n\n| nets at once | images/s of all | beside one alone |")
    print("|---|---|---|")
    speeds = []
    for count in options.counts:
        speeds.append(count * options.images * options.epochs / seconds_of(count, options.images, options.epochs))
        print(f"| {count} | {speeds[-1]:,.0f} | {speeds[-1] / speeds[0]:.2f} |", flush=True)
    return None


if __name__ == "__main__":
    main()
