"""Fair timing on noisy machines: contenders take turns, and ratios of medians are what is reported."""

import statistics
import time
from collections.abc import Callable, Mapping

from cifarnets._runtime import describe_machine


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
        f"{describe_machine()}; {len(seconds[base])} rounds",
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
