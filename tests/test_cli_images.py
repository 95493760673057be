"""Your own pictures on the command line: trained on, resumed, evaluated, predicted."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest

from cifarnets import load
from cifarnets.cli import main
from cifarnets.models.metadata import get_meta

CLASSES = ("bars", "disc", "square")


def draw(kind: str, rng: np.random.Generator) -> PIL.Image.Image:
    """A picture of any size: a disc, a square or bars, in a light colour on a dark ground."""
    width, height = (int(side) for side in rng.integers(40, 120, 2))
    picture = PIL.Image.new("RGB", (width, height), tuple(map(int, rng.integers(0, 70, 3))))
    pen, colour = PIL.ImageDraw.Draw(picture), tuple(map(int, rng.integers(170, 256, 3)))
    box = (width * 0.2, height * 0.2, width * 0.8, height * 0.8)
    if kind == "disc":
        pen.ellipse(box, fill=colour)
    elif kind == "square":
        pen.rectangle((0, 0, width * 0.35, height * 0.35), fill=colour)
    else:
        for x in range(0, width, width // 4):
            pen.rectangle((x, 0, x + width // 8, height), fill=colour)
    return picture


def fill(root: Path, count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for kind in CLASSES:
        (root / kind).mkdir(parents=True)
        for index in range(count):
            draw(kind, rng).save(root / kind / f"{index}.{('png', 'jpg')[index % 2]}")
    return root


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folders `train` and `val` of three classes; the work is done beside them, where no CIFAR-10 is."""
    fill(tmp_path / "pictures" / "train", 40, 0)
    fill(tmp_path / "pictures" / "val", 10, 1)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("CIFARNETS_DATA", str(tmp_path / "none"))
    return tmp_path / "pictures"


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*words: object) -> tuple[int, str, str]:
        status = main(list(map(str, words)))
        return status, *capsys.readouterr()

    return run


TRAIN: tuple[str, ...] = (
    "train",
    "convnet",
    "--device",
    "cpu",
    "--batch-size",
    "20",
    "--lr",
    "0.05",
    "--option",
    "momentum=0.9",
    "--quiet",
)


def test_from_the_first_picture_to_a_model_that_ships(pictures: Path, run: Run) -> None:
    words = ("--images", "../pictures/train", "--val-images", "../pictures/val", "--epochs", "12", "--out", "run")
    status, printed, complaints = run(*TRAIN, *words)
    assert (status, complaints) == (0, "")
    assert "Accuracy train: " in printed
    assert "Accuracy val: " in printed
    assert "test" not in printed, "there are no test images"
    history = Path("run/history.csv").read_text().splitlines()
    assert "val_accuracy" in history[0]
    meta = get_meta(load("run"))
    assert meta is not None
    assert (meta.classes, meta.config["num_classes"], meta.size) == (CLASSES, 3, (32, 32))

    status, printed, _ = run("evaluate", "run", "--images", pictures / "val", "--device", "cpu", "--json")
    assert status == 0
    result = json.loads(printed)
    assert result["n"] == 30
    assert result["accuracy"] > 0.9
    assert result["accuracy"] == json.loads(Path("run/evaluation.json").read_text())["val"]["accuracy"]

    rng = np.random.default_rng(5)
    for kind in CLASSES:
        draw(kind, rng).save(f"{kind}.png")
    shipped = Path("run/model.safetensors").rename("shipped.safetensors")
    status, printed, _ = run("predict", shipped, *(f"{kind}.png" for kind in CLASSES), "--device", "cpu")
    assert status == 0
    assert [line.split()[:2] for line in printed.splitlines()] == [[f"{kind}.png:", kind] for kind in CLASSES]


