"""README and docs: every Python block runs, every command parses, and the reference has every public name."""

import contextlib
import re
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from docs import diagrams, pictures
from tests.sharing.loopback import published

import cifarnets
from cifarnets import cli, report, viz

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = pictures.PAGES
SETUP = {
    "main job": "python3 -m venv .venv && .venv/bin/pip install . && .venv/bin/cifarnets demo",
    "tests": "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]' && .venv/bin/python -m pytest",
}
PUBLIC = (
    cifarnets,
    cifarnets.datasets,
    cifarnets.models,
    cifarnets.training,
    cifarnets.recipes,
    cifarnets.distillation,
    report,
    cifarnets.sharing,
    cifarnets.errors,
    viz,
)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def runnable_pages() -> list[Any]:
    """Pages with Python; those that use the real images have the mark `cifar10`."""
    params = []
    for page in PAGES:
        code = "\n".join(blocks(page, "python") + blocks(page, "pycon"))
        if code:
            real = "CIFAR10Normalized(train" in code
            params.append(pytest.param(page, id=page.name, marks=[pytest.mark.cifar10] if real else []))
    return params


@pytest.fixture
def _one_thread() -> Iterator[None]:
    """Nets this small gain little from a second thread, and lose much on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_one_thread")
@pytest.mark.parametrize("page", runnable_pages())
def test_python_blocks_run_in_order(
    page: Path, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if request.node.get_closest_marker("cifar10"):
        request.getfixturevalue("real_root")
    known = dict(cifarnets.models.registry._MODELS)
    monkeypatch.setattr(cifarnets.models.registry, "_MODELS", known)  # a page may register a model
    monkeypatch.chdir(tmp_path)
    with published(monkeypatch, tmp_path) if page.name == "share.md" else contextlib.nullcontext():
        for name, figure in pictures.run(page):
            assert type(figure).__name__ == "Figure", f"the block before {name} sets no `figure`"


def shown(page: Path) -> list[tuple[str, Path]]:
    """The alternative text and the file of each picture on a page."""
    found = pictures.IMAGE.finditer(page.read_text(encoding="utf-8"))
    return [(image["alt"], (page.parent / image["path"]).resolve()) for image in found if "://" not in image["path"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pictures_exist_and_say_in_words_what_they_show(page: Path) -> None:
    for words, picture in shown(page):
        assert picture.is_file(), f"{page.name} shows {picture.name}, which does not exist"
        assert len(words.split()) > 2, f"{page.name} does not say what {picture.name} shows"


def test_every_picture_is_shown_on_a_page_and_made_by_one_block() -> None:
    assert {file for page in PAGES for _, file in shown(page)} == set(pictures.IMAGES.iterdir())
    made = [match["path"] for page in PAGES for match in pictures.MADE.finditer(page.read_text(encoding="utf-8"))]
    assert len(made) == len(set(made)), "two blocks make one picture"


def test_the_diagrams_are_what_their_program_draws() -> None:
    for name, draw in diagrams.DIAGRAMS.items():
        drawn = (pictures.IMAGES / f"{name}.svg").read_text(encoding="utf-8")
        assert drawn == draw(), "run: python docs/diagrams.py"


def commands() -> list[Any]:
    """Every `cifarnets ...` in a bash or console block, or as inline code."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line for block in blocks(page, "bash") for line in block.replace("\\\n", " ").splitlines()]
        lines += [line[2:] for block in blocks(page, "console") for line in block.splitlines() if line.startswith("$ ")]
        lines += re.findall(r"`(cifarnets [^`]+)`", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL))
        for line in lines:
            for part in line.split("&&"):
                words = [word for word in shlex.split(part, comments=True) if not re.match(r"[A-Z_]+=", word)]
                if words and words[0] == "torchrun":
                    words = words[words.index("-m") + 1 :]
                if words and Path(words[0]).name == "cifarnets":
                    found.append(pytest.param(words[1:], id=f"{page.name}: {shlex.join(words)}"))
    return found


