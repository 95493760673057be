"""The index, the tables and the logs agree with the weight files."""

import csv
import json
import re
import shutil
import statistics
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo import release as zoo

from cifarnets import evaluate, load, models
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
from cifarnets.errors import InputError
from cifarnets.recipes import Recipe, list_recipes, load_recipe, run_recipe
from cifarnets.recipes.recipe import read_recipe
from cifarnets.weights import index
from cifarnets.weights.files import read_weights
from cifarnets.weights.index import releases, sha256

NAMES = models.list_models(pretrained=True)


def test_the_index_is_what_the_files_say() -> None:
    assert json.loads((index.FOLDER / index.INDEX_FILE).read_text()) == zoo.build_index()


def test_no_weight_file_is_left_out() -> None:
    assert zoo.weight_files().keys() == releases().keys()
    assert {path for path in zoo.WEIGHTS.glob("*.safetensors") if path.name != index.GOLDEN_FILE} == set(
        zoo.weight_files().values()
    )


def test_the_golden_pictures_are_drawn_ones() -> None:
    golden, _ = read_weights(index.FOLDER / index.GOLDEN_FILE)
    assert torch.equal(golden["images"], SyntheticCIFAR10(train=False, size=12, seed=1).images)
    assert set(golden) == {"images", *(f"{name}.{key}" for name in releases() for key in ("logits", "predictions"))}


