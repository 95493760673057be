"""One run of a recipe: trained, evaluated, and kept in a folder."""

import contextlib
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cifarnets._checked import checked
from cifarnets._device import resolve_device
from cifarnets._files import as_path, clear_leftovers, is_leftover, open_regular, write_atomic
from cifarnets._runtime import machine, source_commit
from cifarnets.datasets import BatchLoader, ImageDataset, train_val_split
from cifarnets.datasets.cifar10 import DATA_LICENSE
from cifarnets.errors import InputError, OutputError, brief
from cifarnets.evaluation import Evaluation, evaluate
from cifarnets.models import annotate, create, save
from cifarnets.models.registry import model_class, paper_of
from cifarnets.recipes.recipe import Recipe, check_plain, known_as, load_recipe, recipe_name
from cifarnets.seeding import seed_everything
from cifarnets.training import EMA, Callback, Checkpoint, CSVLog, History, Trainer
from cifarnets.version import __version__

RUN_FILE = "run.json"
PATHS = ("images", "val_images")
"""The fields of a recipe that are paths."""
LARGEST_RUN_FILE = 1_000_000
"""Bytes of a run.json; each start of a run adds a few hundred."""


class _FolderGuard(Callback):
    """Ends the fit once the folder of its run has been removed; the files that follow would be a part of a run only."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_epoch_start(self, trainer: Trainer) -> None:  # noqa: ARG002 (hooks share one signature)
        self.check()

    def on_epoch_end(self, trainer: Trainer) -> None:  # noqa: ARG002
        self.check()

    def check(self) -> None:
        if not (self.folder / RUN_FILE).is_file():
            raise OutputError(
                f"{str(self.folder / RUN_FILE)!r} has been removed while the run was going on, so it cannot be kept."
            )


@dataclass(frozen=True)
class Run:
    """A run that has ended.

    Examples:
        >>> import tempfile
        >>> from cifarnets.recipes import Recipe, run_recipe
        >>> recipe = Recipe("convnet", epochs=1, batch_size=500, synthetic=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = run_recipe(recipe, folder, progress=False)
        >>> sorted(run.evaluations)
        ['test', 'train']

    Attributes:
        folder: Holds `run.json` (the recipe, versions, machine), `history.csv`, `checkpoint.safetensors` (to resume
            from), `model.safetensors` and `evaluation.json`.
        recipe: What was run.
        model: In eval mode.
        history: One row an epoch.
        evaluations: On `train` and `test`, and on `val` where images were held out (a run on `images` has no test
            images); `test (…)` is with test-time
            augmentation, where the recipe asks for it.
        interrupted: Whether Ctrl-C ended it before its last epoch, in an interactive session.
    """

    folder: Path
    recipe: Recipe
    model: nn.Module
    history: History
    evaluations: dict[str, Evaluation]
    interrupted: bool


@checked
def reproduce(name: str, seed: int = 0, folder: str | os.PathLike[str] | None = None, **options: Any) -> Run:
    """Train a recipe of the library, as the released weights were trained.

    Examples:
        >>> import cifarnets
        >>> cifarnets.reproduce("convnet.cifar3", seed=0)  # doctest: +SKIP

    Args:
        name: One of `list_recipes()`.
        seed: Another seed than the published ones gives one more run of the same kind.
        folder: Where to write; by default `runs/NAME-seedSEED`. An interrupted run in this folder is resumed.
        options: Further arguments of `run_recipe`, such as `device` and `root`.

    Raises:
        CifarNetsError: `load_recipe` or `run_recipe` raises it.
    """
    recipe = replace(load_recipe(name), seed=seed)
    return run_recipe(recipe, folder or Path("runs") / f"{recipe_name(name)}-seed{seed}", **{"resume": True, **options})


@checked
def run_recipe(
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

    Examples:
        >>> import tempfile
        >>> from cifarnets.recipes import Recipe, run_recipe
        >>> recipe = Recipe("convnet", epochs=1, batch_size=500, synthetic=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = run_recipe(recipe, folder, progress=False)
        >>> len(run.history)
        1

    Args:
        recipe: What to do; None for the recipe of the run in the folder.
        folder: Made if missing. It must be empty, or hold a run to resume.
        resume: Resume the run in the folder from its last checkpoint; start it if there is none.
        root: Where CIFAR-10 lies; see `CIFAR10Normalized`.
        device: Where to compute.
        callbacks: Further ones, beside the CSV log, the checkpoint and the progress bar.
        checkpoint_every: Batches between two checkpoints; None for one an epoch.
        progress: Show a progress bar.

    Raises:
        OutputError: The folder holds files already, or cannot be written.
        InputError: The run in the folder is of another recipe, or there is neither a run nor a recipe.
        KeyboardInterrupt: Ctrl-C, in a script; `resume` continues from the last checkpoint.
        SystemExit: SIGTERM; likewise.
        CifarNetsError: The data, the model or the Trainer cannot be made, or the fit fails.
    """
    folder, device = as_path(folder), resolve_device(device)
    starts: list[Any] = []
    recipe = recipe and _settled(recipe)
    if resume and (folder / RUN_FILE).is_file():
        recipe, starts = read_run(folder, recipe)
    elif recipe is None:
        raise InputError(f"there is no run in {str(folder)!r} to resume.")
    parts = _datasets(recipe, root, progress)
    loaders = {
        name: BatchLoader(part, 1000, device=device, channels_last=recipe.channels_last) for name, part in parts.items()
    }
    model = _model(recipe, parts["train"])
    guard = _FolderGuard(folder)
    kept = [guard, CSVLog(folder / "history.csv"), Checkpoint(folder, every_batches=checkpoint_every)]
    average = [] if recipe.ema is None else [EMA(recipe.ema)]
    every_callback = [*average, *kept, *callbacks]
    trainer = Trainer(model, **recipe.trainer_options(), device=device, callbacks=every_callback, progress=progress)
    shuffled = BatchLoader(
        parts["train"],
        recipe.batch_size,
        shuffle=True,
        drop_last=recipe.drop_last,
        device=device,
        seed=recipe.seed,
        augment=recipe.augmentation(),
        channels_last=recipe.channels_last,
        labels=recipe.labels(parts["train"], device),
    )
    val_loader = loaders.get("val")
    trainer.plan(shuffled, val_loader, recipe.epochs)  # refuses what cannot work, before the folder is claimed
    made: list[Path] = []
    if trainer.world.is_main:
        if not starts:
            made = _claim(folder)
        write_json(folder / RUN_FILE, {"recipe": recipe.to_dict(), "starts": [*starts, _circumstances(trainer)]})
        (folder / "evaluation.json").unlink(missing_ok=True)  # of a part of the run
    try:
        trainer.fit(shuffled, val_loader, recipe.epochs, resume=folder if starts else None)
    except Exception:
        if trainer.world.is_main and not starts:
            _release(folder, made)
        raise
    if trainer.world.is_main:
        guard.check()
    return _finish(trainer, recipe, folder, loaders)


def _settled(recipe: Recipe) -> Recipe:
    """The recipe with whole paths, so that the run can be resumed from another folder."""
    paths: dict[str, Any] = {name: getattr(recipe, name) for name in PATHS}
    for name, path in paths.items():
        paths[name] = path and os.path.abspath(as_path(path))  # noqa: PTH100 (Path.resolve would follow links)
    return replace(recipe, **paths)


def _facts(recipe: Recipe) -> dict[str, Any]:
    """What a weight file says of its training; it travels, and where somebody keeps pictures is nobody's business."""
    facts = recipe.to_dict()
    return {**facts, **{name: facts[name] and Path(facts[name]).name for name in PATHS}}


def _datasets(recipe: Recipe, root: str | os.PathLike[str] | None, progress: bool) -> dict[str, ImageDataset]:
    """The images to train on and to evaluate on."""
    model_class(recipe.model)  # an unknown model is refused before anything is loaded
    parts = {"train": recipe.dataset(True, root, progress=progress)}
    if recipe.images is None:
        parts["test"] = recipe.dataset(False, root)
    elif recipe.val_images is not None:
        parts["val"] = recipe.dataset(False, progress=progress)
    if recipe.val:
        parts["train"], parts["val"] = train_val_split(parts["train"], recipe.val, recipe.seed)
    return parts


def _model(recipe: Recipe, train: ImageDataset) -> nn.Module:
    """The model with its initial weights, some of which come from the training images in some families."""
    seed_everything(recipe.seed)
    model = create(recipe.model, **{"num_classes": len(train.classes), **recipe.config})
    init_from_images: Any = getattr(model, "init_from_images", None)
    if init_from_images is not None:
        init_from_images(next(iter(BatchLoader(train, 5000, device="cpu")))[0])
    return model


def _finish(trainer: Trainer, recipe: Recipe, folder: Path, loaders: Mapping[str, BatchLoader]) -> Run:
    """Save and evaluate the trained model."""
    model = trainer.eval_model.eval()
    training = {**_facts(recipe), "epochs": trainer.epoch}
    annotate(model, training=training, results={}, provenance=_provenance(recipe, trainer))
    evaluations = {}
    if trainer.world.is_main:
        save(model, folder / "model.safetensors")
        (folder / "last.safetensors").unlink(missing_ok=True)  # the same, without the facts about the training
        device = trainer.device
        evaluations = {name: evaluate(model, loader, device=device) for name, loader in loaders.items()}
        if recipe.tta:
            for name in loaders.keys() - {"train"}:
                result = evaluate(model, loaders[name], device=device, tta=recipe.tta)
                evaluations[f"{name} ({recipe.tta})"] = result
        annotate(model, results=_results(recipe, evaluations))
        save(model, folder / "model.safetensors")
        write_json(folder / "evaluation.json", {name: result.to_dict() for name, result in evaluations.items()})
    return Run(folder, recipe, model, trainer.history, evaluations, trainer.interrupted)


def _provenance(recipe: Recipe, trainer: Trainer) -> dict[str, Any]:
    """Where the weights of a run come from. Their licence is for their author to choose."""
    data = (
        "drawn pictures" if recipe.synthetic else "CIFAR-10" if recipe.images is None else "pictures in class folders"
    )
    facts = {
        "recipe": known_as(recipe),
        "commit": source_commit(),
        "paper": paper_of(recipe.model),
        "versions": versions(),
        "machine": {**machine(trainer.device), "processes": trainer.world.size},
        "data": data,
        "data_license": DATA_LICENSE if data == "CIFAR-10" else None,
    }
    return {key: value for key, value in facts.items() if value is not None}


def _results(recipe: Recipe, evaluations: Mapping[str, Evaluation]) -> dict[str, Any]:
    """The measurements of a single run, under the names that those of released weights have."""
    plain = evaluations.get("test")
    if plain is None:
        return {}
    augmented = evaluations[f"test ({recipe.tta})"].accuracy if recipe.tta else None
    return {
        "seed": recipe.seed,
        "seeds": [recipe.seed],
        "accuracy": plain.accuracy,
        "accuracy_std": None,
        "tta": recipe.tta,
        "tta_accuracy": augmented,
        "tta_accuracy_std": None,
        "file_accuracy": plain.accuracy,
        "file_tta_accuracy": augmented,
        "file_ece": plain.ece,
    }


def read_run(folder: Path, expected: Recipe | None = None) -> tuple[Recipe, list[Any]]:
    """Read the recipe of the run in a folder, and its starts so far: time, versions, machine and command.

    Raises:
        InputError: There is no run, its file is damaged, or it has another recipe than the expected one.
    """
    try:
        with open_regular(folder / RUN_FILE) as file:
            text = file.read(LARGEST_RUN_FILE + 1)
        if len(text) > LARGEST_RUN_FILE:
            raise ValueError(f"it is larger than {LARGEST_RUN_FILE:,} bytes")
        content = json.loads(text)
        recipe = read_run_recipe(content["recipe"])
        starts = content["starts"]
        check_plain(starts, "starts", entries=100_000)
        if not isinstance(starts, list):
            raise TypeError("starts is not a list")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(
            f"there is no run in {brief(str(folder))}: it has no {RUN_FILE}. Pass a folder that `cifarnets train` "
            "wrote."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{str(folder / RUN_FILE)!r} is damaged: {brief(error)}.") from error
    if expected is not None and (different := recipe.differences(expected)):
        raise InputError(f"the run in {str(folder)!r} has another recipe: {'; '.join(different)}.")
    return recipe, starts


def read_run_recipe(content: Mapping[str, Any]) -> Recipe:
    """Make the recipe of a run.json; earlier versions wrote facts about published runs into it.

    Raises:
        InputError: It is no recipe.
    """
    return Recipe.from_dict({key: value for key, value in content.items() if key not in ("seeds", "minutes")})


def versions() -> dict[str, str]:
    """The versions of what a run is computed with."""
    return {"cifarnets": __version__, "torch": torch.__version__, "python": platform.python_version()}


def write_json(path: Path, content: Mapping[str, Any]) -> Path:
    """Write plain values as indented JSON, atomically."""
    return write_atomic(path, json.dumps(content, indent=2) + "\n")


def _claim(folder: Path) -> list[Path]:
    """Make the folder, or find it empty, before any time is spent on a run that could not be kept.

    Returns:
        The folders that were not there before, the innermost first.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_leftovers(folder)  # of a run that was killed while it wrote its first file
        taken = next((path for path in folder.iterdir() if not is_leftover(path)), None)
    except (OSError, ValueError) as error:  # ValueError: there is a NUL in it
        raise OutputError(f"cannot write into {str(folder)!r}: {getattr(error, 'strerror', error)}.") from error
    if taken is not None:
        raise OutputError(
            f"{str(folder)!r} holds files already ({taken.name} …); name another folder, or resume the run in it "
            "(resume=True)."
        )
    return made


def _release(folder: Path, made: list[Path]) -> None:
    """Take back a claim on a folder in which nothing was learnt; what else is in it stays."""
    with contextlib.suppress(OSError):
        if [path.name for path in folder.iterdir()] == [RUN_FILE]:
            (folder / RUN_FILE).unlink()
            for path in made:
                path.rmdir()


def _circumstances(trainer: Trainer) -> dict[str, Any]:
    return {
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": {**machine(trainer.device), "processes": trainer.world.size},
        "command": sys.argv,
    }
