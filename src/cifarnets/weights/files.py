"""The file format: one safetensors file whose header holds everything else. No pickle, so that loading runs no code.

A safetensors file is the length of its header (8 bytes), the header (JSON), and the bytes of the tensors. The header
names the dtype, the shape and the place of each tensor, and it has room for metadata, text to text. In our files
`format` is `pt`, `cifarnets` the version that wrote the file, and `sha256` the digest of the whole file, with 64 zeros
in place of the digest itself. Every other entry is JSON: `architecture`, `config`, `classes`, `mean`, `std`,
`training`, `results`, `size`, `provenance`; `channels_last`, the names of the tensors that had this memory format; and
`halved`, the names of those that were float32 and are float16 in the file.

A file comes from anywhere, so nothing in it is believed before it is checked. Its bytes are read once, and what is
checked is what is used.
"""

import hashlib
import io
import json
import os
import re
import struct
from collections.abc import Container, Mapping
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
from torch import Tensor

from cifarnets._files import as_path, open_regular, write_atomic
from cifarnets.errors import CifarNetsError, InputError, WeightsError, brief

VERSION_KEY = "cifarnets"
DIGEST_KEY = "sha256"

HEADER_BYTES = 10_000_000
"""The longest header: that of a resnet110 and its optimizer has 250,000 bytes."""

TENSORS = 50_000
"""The most tensors in a file: a resnet110 and its optimizer have 1,500."""

DEPTH = 100
"""How deep lists and dicts may lie in each other: those of a checkpoint lie 20 deep."""

_ZEROS = "0" * 64
_PICKLES = (b"PK\x03\x04", b"\x80")
_BEFORE_DIGESTS = {
    *("format", VERSION_KEY, "architecture", "config", "classes", "mean", "std", "training", "results", "state"),
    *("channels_last", "halved"),
}
"""The entries of files from before there were digests: a file with any other entry must have a digest."""


def write_weights(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    header: Mapping[str, Any],
    version: str,
    halved: Container[str] = (),
) -> Path:
    """Write tensors and a header into one safetensors file, atomically; the same input gives the same bytes.

    Each tensor is stored whole and contiguous, in its own dtype. The `halved` ones are stored as
    float16 where they are float32, and `read_weights` turns them into float32 again.

    Examples:
        >>> import tempfile, torch
        >>> from cifarnets.weights.files import read_weights, write_weights
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = write_weights(f"{folder}/one.safetensors", {"w": torch.ones(2)}, {"note": [1, 2]}, "1.0")
        ...     tensors, header = read_weights(path)
        >>> tensors["w"].tolist(), header["note"]
        ([1.0, 1.0], [1, 2])

    Raises:
        OutputError: The file cannot be written. An existing file stays as it was.
        InputError: No file can have such a path.
        WeightsError: The header holds something that JSON has no form for, or is too long or too deep; or a tensor has
            a dtype that the format does not have, or a number is too large for float16.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save

    channels_last = [name for name, tensor in tensors.items() if _is_channels_last(tensor)]
    rounded = [name for name, tensor in tensors.items() if name in halved and tensor.dtype == torch.float32]
    stored = {name: _stored(name, tensor, half=name in rounded) for name, tensor in tensors.items()}
    shown = brief(str(path))
    try:
        notes = {"channels_last": channels_last, "halved": rounded}
        entries = {key: json.dumps(value) for key, value in {**header, **notes}.items()}
        for entry in entries.values():
            _from_json(entry)  # what could not be read again must not be written
    except (TypeError, ValueError, RecursionError) as error:  # ValueError: it contains itself
        raise WeightsError(f"the header of {shown} must be plain values (JSON): {error}.") from error
    entries |= {"format": "pt", VERSION_KEY: version, DIGEST_KEY: _ZEROS}
    try:
        if "__metadata__" in stored:
            raise ValueError("'__metadata__' is a name of the format itself")
        content = save(stored, entries)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise WeightsError(f"the tensors in {shown} cannot be written: {brief(str(error), quotes=False)}.") from error
    text, data = _sorted_header(content)
    if len(text) > HEADER_BYTES or len(stored) > TENSORS:
        raise WeightsError(
            f"the header of {shown} would have {len(text):,} bytes and {len(stored):,} tensors; a file may have "
            f"{HEADER_BYTES:,} and {TENSORS:,}."
        )
    whole = bytearray().join([struct.pack("<Q", len(text)), text, data])
    # The first such place is the entry itself: within another one, quotes are escaped.
    place = whole.index(f'"{DIGEST_KEY}":"{_ZEROS}"'.encode()) + len(f'"{DIGEST_KEY}":"')
    whole[place : place + len(_ZEROS)] = hashlib.sha256(whole).hexdigest().encode()
    return write_atomic(path, bytes(whole))


def _sorted_header(content: bytes) -> tuple[bytes, memoryview]:
    """The header and the data of a safetensors file, with the metadata sorted: safetensors shuffles it."""
    (length,) = struct.unpack("<Q", content[:8])
    layout = json.loads(content[8 : 8 + length])
    metadata = dict(sorted(layout.pop("__metadata__").items()))
    layout = dict(sorted(layout.items(), key=lambda item: item[1]["data_offsets"]))
    text = json.dumps({"__metadata__": metadata, **layout}, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8), memoryview(content)[8 + length :]


def read_weights(
    path: str | os.PathLike[str], expected_sha256: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the header of a file that `write_weights` wrote.

    Examples:
        >>> from importlib import resources
        >>> from cifarnets.weights.files import read_weights
        >>> with resources.as_file(resources.files("cifarnets.weights") / "convnet.safetensors") as path:
        ...     tensors, header = read_weights(path)
        >>> tensors["conv1.weight"].shape, header["architecture"]
        (torch.Size([16, 3, 3, 3]), 'convnet')

    Args:
        path: The file.
        expected_sha256: The SHA-256 of the whole file, where it is known.

    Raises:
        WeightsError: The file is missing, damaged, a pickle, or of another program, or has another SHA-256.
        InputError: No file can have such a path.
    """
    found = as_path(path)
    try:
        with open_regular(found) as file:
            return _read(file, os.fstat(file.fileno()).st_size, brief(str(found)), expected_sha256)
    except OSError as error:
        raise WeightsError(f"cannot read the weights {brief(str(found))}: {error.strerror or error}.") from error


