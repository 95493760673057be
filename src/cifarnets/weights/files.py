"""The file format: one safetensors file whose header says everything. No pickle, so loading runs no code.

The header's metadata is text to text, as safetensors has it: `format` is `pt`, `cifarnets` the version that wrote
the file, and every other entry is JSON: `architecture`, `config`, `classes`, `mean`, `std`, `training`, `results`,
`channels_last`, the names of the tensors that were laid out so, and `halved`, the names of those that were float32 and
lie in the file as float16.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cifarnets._files import write_atomic
from cifarnets.errors import WeightsError

VERSION_KEY = "cifarnets"


def write_weights(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    version: str,
    half: bool = False,
) -> Path:
    """Write tensors and header into one safetensors file, atomically.

    Layout and sharing do not matter: each tensor is stored whole and contiguous, in its own dtype; with `half`, those
    of float32 as float16, to be read as float32 again.

    Raises:
        OutputError: It cannot be written; a file that was there is untouched.
        WeightsError: The header holds something that JSON cannot say, or a number is too large for float16.
    """
    from safetensors.torch import save

    # A fresh copy each: safetensors refuses tensors that share memory.
    stored = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    laid_out = [name for name, tensor in tensors.items() if _is_channels_last(tensor)]
    halved = [name for name, tensor in stored.items() if half and tensor.dtype == torch.float32]
    for name in halved:
        if (stored[name].abs() > torch.finfo(torch.float16).max).any():
            raise WeightsError(f"{name} has numbers that are too large for float16: save it with half=False.")
        stored[name] = stored[name].half()
    try:
        notes = {"channels_last": laid_out, "halved": halved}
        entries = {key: json.dumps(value) for key, value in {**header, **notes}.items()}
    except (TypeError, ValueError) as error:  # ValueError: it contains itself
        raise WeightsError(f"the header of {str(path)!r} must be plain values (JSON): {error}.") from error
    return write_atomic(path, save(stored, {"format": "pt", VERSION_KEY: version, **entries}))


def read_weights(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a file that `write_weights` wrote.

    Raises:
        WeightsError: The file is missing, damaged, a pickle, or not one of ours.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise WeightsError(f"cannot read the weights {str(path)!r}: {error.strerror}.") from error
    # A safetensors file begins with the length of its JSON, which may well read like the first byte of a pickle.
    if start.startswith((b"PK\x03\x04", b"\x80")) and start[4:] != b"\0\0\0\0{":
        raise WeightsError(
            f"{str(path)!r} is a pickle (torch.save), which could run code; it was not opened. Load it with "
            "torch.load(..., weights_only=True), put it into a model, and cifarnets.save that."
        )
    try:
        with safe_open(path, framework="pt") as file:
            entries = file.metadata() or {}
            # Copies: what safetensors gives is the file itself, whose bytes may change, and which Windows then locks.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{str(path)!r} is not a whole safetensors file: {error}.") from error
    if VERSION_KEY not in entries:
        raise WeightsError(
            f"{str(path)!r} is a safetensors file of another program: it does not say which model it belongs to. "
            "Read it with safetensors.torch.load_file, put it into a model, and cifarnets.save that."
        )
    try:
        header = {key: json.loads(text) for key, text in entries.items() if key not in ("format", VERSION_KEY)}
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"the header of {str(path)!r} is damaged: {error}.") from error
    laid_out, halved = (_names(header.pop(key, [])) for key in ("channels_last", "halved"))
    for name, tensor in tensors.items():
        whole = tensor.float() if name in halved and tensor.dtype == torch.float16 else tensor
        tensors[name] = whole.to(memory_format=torch.channels_last) if name in laid_out and whole.ndim == 4 else whole
    return tensors, {**header, VERSION_KEY: entries[VERSION_KEY]}


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _names(value: object) -> set[str]:
    return {name for name in value if isinstance(name, str)} if isinstance(value, list) else set()
