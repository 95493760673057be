"""A training run as data: all it takes to train a model, and the folder that a run leaves."""

import inspect
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime, timezone
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from cifarnets._files import write_atomic
from cifarnets.datasets import Augment, BatchLoader, CIFAR10Normalized, SyntheticCIFAR10, cifar_subset, train_val_split
from cifarnets.datasets.images import ImageDataset
from cifarnets._device import resolve_device
from cifarnets.errors import InputError, OutputError, unknown_name
from cifarnets.evaluation import TTA, Evaluation, evaluate
from cifarnets.models import create, annotate, save
from cifarnets.models.registry import model_class
from cifarnets.seeding import seed_everything
from cifarnets.training import distributed
from cifarnets.training.callbacks import EMA, Callback, Checkpoint, CSVLog
from cifarnets.distillation import soft_labels
from cifarnets.training.history import History
from cifarnets.training.optimizers import make_optimizer
from cifarnets.training.precision import Precision
from cifarnets.training.schedules import count_steps, make_schedule
from cifarnets.training.trainer import Trainer
from cifarnets.version import __version__

RUN_FILE = "run.json"
TRAINER_FIELDS = (
    "optimizer",
    "lr",
    "optimizer_options",
    "decay_biases",
    "schedule",
    "schedule_options",
    "label_smoothing",
    "accumulate",
    "clip_norm",
    "precision",
    "compile",
    "channels_last",
    "deterministic",
    "seed",
)
"""The fields of a recipe that are arguments of the Trainer."""
DISTILL_FIELDS = sorted(inspect.signature(soft_labels).parameters.keys() - {"dataset", "device"})
"""The keys of `distill`: arguments of `soft_labels`."""


_KINDS: dict[tuple[type, ...], tuple[str, ...]] = {
    (str,): ("model", "optimizer", "precision"),
    (str, type(None)): ("schedule", "tta"),
    (int,): ("epochs", "batch_size", "accumulate", "seed", "val"),
    (int, float): ("lr", "label_smoothing"),
    (int, float, type(None)): ("clip_norm", "ema", "minutes"),
    (bool,): ("drop_last", "decay_biases", "compile", "channels_last", "deterministic", "synthetic"),
    (list, tuple): ("classes", "seeds"),
    (Mapping,): ("config", "optimizer_options", "schedule_options", "augment", "distill"),
}
"""What the fields of a recipe may be."""


@dataclass(frozen=True)
class Recipe:
    """What to train, on what, and how; the defaults are the article's, but for 20 epochs instead of 100.

    Attributes:
        model: One of `list_models()`.
        config: Arguments of `create`; `num_classes` is the number of classes unless given.
        classes: Class names, in the order of the outputs; none for all.
        epochs: Passes over the training images.
        batch_size: Images a step.
        drop_last: Whether a last batch that is not full is left out.
        optimizer: A name of `torch.optim` in lower case.
        lr: Learning rate.
        optimizer_options: Further arguments of the optimizer.
        decay_biases: This and what follows down to `deterministic`: as the Trainer's.
        ema: Decay of the moving average of the weights that is evaluated and saved; None for the weights themselves.
        augment: Arguments of `Augment`; none for no augmentation.
        distill: Arguments of `soft_labels`, such as the teacher; none for learning from the labels alone.
        tta: Test-time augmentation of the final evaluation on top of the plain one; see `evaluate`.
        seed: Of the initial weights, the order of the images, and everything else.
        val: Training images to hold out and evaluate after every epoch.
        synthetic: Train on `SyntheticCIFAR10` instead of CIFAR-10.
        seeds: Those of the runs behind the published figures.
        minutes: What each of these took, on the machine that the recipe's comment names.
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
    seeds: Sequence[int] = field(default=(), compare=False)
    minutes: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for kinds, names in _KINDS.items():
            for name in names:
                value = getattr(self, name)
                whole_for_bool = isinstance(value, bool) and bool not in kinds
                if whole_for_bool or not isinstance(value, kinds):
                    wanted = " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)
                    raise InputError(f"{name} of a recipe must be {wanted}, not {value!r}.")
        for name in ("epochs", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}.")
        for name, known in (("precision", get_args(Precision)), ("tta", (None, *get_args(TTA)))):
            if getattr(self, name) not in known:
                raise InputError(f"{name} of a recipe must be one of {known}, not {getattr(self, name)!r}.")
        self.augmentation()
        if strange := sorted(self.distill.keys() - DISTILL_FIELDS):
            raise InputError(
                f"distill of a recipe does not take {', '.join(strange)}, but {', '.join(DISTILL_FIELDS)}."
            )
        if self.distill and not isinstance(self.distill.get("teacher"), str):
            raise InputError(f"distill of a recipe must name a teacher, not {self.distill.get('teacher')!r}.")

    def augmentation(self) -> Augment | None:
        """What to do to training images; None for nothing.

        Raises:
            InputError: `augment` has a key or a value that `Augment` does not take.
        """
        try:
            return Augment(**self.augment) if self.augment else None
        except TypeError as error:
            raise InputError(f"augment of a recipe does not take {dict(self.augment)}: {error}.") from error

    def labels(self, dataset: ImageDataset, device: torch.device) -> Tensor | None:
        """What to learn instead of the labels of a dataset; None for just them.

        Raises:
            CifarNetsError: As `soft_labels` does.
        """
        return soft_labels(dataset, **self.distill, device=device) if self.distill else None

    def dataset(self, train: bool, root: str | os.PathLike[str] | None = None) -> ImageDataset:
        """The training or test images of this recipe's classes."""
        dataset = SyntheticCIFAR10(train) if self.synthetic else CIFAR10Normalized(root, train)
        return cifar_subset(dataset, self.classes) if self.classes else dataset


