"""`cifarnets predict` on files: in every form, as text, CSV and JSON, and with bad ones among them."""

import csv
import io
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

from cifarnets import commands, load, models, predict, prediction, save
from cifarnets._terminal import rounded
from cifarnets.cli import main

NAMES = ["a.png", "b.jpg", "c.png"]


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with three pictures in `photos`, one of them a floor below, and a text."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Path("photos/deeper").mkdir(parents=True)
    for name in ("photos/a.png", "photos/b.jpg", "photos/deeper/c.png"):
        PIL.Image.fromarray(rng.integers(0, 256, (48, 40, 3), dtype=np.uint8)).save(name)
    Path("photos/notes.txt").write_text("not a picture")
    Path("photos/.hidden.png").write_text("not a picture either")


@pytest.fixture
def weights() -> str:
    torch.manual_seed(0)
    model = models.create("convnet", num_classes=3)
    models.annotate(model, classes=("airplane", "automobile", "ship"), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return str(save(model, "three.safetensors"))


def names(printed: str) -> list[str]:
    return [Path(line.rpartition(": ")[0]).name for line in printed.splitlines()]


class TestWhichFiles:
    def test_a_folder(self, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["predict", weights, "photos"]) == 0
        printed = capsys.readouterr()
        assert names(printed.out) == NAMES
        assert printed.err == ""

    @pytest.mark.parametrize("pattern", ["photos/*.png", "photos/**/*.png"])
    def test_a_pattern_that_the_shell_left_alone(
        self, pattern: str, weights: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["predict", weights, pattern]) == 0
        assert names(capsys.readouterr().out) == (["a.png"] if "**" not in pattern else ["a.png", "c.png"])

    def test_a_file_whose_name_looks_like_a_pattern(self, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        Path("photos/a.png").rename("[a].png")
        assert main(["predict", weights, "[a].png"]) == 0
        assert names(capsys.readouterr().out) == ["[a].png"]

    def test_names_on_standard_input(
        self, weights: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("photos/a.png\n\nphotos/deeper\r\nnowhere.png"))
        assert main(["predict", weights, "-"]) == 1
        printed = capsys.readouterr()
        assert names(printed.out) == ["a.png", "c.png"]
        assert printed.err == "cifarnets: there is no file 'nowhere.png'.\n1 of 3 pictures could not be used.\n"

    def test_what_means_no_file(self, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        Path("empty").mkdir()
        assert main(["predict", weights, "empty", "x*.png", "photos/a.png"]) == 1
        printed = capsys.readouterr()
        assert names(printed.out) == ["a.png"]
        assert printed.err.splitlines() == [
            "cifarnets: the folder 'empty' holds no picture.",
            "cifarnets: no file matches 'x*.png'.",
            "2 of 3 pictures could not be used.",
        ]

    def test_the_model_comes_first(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["predict", "photos/a.png", "convnet"]) == 2
        assert capsys.readouterr().err == ("cifarnets: the model comes first: cifarnets predict convnet photos/a.png\n")


class TestBadFiles:
    def test_do_not_lose_the_others(self, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        words = [str(path) for path in (Path("photos/a.png"), Path("photos/notes.txt"), Path("no.png"))]
        assert main(["predict", weights, *words, "photos/b.jpg"]) == 1
        printed = capsys.readouterr()
        assert names(printed.out) == ["a.png", "b.jpg"]
        first, second, last = printed.err.splitlines()
        assert "notes.txt' is not a picture that can be read" in first
        assert second == "cifarnets: there is no file 'no.png'."
        assert last == "2 of 4 pictures could not be used."

    def test_in_the_middle_of_many(
        self, weights: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(commands, "PICTURES_AT_ONCE", 4)
        many = [str(Path("photos", "notes.txt" if n % 7 == 3 else "a.png")) for n in range(30)]
        assert main(["predict", weights, *many, "--jsonl"]) == 1
        printed = capsys.readouterr()
        assert len(printed.out.splitlines()) == 26
        assert printed.err.splitlines()[-1] == "4 of 30 pictures could not be used."

    def test_alone(self, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["predict", weights, "no.png"]) == 1
        assert capsys.readouterr() == ("", "cifarnets: there is no file 'no.png'.\n")


class TestForms:
    @pytest.fixture
    def expected(self, weights: str) -> Any:
        found: Any = predict(load(weights), Path("photos"), 2, device="cpu")
        return found

    def test_text(self, weights: str, expected: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["predict", weights, "photos", "--topk", "2", "--device", "cpu"]) == 0
        for line, wanted in zip(capsys.readouterr().out.splitlines(), expected, strict=True):
            assert line.endswith(": " + ", ".join(f"{name} {probability:.3f}" for name, probability in wanted))

    def test_csv(self, weights: str, expected: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["predict", weights, "photos", "--topk", "2", "--device", "cpu", "--csv"]) == 0
        rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
        assert [(Path(row["image"]).name, row["rank"]) for row in rows] == [(n, r) for n in NAMES for r in "12"]
        flat = [pair for one in expected for pair in one]
        assert [row["class"] for row in rows] == [name for name, _ in flat]
        assert [float(row["probability"]) for row in rows] == pytest.approx([p for _, p in flat], abs=1e-4)

    @pytest.mark.parametrize("form", ["--json", "--jsonl"])
    def test_json(self, form: str, weights: str, expected: Any, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["predict", weights, "photos", "--topk", "2", "--device", "cpu", form]) == 0
        printed = capsys.readouterr().out
        rows = json.loads(printed) if form == "--json" else [json.loads(line) for line in printed.splitlines()]
        assert [Path(row["image"]).name for row in rows] == NAMES
        for row, wanted in zip(rows, rounded(expected), strict=True):
            assert row["top"] == [[name, pytest.approx(probability, rel=1e-4)] for name, probability in wanted]
        assert not re.search(r"\d\.\d{8}", printed)

    def test_json_of_nothing(self, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["predict", weights, "no.png", "--json"]) == 1
        assert json.loads(capsys.readouterr().out) == []

    def test_one_form_at_a_time(self, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["predict", weights, "photos", "--json", "--csv"]) == 2
        assert "choose one of" in capsys.readouterr().err

    def test_escape_sequences_are_shown_not_obeyed(self, capsys: pytest.CaptureFixture[str]) -> None:
        save(models.create("convnet"), "plain.safetensors")
        constants = [
            "--mean",
            "0.5,0.5,0.5",
            "--std",
            "0.25,0.25,0.25",
            "--topk",
            "10",
            "--classes",
            "\x1b]0;taken\x07",
        ]
        for words in ([], ["--csv"], ["--json"]):
            assert main(["predict", "plain.safetensors", "photos/a.png", *constants, *words]) == 0
            printed = capsys.readouterr().out
            assert "taken" in printed
            assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", printed)
        assert main(["predict", "plain.safetensors", "no\x1b[2J.png", *constants]) == 1
        assert "\x1b" not in capsys.readouterr().err


def test_it_prints_as_it_goes(
    weights: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first groups are printed before the last names are known."""
    printed: list[int] = []

    class Slow:
        def __iter__(self) -> Any:
            for _ in range(40):
                yield "photos/a.png\n"
            printed.append(len(capsys.readouterr().out.splitlines()))
            yield "photos/b.jpg\n"

    monkeypatch.setattr(commands, "PICTURES_AT_ONCE", 4)
    monkeypatch.setattr(sys, "stdin", Slow())
    assert main(["predict", weights, "-"]) == 0
    assert printed[0] >= 20


def test_a_bar_on_a_terminal(weights: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen, read = Terminal(), prediction.Preprocessing.read

    def slow(self: Any, name: Any) -> torch.Tensor:
        time.sleep(0.2)
        return read(self, name)

    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(prediction.Preprocessing, "read", slow)
    monkeypatch.setattr(commands, "PICTURES_AT_ONCE", 1)
    assert main(["predict", weights, *["photos/a.png"] * 12]) == 0
    assert re.search(r"\d+/12 \[", screen.getvalue())
