"""Pictures of the pages: a block of Python sets `figure`, and the line behind the block shows it.

python docs/pictures.py
python docs/pictures.py docs/article.md

A page whose block is followed by `![words](img/NAME.png)` is run from the top, and its figures go into docs/img. Pages
without such a line are left alone. The same versions of matplotlib and torch give the same bytes.
"""

import doctest
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from sybil import Example, Sybil
from sybil.evaluators.doctest import NUMBER
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
IMAGES = DOCS / "img"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
IMAGE = re.compile(r"!\[(?P<alt>[^\]]*)\]\((?P<path>[^)\s]+)\)")
MADE = re.compile(rf"^```(?:python|pycon)\n(?:(?!```).*\n)*```\n\s*{IMAGE.pattern}", re.MULTILINE)
"""A block, and the image behind it."""


class PyconParser(PythonCodeBlockParser):
    """Doctests in blocks marked `pycon`, a language of the pages' highlighter; `python` blocks are plain code."""

    def __init__(self) -> None:
        # NUMBER compares figures to as many digits as the page shows.
        super().__init__(doctest_optionflags=doctest.ELLIPSIS | NUMBER)
        self.codeblock_parser = CodeBlockParser("pycon", self._no_prompt)

    @staticmethod
    def _no_prompt(_: Example) -> str:
        return "a pycon block must start with >>>"


SYBIL = Sybil(parsers=[PythonCodeBlockParser(), PyconParser()], path=str(ROOT))


class Made(NamedTuple):
    """A picture of a page, and the value of `figure` after the block before it."""

    name: str
    figure: Any


def run(page: Path) -> Iterator[Made]:
    """Run the blocks of a page in order, each checked against the output that it shows, and give its pictures."""
    examples = list(SYBIL.parse(page).examples())
    for shown in MADE.finditer(page.read_text(encoding="utf-8")):
        while examples and examples[0].start < shown.start():
            examples.pop(0).evaluate()
        namespace = examples[0].namespace
        namespace.pop("figure", None)  # a block must make its own
        while examples and examples[0].start < shown.end():
            examples.pop(0).evaluate()
        yield Made(Path(shown["path"]).name, namespace.get("figure"))
    for example in examples:
        example.evaluate()


def content(figure: "Figure") -> bytes:
    """A figure as PNG, without the version of the program that made it."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=150, metadata={"Software": None})
    return image.getvalue()


def main(pages: list[Path]) -> None:
    import torch

    torch.set_num_threads(1)  # several add in another order
    IMAGES.mkdir(exist_ok=True)
    for page in pages:
        if not MADE.search(page.read_text(encoding="utf-8")):
            continue
        torch.manual_seed(0)
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            os.chdir(folder)  # for the files that the blocks write
            for name, figure in run(page):
                (IMAGES / name).write_bytes(content(figure))
                print(f"{page.name}: docs/img/{name}", flush=True)
            os.chdir(ROOT)


if __name__ == "__main__":
    main([Path(name).resolve() for name in sys.argv[1:]] or PAGES)
