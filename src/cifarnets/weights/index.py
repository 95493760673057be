"""The index of the released weights and the way to their files. It knows no model."""

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
    """Facts about released weights: a row of the index, made from the weight file and the logs of its runs.

    Accuracies are top-1 on all test images of the classes after the last epoch. Nothing was chosen by them.

    Examples:
        >>> from cifarnets.models import info
        >>> release = info("resnet20").release
        >>> release.classes[:2], release.parameters
        (('airplane', 'automobile'), 269722)

    Attributes:
        name: Name of the weights and of the recipe that trains them: the architecture, or `architecture.tag`.
        file: Name of the file in the package.
        size: Size of the file in bytes.
        sha256: SHA-256 of the file.
        architecture: The registered name of the model.
        config: Every argument of the model.
        parameters: Number of parameters, frozen ones included.
        macs: Multiply-adds for one image.
        classes: Names of the outputs.
        mean: Mean of each channel; the model takes `(images - mean) / std` of images in 0..1.
        std: Standard deviation of each channel.
        seed: Seed of the run with these weights, which is the first run, not the best.
        seeds: Seeds of all runs of the recipe.
        accuracy: Mean accuracy over the seeds.
        accuracy_std: Sample standard deviation over the seeds; None for a single seed.
        tta: The test-time augmentation of the next two, and of `file_tta_accuracy`.
        tta_accuracy: Mean accuracy over the seeds with test-time augmentation.
        tta_accuracy_std: Standard deviation over the seeds with test-time augmentation.
        file_accuracy: Accuracy of this file.
        file_tta_accuracy: Accuracy of this file with test-time augmentation.
        file_ece: Expected calibration error of this file, without test-time augmentation.
        predictions_sha256: SHA-256 of the predicted classes of the test images, one byte for each.
        milliseconds: Time for an image on the CPU in a batch of one.
        milliseconds_batch: Time for an image on the CPU in a batch of 1,000.
        measured: The machine of these times.
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

    Examples:
        >>> from cifarnets.weights.index import releases
        >>> releases()["convnet.cifar3"].architecture
        'convnet'

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
    """An accuracy over seeds as text.

    Examples:
        >>> from cifarnets.weights.index import mean_and_std
        >>> mean_and_std(0.91234, 0.00167)
        '0.9123 ± 0.0017'
    """
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal.

    Examples:
        >>> from cifarnets.weights.index import sha256
        >>> sha256(b"")[:16]
        'e3b0c44298fc1c14'
    """
    return hashlib.sha256(content).hexdigest()


@contextlib.contextmanager
def checked_file(release: Release) -> Iterator[Path]:
    """The path of the file of released weights, after a check of every byte.

    The path is valid in the block only, because a zipped package has no files outside it.

    Examples:
        >>> from cifarnets.weights.index import checked_file, releases
        >>> with checked_file(releases()["fcnet"]) as path:
        ...     path.name
        'fcnet.safetensors'

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
