"""What each command of the command line does: call the library, and print what it gives."""

import argparse
import contextlib
import csv
import glob
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cifarnets
from cifarnets._files import as_path
from cifarnets._terminal import printable, rounded
from cifarnets.datasets import (
    ARTICLE_MEAN,
    ARTICLE_STD,
    BatchLoader,
    CIFAR10Normalized,
    ImageDataset,
    SyntheticCIFAR10,
    dataset_for,
    download_cifar10,
    find_cifar10,
)
from cifarnets.datasets.pictures import SIZE, Read, find_pictures, read_ahead
from cifarnets.errors import (
    CifarNetsError,
    DataCorruptError,
    DataNotFoundError,
    DownloadError,
    InputError,
    OutputError,
    UnknownNameError,
)
from cifarnets.models.metadata import ModelMeta, get_meta
from cifarnets.prediction import Prediction, Preprocessing, predict
from cifarnets.recipes import Recipe, Run, list_recipes, load_recipe, run_recipe
from cifarnets.recipes.recipe import read_recipe, recipe_name
from cifarnets.training import ArticleLog, Callback, Trainer
from cifarnets.training.checkpoint import CHECKPOINT_FILE
from cifarnets.weights.index import Release, find_release, mean_and_std, releases

REPORT_FILE = "report.html"
PICTURES_AT_ONCE = 64
"""Pictures that go through the model together; what they are is printed before the next ones."""


class UsageError(InputError):
    """Options that make no sense together."""

    exit_status = 2


def list_models(options: argparse.Namespace) -> None:
    """Print the models, or the released weights."""
    if options.sort == "accuracy" and not options.pretrained:
        raise UsageError("only released weights have an accuracy to sort by: add --pretrained.")
    names = cifarnets.list_models(
        options.pattern,
        pretrained=options.pretrained,
        max_params=options.max_params,
        max_macs=options.max_macs,
        sort=options.sort,
    )
    found = [cifarnets.info(name) for name in names]
    if options.json:
        _print_json([model.to_dict() for model in found])
        return
    if not found:
        everything = "cifarnets list --pretrained" if options.pretrained else "cifarnets list"
        raise InputError(f"nothing matches {options.pattern!r} within these limits; `{everything}` shows all.")
    for model in found:
        words = _accuracy(model.release) if options.pretrained and model.release else model.description
        _print(f"{model.name:<{_width(names)}} {model.parameters:>10,} parameters  {words}")


def recipes(options: argparse.Namespace) -> None:
    """Print the recipes of the library, each with what it trains and how well that does."""
    found = {name: load_recipe(name) for name in list_recipes(options.pattern)}
    if options.json:
        _print_json([{"name": name, **recipe.to_dict()} for name, recipe in found.items()])
        return
    if not found:
        raise InputError(f"no recipe matches {options.pattern!r}; `cifarnets recipes` shows all.")
    for name, recipe in found.items():
        classes = f"{len(recipe.classes) or 10} classes"
        words = f"{recipe.model}, {classes}, {recipe.epochs} epochs, {recipe.optimizer}, lr {recipe.lr:g}"
        if minutes := read_recipe(name).get("release", {}).get("minutes"):
            words += f"; {minutes} minutes"
        if release := releases().get(name):
            words += f"; accuracy {mean_and_std(release.accuracy, release.accuracy_std)}"
        _print(f"{name:<{_width(found)}} {words}")


def _width(names: Iterable[str]) -> int:
    """Of a column of names."""
    return max(20, *map(len, names))


def info(options: argparse.Namespace) -> None:
    """Print what is known of a model and of released weights."""
    model = cifarnets.info(options.name)
    if options.json:
        _print_json(model.to_dict())
        return
    _print(f"{model.name}: {model.description}\n")
    _print("arguments of create():")
    for key, value in model.config.items():
        _print(f"  {key} = {value!r}")
    release = model.release
    if release is not None:
        _print(f"\nreleased weights ({release.size:,} bytes), `create({model.name!r}, pretrained=True)`:")
        _print(f"  test images: {_accuracy(release)}")
        _print(f"  this file (seed {release.seed}): accuracy {release.file_accuracy:.4f}, ECE {_ece(release)}")
        _print(f"  classes: {', '.join(release.classes)}")
        _print(f"  normalised with mean {release.mean}, std {release.std}")
        _print(f"  {release.milliseconds:.2f} ms an image, {release.milliseconds_batch:.3f} ms in batches of 1,000")
        _print(f"  ({release.measured})")
        _print(f"  trained by: cifarnets train --recipe {release.recipe} --seed {release.seed}")
        for key, value in release.provenance.items():
            _print(f"  {key.replace('_', ' ')}: {value}")
        others = [releases()[name] for name in model.variants if name != release.name]
        if others:
            _print("  other versions and seeds of this name:")
        for other in others:
            words = f"version {other.version}, seed {other.seed}: accuracy {other.file_accuracy:.4f}, ECE {_ece(other)}"
            _print(f"    {other.name:<24} {words}")
    _print(f"\n{cifarnets.models.summary(cifarnets.create(options.name))}")


