"""Random numbers: repeated for a seed, and put back after a break."""

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cifarnets.errors import InputError
from cifarnets.seeding import generator, restore_rng, rng_state, seed_everything

Draws = tuple[float, float, list[float]]


def draw() -> Draws:
    # The legacy numbers of NumPy are what other libraries may draw from.
    return random.random(), float(np.random.rand()), torch.rand(3).tolist()  # noqa: NPY002


def numbers(*key: int) -> list[float]:
    return torch.rand(4, generator=generator(*key)).tolist()


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32 + 5])
def test_same_seed_same_numbers(seed: int) -> None:
    seed_everything(seed)
    first = draw()
    then = draw()
    seed_everything(seed)
    assert draw() == first
    assert all(one != two for one, two in zip(first, then, strict=True))


def test_other_seed_other_numbers() -> None:
    seed_everything(0)
    zero = draw()
    seed_everything(1)
    assert all(one != two for one, two in zip(zero, draw(), strict=True))


def test_a_generator_neither_heeds_nor_moves_the_global_numbers() -> None:
    seed_everything(0)
    before = rng_state()
    one = numbers(3, 4)
    assert torch.equal(torch.get_rng_state(), before["torch"])
    seed_everything(1)
    assert numbers(3, 4) == one


# Seeds as a user may choose them, and epochs.
keys = st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(0, 10**6))


@given(keys, keys)
def test_each_part_of_the_key_counts(one: tuple[int, int], two: tuple[int, int]) -> None:
    assert (numbers(*one) == numbers(*two)) == (one == two)


def test_order_and_sign_of_the_key_count() -> None:
    streams = [numbers(*key) for key in [(1, 2), (2, 1), (-1, 2), (1, 3), (0, 0), (5,)]]
    assert len({tuple(stream) for stream in streams}) == len(streams)


def test_same_numbers_on_every_machine() -> None:
    # The held-out images of a seed, and with them every published figure, hang on this.
    assert generator(0, 1).initial_seed() == 2_918_264_622_725_855_778


def test_restored_numbers_go_on() -> None:
    seed_everything(7)
    draw()
    random.gauss(0, 1)  # leaves a second number for later, which is state too
    np.random.randn()  # noqa: NPY002
    state = rng_state()
    expected = draw(), random.gauss(0, 1), np.random.randn()  # noqa: NPY002
    seed_everything(8)
    restore_rng(state)
    assert (draw(), random.gauss(0, 1), np.random.randn()) == expected  # noqa: NPY002


def test_the_state_outlives_the_process() -> None:
    """It goes through a file that is read without running code."""
    seed_everything(7)
    file = io.BytesIO()
    torch.save(rng_state(), file)
    expected = draw()
    file.seek(0)
    restore_rng(torch.load(file, weights_only=True))
    assert draw() == expected


def test_accelerators_are_part_of_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    put_back: dict[str, object] = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["first", "second"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", lambda states: put_back.update(cuda=states))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: "mps")
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: put_back.update(mps=state))
    state = rng_state()
    # Gone on with on a machine of fewer devices.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    restore_rng(state)
    assert put_back == {"cuda": ["first"], "mps": "mps"}


def test_a_state_from_an_accelerator_is_usable_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    state = rng_state()
    assert not {"cuda", "mps"} & state.keys()
    expected = draw()
    restore_rng({**state, "cuda": ["gone"], "mps": "gone"})
    assert draw() == expected


@pytest.mark.gpu
def test_real_cuda_numbers_go_on() -> None:
    torch.rand(1, device="cuda")
    state = rng_state()
    expected = torch.rand(4, device="cuda")
    restore_rng(state)
    assert torch.equal(torch.rand(4, device="cuda"), expected)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, torch.tensor])
def test_numpys_whole_numbers_are_seeds_too(kind: Callable[[int], int]) -> None:
    seed_everything(3)
    expected = draw()
    seed_everything(kind(3))
    assert draw() == expected
    assert numbers(kind(3), kind(4)) == numbers(3, 4)
    assert numbers(np.int64(-1)) == numbers(-1)


@pytest.mark.parametrize("seed", [1.0, "1", None, [1]])
def test_what_is_no_whole_number(seed: Any) -> None:
    for use in (seed_everything, generator):
        with pytest.raises(InputError, match="a seed must be a whole number, not"):
            use(seed)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1, 10**5000], ids=["high", "low", "huge"])
def test_seeds_beyond_64_bits(seed: int) -> None:
    with pytest.raises(InputError, match=r"a seed must be from -2\^63 to 2\^64 - 1, not"):
        seed_everything(seed)


def test_the_default_device_has_no_say() -> None:
    expected = numbers(1, 2)
    with torch.device("meta"):
        assert generator(1, 2).device.type == "cpu"
    assert numbers(1, 2) == expected


@pytest.mark.parametrize(
    "damage",
    [
        {"python": (3, (1, 2), None)},
        {"python": None},
        {"numpy": ("MT19937",)},
        {"numpy": ("MT19937", torch.zeros(5), 0, 0, 0.0)},
        {"torch": torch.zeros(3, dtype=torch.uint8)},
        {"torch": None},
    ],
    ids=str,
)
def test_a_damaged_state_is_refused_as_a_whole(damage: dict[str, object]) -> None:
    seed_everything(0)
    state = rng_state()
    expected = draw()
    restore_rng(state)
    with pytest.raises(InputError, match="the state of the random numbers is damaged"):
        restore_rng({**rng_state(), **damage})
    with pytest.raises(InputError, match="damaged"):
        restore_rng({})
    assert draw() == expected
