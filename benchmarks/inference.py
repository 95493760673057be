"""Using a model: evaluate and predict, one picture and a thousand, what surrounds the net, start-up and memory."""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch

from benchmarks._side_by_side import take_turns
from cifarnets import evaluate, predict, seed_everything
from cifarnets._runtime import describe_machine
from cifarnets.datasets import BatchLoader, CIFAR10Normalized, normalize
from cifarnets.models import annotate, create

PROGRAMS = {
    "import torch": "import torch",
    "import cifarnets": "from cifarnets import *",
    "cifarnets --help": "from cifarnets.cli import parse\ntry: parse(['--help'])\nexcept SystemExit: print()",
    "… and the first prediction": (
        "import torch, cifarnets; m = cifarnets.models.create('convnet'); "
        "cifarnets.predict(m, torch.rand(3, 32, 32), mean=[0.5] * 3, std=[0.25] * 3)"
    ),
    "… and CIFAR-10 in memory": "import cifarnets; cifarnets.datasets.CIFAR10Normalized()",
    "… and an epoch of the article's net": (
        "import cifarnets; d = cifarnets.datasets.CIFAR10Normalized(); "
        "cifarnets.Trainer(cifarnets.models.create('convnet'), progress=False)"
        ".fit(cifarnets.datasets.BatchLoader(d, shuffle=True), epochs=1)"
    ),
}

# In KiB. On Linux, `ru_maxrss` includes the memory of the parent process, so the kernel's own figure is used there.
PEAK = """
import pathlib, re, resource, sys
status = pathlib.Path("/proc/self/status")
if status.exists():
    print(re.search(r"VmHWM:\\s*(\\d+)", status.read_text())[1])
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform == "darwin" else 1))
"""


def cost(program: str) -> tuple[float, float]:
    """Seconds that a fresh interpreter takes, and its peak resident memory in MiB."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", f"{program}\n{PEAK}"], capture_output=True, text=True, check=True)
    return time.perf_counter() - started, int(done.stdout.split()[-1]) / 2**10


def print_surroundings(names: list[str], pictures: torch.Tensor, rounds: int) -> None:
    """Print what `predict` of one uint8 picture costs beside the net's own forward pass, which is given its input."""
    print("\n| model, one picture | forward pass, ms | predict, ms | predict / forward |\n|---|---|---|---|")
    for name in names:
        seed_everything(0)
        model = create(name).eval()
        annotate(model, mean=(0.5,) * 3, std=(0.25,) * 3)
        inputs = [normalize(picture[None], (0.5,) * 3, (0.25,) * 3) for picture in pictures[:100]]

        def forward(model: torch.nn.Module = model, inputs: list[torch.Tensor] = inputs) -> None:
            with torch.no_grad():
                for one in inputs:
                    model(one)

        def whole(model: torch.nn.Module = model) -> None:
            for picture in pictures[:100]:
                predict(model, picture, device="cpu")

        found = take_turns({"forward": forward, "predict": whole}, rounds)
        bare, used = (statistics.median(found[key]) / 100 for key in ("forward", "predict"))
        print(f"| {name} | {bare * 1000:.3f} | {used * 1000:.3f} | {used / bare:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--models", nargs="*", default=["fcnet", "convnet", "airbench94"])
    options = parser.parse_args()
    test = CIFAR10Normalized(train=False)
    pictures = test.images[:1000]
    print(f"{describe_machine()}; {options.rounds} rounds, medians\n")
    print("| model | evaluate, images/s | … channels_last | predict of 1000 | predict of 1 | latency of 1, ms (p95) |")
    print("|---|---|---|---|---|---|")
    for name in options.models:
        seed_everything(0)
        model = create(name).eval()
        annotate(model, classes=test.classes, mean=test.mean, std=test.std)
        part = test.select(range(1000))
        loaders = [BatchLoader(part, 1000, device="cpu", channels_last=layout) for layout in (False, True)]
        latencies: list[float] = []

        def one_by_one(model: torch.nn.Module = model, latencies: list[float] = latencies) -> None:
            for picture in pictures[:50]:
                started = time.perf_counter()
                predict(model, picture, device="cpu")
                latencies.append(time.perf_counter() - started)

        jobs: dict[str, Callable[[], object]] = {
            "evaluate": lambda model=model, loader=loaders[0]: evaluate(model, loader, device="cpu"),  # type: ignore[misc]
            "laid out": lambda model=model, loader=loaders[1]: evaluate(model, loader, device="cpu"),  # type: ignore[misc]
            "many": lambda model=model: predict(model, pictures, device="cpu"),  # type: ignore[misc]
            "one": one_by_one,
        }
        seconds = {key: statistics.median(runs) for key, runs in take_turns(jobs, options.rounds).items()}
        latency = statistics.median(latencies), statistics.quantiles(latencies, n=20)[-1]
        speeds = [1000 / seconds["evaluate"], 1000 / seconds["laid out"], 1000 / seconds["many"], 50 / seconds["one"]]
        figures = " | ".join(f"{speed:,.0f}" for speed in speeds)
        print(f"| {name} | {figures} | {latency[0] * 1000:.2f} ({latency[1] * 1000:.2f}) |", flush=True)
    print_surroundings(options.models, pictures, options.rounds)
    print("\n| a fresh interpreter | seconds | peak memory, MiB |\n|---|---|---|")
    costs = {name: [cost(program) for _ in range(min(options.rounds, 3))] for name, program in PROGRAMS.items()}
    for name, found in costs.items():
        seconds_taken, memory = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"| {name} | {seconds_taken:.2f} | {memory:,.0f} |")


if __name__ == "__main__":
    main()
