"""Learning-rate schedules: torch's schedulers by name, stepped after every optimizer step."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR, StepLR

from cifarnets._checked import checked
from cifarnets.errors import InputError, brief, unknown_name

ScheduleLike = str | Callable[[Optimizer], LRScheduler] | None


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:  # noqa: ARG001 (all schedules are called alike)
    """Keep the learning rate."""
    return LambdaLR(optimizer, lambda _: 1.0)


def cosine(optimizer: Optimizer, steps: int, warmup: float = 0.0, final: float = 0.0) -> LRScheduler:
    """Half a cosine from the learning rate down to `final` times that rate (Loshchilov & Hutter 2017, "SGDR").

    Args:
        optimizer: The optimizer.
        steps: The optimizer steps of the whole fit.
        warmup: The fraction of the steps, at the start, in which the rate rises linearly, 0..1.
        final: The last rate as a fraction of the first, 0..1.
    """
    if not (0 <= warmup < 1 and 0 <= final <= 1):
        raise ValueError("warmup and final are fractions, 0..1")
    # In older versions of torch, SequentialLR of two schedulers gives a warning.
    return LambdaLR(optimizer, _half_cosine(round(warmup * steps), steps, final))


def long_tailed(
    optimizer: Optimizer, steps: int, warmup: float = 0.02, tail: float = 0.4, final: float = 0.02
) -> LRScheduler:
    """Rise linearly to the learning rate, fall fast along half a cosine, and stay low for a long time.

    Between the warm-up and the tail, the factor of the learning rate is `final + (1 - final) · (1 + cos(πu)) / 2`,
    where u grows evenly from 0 to 1. In the tail it is `final`.

    Args:
        optimizer: The optimizer; its learning rate is the peak.
        steps: The optimizer steps of the whole fit.
        warmup: The fraction of the steps, at the start, in which the rate rises, 0..1.
        tail: The fraction of the steps, at the end, in which the rate stays at `final`, 0..1.
        final: The rate of the tail as a fraction of the peak, 0..1.
    """
    if not (0 <= warmup < 1 and 0 <= tail <= 1 - warmup and 0 <= final <= 1):
        raise ValueError("warmup and tail are fractions whose sum is at most 1, and final is a fraction, 0..1")
    return LambdaLR(optimizer, _half_cosine(round(warmup * steps), round((1 - tail) * steps), final))


def _half_cosine(rise: int, end: int, final: float) -> Callable[[int], float]:
    """A rise of `rise` steps, then half a cosine from 1 down to `final`, which it reaches at step `end` and keeps."""

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / (rise + 1)
        gone = min((step - rise) / max(end - rise, 1), 1.0)
        return final + (1 - final) * (1 + math.cos(math.pi * gone)) / 2

    return factor


def one_cycle(optimizer: Optimizer, steps: int, **options: Any) -> LRScheduler:
    """Rise to the learning rate, then fall far below it: `OneCycleLR` (Smith & Topin 2018, "Super-Convergence").

    Momentum falls while the rate rises, and rises while it falls. `cycle_momentum=False` keeps the momentum.

    Args:
        optimizer: The optimizer; its learning rate is the peak.
        steps: The optimizer steps of the whole fit.
        options: Further arguments of `OneCycleLR`.
    """
    peaks = [group["lr"] for group in optimizer.param_groups]
    has_momentum = {"momentum", "betas"} & optimizer.defaults.keys()  # torch looks for it there
    if not has_momentum or not any(group.get("momentum", 1) for group in optimizer.param_groups):
        options.setdefault("cycle_momentum", False)
    return OneCycleLR(optimizer, peaks, total_steps=max(steps, 2), **options)


def triangular(
    optimizer: Optimizer, steps: int, peak: float = 0.2, start: float = 0.2, final: float = 0.0
) -> LRScheduler:
    """Rise linearly to the learning rate, then fall linearly.

    A parameter group can have an option `until`, as the groups of `ConvMuon` do. Its rate ends at that fraction of the
    steps and stays there.

    Args:
        optimizer: The optimizer; its learning rate is the peak.
        steps: The optimizer steps of the whole fit.
        peak: The position of the peak as a fraction of the steps, 0..1.
        start: The first rate as a fraction of the peak.
        final: The last rate as a fraction of the peak.
    """
    if not (0 <= peak <= 1 and start >= 0 and final >= 0):
        raise ValueError("peak is a fraction, 0..1, and start and final are not negative")

    def factor(until: float, step: int) -> float:
        top, end = peak * steps * until, steps * until
        if step < top:
            return start + (1 - start) * step / top
        return max(1 - (1 - final) * (step - top) / max(end - top, 1), final)

    return LambdaLR(optimizer, [partial(factor, group.get("until", 1.0)) for group in optimizer.param_groups])


def trapezoidal(optimizer: Optimizer, steps: int, decay: float = 0.25, warmup: float = 0.0) -> LRScheduler:
    """Rise linearly to the learning rate, hold it, and fall linearly to zero (Hägele et al. 2024, arXiv:2405.18392).

    Without a warmup, a longer fit equals a shorter one until the rate of the shorter one falls.

    Args:
        optimizer: The optimizer.
        steps: The optimizer steps of the whole fit.
        decay: The fraction of the steps, at the end, in which the rate falls, 0..1.
        warmup: The fraction of the steps, at the start, in which it rises.
    """
    if not (0 <= decay <= 1 and 0 <= warmup <= 1 - decay):
        raise ValueError("decay and warmup are fractions whose sum is at most 1")

    def factor(step: int) -> float:
        up, down = (step + 1) / (warmup * steps + 1), (steps - step) / max(decay * steps, 1)
        return max(min(up, down, 1.0), 0.0)

    return LambdaLR(optimizer, factor)


def step(optimizer: Optimizer, steps: int, every: float = 1 / 3, gamma: float = 0.1) -> LRScheduler:
    """Multiply the rate by a factor at regular intervals: torch's `StepLR`.

    Args:
        optimizer: The optimizer.
        steps: The optimizer steps of the whole fit.
        every: The interval as a fraction of the steps, 0..1.
        gamma: The factor.
    """
    if not 0 < every <= 1:
        raise ValueError("every is a fraction, above 0 and at most 1")
    return StepLR(optimizer, max(round(every * steps), 1), float(gamma))


SCHEDULES: dict[str, Callable[..., LRScheduler]] = {
    "constant": constant,
    "cosine": cosine,
    "long_tailed": long_tailed,
    "one_cycle": one_cycle,
    "triangular": triangular,
    "trapezoidal": trapezoidal,
    "step": step,
}


@checked
def make_schedule(
    optimizer: Optimizer, schedule: ScheduleLike, steps: int | None, options: Mapping[str, Any] | None = None
) -> LRScheduler:
    """Make one of torch's schedulers for a fit of `steps` optimizer steps.

    Examples:
        >>> from cifarnets.models import create
        >>> from cifarnets.training import make_optimizer, make_schedule
        >>> optimizer = make_optimizer(create("convnet"), "sgd", lr=0.1)
        >>> schedule = make_schedule(optimizer, "cosine", steps=100, options={"warmup": 0.1})
        >>> type(schedule).__name__
        'LambdaLR'

    Args:
        optimizer: The optimizer; the schedule scales its present learning rates.
        schedule: One of `constant`, `cosine`, `long_tailed`, `one_cycle`, `triangular`, `trapezoidal` and `step`; or a
            function that makes one of torch's schedulers for the optimizer, such as
            `lambda o: ExponentialLR(o, 0.999)`; None for constant.
        steps: The optimizer steps of the whole fit; None if the number is unknown, which works with a constant rate and
            a function only.
        options: Further arguments of the named schedule.

    Raises:
        UnknownNameError: There is no such schedule.
        InputError: The options do not fit, or the number of steps is needed and unknown.
    """
    if options and not isinstance(schedule, str):
        raise InputError(f"schedule_options {dict(options)} belong to a named schedule, but no schedule is named.")
    if callable(schedule):
        try:
            made = schedule(optimizer)
        except Exception as error:  # the function is the user's
            raise InputError(f"the function for the schedule fails: {type(error).__name__}: {error}") from error
        if not isinstance(made, LRScheduler):
            raise InputError(f"the function for the schedule must make one of torch's schedulers, not {brief(made)}.")
        return made
    name = schedule or "constant"
    if name not in SCHEDULES:
        raise unknown_name("schedule", name, SCHEDULES)
    if steps is None and name != "constant":
        raise InputError(f"the schedule {name!r} must know the length of the fit, but the loader has no len().")
    try:
        return SCHEDULES[name](optimizer, steps or 0, **(options or {}))
    except Exception as error:  # each scheduler raises different errors for wrong options
        raise InputError(f"the schedule {name!r} refuses {dict(options or {})}: {error}.") from error


def start_schedule(
    optimizer: Optimizer,
    rates: Sequence[float],
    schedule: ScheduleLike,
    steps: int | None,
    options: Mapping[str, Any] | None,
) -> LRScheduler | None:
    """Reset each group to its initial rate, and start the schedule, if there is one."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return make_schedule(optimizer, schedule, steps, options) if schedule is not None or options else None


def count_steps(loader: Any, epochs: int, accumulate: int) -> int | None:
    """Optimizer steps of a fit; None where the loader has no length."""
    try:
        return epochs * math.ceil(len(loader) / accumulate)
    except TypeError:
        return None
