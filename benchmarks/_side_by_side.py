"""Fair timing on noisy machines: contenders take turns, and the report has medians of ratios."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

from cifarnets._runtime import describe_machine, kept_memory


def take_turns(contenders: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each contender's runs: every round runs each once, and every second round reverses the order.

    All contenders have the memory settings that the library sets during a fit, so the comparison is of the loops.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    order = list(contenders)
    with kept_memory(torch.device("cpu")):
        for run in contenders.values():
            run()  # not measured
        for _ in range(repeats):
            for name in order:
                started = time.perf_counter()
                contenders[name]()
                seconds[name].append(time.perf_counter() - started)
            order.reverse()
    return seconds


def table(seconds: Mapping[str, list[float]], images: int, base: str) -> str:
    """Median images/s, spread, and speed relative to `base`: the median of the ratios within each round."""
    lines = [
        f"{describe_machine()}; {len(seconds[base])} rounds",
        "",
        "| | images/s (median) | fastest … slowest | relative speed (median of ratios) |",
        "|---|---|---|---|",
    ]
    for name, runs in seconds.items():
        # A busy machine slows a whole round, so ratios within a round vary less than ratios of medians.
        ratio = statistics.median(ours / theirs for ours, theirs in zip(seconds[base], runs, strict=True))
        spread = f"{images / min(runs):,.0f} … {images / max(runs):,.0f}"
        relative = f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
        lines.append(f"| {name} | {images / statistics.median(runs):,.0f} | {spread} | {relative} |")
    return "\n".join(lines)
