"""The command line: its commands, their options, and what an exit status means.

`cifarnets.commands` does the work. It imports torch, which takes seconds. This module does not, so the help, the
version and a misspelt command are answered at once.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from cifarnets._terminal import in_options, printable
from cifarnets.errors import CifarNetsError
from cifarnets.version import __version__

DESCRIPTION = "Nets for CIFAR-10: train them, evaluate them, and classify pictures with the released ones."

EXAMPLES = """\
examples:
  cifarnets demo                                       the whole story in two minutes
  cifarnets download                                   fetch CIFAR-10 (170 MB) once
  cifarnets list 'conv*'
  cifarnets list --pretrained --sort accuracy
  cifarnets predict resnet20 plane.png ship.jpg --topk 3
  cifarnets predict resnet20 photos --csv              every picture in a folder
  cifarnets verify                                     are the weights the released ones?
  cifarnets train convnet --classes airplane,automobile,ship --epochs 100 --out runs/convnet
  cifarnets train --recipe convnet.cifar3 --seed 1     `cifarnets recipes` lists them
  cifarnets evaluate runs/convnet
  cifarnets report runs/convnet                        one page: curves, confusion, mistakes, kernels
  cifarnets predict runs/convnet plane.png ship.jpg --topk 3
  cifarnets push runs/convnet me/convnet               on the Hugging Face Hub, with a card
  cifarnets export runs/convnet convnet.onnx --preprocess
  cifarnets explore runs/convnet                       a page in which this net runs, to look into

CIFAR-10 is looked for in --data-root; without it in $CIFARNETS_DATA; without both in the user's cache folder.
Exit status: 0 success, 1 failure, 2 bad usage, 130 stopped by Ctrl-C, 143 stopped by SIGTERM.
"""

INTERRUPTED = 130
"""The exit status after Ctrl-C, as a shell reports it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Examples:
        >>> from cifarnets.cli import main
        >>> main(["list", "fcnet"])
        fcnet                 3,738,506 parameters  ...
        0

    Args:
        arguments: The words after `cifarnets`; None takes them from the command line.

    Returns:
        The exit status: 0; 1 for an error that the user can mend; 2 for options that do not go together; 130 after
        Ctrl-C.

    Raises:
        SystemExit: 2, from argparse, for words that it does not know; 0 after `--help` and `--version`; 143 after
            SIGTERM has stopped a training.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A terminal or file that has no × shows a question mark; line by line, so that `tail -f` sees each.
            stream.reconfigure(errors="replace", line_buffering=True)
    flags: dict[str, str] = {}
    try:
        with _ctrl_c_kills():  # some options come with torch
            options = parse(arguments)
        if options.command is None:
            parse(["--help"])
        flags = options.flags
        with _ctrl_c_kills():
            from cifarnets import commands
        status = int(commands.COMMANDS[options.command](options) or 0)
        sys.stdout.flush()  # here, where a reader that has gone is no failure
        return status
    except CifarNetsError as error:
        print(f"cifarnets: {printable(in_options(str(error), flags), keep=chr(10))}", file=sys.stderr)
        return getattr(error, "exit_status", 1)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has gone; what is still to be flushed must not go into the closed pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextlib.contextmanager
def _ctrl_c_kills() -> Iterator[None]:
    """Let Ctrl-C end the program at once, without a word; torch cannot be left half imported."""
    usual = signal.getsignal(signal.SIGINT)
    is_main_thread = threading.current_thread() is threading.main_thread()
    if "torch" in sys.modules or usual is not signal.default_int_handler or not is_main_thread:
        yield
        return
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the words of a command line.

    Only the chosen command is given its options, since some of them come from modules that take long to import.

    Examples:
        >>> from cifarnets.cli import parse
        >>> parse(["train", "convnet", "--lr", "0.1"]).lr
        0.1

    Args:
        arguments: The words after `cifarnets`; None takes them from the command line.

    Returns:
        The value of each option; `command`, which is None if there is none; and `flags`, which has the option for each
        argument of the library.

    Raises:
        SystemExit: 2 for words that make no sense; 0 after `--help` and `--version`.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    chosen = next((word for word in words if not word.startswith("-")), None)
    style: Any = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("cifarnets", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=style)
    parser.add_argument("--version", action="version", version=f"cifarnets {__version__}")
    parser.set_defaults(flags={})
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for name, (summary, add_options) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
        if name == chosen:
            options = _Options(command)
            add_options(options)
            command.set_defaults(flags=options.flags)
    return parser.parse_args(words)


