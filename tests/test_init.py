"""The public face: what is there, and what importing it costs."""

import importlib
import importlib.metadata
import inspect
import os
import pickle
import pkgutil
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest

import cifarnets

PACKAGES = [
    "cifarnets",
    "cifarnets.datasets",
    "cifarnets.models",
    "cifarnets.recipes",
    "cifarnets.report",
    "cifarnets.training",
]
MODULES = sorted(
    module.name for module in pkgutil.walk_packages(cifarnets.__path__, "cifarnets.") if "__main__" not in module.name
)
HEAVY = {"torchvision", "matplotlib", "huggingface_hub", "PIL", "platformdirs", "safetensors", "onnx", "tensorboard"}


def run(program: str, *options: str) -> "subprocess.CompletedProcess[str]":
    """A fresh interpreter; what it says on stderr is part of what is tested."""
    return subprocess.run(
        [sys.executable, *options, "-c", program], capture_output=True, text=True, check=False, timeout=300
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_all_is_sorted_and_complete(package: str) -> None:
    module = importlib.import_module(package)
    names = module.__all__
    # As ruff sorts them: constants, classes, the rest.
    numbers_as_numbers = {
        name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)] for name in names
    }
    assert names == sorted(
        names, key=lambda name: (not name.isupper(), not name[0].isupper(), numbers_as_numbers[name])
    )
    assert len(set(names)) == len(names)
    for name in names:
        assert hasattr(module, name), name
    # Whatever was imported to be used by users is listed; submodules are reached by their path.
    found = {
        name
        for name in dir(module)
        if not name.startswith("_") and not isinstance(getattr(module, name), types.ModuleType)
    }
    assert found <= set(names)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_documented(package: str) -> None:
    module = importlib.import_module(package)
    assert inspect.getdoc(module)
    for name in module.__all__:
        value = getattr(module, name)
        if callable(value) or isinstance(value, types.ModuleType):
            assert inspect.getdoc(value), name


def test_what_the_readme_types_is_there() -> None:
    from cifarnets import Trainer, evaluate, load, predict, save  # noqa: F401
    from cifarnets.datasets import BatchLoader, CIFAR10Normalized, cifar_subset  # noqa: F401
    from cifarnets.models import create, info, list_models, register, summary  # noqa: F401
    from cifarnets.viz import show, show_maps  # noqa: F401

    assert cifarnets.load is cifarnets.models.load
    assert cifarnets.save is cifarnets.models.save
    assert issubclass(cifarnets.CifarNetsError, Exception)


def test_the_version_is_that_of_the_installed_package() -> None:
    assert cifarnets.__version__ == importlib.metadata.version("cifarnets")


def test_importing_everything_costs_torch_and_little_more() -> None:
    done = run("from cifarnets import *; import sys; print(*sys.modules)")
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert {"torch", "cifarnets.training.trainer", "cifarnets.prediction"} <= loaded  # the list was read rightly
    assert {name for name in loaded if name.partition(".")[0] in HEAVY} == set()


@pytest.mark.parametrize("words", [["--version"], ["--help"], [], ["no-such-command"], ["download", "--help"]])
def test_the_command_line_answers_without_torch(words: list[str]) -> None:
    program = f"""
import sys
sys.argv = ["cifarnets", *{words!r}]
from cifarnets.cli import main
try:
    main()
except SystemExit:
    assert "torch" not in sys.modules and "numpy" not in sys.modules
    print("without torch")
"""
    done = run(program)
    assert done.stdout.endswith("without torch\n"), done.stderr


def test_the_environment_is_set_before_torch_is_imported() -> None:
    """torch reads one of the variables when it makes its first tensor."""
    program = "import cifarnets, os, sys; print(os.environ['THP_MEM_ALLOC_ENABLE'], 'torch' in sys.modules)"
    environment = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60, env=environment
    )
    assert done.stdout == "1 False\n", done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send Ctrl-C to one process")
@pytest.mark.parametrize("delay", [0.2, 0.5, 1.0])
def test_ctrl_c_while_torch_is_imported_prints_nothing(delay: float) -> None:
    program = f"""
import signal, threading, time, os
from cifarnets.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
def press():
    time.sleep({delay})
    os.kill(os.getpid(), signal.SIGINT)
threading.Thread(target=press, daemon=True).start()
import sys
status = main(["list", "--sort", "macs"])
try:
    time.sleep(2)  # the command was faster
except KeyboardInterrupt:
    status = 130
sys.exit(status)
"""
    done = run(program)
    assert done.returncode in (130, -signal.SIGINT)
    assert done.stderr == ""


def test_the_names_are_those_of_their_modules() -> None:
    listed = {name for name in cifarnets.__all__ if not name.startswith("_")}
    modules = {name for name in listed if isinstance(getattr(cifarnets, name), types.ModuleType)}
    assert listed - modules == set(cifarnets._MODULE_OF)
    for name, module in cifarnets._MODULE_OF.items():
        assert getattr(cifarnets, name) is getattr(importlib.import_module(f"cifarnets.{module}"), name)
    source = Path(cifarnets.__file__).read_text(encoding="utf-8")
    typed = source.partition("if TYPE_CHECKING:\n")[2].partition("\n\n")[0]
    seen = {name for line in typed.splitlines() for name in line.partition(" import ")[2].split(", ")}
    assert seen == listed, "what type checkers see is what there is"


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'cifarnets' has no attribute 'evaluat'"):
        cifarnets.evaluat  # noqa: B018


def test_public_objects_can_be_pickled() -> None:
    for name in ("predict", "Evaluation", "Trainer", "create"):
        value = getattr(cifarnets, name)
        assert pickle.loads(pickle.dumps(value)) is value


def test_every_module_imports_alone() -> None:
    """Each as the first one, so that no circle is hidden by the order in which the package imports them.

    One process for all, since torch takes seconds; the package itself is stood in for, as it would import the rest.
    """
    program = f"""
import importlib, sys, traceback, types, torch

for name in {MODULES!r}:
    for loaded in [module for module in sys.modules if module.partition(".")[0] == "cifarnets"]:
        del sys.modules[loaded]
    package = types.ModuleType("cifarnets")
    package.__path__ = {list(cifarnets.__path__)!r}
    sys.modules["cifarnets"] = package
    if name == "cifarnets.commands":
        del sys.modules["cifarnets"]  # it stands above the package's face, and uses it
    try:
        importlib.import_module(name)
    except Exception:
        print(name, traceback.format_exc())
"""
    done = run(program, "-W", "error")
    assert done.stdout == ""
    assert done.returncode == 0, done.stderr
    assert len(MODULES) > 30