def _ece(release: Release) -> str:
    """The calibration error of a released file, and what it was before the temperature."""
    before = release.uncalibrated_ece
    return f"{release.file_ece:.4f}" + (f" ({before:.4f} before calibration)" if before is not None else "")


def _accuracy(release: Release) -> str:
    """The accuracy of released weights in words."""
    text = f"accuracy {mean_and_std(release.accuracy, release.accuracy_std)}"
    if release.tta_accuracy is not None:
        text += f", {mean_and_std(release.tta_accuracy, release.tta_accuracy_std)} with {release.tta}"
    return f"{text} (seeds {', '.join(map(str, release.seeds))})"


def verify(options: argparse.Namespace) -> int:
    """Check released weights, and end with 1 if one is not as it was released."""
    checks = []
    for name in options.names or cifarnets.list_models(pretrained=True):
        for check in cifarnets.verify(name, options.data_root, device=options.device):
            checks.append(check)
            verdict = {True: "ok", False: "FAILED", None: "-"}[check.passed]
            if not options.json:
                _print(f"{check.name:<16} {check.what:<14} {verdict:<7} {check.detail}")
    failed = [check for check in checks if check.passed is False]
    if options.json:
        _print_json([asdict(check) for check in checks])
    elif failed:
        print(f"{len(failed)} of {len(checks)} checks failed.", file=sys.stderr)
    return int(bool(failed))


def download(options: argparse.Namespace) -> None:
    """Fetch CIFAR-10 and check every file."""
    folder = download_cifar10(options.data_root)
    CIFAR10Normalized(folder, train=True)
    CIFAR10Normalized(folder, train=False)
    _print(f"CIFAR-10 is in {folder}, and every batch is the published one.")


def train(options: argparse.Namespace) -> None:
    """Train a model, or resume a run."""
    given = _given(options)
    recipe = None
    if options.name is not None or options.recipe is not None:
        recipe = _recipe(options, given)
    elif options.resume is None:
        raise UsageError(
            "name a model of `cifarnets list`, a recipe (--recipe NAME), or a run to resume (--resume DIR)."
        )
    elif given:
        flags = {name: options.flags[name] for name in given}
        words = [f"--no-{flag[2:]}" if given[name] is False else flag for name, flag in flags.items()]
        raise UsageError(f"a resumed run keeps the recipe that it was started with: drop {', '.join(words)}.")
    if options.resume is not None and options.out is not None:
        raise UsageError("--resume names the run folder already: drop --out.")
    folder = options.resume or options.out
    if folder is None:
        folder = _new_folder(Path("runs") / (options.name or recipe_name(options.recipe)))
    result = _run(
        recipe,
        folder,
        options,
        resume=options.resume is not None,
        checkpoint_every=options.checkpoint_every,
        progress=not options.quiet,
    )
    if result.evaluations:  # in the process that writes
        for name, evaluation in result.evaluations.items():
            _print(f"Accuracy {name}: {evaluation.accuracy:.4f}")
        page = _report_on(result, options)
        _print(f"The run is in {folder}: {', '.join(sorted(path.name for path in result.folder.iterdir()))}")
        if page is not None:
            _print(f"Look at it in a browser: {page}")


def _given(options: argparse.Namespace) -> dict[str, Any]:
    """The options of the command line that are fields of a recipe, and the number of outputs."""
    names = [field.name for field in fields(Recipe) if field.name != "model"]
    return {name: value for name in (*names, "num_classes") if (value := getattr(options, name)) is not None}


