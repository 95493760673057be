"""The command line, thin: parse, call, print."""

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

import cifarnets
from cifarnets.datasets import (
    ARTICLE_MEAN,
    ARTICLE_STD,
    BatchLoader,
    CIFAR10Normalized,
    ImageDataset,
    SyntheticCIFAR10,
    cifar_subset,
    download_cifar10,
)
from cifarnets.errors import CifarNetsError, DataCorruptError, DownloadError, InputError, OutputError
from cifarnets.inference import TTA
from cifarnets.models.catalog import Sort
from cifarnets.models.metadata import get_meta
from cifarnets.recipes import Recipe, Run, load_recipe, run_recipe
from cifarnets.recipes.recipe import recipe_name
from cifarnets.training import ArticleLog
from cifarnets.training.precision import Precision
from cifarnets.training.schedules import SCHEDULES
from cifarnets.weights.index import mean_and_std

EXAMPLES = """\
examples:
  cifarnets demo                                       the whole story in two minutes
  cifarnets download                                   fetch CIFAR-10 (170 MB) once
  cifarnets list 'conv*'
  cifarnets list --pretrained --sort accuracy
  cifarnets predict convnet plane.png ship.jpg --topk 3
  cifarnets verify                                     are the released weights what they are said to be?
  cifarnets train convnet --classes airplane,automobile,ship --epochs 100 --out runs/convnet
  cifarnets train --recipe convnet.cifar3 --seed 1
  cifarnets evaluate runs/convnet/model.safetensors
  cifarnets predict runs/convnet/model.safetensors plane.png ship.jpg --topk 3

CIFAR-10 is looked for in --data-root; without it in $CIFARNETS_DATA; without both in the user's cache folder.
Exit status: 0 success, 1 failure, 2 bad usage, 130 interrupted by Ctrl-C.
"""


