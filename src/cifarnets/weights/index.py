"""The released weights: what is known of each, and its file. Knows no model."""

import functools
import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any

from cifarnets._fields import fits, hints_of, name_of
from cifarnets.errors import WeightsError, brief

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
        name: Name of the weights: the architecture, or `architecture.tag`. Older versions end in `.v1` and so on, and
            further seeds in `.seed1` and so on.
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
        temperature: What the logits of the run were divided by, so that the probabilities of this file say how often it
            is right; None if they were not. It was found on training images that a run of the same recipe held out.
        uncalibrated_ece: Expected calibration error without the temperature; None if there is none.
        predictions_sha256: SHA-256 of the predicted classes of the test images, one byte for each.
        milliseconds: Time for an image on the CPU in a batch of one.
        milliseconds_batch: Time for an image on the CPU in a batch of 1,000.
        measured: The machine of these times.
        provenance: Where the weights come from: licence and version, recipe, commit, paper, machine and data.
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
    temperature: float | None
    uncalibrated_ece: float | None
    predictions_sha256: str
    milliseconds: float
    milliseconds_batch: float
    measured: str
    provenance: Mapping[str, Any]

    @property
    def version(self) -> int:
        """1 for the first weights of a name, 2 for those that took their place.

        Examples:
            >>> from cifarnets.models import info
            >>> info("resnet20").release.version
            1
        """
        return int(str(self.provenance["version"]).partition(".")[0])

    @property
    def recipe(self) -> str:
        """The name of the recipe that trained them, which trains all seeds.

        Examples:
            >>> from cifarnets.models import info
            >>> info("convnet.cifar3").release.recipe
            'convnet.cifar3'
        """
        return recipe_of(self.name)

    @property
    def is_default(self) -> bool:
        """Whether these are the weights that the name without version and seed stands for.

        Examples:
            >>> from cifarnets.models import info
            >>> info("resnet20").release.is_default
            True
        """
        return self.name == stem_of(self.name)


_VARIANT = re.compile(r"(\.v(?P<version>[0-9]{1,3}))?(\.seed(?P<seed>[0-9]{1,9}))?$")
"""How a name may pin a version and a seed."""


@functools.cache
def releases() -> Mapping[str, Release]:
    """All released weights by name, sorted.

    Examples:
        >>> from cifarnets.weights.index import releases
        >>> releases()["convnet.cifar3"].classes
        ('airplane', 'automobile', 'ship')

    Raises:
        WeightsError: The index is missing or damaged.
    """
    path = FOLDER / INDEX_FILE
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {name: _release(name, row) for name, row in sorted(rows.items())}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        reason = brief(str(error), 400, quotes=False)
        raise WeightsError(f"the index of released weights {str(path)!r} cannot be read: {reason}.") from error


def stem_of(name: str) -> str:
    """A name without version and seed.

    Examples:
        >>> from cifarnets.weights.index import stem_of
        >>> stem_of("convnet.cifar3.v1.seed2"), stem_of("resnet20")
        ('convnet.cifar3', 'resnet20')
    """
    return _VARIANT.sub("", name)


def recipe_of(name: str) -> str:
    """A name without seed.

    Examples:
        >>> from cifarnets.weights.index import recipe_of
        >>> recipe_of("convnet.cifar3.v1.seed2"), recipe_of("resnet20")
        ('convnet.cifar3.v1', 'resnet20')
    """
    return re.sub(r"\.seed[0-9]+$", "", name)


def find_release(name: str, seed: int | None = None) -> Release | None:
    """The released weights of a name: the newest version and the first seed, unless the name or `seed` says another.

    Examples:
        >>> from cifarnets.weights.index import find_release
        >>> find_release("convnet").name, find_release("convnet.v1").version
        ('convnet', 1)
        >>> find_release("convnet", seed=1000) is None
        True
    """
    pinned = _VARIANT.search(name)
    assert pinned is not None  # for it may be empty
    found = [release for release in releases().values() if stem_of(release.name) == stem_of(name)]
    version = int(pinned["version"] or max((release.version for release in found), default=1))
    chosen = seed if pinned["seed"] is None or seed is not None else int(pinned["seed"])
    for release in found:
        if release.version == version and release.seed == (release.seeds[0] if chosen is None else chosen):
            return release
    return None


def _release(name: str, row: Mapping[str, Any]) -> Release:
    """A row of the index, whose values are of the types that `Release` has."""
    wanted, given = {field.name for field in fields(Release)}, {"name", *row}
    if wanted != given:
        raise ValueError(f"{brief(name)} lacks, or has too much of: {', '.join(sorted(wanted ^ given))}")
    for key, hint in hints_of(Release).items():
        if key != "name" and not (fits(row[key], hint) and _is_plain(row[key])):
            raise TypeError(f"{key} of {brief(name)} cannot be {brief(row[key])}, but {name_of(hint)}")
    if not re.fullmatch(r"[\w.-]{1,100}", row["file"]) or not 0 < row["size"] < 2**31:
        raise ValueError(f"{brief(name)} cannot have the file {brief(row['file'])} of {row['size']:,} bytes")
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,3})*", str(row["provenance"].get("version"))):
        raise ValueError(f"{brief(name)} cannot be of the version {brief(row['provenance'].get('version'))}")
    columns: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    return Release(name=name, **columns)


def _is_plain(value: Any, depth: int = 5) -> bool:
    """Whether a value of JSON is finite, of a reasonable size, and no deep nesting."""
    if isinstance(value, (list, dict)):
        items = value if isinstance(value, list) else value.values()
        return depth > 0 and all(_is_plain(item, depth - 1) for item in items)
    return not isinstance(value, (int, float)) or (math.isfinite(value) and abs(value) < 2**53)


def mean_and_std(mean: float, std: float | None) -> str:
    """An accuracy over seeds as it is printed everywhere.

    Examples:
        >>> from cifarnets.weights.index import mean_and_std
        >>> mean_and_std(0.9283, 0.0012), mean_and_std(0.9283, None)
        ('0.9283 ± 0.0012', '0.9283')
    """
    return f"{mean:.4f}" if std is None else f"{mean:.4f} ± {std:.4f}"


def sha256(content: bytes) -> str:
    """The SHA-256 of some bytes, in hexadecimal.

    Examples:
        >>> from cifarnets.weights.index import sha256
        >>> sha256(b"")[:8]
        'e3b0c442'
    """
    return hashlib.sha256(content).hexdigest()


def read_release(release: Release) -> bytes:
    """Read the file of released weights, and check every byte of it.

    Use the bytes, and do not open the file a second time: it could be another one by then.

    Examples:
        >>> from cifarnets.weights.index import read_release, releases
        >>> release = releases()["convnet"]
        >>> len(read_release(release)) == release.size
        True

    Raises:
        WeightsError: It is missing, or not the one that was released.
    """
    source = FOLDER / release.file  # in a package, which may be a zip archive
    try:
        with source.open("rb") as file:
            content: bytes = file.read(release.size + 1)
    except OSError as error:
        raise WeightsError(
            f"cannot read the released weights {release.name!r} in {str(source)!r}: {error.strerror or error}. "
            "Install cifarnets again."
        ) from error
    if (found := sha256(content)) != release.sha256:
        raise WeightsError(
            f"{str(source)!r} is not the file that was released as {release.name!r}: its SHA-256 is {found}, and the "
            f"index says {release.sha256}. Install cifarnets again."
        )
    return content
