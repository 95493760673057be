"""The state of a fit on disk: any nesting of tensors and plain values, in one safetensors file. No pickle.

Tensors are stored as tensors, and the rest as JSON in the header, where a number stands for each tensor. JSON keeps
Python's floats exactly, so the state that is read is bit for bit the state that was written.
"""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from cifarnets.errors import WeightsError, brief
from cifarnets.version import __version__
from cifarnets.weights.files import read_weights, write_weights


def write_state(path: str | os.PathLike[str], state: Any) -> Path:
    """Write a nesting of dicts, lists, tuples, tensors and plain values, atomically.

    Examples:
        >>> import tempfile, torch
        >>> from cifarnets.weights.state import read_state, write_state
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_state(write_state(f"{folder}/state.safetensors", {"step": 3, "momentum": (torch.ones(2), None)}))
        {'step': 3, 'momentum': (tensor([1., 1.]), None)}

    Raises:
        OutputError: The file cannot be written. An existing file stays as it was.
        InputError: No file can have such a path.
        WeightsError: A value is none of these, or the nesting is too deep.
    """
    tensors: dict[str, Tensor] = {}
    try:
        plain = _split(state, tensors)
    except RecursionError as error:
        raise WeightsError(f"the state for {brief(str(path))} is nested too deep, or contains itself.") from error
    return write_weights(path, tensors, {"state": plain}, __version__)


def read_state(path: str | os.PathLike[str]) -> Any:
    """Read what `write_state` wrote, after a check of every byte; tensors are on the CPU.

    The values are those of the file, and may be of any kind: who takes them over must check them.

    Examples:
        >>> import tempfile
        >>> from cifarnets.weights.state import read_state, write_state
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     read_state(write_state(f"{folder}/state.safetensors", [1, (2, {3: None})]))
        [1, (2, {3: None})]

    Raises:
        WeightsError: The file is missing or damaged, or holds a model.
        InputError: No file can have such a path.
    """
    tensors, header = read_weights(path)
    if "state" not in header:
        raise WeightsError(f"{brief(str(path))} holds a model, not the state of a fit; cifarnets.load reads it.")
    try:
        return _join(header["state"], tensors)
    except (KeyError, TypeError, ValueError, RecursionError, MemoryError) as error:
        raise WeightsError(f"the state in {brief(str(path))} is damaged ({brief(error)}).") from error


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON can say it, with each tensor put into `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        # As pairs: JSON would turn the whole numbers that optimizers use as keys into text.
        return {"dict": [[_split(key, tensors), _split(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_split(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_split(item, tensors) for item in value]
    return value


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_join(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_join(item, tensors) for item in content)
    if kind == "dict":
        return {_join(key, tensors): _join(item, tensors) for key, item in content}
    raise ValueError(f"unknown kind {kind!r}")