class _UsageError(InputError):
    """Words that make no sense together."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: Words after `cifarnets`; None takes them from the command line.

    Returns:
        The exit status: 0, 1 for an error that the user can mend, 2 for words that do not go together, 130 after
        Ctrl-C.

    Raises:
        SystemExit: 2, from argparse, when the words make no sense; 0 after `--help` and `--version`.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal or file that cannot say × gets a question mark, no traceback
            stream.reconfigure(errors="replace", line_buffering=True)  # so that `tail -f` sees each line
    options = _parser().parse_args(arguments)
    try:
        status = int(options.command(options) or 0)
        sys.stdout.flush()  # here, where a reader that has gone is no failure
        return status
    except CifarNetsError as error:
        print(f"cifarnets: {error}", file=sys.stderr)
        return 2 if isinstance(error, _UsageError) else 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has gone; what is still to be flushed must not go into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _list(options: argparse.Namespace) -> None:
    if options.sort == "accuracy" and not options.pretrained:
        raise _UsageError("only released weights have an accuracy to sort by: add --pretrained.")
    names = cifarnets.models.list_models(
        options.pattern,
        pretrained=options.pretrained,
        max_params=options.max_params,
        max_macs=options.max_macs,
        sort=options.sort,
    )
    found = [cifarnets.models.info(name) for name in names]
    if options.json:
        _print_json([asdict(model) for model in found])
        return
    if not found:
        everything = "cifarnets list --pretrained" if options.pretrained else "cifarnets list"
        raise InputError(f"nothing matches {options.pattern!r} within these limits; `{everything}` shows all.")
    for model in found:
        words = _accuracy(model.release) if options.pretrained and model.release else model.description
        print(f"{model.name:<20} {model.parameters:>10,} parameters  {words}")


def _accuracy(release: cifarnets.models.Release) -> str:
    """The accuracy of released weights in words."""
    text = f"accuracy {mean_and_std(release.accuracy, release.accuracy_std)}"
    if release.tta_accuracy is not None:
        text += f", {mean_and_std(release.tta_accuracy, release.tta_accuracy_std)} with {release.tta}"
    return f"{text} (seeds {', '.join(map(str, release.seeds))})"


def _info(options: argparse.Namespace) -> None:
    model = cifarnets.models.info(options.name)
    if options.json:
        _print_json({**asdict(model), "macs": model.macs})
        return
    print(f"{model.name}: {model.description}\n")
    print("arguments of create():")
    for key, value in model.config.items():
        print(f"  {key} = {value!r}")
    release = model.release
    if release is not None:
        print(f"\nreleased weights ({release.size:,} bytes), `create({model.name!r}, pretrained=True)`:")
        print(f"  test images: {_accuracy(release)}")
        print(f"  this file (seed {release.seed}): accuracy {release.file_accuracy:.4f}, ECE {release.file_ece:.4f}")
        print(f"  classes: {', '.join(release.classes)}")
        print(f"  normalised with mean {release.mean}, std {release.std}")
        print(f"  {release.milliseconds:.2f} ms an image, {release.milliseconds_batch:.3f} ms in batches of 1,000")
        print(f"  ({release.measured})")
        print(f"  trained by: cifarnets train --recipe {model.name} --seed {release.seed}")
    print(f"\n{cifarnets.models.summary(cifarnets.models.create(options.name))}")


def _verify(options: argparse.Namespace) -> int:
    checks = []
    for name in options.names or cifarnets.models.list_models(pretrained=True):
        for check in cifarnets.verify(name, options.data_root, device=options.device):
            checks.append(check)
            verdict = {True: "ok", False: "FAILED", None: "-"}[check.passed]
            if not options.json:
                print(f"{check.name:<16} {check.what:<14} {verdict:<7} {check.detail}", flush=True)
    failed = [check for check in checks if check.passed is False]
    if options.json:
        _print_json([asdict(check) for check in checks])
    elif failed:
        print(f"{len(failed)} of {len(checks)} checks failed.", file=sys.stderr)
    return int(bool(failed))


def _download(options: argparse.Namespace) -> None:
    folder = download_cifar10(options.data_root)
    CIFAR10Normalized(folder, train=True)
    CIFAR10Normalized(folder, train=False)
    print(f"CIFAR-10 is in {folder}, and every batch is the published one.")


def _train(options: argparse.Namespace) -> int:
    said = {key: getattr(options, key) for key in options.changes if hasattr(options, key)}
    if options.name is None and options.recipe is None:
        if options.resume is None:
            raise _UsageError(
                "name a model of `cifarnets list`, a recipe (--recipe NAME), or a run to go on with (--resume DIR)."
            )
        if said:
            words = ", ".join(options.changes[key] for key in said)
            raise _UsageError(f"a run goes on with the recipe that it was started with; drop {words}.")
        recipe = None
    else:
        recipe = _recipe(options, said)
    if options.resume is not None and options.out is not None:
        raise _UsageError("a run is gone on with in its own folder: --resume names it already, so drop --out.")
    folder = options.resume or options.out
    if folder is None:
        folder = _new_folder(Path("runs") / (options.name or recipe_name(options.recipe)))
    try:
        result = run_recipe(
            recipe,
            folder,
            resume=options.resume is not None,
            root=options.data_root,
            device=options.device,
            callbacks=[] if options.quiet else [ArticleLog()],
            checkpoint_every=options.checkpoint_every,
            progress=not options.quiet,
        )
    except KeyboardInterrupt:
        if (folder / "checkpoint.safetensors").is_file():
            print(f"Stopped at once. Go on from the last checkpoint with:\n  {_going_on(folder, options.data_root)}")
        raise
    if result.evaluations:  # in the process that writes
        for name, evaluation in result.evaluations.items():
            print(f"Accuracy {name}: {evaluation.accuracy:.4f}")
        print(f"The run is in {folder}: {', '.join(sorted(path.name for path in result.folder.iterdir()))}")
    return _ended(result, options)


def _recipe(options: argparse.Namespace, said: dict[str, Any]) -> Recipe:
    """The recipe that was asked for, with what was said beside it changed."""
    if options.name is not None and options.recipe is not None:
        raise _UsageError(f"name a model ({options.name}) or a recipe ({options.recipe}), not both.")
    recipe = Recipe(options.name) if options.recipe is None else load_recipe(options.recipe)
    changes = dict(said)
    if "num_classes" in said:
        changes["config"] = {**recipe.config, "num_classes": changes.pop("num_classes")}
    if "classes" in said:
        changes["classes"] = tuple(said["classes"].split(","))
    for key in ("optimizer_options", "schedule_options", "augment", "distill"):
        if key in said:
            changes[key] = {**getattr(recipe, key), **dict(said[key])}
    return replace(recipe, **changes)


def _evaluate(options: argparse.Namespace) -> None:
    model = cifarnets.load(options.weights)
    meta = get_meta(model)
    assert meta is not None  # load gives registered models only
    mean, std = meta.mean or ARTICLE_MEAN, meta.std or ARTICLE_STD
    train = options.split == "train"
    full: ImageDataset
    if meta.training.get("synthetic"):
        full = SyntheticCIFAR10(train, mean=mean, std=std)
    else:
        full = CIFAR10Normalized(options.data_root, train=train, mean=mean, std=std)
    dataset = cifar_subset(full, meta.classes) if meta.classes else full
    result = cifarnets.evaluate(
        model, BatchLoader(dataset, 1000, device=options.device), device=options.device, tta=options.tta
    )
    if options.json:
        _print_json(result.to_dict())
    else:
        print(result)


def _predict(options: argparse.Namespace) -> None:
    model = cifarnets.load(options.weights)
    answers: Any = cifarnets.predict(model, options.images, options.topk, device=options.device, tta=options.tta)
    named = list(zip(options.images, answers, strict=True))
    if options.json:
        _print_json([{"image": image, "top": answer} for image, answer in named])
        return
    for image, answer in named:
        print(f"{image}: " + ", ".join(f"{name} {probability:.3f}" for name, probability in answer))


def _demo(options: argparse.Namespace) -> int:
    """The main job, end to end: data, training, evaluation, a file, the file read back, pictures."""
    synthetic = not _find_cifar10(options)
    names = ("airplane", "automobile", "ship")
    recipe = Recipe(
        model="convnet",
        classes=cifarnets.datasets.SyntheticCIFAR10(train=False, size=10).classes[:3] if synthetic else names,
        epochs=options.epochs,
        optimizer_options={"momentum": 0.9},
        synthetic=synthetic,
    )
    folder = options.out or _new_folder(Path("cifarnets-demo"))
    print(
        f"Training the article's net ({', '.join(recipe.classes)}; {recipe.epochs} epochs, SGD, lr 0.01, momentum 0.9)"
    )
    result = run_recipe(recipe, folder, root=options.data_root, device=options.device, callbacks=[ArticleLog(every=1)])
    print(f"\nOn the test images:\n{result.evaluations['test']}\n")

    path = result.folder / "model.safetensors"
    model = cifarnets.load(path)
    test = recipe.dataset(False, options.data_root)
    again = cifarnets.evaluate(model, BatchLoader(test, 1000, device=options.device), device=options.device)
    if again != result.evaluations["test"]:
        raise CifarNetsError(f"the model read back from {path} does not agree with the one that was saved.")
    print(f"Saved, loaded back, and both agree: {path} ({path.stat().st_size:,} bytes)\n")

    shown = [int((test.labels == label).nonzero()[0]) for label in range(3)]
    answers: Any = cifarnets.predict(model, test.images[shown], topk=2, device=options.device)
    for index, answer in zip(shown, answers, strict=True):
        guesses = ", ".join(f"{name} {probability:.2f}" for name, probability in answer)
        print(f"test image {index}, {test.classes[int(test.labels[index])]}: {guesses}")

    print(f"\nEverything lies in {result.folder.resolve()}:")
    contents = {
        "run.json": "what was run, with versions and seed",
        "history.csv": "loss and accuracy of every epoch",
        "model.safetensors": "the weights; cifarnets.load() needs nothing else",
        "evaluation.json": "accuracy, calibration and confusion on training and test images",
    }
    for name, meaning in contents.items():
        print(f"  {name:<18} {meaning}")
    return _ended(result, options)


def _find_cifar10(options: argparse.Namespace) -> bool:
    """Whether CIFAR-10 is there, after a short try to download it; says in one line where it is, or why not."""
    root = cifarnets.datasets.cifar10.data_root(options.data_root)
    if not cifarnets.datasets.cifar10.is_complete(root):
        try:
            download_cifar10(root, time_limit=45)
        except (DataCorruptError, DownloadError, OutputError) as error:
            reason = " ".join(str(error).split())
            print(f"No CIFAR-10 here, and no download: {reason} Drawing a synthetic set instead.")
            return False
    print(f"CIFAR-10: {root}")
    return True


def _new_folder(stem: Path) -> Path:
    """The stem with the time behind it, and a number too if a run was started in the same second."""
    dated = f"{stem}-{datetime.now():%Y%m%d-%H%M%S}"
    names = [dated, *(f"{dated}-{number}" for number in range(2, 100))]
    return next(path for path in map(Path, names) if not path.exists())


def _ended(result: Run, options: argparse.Namespace) -> int:
    if result.interrupted and result.evaluations:  # in the process that writes
        data_root = None if result.recipe.synthetic else options.data_root
        print(
            f"Stopped after {len(result.history)} of {result.recipe.epochs} epochs. Go on from the very batch with:\n"
            f"  {_going_on(result.folder, data_root)}"
        )
    return 130 if result.interrupted else 0


def _going_on(folder: Path, data_root: Path | None) -> str:
    """The command that goes on with a run."""
    words = ["cifarnets", "train", "--resume", str(folder)]
    if data_root is not None:
        words += ["--data-root", str(data_root)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def _print_json(content: Any) -> None:
    print(json.dumps(content, indent=2))


def _parser() -> argparse.ArgumentParser:
    style: Any = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("cifarnets", description=cifarnets.__doc__, epilog=EXAMPLES, formatter_class=style)
    parser.add_argument("--version", action="version", version=f"cifarnets {cifarnets.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON, for scripts")
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument("--data-root", type=Path, metavar="DIR", help="the folder that holds cifar-10-batches-py")
    device = argparse.ArgumentParser(add_help=False)
    device.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps … (default: auto)")

    def command(name: str, function: Any, summary: str, parents: Sequence[argparse.ArgumentParser] = ()) -> Any:
        made = commands.add_parser(name, help=summary, description=f"{summary}.", parents=parents)
        made.set_defaults(command=function)
        return made

    demo = command("demo", _demo, "train, evaluate, save, load and predict, in under two minutes", [data, device])
    demo.add_argument("--epochs", type=_positive, default=10, help="default: 10")
    demo.add_argument("--out", type=Path, metavar="DIR", help="where everything goes (default: a new folder here)")

    listing = command("list", _list, "list the models", [as_json])
    listing.add_argument("pattern", nargs="?", default="*", help="a shell pattern, such as 'conv*'")
    listing.add_argument("--pretrained", action="store_true", help="list released weights, with their accuracy")
    listing.add_argument("--max-params", type=_positive, metavar="N", help="at most so many parameters")
    listing.add_argument("--max-macs", type=_positive, metavar="N", help="at most so many multiply-adds an image")
    listing.add_argument("--sort", choices=get_args(Sort), default="name", help="accuracy: of released weights only")

    info = command("info", _info, "show arguments and layers, and what is known of released weights", [as_json])
    info.add_argument("name", help="a model, or released weights")

    check = command("verify", _verify, "check released weights: bytes, logits, accuracy", [as_json, data])
    check.add_argument("--device", default="cpu", help="default: cpu, where the logits were computed")
    check.add_argument("names", nargs="*", metavar="NAME", help="released weights (default: all)")

    command("download", _download, "fetch CIFAR-10 and check it", [data])

    train = command("train", _train, "train a model on CIFAR-10 and keep the run in a folder", [data, device])
    train.add_argument("name", nargs="?", help="a model of `cifarnets list`")
    train.add_argument("--recipe", metavar="NAME", help="train as a recipe says: a name, or a TOML file")
    train.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: runs/NAME-DATE-TIME)")
    train.add_argument(
        "--resume", type=Path, metavar="DIR", help="go on with the run in this folder; with NAME, start it if it is new"
    )
    train.add_argument("--quiet", action="store_true", help="no progress bar, and no line every ten epochs")
    train.add_argument(
        "--checkpoint-every", type=_positive, metavar="N", help="batches between checkpoints (default: one an epoch)"
    )
    # What is not said is not there, so that it can be told from what is: defaults are those of the recipe.
    unsaid: Any = {"default": argparse.SUPPRESS}
    switch: Any = {"action": "store_true", **unsaid}
    pairs: Any = {"type": _option, "action": "append", "metavar": "K=V", **unsaid}
    what = train.add_argument_group("what to train on (beside --recipe, these change it)")
    what.add_argument("--classes", metavar="A,B,…", help="these classes only, relabelled from 0", **unsaid)
    what.add_argument("--num-classes", type=_positive, metavar="N", help="outputs (default: one a class)", **unsaid)
    what.add_argument("--val", type=int, metavar="N", help="hold out N training images and evaluate on them", **unsaid)
    what.add_argument("--synthetic", help="drawn pictures, which need no data", **switch)
    what.add_argument("--augment", help="flip=random, translate=2, cutout=8, mixup=0.2, cutmix=1.0", **pairs)
    what.add_argument("--distill", help="teacher=NAME, share=0.5, temperature=2: learn its answers too", **pairs)
    how = train.add_argument_group("how (the defaults are the article's, but for 20 epochs instead of 100)")
    how.add_argument("--epochs", type=_positive, help="default: 20", **unsaid)
    how.add_argument("--batch-size", type=_positive, help="default: 64", **unsaid)
    how.add_argument("--drop-last", help="leave out a last batch that is not full", **switch)
    how.add_argument("--optimizer", help="one of torch, such as adamw, or convmuon (default: sgd)", **unsaid)
    how.add_argument("--lr", type=float, help="learning rate, or its peak (default: 0.01)", **unsaid)
    how.add_argument("--option", dest="optimizer_options", help="of the optimizer: momentum=0.9", **pairs)
    how.add_argument(
        "--no-decay-biases",
        dest="decay_biases",
        action="store_false",
        help="no weight decay on biases and normalisation",
        **unsaid,
    )
    how.add_argument("--schedule", choices=list(SCHEDULES), help="of the learning rate, per batch", **unsaid)
    how.add_argument("--schedule-option", dest="schedule_options", help="of the schedule: warmup=0.1", **pairs)
    how.add_argument("--label-smoothing", type=float, metavar="X", help="default: 0", **unsaid)
    how.add_argument("--accumulate", type=_positive, metavar="N", help="batches an optimizer step", **unsaid)
    how.add_argument("--clip-norm", type=float, metavar="X", help="limit of the norm of all gradients", **unsaid)
    how.add_argument("--ema", type=float, metavar="DECAY", help="evaluate and save a moving average", **unsaid)
    how.add_argument("--tta", choices=get_args(TTA), help="evaluate with test-time augmentation too", **unsaid)
    how.add_argument("--seed", type=_seed, help="default: 0", **unsaid)
    fast = train.add_argument_group("how fast")
    fast.add_argument("--precision", choices=get_args(Precision), help="default: fp32", **unsaid)
    fast.add_argument("--compile", help="torch.compile the model", **switch)
    fast.add_argument("--channels-last", help="[N, H, W, C] in memory", **switch)
    fast.add_argument("--deterministic", help="deterministic algorithms only", **switch)
    actions = [action for group in (what, how, fast) for action in group._group_actions]
    train.set_defaults(changes={action.dest: action.option_strings[-1] for action in actions})

    views = argparse.ArgumentParser(add_help=False)
    views.add_argument("--tta", choices=get_args(TTA), help="test-time augmentation: the mean of several views")

    evaluate = command("evaluate", _evaluate, "measure a weight file on CIFAR-10", [data, device, views, as_json])
    evaluate.add_argument("weights", help="released weights, a .safetensors file, or hf://owner/repo")
    evaluate.add_argument("--split", choices=("test", "train"), default="test", help="default: test")

    predict = command("predict", _predict, "classify pictures", [device, views, as_json])
    predict.add_argument("weights", help="released weights, a .safetensors file, or hf://owner/repo")
    predict.add_argument("images", nargs="+", metavar="IMAGE", help="picture files of any size")
    predict.add_argument("--topk", type=int, default=1, metavar="K", help="classes to name (default: 1)")
    return parser


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return value


def _seed(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = -1
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be a whole number from 0 to 2^63 - 1, not {text!r}")
    return value


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"must read KEY=VALUE, not {text!r}")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value
