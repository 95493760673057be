"""Fair timing on noisy machines: contenders take turns, and ratios of medians are what is reported."""

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch

from cifarnets.training.precision import autocast_dtype


def machine() -> str:
    """One line: what a reader needs to compare figures with theirs."""
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{processor()}, {threads}"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "cifarnets"))
    return f"{device}, {platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}"


def processor() -> str:
    """The CPU's own name where the system tells it, its widest vectors, and bf16 where it computes in that."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    bf16 = ", bf16" if autocast_dtype("auto", torch.device("cpu")) else ""
    return f"{(names or [platform.processor() or 'CPU'])[0]} ({torch.backends.cpu.get_cpu_capability()}{bf16})"


def take_turns(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contender's runs: rounds of one run each, in turn from first to last and from last to first."""
    for run in contenders.values():
        run()  # not measured
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    for _ in range(repeats):
        for name in order:
            started = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - started)
        order.reverse()
    return seconds


def table(seconds: Mapping[str, list[float]], images: int, base: str) -> str:
    """Median images/s, spread, and speed relative to `base`, which each round is divided by before the median."""
    lines = [
        f"{machine()}; {len(seconds[base])} rounds",
        "",
        "| | images/s (median) | fastest … slowest | relative speed |",
        "|---|---|---|---|",
    ]
    for name, runs in seconds.items():
        # Within a round the machine is in one mood: ratios are taken there.
        ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds[base], runs, strict=True))
        spread = f"{images / min(runs):,.0f} … {images / max(runs):,.0f}"
        lines.append(f"| {name} | {images / statistics.median(runs):,.0f} | {spread} | {ratio:.3f} |")
    return "\n".join(lines)