def _recipe(options: argparse.Namespace, given: Mapping[str, Any]) -> Recipe:
    """The recipe of the command line: a model's or a named one, with the given options changed."""
    if options.name is not None and options.recipe is not None:
        raise UsageError(f"name a model ({options.name}) or a recipe ({options.recipe}), not both.")
    recipe = Recipe(options.name) if options.recipe is None else load_recipe(options.recipe)
    changes = dict(given)
    if "num_classes" in changes:
        changes["config"] = [*changes.get("config", ()), ("num_classes", changes.pop("num_classes"))]
    for key, value in changes.items():
        if isinstance(getattr(recipe, key), Mapping):  # pairs change some entries of a table, and leave the others
            changes[key] = {**getattr(recipe, key), **dict(value)}
    try:
        return replace(recipe, **changes)
    except InputError as error:
        raise UsageError(str(error)) from error


class _Ending(Callback):
    """Notes how a fit ended, in the process that writes."""

    reached = torn = False

    def on_fit_end(self, trainer: Trainer) -> None:
        self.reached, self.torn = True, trainer.failed


def _run(recipe: Recipe | None, folder: Path, options: argparse.Namespace, **settings: Any) -> Run:
    """Run a recipe; after a signal, print the command that resumes it.

    Raises:
        KeyboardInterrupt: Ctrl-C stopped it.
        SystemExit: SIGTERM did.
    """
    ending = _Ending()
    callbacks = [ending, *settings.pop("callbacks", ())]
    try:
        result = run_recipe(
            recipe, folder, root=options.data_root, device=options.device, callbacks=callbacks, **settings
        )
    except (KeyboardInterrupt, SystemExit):
        _advise(folder, options, ending)
        raise
    if result.interrupted:  # in an interactive session, where `run_recipe` returns
        _advise(folder, options, ending)
        raise KeyboardInterrupt
    return result


def _advise(folder: Path, options: argparse.Namespace, ending: _Ending) -> None:
    """Print how to resume a run that was stopped."""
    if not ending.reached or not (as_path(folder) / CHECKPOINT_FILE).is_file():
        return
    place = "the last checkpoint" if ending.torn else "the very batch"
    words = ["cifarnets", "train", "--resume", str(folder)]
    if options.data_root is not None:
        words += ["--data-root", str(options.data_root)]
    command = subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
    _print(f"Stopped. Resume from {place} with:\n  {command}")


def evaluate(options: argparse.Namespace) -> None:
    """Measure a model on the images of its classes, normalised as in its training."""
    model = cifarnets.load(options.weights)
    meta = get_meta(model)
    assert meta is not None  # load gives registered models only
    dataset = _images_of(options, meta)
    loader = BatchLoader(dataset, 1000, device=options.device)
    result = cifarnets.evaluate(model, loader, device=options.device, tta=options.tta)
    if options.json:
        _print_json({**result.to_dict(), "confidence_interval": result.confidence_interval()})
    else:
        _print(str(result))


def _images_of(options: argparse.Namespace, meta: ModelMeta) -> ImageDataset:
    """The images to measure a model on: those of a folder, or CIFAR-10's."""
    if options.images is None:
        if folder := meta.training.get("images"):
            raise UsageError(
                f"the model was trained on the pictures in a folder {folder!r}: name one with --images DIR."
            )
        return dataset_for(meta, options.data_root, train=options.split == "train")
    if options.split is not None or options.data_root is not None:
        raise UsageError("--images names the pictures: drop --split and --data-root, which are for CIFAR-10.")
    if not meta.classes:
        raise InputError("the model does not know the names of its classes, so no folder can be one of them.")
    mean, std = meta.mean or ARTICLE_MEAN, meta.std or ARTICLE_STD
    return ImageDataset.from_folder(
        options.images, size=meta.size or SIZE, mean=mean, std=std, classes=meta.classes, skip_bad=True
    )


def export(options: argparse.Namespace) -> None:
    """Write a model for other programs, and show what it takes and gives; of int8 also what it costs."""
    from cifarnets.sharing import evaluate_exported

    model = cifarnets.load(options.weights)
    written = cifarnets.export(
        model,
        options.file,
        preprocess=options.preprocess,
        layout=options.layout,
        int8=options.int8,
        root=options.data_root,
    )
    facts, accuracy = written.facts, {}
    meta = get_meta(model)
    assert meta is not None
    if options.int8:
        with contextlib.suppress(DataNotFoundError, UnknownNameError):  # of classes that CIFAR-10 has not
            test = dataset_for(meta, options.data_root)
            float_ = cifarnets.evaluate(model, BatchLoader(test, 1000, device="cpu"), device="cpu")
            accuracy = {"float": float_.accuracy, "int8": evaluate_exported(written.path, test).accuracy}
    if options.json:
        record = {"path": str(written.path), "size": written.path.stat().st_size, "gap": written.gap}
        _print_json({**record, "agreement": written.agreement, "accuracy": accuracy, "facts": dict(facts)})
        return
    size = written.path.stat().st_size
    takes = f"uint8 pictures ({facts['layout']})" if options.preprocess else "normalised float32 images (nchw)"
    _print(f"{written.path} ({size:,} bytes) takes {takes} and gives {facts['output']}.")
    _print(f"Run and compared with the model: the outputs agree within {written.gap:.1e}.")
    if written.agreement is not None:
        _print(f"int8 chooses the class of float for {written.agreement:.1%} of {facts['calibration']}.")
        shown = "   ".join(f"{name} {value:.4f}" for name, value in accuracy.items())
        _print(f"Accuracy on the test images: {shown or 'not measured, for CIFAR-10 is not here.'}")