def parse_weights(content: bytes, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the header of a weight file's bytes.

    Examples:
        >>> from importlib import resources
        >>> from cifarnets.weights.files import parse_weights
        >>> content = (resources.files("cifarnets.weights") / "convnet.safetensors").read_bytes()
        >>> tensors, header = parse_weights(content, "convnet.safetensors")
        >>> header["architecture"]
        'convnet'

    Args:
        content: A whole file.
        name: What error messages call it.

    Raises:
        WeightsError: As `read_weights`.
    """
    return _read(io.BytesIO(content), len(content), brief(name))


def check_sha256(found: str, expected: str | None, name: str) -> None:
    """Refuse a file whose SHA-256 is not the expected one, if one is expected.

    Examples:
        >>> from cifarnets.weights.files import check_sha256
        >>> check_sha256("0" * 64, None, "a.safetensors")

    Raises:
        InputError: The expected one is no SHA-256.
        WeightsError: They differ.
    """
    if expected is None:
        return
    if not re.fullmatch("[0-9a-fA-F]{64}", expected):
        raise InputError(f"expected_sha256 must be 64 hexadecimal digits, not {brief(expected)}.")
    if found != expected.lower():
        raise WeightsError(
            f"{name} is not the expected file: its SHA-256 is {found}, not {expected.lower()}. It was not opened; ask "
            "its author which one is right."
        )


def _read(
    file: IO[bytes], size: int, name: str, expected_sha256: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a whole file of known size; `name` is what messages call it."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    def broken(reason: object) -> NoReturn:
        raise WeightsError(f"{name} is not a whole safetensors file: {brief(str(reason), quotes=False)}.")

    try:
        start = file.read(9)
        # The length of the header may well begin like a pickle.
        if start.startswith(_PICKLES) and start[4:] != b"\0\0\0\0{":
            raise WeightsError(
                f"{name} is a pickle (torch.save), which could run code; it was not opened. "
                "cifarnets.sharing.import_model, or `cifarnets import`, makes a weight file of it, and runs none."
            )
        if start.lstrip().startswith(b"<"):
            broken("it begins like a web page, as servers send instead of a file that they do not have")
        if len(start) < 9 or start[8:] != b"{":
            broken(f"it has {size:,} bytes, and no header" if len(start) < 9 else "it does not begin with a header")
        (length,) = struct.unpack("<Q", start[:8])
        if not 2 <= length <= min(HEADER_BYTES, size - 8):
            broken(
                f"its header would have {length:,} bytes, the file has {size:,}, and a header {HEADER_BYTES:,} at most"
            )
        text = start[8:] + file.read(length - 1)
        layout = _from_json(text.decode())
        entries = layout.pop("__metadata__", None) or {}
        if len(layout) > TENSORS:
            broken(f"it has {len(layout):,} tensors, and a file may have {TENSORS:,}")
        data = file.read()
        if len(text) != length or 8 + length + len(data) != size:
            broken("it became shorter or longer while it was read")
        if expected_sha256 is not None:
            check_sha256(hashlib.sha256(start[:8] + text + data).hexdigest(), expected_sha256, name)
        # A copy each: safetensors' tensors lie wherever the header ends, which need not suit their dtype.
        tensors = {key: tensor.clone() for key, tensor in load(start[:8] + text + data).items()}
        header = _read_entries(entries, text, data, name)
    except (MemoryError, RecursionError, OverflowError) as error:
        raise WeightsError(f"{name} cannot be read: {type(error).__name__}, so large is it.") from error
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
        if isinstance(error, CifarNetsError):
            raise
        broken(error)
    channels_last, halved = (_names(header.pop(key, [])) for key in ("channels_last", "halved"))
    for key, tensor in tensors.items():
        whole = tensor.float() if key in halved and tensor.dtype == torch.float16 else tensor
        is_4d = key in channels_last and whole.ndim == 4
        tensors[key] = whole.to(memory_format=torch.channels_last) if is_4d else whole
    return tensors, header


def _read_entries(entries: object, text: bytes, data: bytes, name: str) -> dict[str, Any]:
    """Check the metadata and the digest, and return the entries as values."""
    if not isinstance(entries, dict) or not all(isinstance(value, str) for value in entries.values()):
        raise ValueError("its metadata are not text")
    if VERSION_KEY not in entries:
        raise WeightsError(
            f"{name} is a safetensors file of another program: it does not say which model it belongs to. "
            "cifarnets.sharing.import_model, or `cifarnets import`, makes a weight file of it."
        )
    digest = entries.pop(DIGEST_KEY, None)
    if digest is None and (strange := entries.keys() - _BEFORE_DIGESTS):
        raise WeightsError(f"{name} is damaged: it has no digest, though it has the entry {brief(min(strange))}.")
    if digest is not None:
        blank = text.replace(digest.encode(), _ZEROS.encode()) if len(digest) == len(_ZEROS) else text
        found = hashlib.sha256(struct.pack("<Q", len(blank)) + blank)
        found.update(data)
        if found.hexdigest() != digest:
            raise WeightsError(f"{name} is damaged: its bytes are not those that were written (SHA-256 of the file).")
    version = entries.pop(VERSION_KEY)
    entries.pop("format", None)
    try:
        return {**{key: _from_json(value) for key, value in entries.items()}, VERSION_KEY: version}
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"the header of {name} is damaged: {brief(str(error), quotes=False)}.") from error


def _stored(name: str, tensor: Tensor, half: bool) -> Tensor:
    """A tensor as it is stored: on the CPU, contiguous, and sharing no memory, which safetensors refuses."""
    if tensor.layout != torch.strided or tensor.is_meta:
        kind = "without numbers (meta)" if tensor.is_meta else f"{tensor.layout} and {tensor.dtype}"
        raise WeightsError(f"{brief(name)} is {kind}, for which a weight file has no form; convert it first.")
    stored = tensor.detach().cpu().resolve_neg().clone(memory_format=torch.contiguous_format)
    if half:
        if (stored.abs() > torch.finfo(torch.float16).max).any():
            raise WeightsError(f"{name} has numbers that are too large for float16: save it with half=False.")
        stored = stored.half()
    return stored


def _from_json(text: str) -> Any:
    """The value of a JSON text, of which no part is out of bounds.

    Raises:
        ValueError: It is no JSON, too deep, names something twice, or has a number of a thousand digits.
        RecursionError: It is much too deep.
    """
    value = json.loads(text, object_pairs_hook=_without_twins, parse_int=_bounded)
    level = [value]
    for _ in range(DEPTH):
        level = [item for part in level if isinstance(part, (list, dict)) for item in _items(part)]
        if not level:
            return value
    raise ValueError(f"it is nested more than {DEPTH} levels deep")


def _items(part: list[Any] | dict[str, Any]) -> list[Any]:
    return part if isinstance(part, list) else list(part.values())


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("it names something twice")
    return found


def _bounded(digits: str) -> int:
    if len(digits) > 1000:
        raise ValueError(f"a number has {len(digits):,} digits")
    return int(digits)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last)


def _names(value: object) -> set[str]:
    return {name for name in value if isinstance(name, str)} if isinstance(value, list) else set()