def list_recipes(pattern: str = "*") -> list[str]:
    """The names of the recipes that come with the library and match a shell pattern, sorted."""
    names = [file.name.removesuffix(".toml") for file in _recipe_folder().iterdir() if file.name.endswith(".toml")]
    return sorted(name for name in names if fnmatchcase(name, pattern))


def load_recipe(name: str | os.PathLike[str]) -> Recipe:
    """A recipe that comes with the library, or that of a TOML file whose keys are the fields of `Recipe`.

    Examples:
        >>> load_recipe("convnet.cifar3").model
        'convnet'

    Args:
        name: One of `list_recipes()`, or the path of a file that ends in `.toml`.

    Raises:
        UnknownNameError: There is no such recipe; the near match is suggested.
        InputError: The file cannot be read, is not TOML, or has a key that is no field.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    if str(name).endswith(".toml"):
        source: Any = Path(name)
    elif name not in list_recipes():
        raise unknown_name("recipe", name, list_recipes())
    else:
        source = _recipe_folder() / f"{name}.toml"
    try:
        content = tomllib.loads(source.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the recipe {str(name)!r}: {error}.") from error
    fitting = {key.name for key in fields(Recipe)}
    if strange := sorted(content.keys() - fitting):
        raise InputError(
            f"the recipe {str(name)!r} has {', '.join(strange)}, which no recipe has; it may have: "
            f"{', '.join(sorted(fitting))}."
        )
    if "model" not in content:
        raise InputError(f"the recipe {str(name)!r} names no model.")
    return Recipe(**content)


def reproduce(name: str, seed: int = 0, folder: str | os.PathLike[str] | None = None, **options: Any) -> "Run":
    """Train what a recipe of the library says, as the released weights were.

    Args:
        name: One of `list_recipes()`.
        seed: Another one than was published gives another run of the same kind.
        folder: Where to; by default `runs/NAME-seedSEED`. A run that was broken off there is gone on with.
        options: Further arguments of `run`, such as `device` and `root`.

    Raises:
        CifarNetsError: As `load_recipe` and `run` do.
    """
    recipe = replace(load_recipe(name), seed=seed)
    return run(recipe, folder or Path("runs") / f"{recipe_name(name)}-seed{seed}", **{"resume": True, **options})


def recipe_name(name: str | os.PathLike[str]) -> str:
    """What a recipe's runs are called: its name, or that of its file."""
    return Path(name).stem if str(name).endswith(".toml") else str(name)


