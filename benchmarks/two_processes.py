"""One process and two under torchrun: the same epochs of the article's net on CIFAR-3, global batch 64 and 512.

On two cores, two processes use one thread each, and one process uses two threads. So both use the whole machine.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from cifarnets import Trainer, seed_everything
from cifarnets._runtime import describe_machine
from cifarnets.datasets import BatchLoader, CIFAR10Normalized, cifar_subset
from cifarnets.models import create
from cifarnets.training.distributed import leave


def worker(batch_size: int, epochs: int) -> None:
    cifar3 = cifar_subset(CIFAR10Normalized(), ["airplane", "automobile", "ship"])
    seed_everything(0)
    trainer = Trainer(create("convnet", num_classes=3), device="cpu", progress=False)
    history = trainer.fit(BatchLoader(cifar3, batch_size, shuffle=True, device="cpu", seed=0), epochs=epochs)
    if trainer.world.is_main:
        print(json.dumps({"loss": history.column("loss"), "speed": history.column("images_per_second")}))
    leave()


def measure(processes: int, batch_size: int, epochs: int) -> dict[str, list[float]]:
    threads = max((os.cpu_count() or 2) // processes, 1)
    arguments = ["--worker", str(batch_size), "--epochs", str(epochs)]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    done = subprocess.run(
        [*launch, "-m", "benchmarks.two_processes", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    result: dict[str, list[float]] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        return worker(options.worker, options.epochs)
    print(f"{describe_machine()}; {options.rounds} rounds of {options.epochs} epochs\n")
    print("| global batch | one process, images/s | two processes, images/s | ratio | largest difference of losses |")
    print("|---|---|---|---|---|")
    for batch_size in (64, 512):
        rounds = [[measure(n, batch_size, options.epochs) for n in (1, 2)] for _ in range(options.rounds)]
        one, two = ([statistics.median(pair[i]["speed"]) for pair in rounds] for i in (0, 1))
        ratio = statistics.median(b / a for a, b in zip(one, two, strict=True))
        differ = max(abs(a - b) for first, second in rounds for a, b in zip(first["loss"], second["loss"], strict=True))
        speeds = f"{statistics.median(one):,.0f} | {statistics.median(two):,.0f}"
        print(f"| {batch_size} | {speeds} | {ratio:.2f} | {differ:.1e} |", flush=True)
    return None


if __name__ == "__main__":
    main()