class _Options:
    """The options of one command; notes which of them stands for which argument of the library."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self._parser = parser
        self._group: Any = parser
        self.flags: dict[str, str] = {}

    def heading(self, title: str) -> None:
        """List the options that follow under a title of their own."""
        self._group = self._parser.add_argument_group(title)

    def add(self, *names: str, **settings: Any) -> None:
        action = self._group.add_argument(*names, **settings)
        if action.option_strings:
            self.flags[action.dest] = action.option_strings[0]

    def examples(self, text: str) -> None:
        """Show commands below the options of the help."""
        self._parser.epilog = f"examples:\n{text}"
        self._parser.formatter_class = argparse.RawDescriptionHelpFormatter

    def add_data_root(self) -> None:
        self.add("--data-root", type=Path, metavar="DIR", help="the folder that holds cifar-10-batches-py")

    def add_device(self, default: str = "auto", note: str = "") -> None:
        self.add("--device", default=default, help=f"auto, cpu, cuda, cuda:1, mps … (default: {default}{note})")

    def add_json(self) -> None:
        self.add("--json", action="store_true", help="print JSON, for scripts")

    def add_model(self) -> None:
        self.add(
            "weights", metavar="MODEL", help="released weights, a .safetensors file, a run folder, or hf://owner/repo"
        )

    def add_no_report(self) -> None:
        self.add("--no-report", dest="report", action="store_false", help="write no report.html into the run folder")

    def add_tta(self) -> None:
        from cifarnets.inference import TTA

        self.add("--tta", choices=get_args(TTA), help="test-time augmentation: the mean over several views")


def _demo(options: _Options) -> None:
    options.add("--epochs", type=_positive, default=10, metavar="N", help="passes over the images (default: 10)")
    options.add("--out", type=Path, metavar="DIR", help="where everything goes (default: a new folder here)")
    options.add_no_report()
    options.add_data_root()
    options.add_device()


def _list(options: _Options) -> None:
    from cifarnets.models.catalog import Sort

    options.add("pattern", nargs="?", default="*", help="a shell pattern, such as 'conv*'")
    options.add("--pretrained", action="store_true", help="list released weights, with their accuracy")
    options.add("--max-params", type=_positive, metavar="N", help="leave out those with more parameters")
    options.add("--max-macs", type=_positive, metavar="N", help="leave out those with more multiply-adds an image")
    options.add("--sort", choices=get_args(Sort), default="name", help="by accuracy: released weights only")
    options.add_json()


def _recipes(options: _Options) -> None:
    options.add("pattern", nargs="?", default="*", help="a shell pattern, such as 'conv*'")
    options.add_json()


def _info(options: _Options) -> None:
    options.add("name", help="a model, or released weights")
    options.add_json()


def _verify(options: _Options) -> None:
    options.add("names", nargs="*", metavar="NAME", help="released weights (default: all)")
    options.add_data_root()
    options.add_device("cpu", ", where the logits were computed")
    options.add_json()


def _download(options: _Options) -> None:
    options.add_data_root()
    options.examples(
        "  cifarnets download --data-root ~/data\n"
        "  CIFARNETS_DATA_URL=http://files.example/cifar-10-python.tar.gz cifarnets download\n\n"
        "The sources in $CIFARNETS_DATA_URL (with spaces between them) are tried first, then the author's host and\n"
        "its mirrors. An interrupted download is resumed by the next call, from whatever source."
    )


def _evaluate(options: _Options) -> None:
    options.add_model()
    options.add("--images", type=Path, metavar="DIR", help="your pictures, a folder for each class, not CIFAR-10")
    options.add("--split", choices=("test", "train"), help="which images of CIFAR-10 (default: test)")
    options.add_tta()
    options.add_data_root()
    options.add_device()
    options.add_json()
    options.examples(
        "  cifarnets evaluate resnet20 --tta mirror\n"
        "  cifarnets evaluate runs/mine --json\n"
        "  cifarnets evaluate runs/mine --images pictures/val      a folder for each class of the model"
    )


def _predict(options: _Options) -> None:
    options.add_model()
    options.add(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="picture files of any size, folders, patterns such as 'photos/*.jpg', or - for names on standard input",
    )
    options.add("--topk", type=int, default=1, metavar="K", help="classes to name (default: 1)")
    options.add("--classes", type=_list_of(str), metavar="A,B,…", help="for a model that does not know their names")
    options.add("--mean", type=_list_of(float), metavar="X,X,X", help="for a model that does not know its constants")
    options.add("--std", type=_list_of(float), metavar="X,X,X", help="the same")
    options.add_tta()
    options.add_device()
    options.heading("what to print (default: a line of text for each picture)")
    options.add("--csv", action="store_true", help="a table: image, rank, class, probability")
    options.add("--jsonl", action="store_true", help="a JSON object in a line for each picture")
    options.add("--json", action="store_true", help="one JSON array")


def _report(options: _Options) -> None:
    options.add("runs", nargs="+", type=Path, metavar="RUN", help="a folder that `cifarnets train` wrote")
    options.add(
        "--out",
        "-o",
        type=Path,
        metavar="FILE",
        help="the page to write (default: report.html in the run folder; for several runs, in this folder)",
    )
    options.add_data_root()
    options.examples("""\
  cifarnets report runs/convnet
  cifarnets report runs/sgd runs/adamw -o compared.html     side by side

