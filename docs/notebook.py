"""The article's page as a notebook: prose stays prose, blocks of Python become cells, and figures show themselves.

python docs/notebook.py

It writes examples/article.ipynb, without outputs: a reader's machine makes them.
"""

import doctest
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "article.md"
NOTEBOOK = ROOT / "examples" / "article.ipynb"
SITE = "https://cifarnets.github.io/cifarnets"
FILES = "https://raw.githubusercontent.com/cifarnets/cifarnets/main/docs"

START = """\
# This notebook is made from docs/article.md by docs/notebook.py: change the page, not the notebook.
import importlib.util

if importlib.util.find_spec("cifarnets") is None:  # on Colab, say
    %pip install -q "cifarnets[plots] @ git+https://github.com/cifarnets/cifarnets"

# A cell shows the value of every line, not only of the last.
%config InteractiveShell.ast_node_interactivity = "all"
"""

DRAWN = """\
DRAWN = False  # True: drawn pictures under the names of CIFAR-10's classes, where there is no network

if DRAWN:
    from cifarnets import datasets

    CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

    def drawn_pictures(root=None, train=True, *, download=False, **options):
        data = datasets.SyntheticCIFAR10(train, **options)
        options = {"mean": data.mean, "std": data.std, "view": data.view, "split": data.split}
        return datasets.ImageDataset(data.images, data.targets, CLASSES, **options)

    datasets.CIFAR10Normalized = drawn_pictures
"""

FENCE = re.compile(r"^```(python|pycon)\n(.*?)^```\n(?:\s*^!\[[^\]]*\]\(\S+\.png\)\n)?", re.MULTILINE | re.DOTALL)
"""A block of Python, with the picture behind it, which the cell makes itself."""


def cells(page: str) -> Iterator[nbformat.NotebookNode]:
    """The cells of a page, in order."""
    end = 0
    for block in FENCE.finditer(page):
        yield from prose(page[end : block.start()])
        yield from pycon(block[2]) if block[1] == "pycon" else [code(block[2])]
        end = block.end()
    yield from prose(page[end:])


def code(source: str, *, raises: bool = False) -> nbformat.NotebookNode:
    lines = source.strip()
    shows = re.search(r"^figure = ", lines, re.MULTILINE)
    tags = {"metadata": {"tags": ["raises-exception"]}} if raises else {}
    return new_code_cell(f"{lines}\nfigure" if shows else lines, **tags)


def pycon(block: str) -> Iterator[nbformat.NotebookNode]:
    """The statements of a block without their prompts and outputs; one that raises ends its cell."""
    lines = ""
    for example in doctest.DocTestParser().get_examples(block):
        lines += example.source
        if example.exc_msg:
            yield code(lines, raises=True)
            lines = ""
    if lines:
        yield code(lines)


def prose(text: str) -> Iterator[nbformat.NotebookNode]:
    """Markdown as notebooks know it."""
    text = re.sub(r'^--8<-- "([^:"]+):(\w+)"$', lambda found: snippet(found[1], found[2]), text, flags=re.MULTILINE)
    text = re.sub(r"^\[[^\]]*\]\([^)]*colab[^)]*\).*\n", "", text, flags=re.MULTILINE)  # the reader is there
    text = text.replace("```{ .python }\n", "```python\n").replace("{ .md-button }", "")
    text = re.sub(r"^!!! \w+(?: \"(.*)\")?\n((?:    .*\n|\n(?=    ))+)", admonition, text, flags=re.MULTILINE)
    text = re.sub(r"\]\(img/", f"]({FILES}/img/", text)
    text = re.sub(r"\]\((?!https?:)([\w/.-]+)\.(?:md|html)", rf"]({SITE}/\1.html", text)
    if text.strip():
        yield new_markdown_cell(text.strip())


def snippet(name: str, section: str) -> str:
    """A section of a file, less the lines that mark it."""
    text = (ROOT / name).read_text(encoding="utf-8")
    found = re.search(rf"-8<-- \[start:{section}\]\n(.*?)\n *# --8<-- \[end:{section}\]", text, re.DOTALL)
    assert found, f"{name} has no section {section}"
    lines = found[1].rstrip().split("\n")
    margin = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    return "\n".join(line[margin:] for line in lines)


def admonition(found: re.Match[str]) -> str:
    lines = [line.removeprefix("    ") for line in found[2].rstrip().split("\n")]
    return "\n".join(f"> {line}".rstrip() for line in [f"**{found[1]}**", "", *lines]) + "\n"


def notebook() -> str:
    """The notebook as text; the same page gives the same bytes."""
    parts = [new_code_cell(START.strip()), *cells(PAGE.read_text(encoding="utf-8"))]
    parts.insert(2, new_code_cell(DRAWN.strip()))
    for number, cell in enumerate(parts):
        cell["id"] = f"cell-{number}"
    made = new_notebook(cells=parts)
    made["metadata"] = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.validate(made)
    text: str = nbformat.writes(made, indent=1)
    return text + "\n"


def main() -> None:
    NOTEBOOK.write_text(notebook(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
