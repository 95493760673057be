"""Random numbers and algorithms that can be repeated."""

import contextlib
import operator
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from cifarnets.errors import InputError

ON_CPU = ("python", "numpy", "torch")
"""The keys of `rng_state` that belong to no device."""


def seed_everything(seed: int) -> None:
    """Seed the random numbers of Python, NumPy and torch, on every device.

    torch's numbers initialise models, so call this before `create`.

    Examples:
        >>> import torch
        >>> from cifarnets import seed_everything
        >>> seed_everything(0)
        >>> first = torch.rand(3)
        >>> seed_everything(0)
        >>> bool((torch.rand(3) == first).all())
        True

    Raises:
        InputError: The seed is no whole number, or does not fit into 64 bits.
    """
    seed = _whole(seed)
    if not -(2**63) <= seed < 2**64:
        raise InputError(f"a seed must be from -2^63 to 2^64 - 1, not {_shown(seed)}.")
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the legacy numbers are what others may draw from)
    torch.manual_seed(seed)


def generator(*key: int) -> torch.Generator:
    """A generator on the CPU that depends on all of `key` (a seed, an epoch, …) and on nothing else.

    Examples:
        >>> import torch
        >>> torch.equal(torch.randperm(9, generator=generator(0, 1)), torch.randperm(9, generator=generator(0, 1)))
        True

    Raises:
        InputError: A part of the key is no whole number.
    """
    state = np.random.SeedSequence([_whole(part) % 2**64 for part in key]).generate_state(1, np.uint64)
    return torch.Generator("cpu").manual_seed(int(state[0]) >> 1)


def rng_state() -> dict[str, Any]:
    """The state of every global random number generator: Python's, NumPy's, and torch's on each device in use.

    Examples:
        >>> state = rng_state()
        >>> first = random.random()
        >>> restore_rng(state)
        >>> random.random() == first
        True
    """
    name, keys, *rest = np.random.get_state()  # noqa: NPY002
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state()
    return state


def restore_rng(state: Mapping[str, Any]) -> None:
    """Put back the state that `rng_state` gave; devices that this machine lacks are skipped.

    Raises:
        InputError: It is no such state. No generator has changed then.
    """
    try:
        name, keys, *rest = state["numpy"]
        numpy_state = (name, keys.numpy().astype(np.uint32), *rest)
        # First into generators that nobody uses: a damaged state must not change half of the real ones.
        random.Random().setstate(state["python"])  # noqa: S311 (no secret depends on it)
        np.random.RandomState().set_state(numpy_state)
        torch.Generator("cpu").set_state(state["torch"])
    except Exception as error:
        raise InputError(f"the state of the random numbers is damaged: {error}.") from error
    random.setstate(state["python"])
    np.random.set_state(numpy_state)  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool = True) -> Iterator[None]:
    """Let torch use deterministic algorithms only, until the block ends; a layer without one raises.

    Examples:
        >>> import torch
        >>> with deterministic_algorithms():
        ...     torch.are_deterministic_algorithms_enabled()
        True

    Args:
        wanted: False changes nothing.
    """
    if not wanted:
        yield
        return
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def _whole(number: int) -> int:
    """Whatever counts as a whole number (NumPy's too) as an int."""
    try:
        return operator.index(number)
    except TypeError as error:
        raise InputError(f"a seed must be a whole number, not {number!r}.") from error


def _shown(number: int) -> str:
    """A number for a message; Python refuses to print thousands of digits."""
    return str(number) if number.bit_length() < 200 else f"a number of {number.bit_length():,} bits"