The page is one file that opens in any browser, without a network. `train` and `demo` write it by themselves.
""")


TRAININGS = """\
  cifarnets train convnet --classes airplane,automobile,ship --epochs 100
  cifarnets train convnet --images pictures/train --val-images pictures/val --epochs 30
  cifarnets train convnet --images pictures --val 200 --augment flip=random
  cifarnets train --recipe resnet20 --seed 1 --resume runs/mine

A folder of --images has a folder for each class: pictures/cat/1.jpg, pictures/dog/rex.png.
"""

IMPORTS = """\
  cifarnets import resnet20-12fca82f.th resnet20.safetensors --as resnet20 \\
      --mean 0.485,0.456,0.406 --std 0.229,0.224,0.225
  cifarnets import best.pt mine.safetensors --as convnet --mean 0.5,0.5,0.5 --std 0.25,0.25,0.25 \\
      --classes cat,dog --entry model_ema --allow-unexpected 'loss.*'

No checkpoint says how its images were normalised: look for Normalize(mean, std) in the script that wrote it.
"""


def _import(options: _Options) -> None:
    options.add(
        "file", type=Path, metavar="FILE", help="a checkpoint of torch.save, or a safetensors file; runs no code"
    )
    options.add("out", type=Path, metavar="OUT", help="the weight file to write: mine.safetensors")
    options.add("--as", dest="name", required=True, metavar="MODEL", help="a model of `cifarnets list`")
    options.add("--mean", type=_list_of(float), required=True, metavar="X,X,X", help="of the training, in 0..1")
    options.add("--std", type=_list_of(float), required=True, metavar="X,X,X", help="the same")
    options.add("--classes", type=_list_of(str), metavar="A,B,…", help="names of the outputs, in their order")
    options.add("--config", type=_pair, action="append", default=[], metavar="K=V", help="arguments of the model")
    options.add(
        "--entry", metavar="NAME", help="where the state dict lies in FILE (default: averaged weights, or others)"
    )
    patterns = {"type": _list_of(str), "default": (), "metavar": "A,B,…"}
    options.add("--allow-missing", help="tensors that FILE need not have, or patterns: 'head.*'", **patterns)
    options.add("--allow-unexpected", help="names in FILE that may be left over, or patterns", **patterns)
    options.add_json()
    options.examples(IMPORTS)


def _export(options: _Options) -> None:
    from cifarnets.sharing.export import Layout

    options.add_model()
    options.add("file", type=Path, metavar="FILE", help="what to write: .onnx, or .pt2 for a program of torch.export")
    options.add("--preprocess", action="store_true", help="uint8 pictures in, probabilities out")
    options.add("--layout", choices=get_args(Layout), help="axes of these pictures (default: nhwc, as in image files)")
    options.add("--int8", action="store_true", help="convolutions and linear layers in 8 bits (ONNX)")
    options.add_data_root()
    options.add_json()
    options.examples("""\
  cifarnets export resnet20 resnet20.onnx               normalised float images to logits
  cifarnets export convnet convnet.onnx --preprocess    pictures to probabilities, for a browser or a phone
  cifarnets export resnet20 small.onnx --preprocess --int8
  cifarnets export runs/convnet convnet.pt2             for programs that have torch