def explore(options: argparse.Namespace) -> None:
    """Write a page in which a model runs."""
    from cifarnets.report import write_explorer

    model = cifarnets.load(options.weights)
    # `runs/mine`, `mine.safetensors` and `hf://me/mine@v2` are all called mine; `.` is the folder's own name.
    address = str(options.weights).removeprefix("hf://").partition("@")[0] if "://" in options.weights else None
    name = Path(address).name if address else Path(options.weights).expanduser().resolve().name
    name = name.removesuffix(".safetensors") or "model"
    path = write_explorer(
        model,
        options.out or Path(f"{name}.html"),
        title=name,
        classes=options.classes,
        mean=options.mean,
        std=options.std,
    )
    size = path.stat().st_size
    if options.json:
        _print_json({"path": str(path), "size": size})
        return
    _print(f"{path} ({size:,} bytes): open it in a browser. It needs no network.")


def predict_files(options: argparse.Namespace) -> int:
    """Classify picture files, say which could not be used, and end with 1 if there were any."""
    if sum((options.csv, options.jsonl, options.json)) > 1:
        raise UsageError("choose one of --csv, --jsonl and --json.")
    _check_order(options)
    model = cifarnets.load(options.weights)
    preprocessing = Preprocessing.of(model, options.mean, options.std)
    names: Iterable[str | CifarNetsError] = _file_names(options.images)
    total = None
    if "-" not in options.images:  # whose names may come as slowly as they like
        names = list(names)
        total = len(names)
    failures = 0
    with _Report(options, total) as report:
        for group in _groups(read_ahead(names, preprocessing.read, 2 * PICTURES_AT_ONCE), PICTURES_AT_ONCE):
            pictures = [picture for _, picture in group if isinstance(picture, Tensor)]
            found: Any = predict(
                model,
                torch.stack(pictures) if pictures else [],
                options.topk,
                classes=options.classes,
                mean=options.mean,
                std=options.std,
                device=options.device,
                tta=options.tta,
            )
            predictions = iter(found)
            for name, picture in group:
                if isinstance(picture, Tensor):
                    report.add(name, next(predictions))
                else:
                    failures += 1
                    report.fail(picture)
    if failures and report.count > 1:
        print(f"{failures:,} of {report.count:,} pictures could not be used.", file=sys.stderr)
    return int(bool(failures))


def _check_order(options: argparse.Namespace) -> None:
    """Refuse the pictures before the model, which would end as a puzzling error about a weight file."""
    first, second = options.weights, options.images[0]
    is_model = find_release(second) is not None or second.endswith(".safetensors") or second.startswith("hf://")
    if Path(first).is_file() and not first.endswith(".safetensors") and is_model:
        raise UsageError(f"the model comes first: cifarnets predict {second} {first}")


def _file_names(words: Iterable[str]) -> Iterator[str | CifarNetsError]:
    """The files that the words of a command line mean: names, folders, patterns, and names on standard input.

    What means no file comes as the error that says so.
    """
    for word in words:
        if word == "-":
            if hasattr(sys.stdin, "reconfigure"):
                sys.stdin.reconfigure(errors="surrogateescape")  # a name need not be valid text
            yield from _file_names(
                line for line in (line.rstrip("\r\n") for line in sys.stdin) if line not in ("", "-")
            )
        elif os.path.isdir(word):  # noqa: PTH112 (takes names that no Path can be made of)
            found = find_pictures(word)
            yield from map(str, found)
            if not found:
                yield DataNotFoundError(f"the folder {word!r} holds no picture.")
        elif glob.has_magic(word) and not os.path.lexists(word):
            matches = sorted(glob.glob(word, recursive=True))  # noqa: PTH207 (also of a whole path)
            yield from _file_names(matches)
            if not matches:
                yield DataNotFoundError(f"no file matches {word!r}.")
        else:
            yield word


