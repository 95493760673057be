"""What a run is made of: the recipe, and the files that hold it."""

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import resources
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifarnets._checked import checked
from cifarnets._fields import fits, hints_of, name_of
from cifarnets._files import as_path
from cifarnets.datasets import Augment, CIFAR10Normalized, SyntheticCIFAR10, cifar_subset
from cifarnets.datasets.folder import class_folders
from cifarnets.datasets.images import ImageDataset
from cifarnets.distillation import soft_labels
from cifarnets.errors import InputError, brief, unknown_name
from cifarnets.inference import TTA
from cifarnets.training.precision import Precision
from cifarnets.training.trainer import Trainer

RELEASE = "release"
"""The table of a recipe's file that tells of the published runs; it is no part of the recipe."""
LARGEST_FILE = 16_000
"""Bytes of a TOML file: the time that a reader takes grows with the square of a hostile one."""
MOST_DOTS = 100
"""Dots in a line of a TOML file: the reader walks down a dotted key part by part, for every part again."""
SPELLINGS = {"optimizer_options": "--option", "schedule_options": "--schedule-option"}
"""The options of the command line whose names are not those of the fields."""
LARGEST_NUMBER = 2**63
"""What a seed must be below; torch and JSON readers take no larger number."""


@dataclass(frozen=True)
class Recipe:
    """A training run as data: what to train, on what, and how.

    The defaults are the article's, except that it trains for 100 epochs instead of 20.

    Examples:
        >>> from cifarnets.recipes import Recipe
        >>> recipe = Recipe("convnet", classes=("airplane", "automobile", "ship"), epochs=100)
        >>> recipe.lr, recipe.batch_size
        (0.01, 64)

    Attributes:
        model: a model of `cifarnets list`
        config: arguments of the model; num_classes is the number of classes unless given
        classes: these classes only, relabelled from 0 in this order
        epochs: passes over the training images
        batch_size: images a batch
        drop_last: leave out a last batch that is not full
        optimizer: one of torch in lower case, such as adamw, or convmuon
        lr: learning rate, or its peak where a schedule changes it
        optimizer_options: further arguments of the optimizer: momentum=0.9
        decay_biases: weight decay on biases and normalisation layers too
        schedule: how the learning rate changes, batch by batch: constant, cosine, long_tailed, one_cycle, triangular,
            trapezoidal or step
        schedule_options: further arguments of the schedule: warmup=0.1
        label_smoothing: of the cross-entropy, 0..1
        accumulate: batches an optimizer step
        clip_norm: limit of the norm of all gradients
        precision: number format of a step; auto takes the fastest that the device has in hardware
        compile: torch.compile the model
        channels_last: keep images as [N, H, W, C] in memory, which is faster for most nets
        deterministic: use deterministic algorithms only
        ema: decay of a moving average of the weights, which is evaluated and saved instead of them
        augment: flip=random, translate=2, cutout=8, mixup=0.2, cutmix=1.0, rotate=15, sharpness=1, brightness=0.1,
            contrast=0.1, saturation=0.5, hue=0.05, erase=0.25, curriculum=[[24,3],[28,3]]
        distill: teacher=NAME, share=0.5, temperature=2: learn from a teacher's probabilities too; of several teachers,
            teacher='["NAME", "NAME"]', from the mean
        tta: evaluate with test-time augmentation too: the mean over several views of each image
        seed: of the initial weights, the order of the images, and everything else
        val: hold out this many training images and evaluate on them after every epoch
        synthetic: train on drawn pictures, which need no data
        images: train on the pictures in this folder, which has a folder for each class
        val_images: evaluate on the pictures in this folder after every epoch
    """

    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[str] = ()
    epochs: int = 20
    batch_size: int = 64
    drop_last: bool = False
    optimizer: str = "sgd"
    lr: float = 1e-2
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    decay_biases: bool = True
    schedule: str | None = None
    schedule_options: Mapping[str, Any] = field(default_factory=dict)
    label_smoothing: float = 0.0
    accumulate: int = 1
    clip_norm: float | None = None
    precision: Precision = "fp32"
    compile: bool = False
    channels_last: bool = False
    deterministic: bool = False
    ema: float | None = None
    augment: Mapping[str, Any] = field(default_factory=dict)
    distill: Mapping[str, Any] = field(default_factory=dict)
    tta: TTA | None = None
    seed: int = 0
    val: int = 0
    synthetic: bool = False
    images: str | None = None
    val_images: str | None = None

    def __post_init__(self) -> None:
        for name, hint in hints_of(Recipe).items():
            value = getattr(self, name)
            if isinstance(value, (np.integer, np.floating)):
                value = value.item()
                object.__setattr__(self, name, value)  # the dataclass is frozen
            if not fits(value, hint):
                raise InputError(f"{name} of a recipe must be {name_of(hint)}, not {brief(value)}.")
            check_plain(value, f"{name} of a recipe")
        for name in ("epochs", "batch_size", "accumulate"):
            if not 1 <= getattr(self, name) < 2**31:
                raise InputError(f"{name} must be at least 1, and below 2**31, not {getattr(self, name)}.")
        if not 0 <= self.val < 2**31:
            raise InputError(f"val must be at least 0, and below 2**31, not {self.val}.")
        if self.images is not None and self.synthetic:
            raise InputError("a recipe has drawn pictures (synthetic=True) or images, not both.")
        if self.val_images is not None and (self.images is None or self.val):
            raise InputError("val_images of a recipe needs images, and no val, which would hold some of those out.")
        if not 0 <= self.seed < 2**63:
            raise InputError(f"seed must be a whole number from 0 to 2^63 - 1, not {brief(self.seed)}.")
        augment = self.augmentation()
        small = sum(epochs for _, epochs in augment.curriculum) if augment else 0
        if small >= self.epochs:
            raise InputError(
                f"the curriculum of a recipe takes {small} epochs, and the run has {self.epochs}, so no epoch would be "
                "left for whole images: make it shorter, or the run longer."
            )
        accepted = sorted(signature(soft_labels).parameters.keys() - {"dataset", "device"})
        if strange := sorted(self.distill.keys() - accepted):
            raise InputError(f"distill of a recipe does not take {', '.join(strange)}, but {', '.join(accepted)}.")
        teacher: Any = self.distill.get("teacher")
        names = [teacher] if isinstance(teacher, str) else teacher
        if self.distill and not (names and fits(names, list[str]) and all(names)):
            raise InputError(f"distill of a recipe must name a teacher, or several, not {brief(teacher)}.")

    def trainer_options(self) -> dict[str, Any]:
        """Return the fields that are arguments of the `Trainer`.

        Examples:
            >>> from cifarnets.recipes import Recipe
            >>> Recipe("convnet", lr=0.1).trainer_options()["lr"]
            0.1
        """
        accepted = signature(Trainer).parameters.keys() - {"model"}  # of a recipe, it is only the name
        return {name: getattr(self, name) for name in hints_of(Recipe) if name in accepted}

    def differences(self, other: "Recipe") -> list[str]:
        """Say in which fields another recipe differs; empty if it trains in the same way.

        Examples:
            >>> from cifarnets.recipes import Recipe
            >>> Recipe("convnet").differences(Recipe("convnet", lr=0.1))
            ['lr 0.01, not 0.1']
        """
        ours, theirs = self.to_dict(), other.to_dict()
        return [f"{key} {ours[key]!r}, not {theirs[key]!r}" for key in ours if ours[key] != theirs[key]]

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as plain values, as JSON gives them back.

        Examples:
            >>> from cifarnets.recipes import Recipe
            >>> Recipe("convnet", classes=("cat", "dog")).to_dict()["classes"]
            ['cat', 'dog']
        """
        plain: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return plain

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], source: str = "the recipe") -> "Recipe":
        """Make a recipe of plain values, as `to_dict` gives them.

        Examples:
            >>> from cifarnets.recipes import Recipe
            >>> Recipe.from_dict({"model": "convnet", "lr": 0.1}) == Recipe("convnet", lr=0.1)
            True

        Args:
            content: The fields that differ from the defaults.
            source: What a message calls it.

        Raises:
            InputError: There is no model, or a key is no field, or a value cannot be used.
        """
        fitting = hints_of(cls).keys()
        if strange := sorted(content.keys() - fitting):
            raise InputError(
                f"{source} has {', '.join(strange)[:200]}, which no recipe has; it may have: "
                f"{', '.join(sorted(fitting))}."
            )
        if "model" not in content:
            raise InputError(f"{source} names no model.")
        return cls(**content)

    def augmentation(self) -> Augment | None:
        """Return what to do to the training images; None for nothing.

        Examples:
            >>> from cifarnets.recipes import Recipe
            >>> Recipe("convnet", augment={"translate": 2}).augmentation().translate
            2

        Raises:
            InputError: `augment` has a key or a value that `Augment` does not take.
        """
        try:
            return Augment(**self.augment) if self.augment else None
        except TypeError as error:
            raise InputError(f"augment of a recipe does not take {brief(dict(self.augment))}: {error}.") from error

    def labels(self, dataset: ImageDataset, device: torch.device) -> Tensor | None:
        """Compute what to learn instead of the dataset's labels; None for the labels themselves.

        Examples:
            >>> import torch
            >>> from cifarnets.recipes import Recipe
            >>> recipe = Recipe("convnet", synthetic=True)
            >>> recipe.labels(recipe.dataset(train=False), torch.device("cpu")) is None
            True

        Raises:
            CifarNetsError: `soft_labels` cannot use the teacher.
        """
        return soft_labels(dataset, **self.distill, device=device) if self.distill else None

    def dataset(
        self, train: bool, root: str | os.PathLike[str] | None = None, *, progress: bool = True
    ) -> ImageDataset:
        """Load the images of this recipe's classes: the training images, or the test images.

        A recipe with `images` has no test images; `val_images` are those that it is evaluated on. Files that are no
        pictures are left out, and a warning names them.

        Examples:
            >>> from cifarnets.recipes import Recipe
            >>> len(Recipe("convnet", synthetic=True).dataset(train=False))
            1000

        Raises:
            CifarNetsError: The images are not there, or cannot be used.
        """
        if self.images is not None:
            folder, split = (self.images, "train") if train else (self.val_images, "val")
            if folder is None:
                raise InputError("the recipe has no other pictures than those it trains on: name val_images.")
            classes = [path.name for path in class_folders(self.images)]
            dataset = ImageDataset.from_folder(folder, classes=classes, split=split, skip_bad=True, progress=progress)
        else:
            dataset = SyntheticCIFAR10(train) if self.synthetic else CIFAR10Normalized(root, train)
        return cifar_subset(dataset, self.classes) if self.classes else dataset


@checked
def list_recipes(pattern: str = "*") -> list[str]:
    """List the recipes that come with the library and match a shell pattern, sorted.

    Examples:
        >>> from cifarnets.recipes import list_recipes
        >>> list_recipes("convnet.*")
        ['convnet.cifar3', 'convnet.cifar3_fast']
    """
    names = [file.name.removesuffix(".toml") for file in _folder().iterdir() if file.name.endswith(".toml")]
    return sorted(name for name in names if fnmatchcase(name, pattern))


@checked
def load_recipe(name: str | os.PathLike[str]) -> Recipe:
    """Load a recipe of the library, or a TOML file whose keys are the fields of `Recipe`.

    Examples:
        >>> from cifarnets.recipes import load_recipe
        >>> load_recipe("convnet.cifar3").epochs
        100

    Args:
        name: One of `list_recipes()`, or the path of a file that ends in `.toml`.

    Raises:
        UnknownNameError: There is no such recipe; the near match is suggested.
        InputError: The file cannot be read, is not TOML, or has a key that is no field.
    """
    content = {key: value for key, value in read_recipe(name).items() if key != RELEASE}
    return Recipe.from_dict(content, f"the recipe {str(name)!r}")


def read_recipe(name: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the TOML of a recipe whole: its fields, and the table `release` with the facts of the published runs.

    Raises:
        UnknownNameError: There is no such recipe; the near match is suggested.
        InputError: The file cannot be read, or is not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    if str(name).endswith(".toml"):
        source: Any = as_path(name)
    elif name not in list_recipes():
        raise unknown_name("recipe", name, list_recipes())
    else:
        source = _folder() / f"{name}.toml"
    try:
        with source.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
        if len(text) > LARGEST_FILE:
            raise ValueError(f"it is larger than {LARGEST_FILE:,} bytes")
        if any(line.count(b".") > MOST_DOTS for line in text.splitlines()):
            raise ValueError(f"a line has more than {MOST_DOTS} dots")
        content: dict[str, Any] = tomllib.loads(text.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read the recipe {str(name)!r}: {error}.") from error
    return content


def known_as(recipe: Recipe) -> str | None:
    """Return the name of the library's recipe that trains in the same way, whatever the seed; None if there is none.

    Examples:
        >>> from dataclasses import replace
        >>> from cifarnets.recipes import load_recipe
        >>> from cifarnets.recipes.recipe import known_as
        >>> known_as(replace(load_recipe("convnet"), seed=5))
        'convnet'
    """
    for name in list_recipes():
        other = load_recipe(name)
        if not replace(other, seed=recipe.seed).differences(recipe):
            return name
    return None


def flag_of(name: str) -> str:
    """Return the option of `cifarnets train` for a field.

    Examples:
        >>> from cifarnets.recipes.recipe import flag_of
        >>> flag_of("batch_size"), flag_of("optimizer_options")
        ('--batch-size', '--option')
    """
    return SPELLINGS.get(name, "--" + name.replace("_", "-"))


def command_of(recipe: Recipe) -> list[str]:
    """Return the words of the command that trains as a recipe says.

    Examples:
        >>> from dataclasses import replace
        >>> from cifarnets.recipes import Recipe, load_recipe
        >>> from cifarnets.recipes.recipe import command_of
        >>> " ".join(command_of(Recipe("convnet", epochs=5, optimizer_options={"momentum": 0.9})))
        'cifarnets train convnet --epochs 5 --option momentum=0.9'
        >>> " ".join(command_of(replace(load_recipe("convnet"), seed=3)))
        'cifarnets train --recipe convnet --seed 3'
    """
    known = known_as(recipe)
    if known is not None:
        return ["cifarnets", "train", "--recipe", known, "--seed", str(recipe.seed)]
    words = ["cifarnets", "train", recipe.model]
    usual, chosen = Recipe(recipe.model).to_dict(), recipe.to_dict()
    for name, value in chosen.items():
        flag = flag_of(name)
        if value == usual[name]:
            continue
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        elif isinstance(value, dict):
            for key, item in value.items():
                words += [flag, f"{key}={_as_value(item)}"]
        else:
            words += [flag, ",".join(value) if isinstance(value, list) else str(value)]
    return words


def _as_value(item: object) -> str:
    """A value as the command line reads it: JSON, and text as it is, unless it could be taken for JSON."""
    text = json.dumps(item)
    if not isinstance(item, str):
        return text
    try:
        json.loads(item)
    except ValueError:
        return item
    return text


def recipe_name(name: str | os.PathLike[str]) -> str:
    """Return what a recipe's runs are called: its name, or its file's."""
    return Path(name).stem if str(name).endswith(".toml") else str(name)


def check_plain(value: object, name: str, depth: int = 8, entries: int = 10_000) -> None:
    """Refuse a value that JSON cannot hold and give back, or that is too large or too deep for any recipe.

    Examples:
        >>> from cifarnets.recipes.recipe import check_plain
        >>> check_plain({"momentum": 0.9, "betas": [0.9, 0.95]}, "optimizer_options")

    Args:
        value: Text, numbers, true, false, nothing, and lists and tables of them.
        name: What the message calls it.
        depth: How deep lists and tables may be nested.
        entries: How many values there may be.

    Raises:
        InputError: The message says what is wrong.
    """
    level, count = [value], 0
    for _ in range(depth):
        below: list[Any] = []
        for item in level:
            if isinstance(item, Mapping):
                if not all(isinstance(key, str) for key in item):
                    raise InputError(f"{name} has a key that is no text: {brief(item)}.")
                below += [*item, *item.values()]
            elif isinstance(item, (list, tuple)):
                below += item
            elif isinstance(item, str):
                if len(item) > 5_000:
                    raise InputError(f"{name} has a text of {len(item):,} characters.")
            elif isinstance(item, int):
                if not -LARGEST_NUMBER <= item < LARGEST_NUMBER:
                    raise InputError(f"{name} has a number that is not within ±2**63: {brief(item)}.")
            elif isinstance(item, float):
                if not math.isfinite(item):
                    raise InputError(f"{name} has {item}, which is not a finite number.")
            elif item is not None:
                raise InputError(f"{name} has a {type(item).__name__}, which no recipe can hold: {brief(item)}.")
        count += len(below)
        if count > entries:
            raise InputError(f"{name} has more than {entries:,} entries.")
        if not below:
            return
        level = below
    raise InputError(f"{name} is nested more than {depth} deep.")


def _folder() -> Any:
    return resources.files("cifarnets") / "recipes"