@pytest.mark.parametrize("page", zoo.PAGES, ids=lambda page: page.name)
def test_the_tables_are_those_of_the_index(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert zoo.with_table(text, zoo.build_index()) == text
    tables = text.split(zoo.MARKS[0])[1].split(zoo.MARKS[1])[0].strip().split("\n\n")
    for rows in (re.findall(r"^\| `([\w.]+)` \|", part, re.MULTILINE) for part in tables):
        assert sorted(rows) == NAMES
    assert len(tables) == 2


def test_a_table_says_of_one_seed_that_it_is_one() -> None:
    seeds = {name: len(row["seeds"]) for name, row in zoo.build_index().items() if name in NAMES}
    assert 1 in seeds.values()
    for name, count in seeds.items():
        row = re.search(rf"^\| `{re.escape(name)}` \|.*$", zoo.table(zoo.build_index()), re.MULTILINE)
        assert row is not None
        assert ("one seed" in row[0], "±" in row[0]) == (count == 1, count > 1)


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(InputError, match="once each"):
        zoo.with_table("# A page", {})


@pytest.mark.parametrize("name", sorted({release.recipe for release in releases().values()}))
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


@pytest.mark.parametrize("name", releases())
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
@pytest.mark.parametrize("name", [name for name in releases() if models.info(name).macs < 5e7])
def test_calibration_and_augmented_accuracy_are_measured_again(name: str, real_root: Path) -> None:
    model, facts = load(name), models.info(name).release
    assert facts is not None
    loader = BatchLoader(load_recipe(facts.recipe).dataset(False, real_root), 1000, device="cpu", channels_last=True)
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
        zoo.release("convnet.cifar3", [], Path())


@pytest.fixture
def small_zoo(weights_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The zoo in a folder of its own, with runs of a small recipe for convnet, whose version is the next one."""
    recipe = Recipe("convnet", epochs=3, lr=0.05, synthetic=True, tta="mirror")
    held_out = replace(recipe, seed=2, val=300, tta=None)  # which needs no test-time augmentation
    for number, run in enumerate((recipe, replace(recipe, seed=1), held_out)):
        run_recipe(run, tmp_path / f"run{number}", device="cpu", progress=False)
    facts: dict[str, Any] = {"version": "1.0", "seeds": [0], "commit": "0123456", "minutes": 1}
    recipes = {name: read_recipe(name) for name in list_recipes()}
    version = releases()["convnet"].version
    older = f"convnet.v{version}"
    recipes[older] = recipes["convnet"]
    recipes["convnet"] = {**recipe.to_dict(), "release": {**facts, "seeds": [0, 1], "version": f"{version + 1}.0"}}
    monkeypatch.setattr(zoo, "load_recipe", lambda name: recipe)
    monkeypatch.setattr(zoo, "list_recipes", lambda: sorted(recipes))
    monkeypatch.setattr(zoo, "read_recipe", recipes.__getitem__)
    shutil.copytree(zoo.LOGS, tmp_path / "logs")
    monkeypatch.setattr(zoo, "LOGS", tmp_path / "logs")
    monkeypatch.setattr(zoo, "WEIGHTS", weights_folder)
    monkeypatch.setattr(zoo, "PAGES", ())
    monkeypatch.setattr(zoo, "measure_speed", lambda: None)
    seeds = {name.replace("convnet", older, 1) for name in releases() if re.fullmatch(r"convnet\.seed\d+", name)}
    names = {*releases(), "convnet.seed1", older, *seeds}
    speeds = {key: dict.fromkeys(names, 1.0) for key in ("milliseconds", "milliseconds_batch")}
    monkeypatch.setattr(zoo, "speeds", lambda: {"measured": "here", **speeds})
    return tmp_path


def test_a_release_is_shown_first_then_written_calibrated_and_never_changed(
    small_zoo: Path, weights_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, held_out = [small_zoo / "run0", small_zoo / "run1"], small_zoo / "run2"
    present = releases()["convnet"]
    older, file = f"convnet.v{present.version}", f"convnet.v{present.version + 1}.safetensors"
    before = (weights_folder / present.file).read_bytes()
    first = load("convnet").state_dict()
    predicted = read_weights(weights_folder / index.GOLDEN_FILE)[0]["convnet.predictions"]
    zoo.release("convnet", runs, held_out, all_seeds=True)
    shown = capsys.readouterr().out
    assert f"convnet (now, version {present.version})" in shown
    assert "convnet.seed1 (new)" in shown
    assert f"{present.accuracy:.4f}" in shown
    assert not (weights_folder / file).exists()

    zoo.release("convnet", runs, held_out, all_seeds=True, write=True)
    index.releases.cache_clear()
    assert (weights_folder / present.file).read_bytes() == before
    assert all(torch.equal(tensor, first[key]) for key, tensor in load(older).state_dict().items())
    facts = models.info("convnet").release
    assert facts is not None
    assert (facts.version, facts.file, facts.recipe) == (present.version + 1, file, "convnet")
    assert models.info(f"convnet.v{facts.version}").release == facts
    variants = models.info("convnet").variants
    assert variants[:2] == ("convnet", "convnet.seed1")
    assert older in variants[2:]
    assert "convnet.seed1" not in models.list_models(pretrained=True)
    default, pinned, other = (
        dict(load(*name).named_parameters())["fc2.weight"] for name in (("convnet",), ("convnet.seed1",), (older,))
    )
    second = dict(load("convnet", seed=1).named_parameters())["fc2.weight"]
    assert torch.equal(second, pinned)
    assert not torch.equal(second, default)
    assert not torch.equal(other, default)
    golden, _ = read_weights(weights_folder / index.GOLDEN_FILE)
    assert golden["convnet.seed1.logits"].shape == (12, 10)
    assert torch.equal(golden[f"{older}.predictions"], predicted)
    assert sha256(golden["convnet.predictions"].numpy().tobytes()) == facts.predictions_sha256

    assert facts.temperature is not None
    assert facts.uncalibrated_ece is not None
    assert facts.temperature == pytest.approx(
        json.loads((small_zoo / "logs/convnet/held_out.json").read_text())["temperature"]
    )
    whole = load(small_zoo / "run0" / "model.safetensors")
    loader = BatchLoader(SyntheticCIFAR10(train=False), 1000, device="cpu", channels_last=True)
    run, released = evaluate(whole, loader, device="cpu"), evaluate(load("convnet"), loader, device="cpu")
    assert released.accuracy == facts.file_accuracy
    assert released.logits is not None
    assert run.logits is not None
    assert torch.allclose(released.logits * facts.temperature, run.logits, atol=0.02)

    content = bytearray((weights_folder / file).read_bytes())
    (weights_folder / file).write_bytes(content[:-1])
    with pytest.raises(InputError, match="a released file never changes: raise the version"):
        zoo.release("convnet", runs, held_out, write=True)


def test_only_a_run_that_held_images_out_can_calibrate(small_zoo: Path) -> None:
    with pytest.raises(InputError, match="held no images out: train it with --val 5000"):
        zoo.release("convnet", [small_zoo / "run0", small_zoo / "run1"], small_zoo / "run1")