def _groups(items: Iterable[Read], size: int) -> Iterator[list[Read]]:
    group: list[Read] = []
    for item in items:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group


class _Report:
    """Prints predictions as they come, in the form that was asked for, and a bar on a terminal."""

    def __init__(self, options: argparse.Namespace, total: int | None) -> None:
        from tqdm import tqdm

        self.count = 0
        self._options = options
        self._opened = False  # the JSON array
        # A few pictures need no bar: it appears after half a second.
        self._bar = tqdm(total=total, disable=None, delay=0.5, unit="picture", leave=False, dynamic_ncols=True)

    def __enter__(self) -> "_Report":
        if self._options.csv:
            self._write("image,rank,class,probability")
        return self

    def __exit__(self, *failure: object) -> None:
        if self._options.json and failure[0] is None:
            self._write("\n]" if self._opened else "[]")
        self._bar.close()

    def add(self, name: str, prediction: Prediction) -> None:
        """Print one prediction."""
        self._count()
        if self._options.json or self._options.jsonl:
            text = json.dumps(rounded({"image": name, "top": prediction}))
            if self._options.jsonl:
                self._write(text)
            else:
                self._write(f"{',' if self._opened else '['}\n  {text}", end="")
                self._opened = True
        elif self._options.csv:
            table = io.StringIO()
            rows = csv.writer(table, lineterminator="\n")
            for rank, (label, probability) in enumerate(prediction, 1):
                rows.writerow((printable(name), rank, printable(label), f"{probability:.4f}"))
            self._write(table.getvalue(), end="")
        else:
            words = ", ".join(f"{printable(label)} {probability:.3f}" for label, probability in prediction)
            self._write(f"{printable(name)}: {words}")

    def fail(self, error: CifarNetsError) -> None:
        """Print what is wrong with a file."""
        self._count()
        self._bar.write(f"cifarnets: {printable(error)}", file=sys.stderr)

    def _count(self) -> None:
        self.count += 1
        self._bar.update()

    def _write(self, text: str, end: str = "\n") -> None:
        self._bar.write(text, file=sys.stdout, end=end)  # above the bar, where there is one


def demo(options: argparse.Namespace) -> None:
    """The main job, end to end: data, training, evaluation, a file, the file read back, pictures."""
    synthetic = not _find_cifar10(options)
    names = ("airplane", "automobile", "ship")
    recipe = Recipe(
        model="convnet",
        classes=SyntheticCIFAR10(train=False, size=10).classes[:3] if synthetic else names,
        epochs=options.epochs,
        optimizer_options={"momentum": 0.9},
        synthetic=synthetic,
    )
    folder = options.out or _new_folder(Path("cifarnets-demo"))
    _print(
        f"Training the article's net ({', '.join(recipe.classes)}; {recipe.epochs} epochs, SGD, lr 0.01, momentum 0.9)"
    )
    if synthetic:
        options.data_root = None  # is of no use to the command that resumes this run
    # The article's lines tell enough where there is no terminal for a bar.
    result = _run(recipe, folder, options, callbacks=[ArticleLog(every=1)], progress=sys.stderr.isatty())
    _print(f"\nOn the test images:\n{result.evaluations['test']}\n")

    path = result.folder / "model.safetensors"
    model = cifarnets.load(path)
    test = recipe.dataset(False, options.data_root)
    loader = BatchLoader(test, 1000, device=options.device)
    if cifarnets.evaluate(model, loader, device=options.device) != result.evaluations["test"]:
        raise CifarNetsError(f"the model read back from {str(path)!r} does not agree with the one that was saved.")
    _print(f"Saved, loaded back, and both agree: {path} ({path.stat().st_size:,} bytes)\n")

    shown = [int((test.labels == label).nonzero()[0]) for label in range(3)]
    predictions: Any = predict(model, test.images[shown], topk=2, device=options.device)
    for index, prediction in zip(shown, predictions, strict=True):
        guesses = ", ".join(f"{name} {probability:.2f}" for name, probability in prediction)
        _print(f"test image {index}, {test.classes[int(test.labels[index])]}: {guesses}")

    page = _report_on(result, options)
    _print(f"\nEverything lies in {result.folder.resolve()}:")
    contents = {
        "run.json": "what was run, with versions and seed",
        "history.csv": "loss and accuracy of every epoch",
        "model.safetensors": "the weights; cifarnets.load() needs nothing else",
        "evaluation.json": "accuracy, calibration and confusion on training and test images",
    }
    for name, meaning in contents.items():
        _print(f"  {name:<18} {meaning}")
    if page is not None:
        _print(f"  {page.name:<18} all of it on one page\n\nLook at it in a browser: {page}")
    _print(f"Then look into the net: cifarnets explore {shlex.quote(str(result.folder))}")