The file takes batches of any size, and is compared with the model before it is written. --int8 is calibrated with
training images of CIFAR-10, or with drawn pictures where there is none, and shows the accuracy of both.
""")


def _explore(options: _Options) -> None:
    options.add_model()
    options.add("-o", "--out", type=Path, metavar="FILE", help="the page to write (default: NAME.html here)")
    options.add("--classes", type=_list_of(str), metavar="A,B,…", help="for a model that does not know their names")
    options.add("--mean", type=_list_of(float), metavar="X,X,X", help="for a model that does not know its constants")
    options.add("--std", type=_list_of(float), metavar="X,X,X", help="the same")
    options.add_json()
    options.examples("""\
  cifarnets explore convnet.cifar3                      writes convnet.cifar3.html
  cifarnets explore runs/mine -o lesson.html            your own net

The page is one file with the weights in it. It needs no network and no server: open it in any browser, or send it.
""")


WHAT = ("config", "classes", "images", "val_images", "val", "synthetic", "augment", "distill")
FAST = ("precision", "compile", "channels_last", "deterministic")
"""The fields of a recipe under two headings of `cifarnets train --help`; all others stand between them."""


def _train(options: _Options) -> None:
    import dataclasses

    from cifarnets._fields import help_of, hints_of
    from cifarnets.recipes import Recipe
    from cifarnets.recipes.recipe import flag_of

    options.add("name", nargs="?", metavar="MODEL", help="a model of `cifarnets list`")
    options.add("--recipe", metavar="NAME", help="train as a recipe says: one of `cifarnets recipes`, or a TOML file")
    options.add("--out", type=Path, metavar="DIR", help="run folder (default: runs/NAME-DATE-TIME)")
    options.add(
        "--resume", type=Path, metavar="DIR", help="resume the run in this folder; with MODEL, start it if it is new"
    )
    options.add_no_report()
    options.add("--quiet", action="store_true", help="print results and errors only, no progress")
    options.add(
        "--checkpoint-every", type=_positive, metavar="N", help="batches between checkpoints (default: an epoch)"
    )
    options.add_data_root()
    options.add_device()
    hints, texts = hints_of(Recipe), help_of(Recipe)
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    how = [name for name in hints if name not in ("model", *WHAT, *FAST)]
    groups = {
        "what to train on (these change a recipe)": WHAT,
        "how (the defaults are the article's, but for 20 epochs instead of 100)": how,
        "how fast": FAST,
    }
    for title, names in groups.items():
        options.heading(title)
        for name in names:
            shown = texts[name].replace("%", "%%") + _default(defaults[name])
            # None means that the option was not given: the recipe's own value stays.
            settings = _settings(hints[name])
            if name.endswith("images"):
                settings["metavar"] = "DIR"
            options.add(flag_of(name), dest=name, default=None, help=shown, **settings)
            if name == "config":
                options.add("--num-classes", type=_positive, metavar="N", help="outputs (default: one a class)")
    options.examples(TRAININGS)


def _settings(hint: Any) -> dict[str, Any]:
    """How argparse reads the values of a field, from its type hint."""
    from cifarnets._fields import from_text, kind_of, name_of, without_none

    hint = without_none(hint)
    kind = kind_of(hint)
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction}
    if kind is Literal:
        return {"choices": get_args(hint)}
    if kind is Mapping:
        return {"type": _pair, "action": "append", "metavar": "K=V"}

    def read(text: str) -> Any:
        try:
            return from_text(text, hint)
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be {name_of(hint)}, not {text!r}") from None

    return {"type": read, "metavar": {int: "N", float: "X", str: "NAME"}.get(kind, "A,B,…")}


def _default(value: Any) -> str:
    """The end of a help text, where the default is a number or a name."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return ""
    return f" (default: {value if isinstance(value, str) else format(value, 'g')})"


