"""The command for a GPU, in a dry run: two steps of everything."""

import io
import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from zoo import on_gpu
from zoo.gpu_work import ALTERNATIVES, DRY, FULL, PLAIN, Job, _best_lanes, _winner

import cifarnets
from cifarnets.models import list_models
from cifarnets.recipes import list_recipes

KNOWN = {*list_recipes(), *list_models()}
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a dry run leaves, with its archive unpacked."""
    folder = tmp_path_factory.mktemp("on_gpu")
    out = folder / "out"
    command = [
        sys.executable,
        "-m",
        "zoo.on_gpu",
        str(out),
        "--dry",
        "--seconds",
        "300",
        "--work",
        str(folder / "work"),
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), *sys.path[:1]])}
    subprocess.run(command, cwd=ROOT, check=True, env=environment)
    archive = b"".join(part.read_bytes() for part in sorted(out.glob("runs.tar.*")))
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        file.extractall(out / "runs", filter="data")
    return out


def test_every_item_is_done(results: Path) -> None:
    state = json.loads((results / "results.json").read_text())
    assert list(state) == [item.name for item in sorted(on_gpu.ITEMS, key=lambda item: list(state).index(item.name))]
    for item in on_gpu.ITEMS:
        row, net = state[item.name], item.options.get("recipe")
        if net is None or net in KNOWN:
            assert row["status"] == "done", f"{item.name}: {row['log']}"
        else:
            assert row["reason"] == f"there is neither a recipe nor a model {net}"


def test_the_page_has_every_figure(results: Path) -> None:
    page = (results / "results.md").read_text(encoding="utf-8")
    state = json.loads((results / "results.json").read_text())
    for heading in ("parity", "tests", "probe.resnet20", "speed", "lanes", "weights", "profile of a step: airbench94"):
        assert f"\n## {heading}" in page
    outcomes = state["parity"]["result"]["outcomes"]
    assert len(outcomes) > 12
    assert all(outcome.startswith("passed") for outcome in outcomes.values()), outcomes
    assert state["speed"]["result"]["summary"][0][0] == "plain PyTorch"
    assert f"| weights.resnet20 | 269,722 | 1 | {state['weights.resnet20']['result']['accuracy']:.4f} |" in page
    assert "FAILED" not in page


def test_trainings_come_home_as_runs_with_half_the_bytes(results: Path) -> None:
    trained = [item for item in on_gpu.ITEMS if item.name.startswith("weights.") and item.options["recipe"] in KNOWN]
    assert len(trained) > 5
    for item in trained:
        folder = results / "runs" / item.name
        model: Any = cifarnets.load(folder / "model.safetensors")
        with safe_open(folder / "model.safetensors", "pt") as file:
            assert "float16" in {str(file.get_tensor(name).dtype).removeprefix("torch.") for name in file.keys()}  # noqa: SIM118
        run = json.loads((folder / "run.json").read_text())["recipe"]
        assert (run["seed"], run["epochs"]) == (item.options["seed"], 1)
        assert len((folder / "history.csv").read_text().splitlines()) == 2
        assert "test" in json.loads((folder / "evaluation.json").read_text())
        if item.options["recipe"] == "resnet20":  # the teacher has its name, not that of a file
            assert run["distill"]["teacher"] == model.meta.training["distill"]["teacher"] == "airbench96"
    assert "aten::" in (results / "runs" / "profile" / "profile.resnet20.txt").read_text()


def _quick(job: Job) -> dict[str, Any]:
    return {"summary": f"after {', '.join(job.found)}"}


def _fail(job: Job) -> dict[str, Any]:
    raise ValueError("no luck")


def _hang(job: Job) -> dict[str, Any]:
    job.note({"summary": "half of it"})
    time.sleep(600)
    return {}


def test_an_item_that_fails_or_hangs_costs_only_itself(tmp_path: Path) -> None:
    items = [
        on_gpu.Item("fail", "", _fail, 1),
        on_gpu.Item("hang", "", _hang, 1, limit=5),
        on_gpu.Item("quick", "", _quick, 1, is_alone=True),
    ]
    session = on_gpu.Session(items, tmp_path / "out", tmp_path / "work", DRY, time.time() + 60)
    session.run()
    state = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {name: row["status"] for name, row in state.items()} == {"fail": "failed", "hang": "ended", "quick": "done"}
    assert "ValueError: no luck" in state["fail"]["log"]
    assert (state["hang"]["reason"], state["hang"]["result"]["summary"]) == ("its time was over", "half of it")
    assert state["quick"]["result"]["summary"] == "after hang"
    again = on_gpu.Session(items[2:], tmp_path / "again", tmp_path / "work", DRY, time.time() + 60)
    again.run()  # of a second call, which has nothing left to do
    assert json.loads((tmp_path / "again" / "results.json").read_text()) == state


def test_what_does_not_fit_into_the_time_does_not_start(tmp_path: Path) -> None:
    item = on_gpu.Item("slow", "", _hang, 50)
    on_gpu.Session([item], tmp_path / "out", tmp_path / "work", FULL, time.time() + 20).run()
    row = json.loads((tmp_path / "out" / "results.json").read_text())["slow"]
    assert row["status"] == "left out"
    assert row["reason"].endswith(" s were left, and it needs 50")


def test_the_plan_has_seconds_and_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert on_gpu.main(["out", "--plan"]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert len(rows) == 2 + len(on_gpu.ITEMS)
    assert rows[3].startswith("| tests | 75 | 75 | yes | every test")
    assert on_gpu.main(["out", "--plan", "--only", "tests,speed"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 4
    assert on_gpu.main(["out", "--only", "nothing"]) == 1


def test_nothing_starts_without_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CIFARNETS_DATA", str(tmp_path))
    assert on_gpu.main([str(tmp_path / "out")]) == 1
    assert "set CIFARNETS_DATA" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_weights_that_do_not_fit_stay_behind_and_their_logs_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(on_gpu, "PART", 2**20)
    for name in ("first", "second"):
        (tmp_path / name / "keep").mkdir(parents=True)
        (tmp_path / name / "log.txt").write_text(name)
        (tmp_path / name / "keep" / "model.safetensors").write_bytes(bytes(2 * 2**20))
    archive, left_out = on_gpu.pack(tmp_path, ["first", "second"])
    assert left_out == ["second"]
    with tarfile.open(fileobj=io.BytesIO(archive)) as file:
        assert file.getnames() == ["first/log.txt", "first/model.safetensors", "second/log.txt"]


def test_the_winner_is_the_fastest_that_learns_as_the_recipe_does() -> None:
    rows: dict[str, dict[str, Any]] = {
        PLAIN: {"loss": 1.0, "images_per_second": 10},
        "fp16": {"loss": 1.0, "images_per_second": 90},  # only measured
        "compiled": {"loss": 1.02, "images_per_second": 30},
        "compiled, CUDA graphs": {"loss": 2.0, "images_per_second": 80},
        "cuDNN measures": {"error": "RuntimeError"},
    }
    assert rows.keys() <= ALTERNATIVES.keys()
    assert _winner(rows) == "compiled"
    assert _winner({}) == _winner({PLAIN: {"error": "RuntimeError"}}) == PLAIN
    assert _best_lanes({"1": 100, "2": 180, "4": 250, "6": 255}) == 4
