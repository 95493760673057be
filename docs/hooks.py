"""What mkdocs adds to the site: a live explorer of the article's net, made anew in every build."""

import tempfile
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

import cifarnets
from cifarnets.report import write_explorer

NAME = "convnet.cifar3"


def on_files(files: Files, *, config: Any) -> Files:
    """Add the page, whose weights are those of the package."""
    with tempfile.TemporaryDirectory() as folder:
        page = write_explorer(cifarnets.load(NAME), Path(folder, "page.html"), title=NAME).read_text(encoding="utf-8")
    files.append(File.generated(config, f"explorer/{NAME}.html", content=page))
    return files
