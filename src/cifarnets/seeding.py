"""Random numbers, and algorithms, that can be repeated."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

ON_CPU = ("python", "numpy", "torch")
"""The keys of `rng_state` that are no device's."""


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and torch's random numbers, on every device.

    Models are initialised from torch's numbers, so call this before `create`.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the legacy numbers are what others may draw from)
    torch.manual_seed(seed)


def generator(*key: int) -> torch.Generator:
    """A CPU generator that depends on all of `key` (a seed, an epoch, …) and on nothing else."""
    state = np.random.SeedSequence([part % 2**64 for part in key]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) >> 1)


def rng_state() -> dict[str, Any]:
    """The state of every global random number generator: Python's, NumPy's, and torch's on each device in use."""
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


def restore_rng(state: dict[str, Any]) -> None:
    """Put back what `rng_state` gave; devices that are not here are left out."""
    random.setstate(state["python"])
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"][: torch.cuda.device_count()])
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(state["mps"])


@contextlib.contextmanager
def deterministic_algorithms(wanted: bool = True) -> Iterator[None]:
    """Until the block ends, torch uses deterministic algorithms only, and raises where a layer has none.

    Args:
        wanted: False leaves everything as it is.
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
