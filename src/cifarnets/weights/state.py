"""A fit on disk: any nesting of tensors and plain values, in one safetensors file. No pickle.

Tensors are stored as tensors, the rest as JSON in the header, where each tensor is named by its number. Python's
floats survive JSON exactly, so what is read back is what was written, bit for bit.
"""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from cifarnets.errors import WeightsError
from cifarnets.version import __version__
from cifarnets.weights.files import read_weights, write_weights


def write_state(path: str | os.PathLike[str], state: Any) -> Path:
    """Write a nesting of dicts, lists, tuples, tensors and plain values, atomically.

    Raises:
        OutputError: The file cannot be written; one that was there is untouched.
        WeightsError: Something in it is none of these.
    """
    tensors: dict[str, Tensor] = {}
    plain = _split(state, tensors)
    return write_weights(path, tensors, {"state": plain}, __version__)


def read_state(path: str | os.PathLike[str]) -> Any:
    """What `write_state` wrote; tensors on the CPU.

    Raises:
        WeightsError: The file is missing, damaged, or something else.
    """
    tensors, header = read_weights(path)
    if "state" not in header:
        raise WeightsError(f"{str(path)!r} holds a model, not the state of a fit; cifarnets.load reads it.")
    try:
        return _join(header["state"], tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"the state in {str(path)!r} is damaged ({error!r}).") from error


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