def _recipe_folder() -> Any:
    return resources.files("cifarnets") / "recipes"


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Attributes:
        folder: Holds `run.json` (the recipe, versions, machine), `history.csv`, `checkpoint.safetensors` (to go on
            from), `model.safetensors` and `evaluation.json`.
        recipe: What was run.
        model: In eval mode.
        history: One row an epoch.
        evaluations: Of `train` and `test`, and of `val` where images were held out; `test (…)` with test-time
            augmentation, where the recipe asks for it.
        interrupted: Whether Ctrl-C or SIGTERM ended it before its last epoch.
    """

    folder: Path
    recipe: Recipe
    model: nn.Module
    history: History
    evaluations: dict[str, Evaluation]
    interrupted: bool


def run(
    recipe: Recipe | None,
    folder: str | os.PathLike[str],
    *,
    resume: bool = False,
    root: str | os.PathLike[str] | None = None,
    device: str | torch.device = "auto",
    callbacks: Sequence[Callback] = (),
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> Run:
    """Train as the recipe says, evaluate, and leave everything in a folder.

    Args:
        recipe: What to do; None for that of the run in the folder.
        folder: Made if missing; must be empty, or hold a run to go on with.
        resume: Go on with the run in the folder, from its last checkpoint; if there is none, start it.
        root: Where CIFAR-10 lies; see `CIFAR10Normalized`.
        device: Where to compute.
        callbacks: Further ones, beside the CSV log, the checkpoint and the progress bar.
        checkpoint_every: Batches between two checkpoints; None for one an epoch.
        progress: Show a progress bar, if this is a terminal.

    Raises:
        OutputError: The folder holds files already, or cannot be written.
        InputError: The run in the folder is of another recipe, or there is none and no recipe either.
        KeyboardInterrupt: Ctrl-C came twice; `resume` goes on from the last checkpoint.
        CifarNetsError: As `CIFAR10Normalized`, `create` and `Trainer.fit` do.
    """
    folder = Path(folder)
    device = resolve_device(device)
    world = distributed.join(device)
    starts: list[Any] = []
    if resume and (folder / RUN_FILE).is_file():
        recipe, starts = _read_run(folder, recipe)
    elif recipe is None:
        raise InputError(f"there is no run in {str(folder)!r} to go on with.")
    model_class(recipe.model)  # is there one? before anything is loaded
    train, test = recipe.dataset(True, root), recipe.dataset(False, root)
    parts = {"train": train, "test": test}
    if recipe.val:
        parts["train"], parts["val"] = train_val_split(train, recipe.val, recipe.seed)
    layout = recipe.channels_last
    loaders = {name: BatchLoader(part, 1000, device=device, channels_last=layout) for name, part in parts.items()}
    seed_everything(recipe.seed)
    model = create(recipe.model, **{"num_classes": len(train.classes), **recipe.config})
    prepare: Any = getattr(model, "init_from_images", None)
    if prepare is not None:  # some layers are set from images before training
        init_from_images(next(iter(BatchLoader(parts["train"], 5000, device="cpu")))[0])
    own = [CSVLog(folder / "history.csv"), Checkpoint(folder, every_batches=checkpoint_every)]
    average = [] if recipe.ema is None else [EMA(recipe.ema)]
    trainer = Trainer(
        model,
        **{name: getattr(recipe, name) for name in TRAINER_FIELDS},
        device=device,
        callbacks=[*average, *own, *callbacks],
        progress=progress,
    )
    shuffled = BatchLoader(
        parts["train"],
        recipe.batch_size,
        shuffle=True,
        drop_last=recipe.drop_last,
        device=device,
        seed=recipe.seed,
        augment=recipe.augmentation(),
        channels_last=layout,
        labels=recipe.labels(parts["train"], device),
    )
    # What the fit would refuse is refused before the folder is claimed.
    trial = make_optimizer(model, recipe.optimizer, recipe.lr, recipe.optimizer_options, recipe.decay_biases)
    steps = count_steps(shuffled, recipe.epochs, recipe.accumulate)
    make_schedule(trial, recipe.schedule, steps, recipe.schedule_options)
    if world.is_main:
        if not starts:
            _claim(folder)
        write_json(folder / RUN_FILE, {"recipe": asdict(recipe), "starts": [*starts, _circumstances(trainer)]})
        (folder / "evaluation.json").unlink(missing_ok=True)  # of a part of the run
    history = trainer.fit(shuffled, loaders.get("val"), recipe.epochs, resume=folder if starts else None)
    if trainer.failed:  # a second Ctrl-C, which may have torn the weights; the last checkpoint is whole
        raise KeyboardInterrupt
    trained = trainer.eval_model.eval()
    annotate(trained, training={**asdict(recipe), "epochs": trainer.epoch})
    evaluations = {}
    if world.is_main:
        save(trained, folder / "model.safetensors")
        (folder / "last.safetensors").unlink(missing_ok=True)  # the same, less the training facts
        evaluations = {name: evaluate(trained, loader, device) for name, loader in loaders.items()}
        if recipe.tta:
            for name in parts.keys() - {"train"}:
                evaluations[f"{name} ({recipe.tta})"] = evaluate(trained, loaders[name], device, tta=recipe.tta)
        write_json(folder / "evaluation.json", {name: result.to_dict() for name, result in evaluations.items()})
    return Run(folder, recipe, trained, history, evaluations, trainer.interrupted)


def _read_run(folder: Path, expected: Recipe | None) -> tuple[Recipe, list[Any]]:
    """The recipe of the run in a folder, and its starts so far."""
    try:
        content = json.loads((folder / RUN_FILE).read_text())
        recipe = Recipe(**content["recipe"])
        starts = list(content["starts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{str(folder / RUN_FILE)!r} is damaged: {error!r}.") from error
    if expected is not None:
        theirs, ours = json.loads(json.dumps(asdict(recipe))), json.loads(json.dumps(asdict(expected)))
        telling = [one.name for one in fields(Recipe) if one.compare]
        different = [f"{key} {theirs[key]!r}, not {ours[key]!r}" for key in telling if ours[key] != theirs[key]]
        if different:
            raise InputError(f"the run in {str(folder)!r} has another recipe: {'; '.join(different)}.")
    return recipe, starts


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write plain values as indented JSON, atomically."""
    return write_atomic(path, json.dumps(content, indent=2) + "\n")


def _claim(folder: Path) -> None:
    """The folder, made and found empty, before any time is spent on a run that could not be kept."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = next(folder.iterdir(), None)
    except OSError as error:
        raise OutputError(f"cannot write into {str(folder)!r}: {error.strerror}.") from error
    if taken is not None:
        raise OutputError(
            f"{str(folder)!r} holds files already ({taken.name} …); name another folder, or go on with the run in it "
            "(resume=True, --resume)."
        )


def _circumstances(trainer: Trainer) -> dict[str, Any]:
    machine = {
        "platform": platform.platform(),
        "device": str(trainer.device),
        "threads": torch.get_num_threads(),
        "processes": trainer.world.size,
    }
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": {"cifarnets": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "machine": machine,
        "command": sys.argv,
    }
