"""Learning rates over a fit, each against its formula."""

import math
from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, ExponentialLR

from cifarnets import Trainer
from cifarnets.datasets import BatchLoader
from cifarnets.errors import InputError, UnknownNameError
from cifarnets.training import make_schedule
from cifarnets.training.schedules import SCHEDULES


def some(lr: float = 0.8, cls: type[Optimizer] = SGD, **options: Any) -> Optimizer:
    return cls([nn.Parameter(torch.zeros(1))], lr=lr, **options)  # type: ignore[call-arg]


def rates(schedule: Any, steps: int | None, optimizer: Optimizer | None = None, **options: Any) -> list[float]:
    """The rate of each step of a fit."""
    optimizer = optimizer or some()
    made = make_schedule(optimizer, schedule, steps, options)
    found = []
    for _ in range(steps or 5):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        made.step()
    return found


@given(st.sampled_from(sorted(SCHEDULES)), st.integers(1, 60))
def test_no_rate_is_above_the_given_one_or_below_nought(name: str, steps: int) -> None:
    found = rates(name, steps)
    assert len(found) == steps
    assert all(-1e-12 <= rate <= 0.8 * (1 + 1e-9) for rate in found)


def test_constant() -> None:
    assert rates("constant", 9) == [0.8] * 9
    assert rates(None, 9) == [0.8] * 9
    assert rates("constant", None) == [0.8] * 5


@given(st.integers(1, 50), st.floats(0, 1))
def test_cosine(steps: int, final: float) -> None:
    expected = [0.8 * (final + (1 - final) * (1 + math.cos(math.pi * t / steps)) / 2) for t in range(steps)]
    assert rates("cosine", steps, final=final) == pytest.approx(expected, abs=1e-9)


@given(st.integers(1, 50), st.floats(0, 0.9))
def test_cosine_with_warm_up(steps: int, warmup: float) -> None:
    rise = round(warmup * steps)
    expected = [0.8 * (t + 1) / (rise + 1) for t in range(rise)]
    expected += [0.4 * (1 + math.cos(math.pi * t / max(steps - rise, 1))) for t in range(steps - rise)]
    assert rates("cosine", steps, warmup=warmup) == pytest.approx(expected, abs=1e-9)


def test_one_cycle() -> None:
    found = rates("one_cycle", 100)
    assert found[0] == pytest.approx(0.8 / 25)
    assert found.index(max(found)) == 29  # 30 % of the steps
    assert max(found) == pytest.approx(0.8)
    assert found[-1] == pytest.approx(0.8 / 25 / 1e4)
    assert found[:30] == sorted(found[:30])
    assert found[29:] == sorted(found[29:], reverse=True)
    assert max(range(100), key=rates("one_cycle", 100, pct_start=0.5).__getitem__) == 49


@pytest.mark.parametrize(
    ("optimizer", "options", "moves"),
    [
        (some(), {}, None),
        (some(momentum=0.9), {}, True),
        (some(momentum=0.9), {"cycle_momentum": False}, False),
        (some(cls=Adam), {}, True),
        (some(cls=torch.optim.Adagrad), {}, None),
    ],
    ids=["SGD", "momentum", "left alone", "Adam", "Adagrad"],
)
def test_one_cycle_moves_momentum_where_there_is_some(
    optimizer: Optimizer, options: dict[str, Any], moves: bool | None
) -> None:
    def momentum() -> float:
        group = optimizer.param_groups[0]
        return float(group["betas"][0] if "betas" in group else group.get("momentum", 0))

    schedule = make_schedule(optimizer, "one_cycle", 10, options)
    start = momentum()
    optimizer.step()
    schedule.step()
    assert (momentum() < start) == bool(moves)
    if moves is None:
        assert momentum() == 0


