"""The public face: what is there, and what importing it costs."""

import importlib
import importlib.metadata
import inspect
import pkgutil
import re
import subprocess
import sys
import types

import pytest

import cifarnets

PACKAGES = ["cifarnets", "cifarnets.datasets", "cifarnets.models", "cifarnets.recipes", "cifarnets.training"]
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
    # Whatever was imported to be used by users is told; submodules are reached by their path.
    found = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
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


def test_importing_costs_torch_and_little_more() -> None:
    done = run("import cifarnets", "-X", "importtime")
    assert done.returncode == 0, done.stderr
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert {"torch", "cifarnets.training.trainer", "cifarnets.prediction"} <= loaded  # the list was read rightly
    assert {name for name in loaded if name.partition(".")[0] in HEAVY} == set()


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
    if name == "cifarnets.cli":
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
