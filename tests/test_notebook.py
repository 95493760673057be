"""examples/article.ipynb: it is the article's page, and it runs from the first cell to the last."""

from pathlib import Path

import nbformat
import pytest
from docs import notebook, pictures
from nbclient import NotebookClient

import cifarnets


def test_the_notebook_is_that_of_the_page() -> None:
    assert notebook.NOTEBOOK.read_text(encoding="utf-8") == notebook.notebook(), "run: python docs/notebook.py"


def test_the_notebook_runs_and_shows_every_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(cifarnets.__file__).parents[1]))
    made = nbformat.read(notebook.NOTEBOOK, as_version=4)
    # The docs' tests run the same lines with CIFAR-10; here nothing but the drawn pictures is needed.
    (choice,) = (cell for cell in made.cells if cell.source.startswith("DRAWN = False"))
    choice.source = choice.source.replace("DRAWN = False", "DRAWN = True")
    NotebookClient(made, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()

    outputs = [output for cell in made.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    page = notebook.PAGE.read_text(encoding="utf-8")
    assert len(shown) == len(list(pictures.MADE.finditer(page)))
    texts = [output["data"]["text/plain"] for output in outputs if "data" in output]
    assert "(18354, [432, 16, 1152, 8, 16384, 32, 320, 10])" in texts
    errors = [output["evalue"] for output in outputs if output.output_type == "error"]
    assert len(errors) == 1
    assert "mat1 and mat2 shapes cannot be multiplied" in errors[0]  # step 16 shows this one
    assert (tmp_path / "convnet.safetensors").is_file()
