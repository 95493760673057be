"""The house's own rules: private things stay private, and an error's place is no parameter."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src" / "cifarnets").rglob("*.py"))
EVERYTHING = [*SOURCES, *(file for part in ("benchmarks", "zoo", "examples") for file in (ROOT / part).rglob("*.py"))]


def names(files: list[Path]) -> list[object]:
    return [pytest.param(file, id=str(file.relative_to(ROOT))) for file in files]


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize("file", names(EVERYTHING))
def test_no_module_imports_a_private_name_of_another(file: Path) -> None:
    """A private module (`cifarnets._files`) serves the whole library; a private name serves its own module."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("cifarnets", "benchmarks", "zoo"):
            modules = {path.stem for path in EVERYTHING}
            private = [alias.name for alias in node.names if is_private(alias.name) and alias.name not in modules]
            assert not private, f"line {node.lineno} imports {', '.join(private)} of {node.module}"


@pytest.mark.parametrize("file", names(SOURCES))
def test_no_file_but_its_own_touches_a_private_attribute_of_the_trainer(file: Path) -> None:
    if file.name == "trainer.py":
        return
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trainer":
            assert not is_private(node.attr), f"line {node.lineno} touches trainer.{node.attr}"


def parameters(tree: ast.AST) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            of = node.args
            for argument in [*of.posonlyargs, *of.args, *of.kwonlyargs]:
                yield node.lineno, argument.arg


@pytest.mark.parametrize("file", names(SOURCES))
def test_the_place_of_an_error_is_no_parameter(file: Path) -> None:
    """`inference.batch_context` adds it once, where the public call stands."""
    found = [line for line, name in parameters(ast.parse(file.read_text(encoding="utf-8"))) if name == "where"]
    assert not found
