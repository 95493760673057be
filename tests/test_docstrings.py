"""Public docstrings: every public name has an example, and every example runs."""

import doctest
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import cifarnets
from cifarnets import Evaluation, Trainer, report, viz
from cifarnets.recipes import Recipe
from cifarnets.training import History

PUBLIC = (
    cifarnets,
    cifarnets.datasets,
    cifarnets.models,
    cifarnets.training,
    cifarnets.recipes,
    cifarnets.distillation,
    cifarnets.sharing,
    report,
    viz,
)
CLASSES = (Trainer, History, Evaluation, Recipe)
"""Classes whose public methods need examples too."""

SKIPPED = {
    "cifarnets.datasets.download.download_cifar10",  # needs a network
    "cifarnets.datasets.cifar10.CIFAR10Normalized",  # needs CIFAR-10
    "cifarnets.models.factory.create",  # one of its examples needs a network
    "cifarnets.models.storage.load",  # one of its examples needs a network
    "cifarnets.sharing.hub.push",  # needs a network
    "cifarnets.sharing.hub.pull",  # needs a network
    "cifarnets.recipes.run.reproduce",  # takes minutes
    "cifarnets.verification.verify",  # takes a minute with CIFAR-10
    "cifarnets.prediction.predict",  # classifies a picture of the user
}
"""Docstrings that may have a line with `# doctest: +SKIP`."""


def exported(module: ModuleType) -> list[str]:
    """`__all__`, or the names that a module without one defines."""
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__]
    names: list[str] = getattr(module, "__all__", None) or [name for name in defined if not name.startswith("_")]
    return names


def documented() -> dict[str, Any]:
    """Every public function, class and method that needs an example, by the name of its definition."""
    found = {}
    for module in PUBLIC:
        for name in exported(module):
            value = getattr(module, name)
            if inspect.isfunction(value) or (inspect.isclass(value) and value.__module__.startswith("cifarnets")):
                found[f"{value.__module__}.{value.__qualname__}"] = value
    for owner in CLASSES:
        for name, raw in vars(owner).items():
            value = getattr(owner, name)
            if not name.startswith("_") and (inspect.isroutine(value) or isinstance(raw, property)):
                found[f"{owner.__module__}.{owner.__qualname__}.{name}"] = value
    return found


DOCUMENTED = documented()


def examples(name: str) -> doctest.DocTest:
    """The examples in the section `Examples:` of a docstring."""
    doc = inspect.getdoc(DOCUMENTED[name]) or ""
    assert "\nExamples:\n" in doc, f"{name} has no section `Examples:`"
    section = doc.split("\nExamples:\n", 1)[1]
    lines = []
    for line in section.splitlines():
        if line and not line.startswith(" "):  # the next section
            break
        lines.append(line)
    test = doctest.DocTestParser().get_doctest("\n".join(lines) + "\n", {"cifarnets": cifarnets}, name, None, 0)
    assert test.examples, f"{name} has no line with >>> in its examples"
    return test


def test_the_list_of_public_names_is_whole() -> None:
    assert {
        "cifarnets.training.trainer.Trainer.fit",
        "cifarnets.viz.pictures.show",
        "cifarnets.models.factory.create",
    } <= set(DOCUMENTED)
    assert len(DOCUMENTED) > 60


def test_skipped_names_exist() -> None:
    assert set(DOCUMENTED) >= SKIPPED


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", DOCUMENTED)
def test_the_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cifarnets.models.registry, "_MODELS", dict(cifarnets.models.registry._MODELS))
    test = examples(name)
    skipped = [example.source for example in test.examples if example.options.get(doctest.SKIP)]
    assert not skipped or name in SKIPPED, f"{name} skips {skipped[0]!r}"
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
    runner.run(test, out=report.append)
    assert not runner.failures, "".join(report)
