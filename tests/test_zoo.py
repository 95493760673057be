"""The index, the tables and the logs agree with the weight files."""

import csv
import json
import re
import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo import release as zoo

from cifarnets import evaluate, load, models
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
from cifarnets.errors import InputError
from cifarnets.recipes import load_recipe
from cifarnets.weights import index
from cifarnets.weights.files import read_weights

NAMES = models.list_models(pretrained=True)


def test_the_index_is_what_the_files_say() -> None:
    assert json.loads((index.FOLDER / index.INDEX_FILE).read_text()) == zoo.build_index()


def test_no_weight_file_is_left_out() -> None:
    assert set(zoo.weight_files()) == set(NAMES)


def test_the_golden_pictures_are_drawn_ones() -> None:
    golden, _ = read_weights(index.FOLDER / index.GOLDEN_FILE)
    assert torch.equal(golden["images"], SyntheticCIFAR10(train=False, size=12, seed=1).images)
    assert set(golden) == {"images", *(f"{name}.{key}" for name in NAMES for key in ("logits", "predictions"))}


@pytest.mark.parametrize("page", zoo.PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_index(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert zoo.with_table(text, zoo.build_index()) == text
    tables = text.split(zoo.MARKS[0])[1].split(zoo.MARKS[1])[0].strip().split("\n\n")
    for rows in (re.findall(r"^\| `([\w.]+)` \|", part, re.MULTILINE) for part in tables):
        assert sorted(rows) == NAMES
    assert len(tables) == 2


def test_a_table_says_of_one_seed_that_it_is_one() -> None:
    seeds = {name: len(row["seeds"]) for name, row in zoo.build_index().items()}
    assert 1 in seeds.values()
    for name, count in seeds.items():
        row = re.search(rf"^\| `{re.escape(name)}` \|.*$", zoo.table(zoo.build_index()), re.MULTILINE)
        assert row is not None
        assert ("one seed" in row[0], "±" in row[0]) == (count == 1, count > 1)


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(InputError, match="once each"):
        zoo.with_table("# A page", {})


@pytest.mark.parametrize("name", NAMES)
def test_the_logs_of_every_seed_are_kept_and_give_the_published_figures(name: str) -> None:
    facts, recipe = models.info(name).release, load_recipe(name)
    assert facts is not None
    plain, augmented = [], []
    for seed in facts.seeds:
        with (zoo.LOGS / name / f"seed{seed}.csv").open() as file:
            rows = list(csv.DictReader(file))
        assert [int(row["epoch"]) for row in rows] == list(range(1, recipe.epochs + 1))
        log = json.loads((zoo.LOGS / name / f"seed{seed}.json").read_text())
        assert log["test"]["n"] == 1000 * len(facts.classes)
        assert log["train"]["n"] == 5000 * len(facts.classes)  # on all of them: none held out
        plain.append(log["test"]["accuracy"])
        if facts.tta:
            augmented.append(log[f"test ({facts.tta})"]["accuracy"])
    assert facts.accuracy == statistics.mean(plain)
    assert facts.accuracy_std == (statistics.stdev(plain) if len(plain) > 1 else None)
    assert facts.tta_accuracy == (statistics.mean(augmented) if augmented else None)
    # What float16 changed: less than is published.
    assert abs(facts.file_accuracy - plain[0]) <= 5e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_weight_file_says_what_the_index_says(name: str) -> None:
    model, facts = load(name), models.info(name)
    assert facts.release is not None
    assert facts.parameters == facts.release.parameters == sum(p.numel() for p in model.parameters())
    assert facts.macs == models.summary(model).macs
    assert model.meta.results["accuracy"] == facts.release.accuracy
    assert model.meta.training["seed"] == facts.release.seed
    assert not model.training
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert not any(
        word in json.dumps([model.meta.training, model.meta.results]) for word in ("/root", "/home", "/work")
    )


@pytest.mark.cifar10
@pytest.mark.parametrize("name", [name for name in NAMES if models.info(name).macs < 5e7])
def test_calibration_and_augmented_accuracy_are_measured_again(name: str, real_root: Path) -> None:
    model, facts = load(name), models.info(name).release
    assert facts is not None
    loader = BatchLoader(load_recipe(name).dataset(False, real_root), 1000, device="cpu", channels_last=True)
    assert evaluate(model, loader, device="cpu").ece == pytest.approx(facts.file_ece, abs=1e-3)
    if facts.tta:
        tta: Any = facts.tta
        augmented = evaluate(model, loader, device="cpu", tta=tta).accuracy
        assert augmented == pytest.approx(facts.file_tta_accuracy, abs=5e-4)


def test_runs_of_another_recipe_and_broken_off_runs_are_not_released(tmp_path: Path) -> None:
    recipe = load_recipe("convnet.cifar3")
    ours = asdict(recipe)
    for change, named in (({"lr": 0.5}, "lr"), ({"distill": {"teacher": "x"}}, "distill")):
        (tmp_path / "run.json").write_text(json.dumps({"recipe": {**ours, **change}}))
        with pytest.raises(InputError, match=f"a run of another recipe: {named}"):
            zoo._seed_of(tmp_path, recipe)
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"model": "convnet", "seed": 0}}))
    with pytest.raises(InputError, match=r"a run of another recipe: classes \[.*\], not \[\]; epochs 100, not 20"):
        zoo._seed_of(tmp_path, recipe)
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {**ours, "seeds": [], "minutes": None}}))
    (tmp_path / "history.csv").write_text("epoch,loss\n1,0.5\n")
    with pytest.raises(InputError, match=r"is not whole: 1 of 100 epochs"):
        zoo._seed_of(tmp_path, recipe)


def test_the_seeds_must_be_those_that_the_recipe_names() -> None:
    with pytest.raises(InputError, match=r"names the seeds .*, and the runs have \(\)"):
        zoo.release("convnet.cifar3", [])
