"""The page of a run: what is on it, what it does without, and how fast and how large it is."""

import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tests.report.helpers import copied, few, small_run

from cifarnets import Evaluation, cli, commands
from cifarnets.errors import InputError, OutputError
from cifarnets.recipes import Recipe, load_recipe
from cifarnets.recipes.recipe import command_of
from cifarnets.report import write_report
from cifarnets.training import History

SECTIONS = [
    "Results",
    "What was run",
    "Curves",
    "Confusion",
    "Accuracy of each class",
    "Calibration",
    "Most confident mistakes",
    "First layer",
    "Feature maps",
    "Speed",
    "Environment",
    "Repeat it",
]


class Page(HTMLParser):
    """What a reader of the page finds: its text, headings, pictures and addresses."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def plots(self) -> list[dict[str, Any]]:
        return [json.loads(figure["data-plot"] or "") for figure in self.all("figure")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cifarnets.recipes.recipe.SyntheticCIFAR10", few)
        yield small_run(tmp_path_factory.mktemp("report") / "first")


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cifarnets.recipes.recipe.SyntheticCIFAR10", few)


def test_the_page_shows_the_run(run: Path, tmp_path: Path) -> None:
    page = Page(write_report(run, tmp_path / "report.html"))
    text = page.text
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", (tmp_path / "report.html").read_text(encoding="utf-8")) == SECTIONS
    result = Evaluation.from_dict(json.loads((run / "evaluation.json").read_text())["test"])
    low, high = result.confidence_interval()
    for figure in (result.accuracy, result.loss, result.ece, result.top5, low, high):
        assert f"{figure:.4f}" in text
    assert "250 images of drawn pictures" in text
    assert "18,354" in text  # parameters
    assert "cifarnets train convnet --epochs 1 --batch-size 250 --lr 0.05 --val 50 --synthetic" in text
    (row,) = History.from_csv(run / "history.csv")
    loss, accuracy = page.plots()
    assert loss["lines"] == [
        {"name": "training", "y": [pytest.approx(row["loss"], rel=1e-4)]},
        {"name": "validation", "y": [pytest.approx(row["val_loss"], rel=1e-4)]},
    ]
    assert accuracy["lines"][1]["y"] == [pytest.approx(row["val_accuracy"], rel=1e-4)]
    pictures = page.all("img")
    assert all(picture["alt"] and (picture["src"] or "").startswith("data:image/png") for picture in pictures)
    alts = [str(picture["alt"]) for picture in pictures]
    assert sum(alt.startswith("kernel ") for alt in alts) == 16
    assert sum(alt.startswith("map ") for alt in alts) == 16 + 8
    assert sum(" taken for " in alt for alt in alts) == 12
    worst = result.mistakes[0]
    assert alts[0] == f"Image {worst.image}, {result.classes[worst.label]}, taken for {result.classes[worst.predicted]}"


def test_it_needs_nothing_from_elsewhere(run: Path, tmp_path: Path) -> None:
    page = Page(write_report(run, tmp_path / "report.html"))
    for _, attributes in page.tags:
        for name in ("src", "href", "action", "poster", "srcset"):
            assert re.match("data:|#", attributes.get(name) or "#")
    assert not re.search(r"@import|url\(", (tmp_path / "report.html").read_text(encoding="utf-8"))


def test_a_hundred_epochs_in_five_seconds_and_two_megabytes(run: Path, tmp_path: Path) -> None:
    long = copied(run, tmp_path / "long", epochs=100)
    start = time.perf_counter()
    path = write_report(long, tmp_path / "report.html")
    assert time.perf_counter() - start < 5
    assert path.stat().st_size < 2_000_000
    assert all(len(line["y"]) == 100 for plot in Page(path).plots() for line in plot["lines"])


def test_of_several_runs_the_differences_come_first(run: Path, tmp_path: Path) -> None:
    second = copied(run, tmp_path / "second", epochs=3, recipe={"lr": 0.1, "optimizer": "adamw"})
    path = write_report([run, str(second)], tmp_path / "report.html")
    page, source = Page(path), path.read_text(encoding="utf-8")
    assert re.findall(r"<h2[^>]*>(.*?)</h2>", source) == ["Differences of the recipes", *SECTIONS]
    section = source.partition('id="differences"')[2].partition("</section>")[0]
    assert re.findall(r'<th scope="row">(.*?)</th><td>(.*?)</td><td>(.*?)</td>', section) == [
        ("epochs", "1", "3"),
        ("optimizer", "sgd", "adamw"),
        ("lr", "0.05", "0.1"),
    ]
    loss = page.plots()[0]
    assert loss["x"] == [1, 2, 3]
    assert [line["name"] for line in loss["lines"]] == [
        f"{name}, {kind}" for name in ("A: first", "B: second") for kind in ("training", "validation")
    ]
    assert loss["lines"][0]["y"][1:] == [None, None]
    assert loss["lines"][2]["y"] == [2, 1, pytest.approx(0.66667)]
    same = write_report([run, run], tmp_path / "same.html")
    assert "The recipes are the same" in Page(same).text


def test_without_the_data_the_page_says_so(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFARNETS_DATA", str(tmp_path / "empty"))
    away = copied(run, tmp_path / "away", recipe={"synthetic": False})
    page = Page(write_report(away, tmp_path / "report.html"))
    assert page.text.count("The images are not at hand: ") == 2  # mistakes and maps
    assert sum(str(picture["alt"]).startswith("kernel ") for picture in page.all("img")) == 16


def test_images_that_have_changed_are_not_shown_as_mistakes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifarnets.recipes.recipe.SyntheticCIFAR10", lambda train: few(not train))
    assert "The images are not those of the evaluation" in Page(write_report(run, tmp_path / "report.html")).text


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("evaluation.json", "The model has not been evaluated yet."),
        ("history.csv", "No epoch has ended yet."),
        ("model.safetensors", "model.safetensors is not in the folder of the run."),
    ],
)
def test_a_run_without_one_of_its_files(run: Path, tmp_path: Path, missing: str, message: str) -> None:
    part = copied(run, tmp_path / "part", without=missing)
    text = Page(write_report(part, tmp_path / "report.html")).text
    assert f"has no usable {missing}." in text
    assert ("train --resume with this folder evaluates" in text) == (missing == "evaluation.json")
    assert message in text


@pytest.mark.parametrize("name", ["evaluation.json", "history.csv", "model.safetensors"])
def test_a_damaged_file_is_as_good_as_none(run: Path, tmp_path: Path, name: str) -> None:
    part = copied(run, tmp_path / "part")
    (part / name).write_bytes(b'{"test": [1, \xff')
    assert f"has no usable {name}." in Page(write_report(part, tmp_path / "report.html")).text


def test_an_evaluation_of_an_earlier_version(run: Path, tmp_path: Path) -> None:
    old = copied(run, tmp_path / "old")
    content = json.loads((old / "evaluation.json").read_text())
    for entry in content.values():
        for key in ("classes", "top5", "reliability", "mistakes"):
            del entry[key]
    (old / "evaluation.json").write_text(json.dumps(content))
    text = Page(write_report(old, tmp_path / "report.html")).text
    assert text.count("An earlier version of cifarnets made this run") == 2


def test_names_are_text_and_no_code(run: Path, tmp_path: Path) -> None:
    part = copied(run, tmp_path / "part", recipe={"config": {"</script><script>alert(1)": 1}})
    content = (part / "evaluation.json").read_text().replace('"disc"', '"<script>alert(2)</script>"')
    (part / "evaluation.json").write_text(content)
    path = write_report(part, tmp_path / "report.html")
    assert len(Page(path).all("script")) == 1
    assert "alert(1)" in Page(path).text
    assert "alert(2)" in Page(path).text


def test_what_cannot_be_reported_on(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json"):
        write_report(tmp_path / "none", tmp_path / "report.html")
    with pytest.raises(InputError, match="a report shows 1 to 8 runs, not 9"):
        write_report([run] * 9, tmp_path / "report.html")
    with pytest.raises(InputError, match="a report shows 1 to 8 runs, not 0"):
        write_report([], tmp_path / "report.html")
    with pytest.raises(OutputError):
        write_report(run, run / "run.json" / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe("convnet"),
        load_recipe("resnet20"),
        replace(load_recipe("airbench94"), seed=7),
        replace(load_recipe("airbench94"), epochs=3),
        Recipe(
            "fcnet",
            config={"widths": [64, 32]},
            classes=("cat", "dog"),
            lr=1e-05,
            optimizer_options={"momentum": 0.9, "nesterov": True},
            decay_biases=False,
            compile=True,
            schedule="step",
            schedule_options={"milestones": [0.5, 0.75]},
            augment={"flip": "random", "mixup": 0.2},
            tta="mirror_shift",
            precision="bf16",
        ),
    ],
    ids=lambda recipe: f"{recipe.model}-{recipe.epochs}",
)
def test_the_command_trains_the_same_recipe(recipe: Recipe) -> None:
    options = cli.parse(command_of(recipe)[1:])
    read = commands._recipe(options, commands._given(options))
    assert recipe.differences(read) == []


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("name", ["evaluation.json", "history.csv", "run.json"])
def test_a_pipe_is_not_waited_for(run: Path, tmp_path: Path, name: str) -> None:
    part = copied(run, tmp_path / "part", without=name)
    os.mkfifo(part / name)
    if name == "run.json":
        with pytest.raises(InputError, match="it is no regular file"):
            write_report(part, tmp_path / "report.html")
    else:
        assert f"has no usable {name}." in Page(write_report(part, tmp_path / "report.html")).text


@pytest.mark.parametrize("loss", ["nan", "inf", "1e308"])
def test_a_training_that_diverged_has_a_page(run: Path, tmp_path: Path, loss: str) -> None:
    part = copied(run, tmp_path / "part", epochs=3)
    rows = (part / "history.csv").read_text().splitlines()
    rows[2] = rows[2].replace("2,1.0,", f"2,{loss},").replace("1.05", "-1e308")
    (part / "history.csv").write_text("\n".join(rows))
    page = Page(write_report(part, tmp_path / "report.html"))
    assert page.plots()[0]["lines"][0]["y"] == [2.0, None, 0.66667]