def _positive(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return value


def _push(options: _Options) -> None:
    options.add_model()
    options.add("repo", metavar="OWNER/REPO", help="the repository on the Hub, which is made if there is none")
    options.add("--revision", metavar="BRANCH", help="the branch to push to (default: main)")
    options.add("--private", action="store_true", help="make a repository that only its owner can see")
    options.add("--license", metavar="ID", help="of the weights: mit, apache-2.0, cc-by-4.0 …")
    options.add_json()
    options.examples("""\
  cifarnets push runs/convnet me/convnet --license mit
  cifarnets push resnet20 me/resnet20                   released weights, byte by byte
  cifarnets push runs/convnet me/convnet --private      for your eyes only
  cifarnets push runs/convnet me/convnet --revision v2  on a branch of its own

Log in first, with `hf auth login`, or set HF_TOKEN. `cifarnets card` shows the page that the model gets. What is
pushed loads anywhere: cifarnets.load("hf://me/convnet").
""")


def _pull(options: _Options) -> None:
    options.add("address", metavar="hf://OWNER/REPO", help="with @REVISION and /FILE after it, where they matter")
    options.add("folder", nargs="?", type=Path, help="where to put the files (default: a new folder here, named REPO)")
    options.add("--sha256", dest="expected_sha256", metavar="HEX", help="refuse a weight file with another SHA-256")
    options.examples("""\
  cifarnets pull hf://me/convnet                        into the folder convnet
  cifarnets pull hf://me/convnet@v2 nets/v2             another branch, another folder
  cifarnets pull hf://me/convnet --sha256 77a21772dc7b08aefa77b3a4959866443b17e69408325f137f4e542649c43b4a

A file that is there already is not replaced by another one. HF_HUB_OFFLINE=1 takes what was fetched before.
""")


def _card(options: _Options) -> None:
    options.add_model()
    options.add("--repo", metavar="OWNER/REPO", default="owner/repo", help="the repository that its snippets load from")
    options.add("--license", metavar="ID", help="of the weights: mit, apache-2.0, cc-by-4.0 …")
    options.examples("""\
  cifarnets card resnet20
  cifarnets card runs/convnet --repo me/convnet --license mit > README.md

`cifarnets push` publishes this page with the model. All of it comes from the weight file.
""")


def _list_of(kind: Callable[[str], Any]) -> Callable[[str], tuple[Any, ...]]:
    def read(text: str) -> tuple[Any, ...]:
        try:
            return tuple(kind(part) for part in text.split(","))
        except ValueError:
            raise argparse.ArgumentTypeError(f"must be numbers with commas between them, not {text!r}") from None

    return read


def _pair(text: str) -> tuple[str, Any]:
    """A key and its value: JSON where it is that, else text."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f"must read KEY=VALUE, not {text!r}")
    try:
        return key, json.loads(value)
    except (ValueError, RecursionError):
        return key, value


COMMANDS: dict[str, tuple[str, Callable[[_Options], None]]] = {
    "demo": ("train, evaluate, save, load and predict, in under two minutes", _demo),
    "list": ("list the models", _list),
    "recipes": ("list the recipes that `cifarnets train --recipe` takes", _recipes),
    "info": ("show the arguments and layers of a model, and the facts about released weights", _info),
    "verify": ("check released weights: bytes, logits, accuracy", _verify),
    "download": ("fetch CIFAR-10 and check it", _download),
    "train": ("train a model on CIFAR-10, or on your pictures, and keep the run in a folder", _train),
    "evaluate": ("measure a model on CIFAR-10, or on your pictures", _evaluate),
    "predict": ("classify pictures", _predict),
    "report": ("write a run, or several side by side, as a page for the browser", _report),
    "card": ("print the card that a model has on the Hub", _card),
    "push": ("publish a model on the Hugging Face Hub, with its card", _push),
    "pull": ("fetch a model with its card from the Hugging Face Hub", _pull),
    "import": ("make a weight file of another program's checkpoint", _import),
    "export": ("write a model as ONNX or torch.export, for programs without this library", _export),
    "explore": ("write a page in which a model runs, to look into it in a browser", _explore),
}