def report(options: argparse.Namespace) -> None:
    """Write a page about runs."""
    from cifarnets.report import write_report

    path = options.out or (options.runs[0] if len(options.runs) == 1 else Path()) / REPORT_FILE
    written = write_report(options.runs, path, root=options.data_root).resolve()
    _print(f"Look at it in a browser: {written} ({written.stat().st_size:,} bytes)")


def _report_on(run: Run, options: argparse.Namespace) -> Path | None:
    """Write the page of a run that has just ended; if that fails, say so, since the run itself is whole."""
    if not options.report:
        return None
    try:
        from cifarnets.report import write_report

        return write_report(run.folder, run.folder / REPORT_FILE, root=options.data_root)
    except Exception as error:  # whatever it is, the training was worth more
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"cifarnets: no report was written: {printable(reason)}", file=sys.stderr)
        return None


def card(options: argparse.Namespace) -> None:
    """Print the card of a model."""
    from cifarnets.sharing.hub import prepare

    _print(prepare(options.weights, options.repo, options.license)[2].rstrip())


def push(options: argparse.Namespace) -> None:
    """Publish a model on the Hub."""
    from cifarnets import sharing

    pushed = sharing.push(
        options.weights, options.repo, revision=options.revision, private=options.private, license=options.license
    )
    if options.json:
        _print_json({**asdict(pushed), "address": pushed.address})
        return
    _print(f"Published: {pushed.url}")
    _print(f'Load it with: cifarnets.load("{pushed.address}", expected_sha256="{pushed.sha256}")')


def pull(options: argparse.Namespace) -> None:
    """Fetch a model from the Hub."""
    from cifarnets import sharing

    _print(str(sharing.pull(options.address, options.folder, expected_sha256=options.expected_sha256)))


def import_file(options: argparse.Namespace) -> None:
    """Make a weight file of another program's checkpoint, and print what matched."""
    from cifarnets.sharing import import_model

    if options.out.exists() and options.file.exists() and options.out.samefile(options.file):
        raise UsageError(f"OUT is FILE itself ({options.out}): name another file to write.")
    model, report = import_model(
        options.file,
        options.name,
        mean=options.mean,
        std=options.std,
        classes=options.classes,
        entry=options.entry,
        allow_missing=options.allow_missing,
        allow_unexpected=options.allow_unexpected,
        **dict(options.config),
    )
    path = cifarnets.save(model, options.out)
    if options.json:
        _print_json({**asdict(report), "path": str(path)})
        return
    _print(f"{report}\nSaved in {path} ({path.stat().st_size:,} bytes); check it with:\n  cifarnets evaluate {path}")


def _find_cifar10(options: argparse.Namespace) -> bool:
    """Whether CIFAR-10 is there, after a short try to download it; prints in one line where it is, or why not."""
    root = find_cifar10(options.data_root)
    if root is None:
        try:
            root = download_cifar10(options.data_root, time_limit=45)
        except (DataCorruptError, DownloadError, OutputError) as error:
            reason = " ".join(str(error).split())
            _print(f"No CIFAR-10 here, and no download: {reason} Drawing a synthetic set instead.")
            return False
    _print(f"CIFAR-10: {root}")
    return True


def _new_folder(stem: Path) -> Path:
    """A folder named after the stem and the time, and a number if there is one of this second already."""
    dated = f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    names = [dated, *(f"{dated}-{number}" for number in range(2, 100))]
    return next(path for path in map(Path, names) if not path.exists())


def _print(text: str) -> None:
    print(printable(text, keep="\n"))


def _print_json(content: Any) -> None:
    print(json.dumps(rounded(content), indent=2))


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "demo": demo,
    "list": list_models,
    "recipes": recipes,
    "info": info,
    "verify": verify,
    "download": download,
    "train": train,
    "evaluate": evaluate,
    "predict": predict_files,
    "report": report,
    "card": card,
    "push": push,
    "pull": pull,
    "import": import_file,
    "export": export,
    "explore": explore,
}
