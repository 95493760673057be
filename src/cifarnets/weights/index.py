"""The released weights: what is known of each, and the way to its file. Knows no model."""

import contextlib
import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from cifarnets.errors import WeightsError

FOLDER: Any = resources.files("cifarnets.weights")
INDEX_FILE = "index.json"
GOLDEN_FILE = "golden.safetensors"


@dataclass(frozen=True)
class Release:
    """Released weights: a row of the index, which is made from the weight file and the logs of the runs behind it.

    Accuracies are top-1 on all test images of the classes, after the last epoch; nothing was chosen on them.

    Attributes:
        name: Of the weights and of the recipe that trains them: that of the architecture, or `architecture.tag`.
        file: In the package.
        size: Of the file, in bytes.
        sha256: Of the file.
        architecture: The registered name.
        config: Every argument of the model.
        parameters: Trainable numbers and frozen ones.
        macs: Multiply-adds for one image.
        classes: Names of the outputs.
        mean: Per channel: the images that the model is fed are `(v - mean) / std` of images in 0..1.
        std: Likewise.
        seed: That of the run whose weights these are: the first, not the best.
        seeds: Those of all runs of the recipe that were made.
        accuracy: Mean over the seeds.
        accuracy_std: Standard deviation over the seeds (of a sample); None for a single one.
        tta: The test-time augmentation of the next three.
        tta_accuracy: Mean over the seeds.
        tta_accuracy_std: Standard deviation over the seeds.
        file_accuracy: Of this file.
        file_tta_accuracy: Of this file, with test-time augmentation.
        file_ece: Expected calibration error of this file, without.
        predictions_sha256: Of the file's predicted classes on the test images, a byte each.
        milliseconds: A single image on the CPU, in a batch of one.
        milliseconds_batch: A single image on the CPU, in a batch of 1,000.
        measured: On what the milliseconds were measured.
    """

    name: str
    file: str
    size: int
    sha256: str
    architecture: str
    config: Mapping[str, Any]
    parameters: int
    macs: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    seed: int
    seeds: tuple[int, ...]
    accuracy: float
    accuracy_std: float | None
    tta: str | None
    tta_accuracy: float | None
    tta_accuracy_std: float | None
    file_accuracy: float
    file_tta_accuracy: float | None
    file_ece: float
    predictions_sha256: str
    milliseconds: float
    milliseconds_batch: float
    measured: str


@functools.cache
def releases() -> Mapping[str, Release]:
    """All released weights by name, sorted.

    Raises:
        WeightsError: The index is missing or damaged.
    """
    path = FOLDER / INDEX_FILE
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {name: _release(name, row) for name, row in sorted(rows.items())}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise WeightsError(f"the index of released weights {str(path)!r} cannot be read: {error}.") from error


def _release(name: str, row: Mapping[str, Any]) -> Release:
    wanted, given = {field.name for field in fields(Release)}, {"name", *row}
    if wanted != given:
        raise ValueError(f"{name!r} lacks, or has too much of: {', '.join(sorted(wanted ^ given))}")
    columns: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    for key, hint in get_type_hints(Release).items():
        if key in columns and not _fits(columns[key], hint):
            raise TypeError(f"{key} of {name!r} cannot be {columns[key]!r}")
    return Release(name=name, **columns)


def _fits(value: Any, hint: Any) -> bool:
    """Whether JSON's value is of a type that a field of a Release names."""
    kind, parts = get_origin(hint) or hint, get_args(hint)
    if kind is tuple:
        return isinstance(value, tuple) and all(_fits(item, parts[0]) for item in value)
    if kind is Mapping:
        return isinstance(value, Mapping)
    if parts:  # of a union
        return any(_fits(value, part) for part in parts)
    return isinstance(value, (int, float) if kind is float else kind)


def mean_and_std(mean: float, std: float | None) -> str:
    """An accuracy over seeds as it is printed everywhere."""
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def checked_file(release: Release) -> Iterator[Path]:
    """The file of released weights, after a look at every byte of it; within the block, for a package may be zipped.

    Raises:
        WeightsError: It is missing, or not the one that was released.
    """
    source = FOLDER / release.file
    try:
        found = sha256(source.read_bytes())
    except OSError as error:
        raise WeightsError(
            f"cannot read the released weights {release.name!r} in {str(source)!r}: {error.strerror or error}. "
            "Install cifarnets again."
        ) from error
    if found != release.sha256:
        raise WeightsError(
            f"{str(source)!r} is not the file that was released as {release.name!r}: its SHA-256 is {found}, and the "
            f"index says {release.sha256}. Install cifarnets again."
        )
    with resources.as_file(source) as path:
        yield path