@given(st.integers(1, 50), st.floats(0, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_triangular(steps: int, peak: float, start: float, final: float) -> None:
    found = rates("triangular", steps, peak=peak, start=start, final=final)
    top = peak * steps
    for step, rate in enumerate(found):
        if step < top:
            assert rate == pytest.approx(0.8 * (start + (1 - start) * step / top), abs=1e-9)
        elif steps - top > 1:
            assert rate == pytest.approx(0.8 * (1 - (1 - final) * (step - top) / (steps - top)), abs=1e-9)


def test_triangular_at_its_corners() -> None:
    found = rates("triangular", 10)
    assert found[0] == pytest.approx(0.16)
    assert found[2] == pytest.approx(0.8)
    assert found[-1] == pytest.approx(0.1)  # one step before nought


def test_triangular_lets_a_group_end_sooner() -> None:
    first, second = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups: list[dict[str, Any]] = [{"params": [first], "until": 0.5}, {"params": [second]}]
    optimizer = SGD(groups, lr=1.0)
    schedule = make_schedule(optimizer, "triangular", 10, {"peak": 0.2, "start": 0.2})
    found = []
    for _ in range(10):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert [round(first, 6) for first, _ in found] == [0.2, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert [round(second, 6) for _, second in found][2:4] == [1.0, 0.875]


@given(st.integers(2, 50), st.floats(0, 1), st.floats(0, 1))
def test_trapezoidal(steps: int, decay: float, warmup: float) -> None:
    warmup *= 1 - decay
    found = rates("trapezoidal", steps, decay=decay, warmup=warmup)
    for step, rate in enumerate(found):
        rising, left = step < warmup * steps - 1, steps - step
        if left < decay * steps and decay * steps >= 1 and not rising:
            expected = min(left / (decay * steps), (step + 1) / (warmup * steps + 1))
        else:
            expected = min((step + 1) / (warmup * steps + 1), 1)
        assert rate == pytest.approx(0.8 * expected, abs=1e-9)


def test_trapezoidal_by_hand() -> None:
    assert rates("trapezoidal", 8) == pytest.approx([0.8] * 7 + [0.4])
    found = rates("trapezoidal", 10, decay=0.4, warmup=0.3)
    assert found == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.6, 0.4, 0.2])
    assert rates("trapezoidal", 20)[:15] == rates("trapezoidal", 60)[:15], "the longer fit starts like the shorter"


def test_long_tailed_by_hand() -> None:
    found = rates("long_tailed", 10, warmup=0.2, tail=0.4, final=0.1)
    half = [0.8 * (0.1 + 0.9 * (1 + math.cos(math.pi * part / 4)) / 2) for part in range(4)]
    assert found == pytest.approx([0.8 / 3, 1.6 / 3, *half, 0.08, 0.08, 0.08, 0.08])


@given(st.integers(1, 60), st.floats(0, 0.9), st.floats(0, 1), st.floats(0, 1))
def test_long_tailed(steps: int, warmup: float, tail: float, final: float) -> None:
    tail *= 1 - warmup
    found = rates("long_tailed", steps, warmup=warmup, tail=tail, final=final)
    rise = round(warmup * steps)
    assert found[:rise] == sorted(found[:rise])
    assert found[rise:] == sorted(found[rise:], reverse=True)
    assert all(0.8 * min(final, 1 / (rise + 1)) - 1e-9 <= rate <= 0.8 + 1e-9 for rate in found)
    assert found[max(rise + 1, round((1 - tail) * steps)) :] == pytest.approx(
        [0.8 * final] * len(found[max(rise + 1, round((1 - tail) * steps)) :])
    )


def test_without_a_tail_it_is_the_cosine() -> None:
    options: dict[str, Any] = {"warmup": 0.1, "final": 0.1}
    assert rates("long_tailed", 40, tail=0, **options) == rates("cosine", 40, **options)
    assert rates("cosine", 40, **options)[-1] == pytest.approx(0.08, abs=0.002), "to a tenth"


def test_step() -> None:
    assert rates("step", 9) == pytest.approx([0.8] * 3 + [0.08] * 3 + [0.008] * 3)
    assert rates("step", 4, every=0.5, gamma=0.5) == pytest.approx([0.8, 0.8, 0.4, 0.4])
    assert rates("step", 2, every=0.01) == pytest.approx([0.8, 0.08])


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "one_cycle"])
def test_every_group_keeps_its_share(name: str) -> None:
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 1.0)], lr=1.0)
    schedule = make_schedule(optimizer, name, 10)
    for _ in range(9):
        optimizer.step()
        schedule.step()
        small, large = (group["lr"] for group in optimizer.param_groups)
        assert small == pytest.approx(large / 10)


def test_any_scheduler_of_torch() -> None:
    assert rates(lambda o: ExponentialLR(o, 0.5), None) == pytest.approx([0.8 * 0.5**t for t in range(5)])
    assert rates(lambda o: CosineAnnealingWarmRestarts(o, 2), 4) == pytest.approx([0.8, 0.4, 0.8, 0.4])


def test_a_misspelt_name() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown schedule 'cosin'\. Did you mean 'cosine'\? Available: "):
        make_schedule(some(), "cosin", 9)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("cosine", {"speed": 9}),
        ("cosine", {"warmup": 1.5}),
        ("cosine", {"final": -1}),
        ("one_cycle", {"pct_start": 7}),
        ("step", {"gamma": "much"}),
    ],
)
def test_options_that_do_not_fit(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"the schedule '{name}' refuses .*{next(iter(options))}"):
        make_schedule(some(), name, 9, options)


@pytest.mark.parametrize("schedule", [None, lambda o: ExponentialLR(o, 0.5)])
def test_options_of_no_named_schedule(schedule: Any, net: Callable[..., nn.Module], loader: BatchLoader) -> None:
    with pytest.raises(InputError, match=r"schedule_options {'warmup': 0.1} belong to a named schedule"):
        Trainer(net(), schedule=schedule, schedule_options={"warmup": 0.1}, device="cpu").fit(loader, epochs=1)


def test_a_loader_without_a_length(net: Callable[..., nn.Module], loader: BatchLoader) -> None:
    class Endless:
        def __iter__(self) -> Any:
            return iter(list(loader))

    with pytest.raises(InputError, match=r"'cosine' must know the length of the fit, but the loader has no len\(\)"):
        Trainer(net(), schedule="cosine", device="cpu").fit(Endless(), epochs=1)
    for schedule in ("constant", lambda optimizer: ExponentialLR(optimizer, 0.5)):
        trainer = Trainer(net(), lr=0.8, schedule=schedule, device="cpu")
        trainer.fit(Endless(), epochs=1)
    assert trainer.lr == pytest.approx(0.2), "the rate of the third step"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("step", {"every": -1}),
        ("triangular", {"peak": 2}),
        ("triangular", {"final": -1}),
        ("long_tailed", {"final": 2}),
        ("long_tailed", {"tail": 0.8, "warmup": 0.3}),
        ("trapezoidal", {"decay": 2}),
        ("trapezoidal", {"decay": 0.8, "warmup": 0.3}),
    ],
)
def test_parts_out_of_range_are_refused(name: str, options: dict[str, float]) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    with pytest.raises(InputError, match=f"the schedule '{name}' refuses"):
        make_schedule(optimizer, name, 10, options)
