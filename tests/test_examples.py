"""Every script in examples/ runs unchanged, in a separate process, with warnings as errors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from examples import plain_torch

from cifarnets import create

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(folder: Path, name: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / name, *words],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.cifar10
def test_article_goes_from_the_data_to_the_accuracy(tmp_path: Path, real_root: Path) -> None:
    output = run(tmp_path, "article.py", "--epochs", "1", "--data-root", str(real_root))
    assert "15,000 training and 3,000 test images of airplane, automobile, ship" in output
    assert "Epoch 1, Training loss 1.2" in output
    assert "Accuracy train: 0." in output
    assert "Accuracy test: 0." in output
    assert (tmp_path / "article.safetensors").is_file()


def test_the_article_in_plain_torch_learns(tmp_path: Path) -> None:
    output = run(tmp_path, "plain_torch.py", "--epochs", "1", "--drawn")
    assert "Epoch 1, Training loss " in output
    assert "Accuracy train: 0." in output
    assert "Accuracy val: 0." in output


def test_the_nets_of_the_article_are_those_of_the_library() -> None:
    net, functional, ours = plain_torch.Net(), plain_torch.FunctionalNet(), create("convnet")
    functional.load_state_dict(net.state_dict())
    ours.load_state_dict(net.state_dict())
    images = torch.rand(4, 3, 32, 32)
    assert torch.equal(functional(images), net(images))
    assert torch.equal(ours(images), net(images))


def test_own_model_is_trained_saved_and_loaded(tmp_path: Path) -> None:
    output = run(tmp_path, "own_model.py", "--epochs", "1", "--out", "kept/net.safetensors")
    assert "The loaded model gives the same result: True" in output
    assert (tmp_path / "kept" / "net.safetensors").is_file()


def test_new_callback_prints_every_epoch_and_stops_the_fit(tmp_path: Path) -> None:
    output = run(tmp_path, "callbacks.py", "--epochs", "5", "--limit", "1000")
    assert "epoch 1: weights moved by" in output
    assert "stopped after 1 of at most 5 epochs" in output


STAND_INS = {
    "mlflow": """
def set_experiment(name): print("experiment", name)
def start_run(): print("start")
def log_params(settings): print("lr", settings["lr"])
def log_metrics(figures, step): print("step", step, *figures)
def end_run(status): print("end", status)
""",
    "wandb": """
class Run:
    def log(self, figures, step): print("step", step, *figures)
    def finish(self, exit_code): print("end", exit_code)
def init(project, config):
    print("experiment", project), print("start"), print("lr", config["lr"])
    return Run()
""",
}
"""What the example uses of each tracker; neither is installed here."""


@pytest.mark.parametrize(("tracker", "end"), [("mlflow", "FINISHED"), ("wandb", "0")])
def test_a_tracker_gets_the_settings_and_every_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str, end: str
) -> None:
    (tmp_path / f"{tracker}.py").write_text(STAND_INS[tracker])
    found = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(found))
    output = run(tmp_path, "trackers.py", tracker, "--epochs", "2")
    figures = "loss accuracy lr seconds images_per_second val_loss val_accuracy"
    assert output.splitlines() == [
        "experiment cifarnets",
        "start",
        "lr 0.02",
        f"step 1 {figures}",
        f"step 2 {figures}",
        f"end {end}",
        f"logged 2 epochs to {tracker}",
    ]


@pytest.mark.cifar10
def test_a_new_head_learns_more_from_few_images_than_a_fresh_net(tmp_path: Path, real_root: Path) -> None:
    output = run(tmp_path, "fine_tune.py", "--data-root", str(real_root))
    frozen, whole, scratch = (float(line.rsplit(" ", 1)[1]) for line in output.splitlines())
    assert frozen > 0.4
    assert whole > scratch


def test_every_example_has_a_test() -> None:
    tested = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in tested] == []
