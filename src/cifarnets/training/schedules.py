"""Learning rates over a fit, stepped once per optimizer step: torch's schedulers by name, or any of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, StepLR

from cifarnets.errors import InputError, unknown_name

ScheduleLike = str | Callable[[Optimizer], LRScheduler] | None


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:  # noqa: ARG001 (all schedules are called alike)
    """The learning rate as it is."""
    return LambdaLR(optimizer, lambda _: 1.0)


def cosine(optimizer: Optimizer, steps: int, warmup: float = 0.0, final: float = 0.0) -> LRScheduler:
    """Half a cosine from the learning rate to `final` of it (Loshchilov & Hutter 2017, "SGDR").

    Args:
        optimizer: Whose learning rate.
        steps: Of the whole fit.
        warmup: The part of the steps in which the rate rises linearly first, 0..1.
        final: The last rate as a part of the first, 0..1.
    """
    if not (0 <= warmup < 1 and 0 <= final <= 1):
        raise ValueError("warmup and final are parts, 0..1")
    rise = round(warmup * steps)

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        gone = min((step - rise) / max(steps - rise, 1), 1.0)
        return final + (1 - final) * (1 + math.cos(math.pi * gone)) / 2

    return LambdaLR(optimizer, factor)  # torch's SequentialLR of two schedulers warns of itself in older versions


def one_cycle(optimizer: Optimizer, steps: int, **options: Any) -> LRScheduler:
    """Up to the learning rate and far below it (Smith & Topin 2018, "Super-Convergence"); torch's `OneCycleLR`.

    Momentum runs against it, as torch's defaults have it; say `cycle_momentum=False` to leave it alone.

    Args:
        optimizer: Whose learning rate; it is the peak.
        steps: Of the whole fit.
        options: Further arguments of `OneCycleLR`.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    has_momentum = {"momentum", "betas"} & optimizer.defaults.keys()  # which is where torch looks for it
    if not has_momentum or not any(group.get("momentum", 1) for group in optimizer.param_groups):
        options.setdefault("cycle_momentum", False)
    return OneCycleLR(optimizer, peaks, total_steps=max(steps, 2), **options)


def triangular(
    optimizer: Optimizer, steps: int, peak: float = 0.2, start: float = 0.2, final: float = 0.0
) -> LRScheduler:
    """Straight up to the learning rate, straight down again.

    A parameter group that has `until` (as those of `ConvMuon`) is down at that part of the steps, and stays there.

    Args:
        optimizer: Whose learning rate; it is the peak.
        steps: Of the whole fit.
        peak: Where the peak is, as a part of the steps, 0..1.
        start: The first rate as a part of the peak.
        final: The last rate as a part of the peak.
    """
    if not (0 <= peak <= 1 and start >= 0 and final >= 0):
        raise ValueError("peak is a part, 0..1, and start and final are not negative")

    def factor(until: float, step: int) -> float:
        top, end = peak * steps * until, steps * until
        if step < top:
            return start + (1 - start) * step / top
        return max(1 - (1 - final) * (step - top) / max(end - top, 1), final)

    return LambdaLR(optimizer, [partial(factor, group.get("until", 1.0)) for group in optimizer.param_groups])


def trapezoidal(optimizer: Optimizer, steps: int, decay: float = 0.25, warmup: float = 0.0) -> LRScheduler:
    """Straight up to the learning rate, held, and straight down to zero (Hägele et al. 2024, arXiv:2405.18392).

    Without a warmup, a longer fit is like a shorter one until the rate of that falls.

    Args:
        optimizer: Whose learning rate.
        steps: Of the whole fit.
        decay: The part of the steps, the last, in which the rate falls, 0..1.
        warmup: The part of the steps, the first, in which it rises.
    """
    if not (0 <= decay <= 1 and 0 <= warmup <= 1 - decay):
        raise ValueError("decay and warmup are parts, 0..1, of one in all")

    def factor(step: int) -> float:
        up, down = (step + 1) / (warmup * steps + 1), (steps - step) / max(decay * steps, 1)
        return max(min(up, down, 1.0), 0.0)

    return LambdaLR(optimizer, factor)


def step(optimizer: Optimizer, steps: int, every: float = 1 / 3, gamma: float = 0.1) -> LRScheduler:
    """Down by a factor at regular intervals; torch's `StepLR`.

    Args:
        optimizer: Whose learning rate.
        steps: Of the whole fit.
        every: The interval as a part of the steps, 0..1.
        gamma: The factor.
    """
    if not 0 < every <= 1:
        raise ValueError("every is a part, above 0 and at most 1")
    return StepLR(optimizer, max(round(every * steps), 1), float(gamma))


SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    "constant": constant,
    "cosine": cosine,
    "one_cycle": one_cycle,
    "triangular": triangular,
    "trapezoidal": trapezoidal,
    "step": step,
}


def make_schedule(
    optimizer: Optimizer, schedule: ScheduleLike, steps: int | None, options: Mapping[str, Any] | None = None
) -> LRScheduler:
    """The learning rate over a fit of so many optimizer steps.

    Args:
        optimizer: Whose learning rate; its present rates are those that the schedule scales.
        schedule: One of `constant`, `cosine`, `one_cycle`, `triangular`, `trapezoidal` and `step`; or a function that
            makes one of torch's schedulers for the optimizer, such as `lambda o: ExponentialLR(o, 0.999)`; None for
            constant.
        steps: Of the whole fit; None if it is not known, as only a constant rate and a function allow.
        options: Further arguments of the named schedule.

    Raises:
        UnknownNameError: There is no such schedule.
        InputError: The options do not fit, or the number of steps is needed and unknown.
    """
    if options and not isinstance(schedule, str):
        raise InputError(f"schedule_options {dict(options)} belong to a named schedule, and none is named.")
    if callable(schedule):
        return schedule(optimizer)
    name = schedule or "constant"
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, SCHEDULES)
    if steps is None and name != "constant":
        raise InputError(f"the schedule {name!r} must know how long the fit is, and the loader has no len().")
    try:
        return SCHEDULES[name](optimizer, steps or 0, **(options or {}))
    except Exception as error:  # each scheduler has its own ways to stumble over options
        raise InputError(f"the schedule {name!r} refuses {dict(options or {})}: {error}.") from error


def start_schedule(
    optimizer: Optimizer,
    rates: Sequence[float],
    schedule: ScheduleLike,
    steps: int | None,
    options: Mapping[str, Any] | None,
) -> LRScheduler | None:
    """Put each group's rate back to what it was given, and the schedule over it, if there is one."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return make_schedule(optimizer, schedule, steps, options) if schedule is not None or options else None


def count_steps(loader: Any, epochs: int, accumulate: int) -> int | None:
    """Optimizer steps of a fit; None where the loader has no length."""
    try:
        return epochs * math.ceil(len(loader) / accumulate)
    except TypeError:
        return None