@pytest.mark.parametrize("words", commands())
def test_commands_parse(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        cli.parse(words)
    except SystemExit as end:
        assert end.code == 0, capsys.readouterr().err  # noqa: PT017 (--help and --version end with 0)


@pytest.mark.parametrize(
    ("command", "output"),
    [
        pytest.param(*block.removeprefix("$ ").split("\n", 1), id=block.splitlines()[0])
        for page in PAGES
        for block in blocks(page, "console")
    ],
)
def test_console_blocks_show_what_is_printed(command: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out == output


def test_the_readme_sets_up_a_fresh_machine_with_two_commands() -> None:
    lines = [line for block in blocks(README, "bash") for line in block.splitlines() if "venv" in line]
    assert lines == list(SETUP.values())
    assert blocks(ROOT / "docs" / "index.md", "bash")[0].strip() == SETUP["main job"]


def test_ci_installs_as_the_readme_says() -> None:
    if not (ROOT / ".ci").is_dir():
        pytest.skip("not a checkout: .ci is not part of the source distribution")
    assert "\nmake setup\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    setup = (ROOT / "Makefile").read_text(encoding="utf-8").split("\nsetup:", 1)[1].split("\n\n", 1)[0]
    assert re.search(r"-m venv .*\n.*pip install (-q )?-e '\.\[dev\]'", setup)


def test_the_steps_of_the_article_are_complete() -> None:
    rows = re.findall(r"^\| (\d+) \|", README.read_text(encoding="utf-8"), re.MULTILINE)
    headings = re.findall(r"^### (\d+)\. ", (ROOT / "docs" / "article.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [int(number) for number in rows] == [int(number) for number in headings] == list(range(1, 23))


def public_names() -> dict[str, str]:
    """Each public name, and the name under which the reference describes it: `cifarnets.save` is in `models`."""
    names: dict[str, str] = {}
    for module in PUBLIC:
        for name in exported(module):
            value = getattr(module, name)
            # If a package exports a name too, the reference describes it on the page of the package.
            homes = [m for m in PUBLIC[1:] if name in exported(m) and getattr(m, name) is value]
            names[f"{module.__name__}.{name}"] = f"{(homes or [module])[0].__name__}.{name}"
    del names["cifarnets.__version__"]  # described in a sentence
    return names


def exported(module: ModuleType) -> list[str]:
    """`__all__`, or the names that a module without one defines."""
    here = module.__name__
    defined = [name for name, value in vars(module).items() if getattr(value, "__module__", None) == here]
    return getattr(module, "__all__", None) or [name for name in defined if not name.startswith("_")]


def test_the_reference_names_every_public_name() -> None:
    directives: set[str] = set()
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        directives |= set(re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE))
    whole = "cifarnets.errors."  # its directive shows all members of the module
    missing = {name for name in public_names().values() if name not in directives and not name.startswith(whole)}
    assert not missing, f"not in docs/reference: {', '.join(sorted(missing))}"


def test_the_site_has_every_public_name(site: Path) -> None:
    # Sphinx's inventory: four lines of text, then one line an object, compressed.
    inventory = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    objects = {line.split()[0] for line in zlib.decompress(inventory).decode().splitlines()}
    assert set(public_names().values()) - objects == set()
    assert "convnet.cifar3: look inside" in (site / "explorer" / "convnet.cifar3.html").read_text(encoding="utf-8")


def test_the_site_asks_no_other_host(site: Path) -> None:
    """No font, script or style from elsewhere, no number of stars."""
    for page in site.rglob("*.html"):
        html = page.read_text(encoding="utf-8")
        assert not re.search(r'(?:src|<link (?!rel="canonical")[^>]*href)="(?:https?:)?//', html), page
        assert 'data-md-component="source"' not in html, page


def test_the_site_shows_code_from_its_source(site: Path) -> None:
    """A formatter or a misspelt mark would leave the line that includes it."""
    for page in site.rglob("*.html"):
        text = re.sub(r"<[^>]+>", "", page.read_text(encoding="utf-8"))
        assert not re.search(r"-8\s*(?:<|&lt;)", text), page