def test_a_run_is_resumed_from_anywhere_on_the_same_pictures(
    pictures: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--images", "../pictures/train", "--val", "12", "--epochs", "1", "--out", "run")
    assert run(*TRAIN, *words)[0] == 0
    content = json.loads(Path("run/run.json").read_text())
    assert content["recipe"]["images"] == str(pictures / "train")
    content["recipe"]["epochs"] = 2  # as if it had been stopped after the first
    Path("run/run.json").write_text(json.dumps(content))
    monkeypatch.chdir(pictures)
    folder = pictures.parent / "work" / "run"
    status, printed, _ = run("train", "--resume", folder, "--device", "cpu", "--quiet")
    assert status == 0
    assert "Accuracy val: " in printed
    assert len((folder / "history.csv").read_text().splitlines()) == 3


@pytest.mark.usefixtures("pictures")
def test_the_same_command_starts_a_run_and_resumes_it(run: Run) -> None:
    words = (*TRAIN, "--images", "../pictures/train", "--epochs", "1", "--resume", "run")
    assert run(*words)[0] == 0
    assert run(*words)[0] == 0, "a relative path means the same folder again"
    status, _, complaints = run(*words, "--val-images", "../pictures/val")
    assert status == 1
    assert "has another recipe: --val-images None" in complaints


def test_a_resumed_run_with_other_pictures_is_refused(pictures: Path, run: Run) -> None:
    words = ("--images", "../pictures/train", "--epochs", "1", "--out", "run")
    assert run(*TRAIN, *words)[0] == 0
    content = json.loads(Path("run/run.json").read_text())
    content["recipe"]["epochs"] = 2
    Path("run/run.json").write_text(json.dumps(content))
    (pictures / "train" / "disc" / "0.png").unlink()  # no batch less than before
    status, _, complaints = run("train", "--resume", "run", "--device", "cpu", "--quiet")
    assert status == 1
    assert "the checkpoint is of a fit with images 120, not 119" in complaints


def test_the_model_does_not_say_where_somebody_keeps_pictures(pictures: Path, run: Run) -> None:
    assert run(*TRAIN, "--images", pictures / "train", "--epochs", "1", "--out", "run")[0] == 0
    assert os.fsencode(str(pictures)) not in Path("run/model.safetensors").read_bytes()
    meta = get_meta(load("run"))
    assert meta is not None
    assert meta.training["images"] == "train"


def test_some_classes_may_be_chosen(pictures: Path, run: Run) -> None:
    words = ("--images", pictures / "train", "--val-images", pictures / "val", "--classes", "square,bars")
    assert run(*TRAIN, *words, "--epochs", "1", "--out", "run")[0] == 0
    meta = get_meta(load("run"))
    assert meta is not None
    assert meta.classes == ("square", "bars")
    assert json.loads(Path("run/evaluation.json").read_text())["val"]["n"] == 20


def test_a_bad_file_is_named_and_costs_the_others_nothing(
    pictures: Path, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    (pictures / "train" / "disc" / "broken.jpg").write_text("no picture")
    assert run(*TRAIN, "--images", pictures / "train", "--epochs", "1", "--out", "run")[0] == 0
    assert "1 of 121 pictures" in caplog.text
    assert "broken.jpg" in caplog.text
    assert json.loads(Path("run/evaluation.json").read_text())["train"]["n"] == 120


# --- what is refused


def test_folders_are_checked_against_the_classes_of_the_model(pictures: Path, run: Run) -> None:
    assert run(*TRAIN, "--images", pictures / "train", "--epochs", "1", "--out", "run")[0] == 0
    (pictures / "val" / "disc").rename(pictures / "val" / "discs")
    status, _, complaints = run("evaluate", "run", "--images", pictures / "val")
    assert status == 1
    assert "has 'discs', which is none of the classes 'bars', 'disc', 'square'" in complaints
    status, _, complaints = run("evaluate", "run")
    assert status == 2
    assert "was trained on the pictures in a folder 'train': name one with --images DIR" in complaints
    status, _, complaints = run("evaluate", "run", "--images", pictures / "val", "--split", "test")
    assert status == 2
    assert "drop --split" in complaints


def test_validation_pictures_of_another_class_are_refused(pictures: Path, run: Run) -> None:
    (pictures / "val" / "disc").rename(pictures / "val" / "cone")
    words = ("--images", pictures / "train", "--val-images", pictures / "val", "--out", "run")
    status, _, complaints = run(*TRAIN, *words)
    assert status == 1
    assert "has 'cone', which is none of the classes" in complaints
    assert not Path("run").exists()


BOTH = ("--images", "../pictures/train", "--val-images", "../pictures/val")


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (("--images", "none"), 1, "cannot read the folder"),
        (("--images", "../pictures/train", "--synthetic"), 2, "not both"),
        (("--val-images", "../pictures/val"), 2, "needs images"),
        (
            ("--images", "../pictures/train", "--val-images", "../pictures/val", "--val", "9"),
            2,
            "needs images, and no val",
        ),
        (("--images", "../pictures/train", "--val", "120"), 1, "between 1 and 119"),
    ],
)
@pytest.mark.usefixtures("pictures")
def test_options_that_make_no_sense_leave_no_folder(
    words: tuple[str, ...], status: int, message: str, run: Run
) -> None:
    found, _, complaints = run(*TRAIN, *words, "--out", "run")
    assert found == status
    assert message in complaints.replace("--", "").replace("val-images", "val_images")
    assert not Path("run").exists()


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    for command, example in {"train": "cifarnets train convnet --images pictures", "evaluate": "--images DIR"}.items():
        with pytest.raises(SystemExit, match="0"):
            main([command, "--help"])
        assert example in capsys.readouterr().out
