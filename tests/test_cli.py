"""Every command, as its user sees it: what is printed where, what lies on disk, and the exit status."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch

import cifarnets
from cifarnets import Trainer, cli, commands, evaluate, load, models, save
from cifarnets._terminal import rounded
from cifarnets.cli import main
from cifarnets.datasets import BatchLoader, CIFAR10Normalized, SyntheticCIFAR10, cifar_subset
from cifarnets.errors import DownloadError, InputError
from cifarnets.models.metadata import get_meta
from cifarnets.recipes import Recipe, list_recipes, load_recipe, run_recipe

CONTENTS = ["checkpoint.safetensors", "evaluation.json", "history.csv", "model.safetensors", "report.html", "run.json"]
TRAIN = ["train", "convnet", "--synthetic", "--device", "cpu", "--epochs", "1", "--batch-size", "100"]


@pytest.fixture(autouse=True)
def _somewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to work in, and no more pictures than needed."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def few(train: bool) -> SyntheticCIFAR10:
        return SyntheticCIFAR10(train, size=300 if train else 100)

    monkeypatch.setattr("cifarnets.recipes.recipe.SyntheticCIFAR10", few)


@pytest.fixture
def press(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Send a signal to this process in the second batch of the second epoch of the next fit, as often as asked."""
    usual = Trainer.train_step

    def arrange(number: signal.Signals = signal.SIGINT, times: int = 1) -> None:
        left = [number] * times

        def step(trainer: Trainer, batch: Any) -> None:
            if trainer.epoch == 1 and trainer.batches_done == 1:
                while left:
                    signal.raise_signal(left.pop())
            usual(trainer, batch)

        monkeypatch.setattr(Trainer, "train_step", step)

    return arrange


def no_cifar10(*_: Any, **__: Any) -> Path:
    raise DownloadError("no source delivered the file:\n  somewhere: unreachable.")


def recipe_of(folder: str | Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((Path(folder) / "run.json").read_text())["recipe"]
    return content


def meta_of(path: str | Path) -> models.ModelMeta:
    meta = get_meta(load(path))
    assert meta is not None
    return meta


def fails(capsys: pytest.CaptureFixture[str], *words: str, status: int = 1) -> str:
    """Run a command that cannot work, and give its one message."""
    assert main(words) == status
    printed = capsys.readouterr()
    assert printed.err.startswith("cifarnets: ")
    assert "Traceback" not in printed.err
    return printed.err


class TestList:
    def test_all(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["list"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == models.list_models()
        (line,) = [line for line in lines if line.startswith("convnet ")]
        assert "18,354 parameters  Convolutional net of the article" in line

    def test_pattern(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["list", "conv*"]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["convnet", "convnet_functional"]

    def test_no_match(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert fails(capsys, "list", "alexnet*") == (
            "cifarnets: nothing matches 'alexnet*' within these limits; `cifarnets list` shows all.\n"
        )
        assert main(["list", "alexnet*", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == []

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["list", "convnet", "--json"]) == 0
        (model,) = json.loads(capsys.readouterr().out)
        assert model["name"] == "convnet"
        assert model["parameters"] == 18354
        assert model["config"]["num_classes"] == 10

    def test_within_limits(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["list", "--max-params", "300000", "--max-macs", "1000000", "--sort", "parameters"]) == 0
        assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["convnet", "convnet_functional"]

    def test_released_weights(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["list", "--pretrained", "--sort", "accuracy"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == models.list_models(pretrained=True, sort="accuracy")
        (line,) = [line for line in lines if line.startswith("convnet.cifar3 ")]
        assert re.search(
            r" 18,123 parameters  accuracy 0\.92\d\d ± 0\.\d{4}, 0\.\d{4} ± 0\.\d{4} with mirror \(seeds 0, ", line
        )

    def test_accuracy_of_what_has_none(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "only released weights have an accuracy" in fails(capsys, "list", "--sort", "accuracy", status=2)


class TestVerify:
    def test_without_data(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("CIFARNETS_DATA", str(tmp_path / "nothing"))
        assert main(["verify", "convnet.cifar3"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [re.split(r"  +", line)[:3] for line in lines] == [
            ["convnet.cifar3", "file", "ok"],
            ["convnet.cifar3", "golden logits", "ok"],
            ["convnet.cifar3", "test images", "-"],
        ]

    @pytest.mark.cifar10
    def test_with_data(self, capsys: pytest.CaptureFixture[str], real_root: Path) -> None:
        assert main(["verify", "convnet.cifar3", "--data-root", str(real_root), "--json"]) == 0
        assert [check["passed"] for check in json.loads(capsys.readouterr().out)] == [True, True, True]

    def test_what_differs_is_said_and_ends_with_1(
        self, capsys: pytest.CaptureFixture[str], weights_folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CIFARNETS_DATA", str(weights_folder / "nothing"))
        (weights_folder / "convnet.cifar3.safetensors").write_bytes(b"")
        assert main(["verify", "convnet.cifar3"]) == 1
        printed = capsys.readouterr()
        assert "FAILED" in printed.out
        assert "is not the file that was released" in printed.out
        assert printed.err == "1 of 1 checks failed.\n"
        assert main(["verify", "convnet.cifar3", "--json"]) == 1

    def test_an_unknown_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "unknown weights 'convnet.cifar9'. Did you mean 'convnet.cifar3'?" in fails(
            capsys, "verify", "convnet.cifar9"
        )


class TestReleasedWeights:
    def test_predict(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        PIL.Image.new("RGB", (40, 30), "blue").save(tmp_path / "blue.png")
        assert main(["predict", "convnet.cifar3", str(tmp_path / "blue.png"), "--topk", "3"]) == 0
        assert {"airplane", "automobile", "ship"} < set(re.findall(r"\w+", capsys.readouterr().out))

    @pytest.mark.cifar10
    def test_evaluate(self, capsys: pytest.CaptureFixture[str], real_root: Path) -> None:
        assert main(["evaluate", "convnet.cifar3", "--tta", "mirror", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)["accuracy"]
        release = models.info("convnet.cifar3").release
        assert release is not None
        assert found == pytest.approx(release.file_tta_accuracy, abs=5e-4)


class TestInfo:
    def test_of_released_weights(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["info", "convnet.cifar3"]) == 0
        printed = capsys.readouterr().out
        assert "create('convnet.cifar3', pretrained=True)" in printed
        assert re.search(r"test images: accuracy 0\.92\d\d ± ", printed)
        assert "classes: airplane, automobile, ship" in printed
        assert "cifarnets train --recipe convnet.cifar3 --seed 0" in printed
        assert re.search(r"total +18,123", printed)
        assert main(["info", "convnet.cifar3", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert facts["macs"] == facts["release"]["macs"] == 753_760

    def test_text(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["info", "convnet"]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith("convnet: Convolutional net")
        assert "num_classes = 10" in printed
        assert "pool = 'max'" in printed
        assert re.search(r"conv1 +Conv2d +16×32×32 +448", printed)
        assert re.search(r"total +18,354", printed)

    def test_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["info", "fcnet", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["parameters"] == 3738506

    def test_a_misspelt_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        message = fails(capsys, "info", "convent")
        assert "unknown model 'convent'. Did you mean 'convnet'?" in message
        assert len(message.splitlines()) == 1


class TestWords:
    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as exit_:
            main(["--version"])
        assert exit_.value.code == 0
        assert capsys.readouterr().out == f"cifarnets {cifarnets.__version__}\n"

    def test_help_teaches_by_examples_that_parse(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as exit_:
            main(["--help"])
        assert exit_.value.code == 0
        printed = capsys.readouterr().out
        for name in cli.COMMANDS:
            assert re.search(rf"^    {name} +\w+", printed, re.MULTILINE)
        assert "2 bad usage, 130 stopped by Ctrl-C, 143 stopped by SIGTERM" in printed
        examples = [re.split(r"  +", line.strip())[0] for line in cli.EXAMPLES.splitlines() if "  cifarnets" in line]
        assert len(examples) == 15
        for example in examples:
            assert example in printed
            cli.parse(shlex.split(example)[1:])

    @pytest.mark.parametrize("name", list(cli.COMMANDS))
    def test_help_of_a_command(self, name: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as exit_:
            main([name, "--help"])
        assert exit_.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: cifarnets {name} ")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["fly"], "invalid choice: 'fly'"),
            (["info"], "required: name"),
            (["predict", "model.safetensors"], "required: IMAGE"),
            (["list", "--colour"], "unrecognized arguments: --colour"),
            (["train", "convnet", "--epochs", "many"], "argument --epochs: must be a whole number, not 'many'"),
            (["train", "convnet", "--lr", "fast"], "argument --lr: must be a number, not 'fast'"),
            (["train", "convnet", "--num-classes", "0"], "must be a whole number of at least 1, not '0'"),
            (["train", "convnet", "--option", "momentum"], "must read KEY=VALUE, not 'momentum'"),
            (["train", "convnet", "--option", "=0.9"], "must read KEY=VALUE, not '=0.9'"),
            (["train", "convnet", "--precision", "fp8"], "invalid choice: 'fp8'"),
            (["evaluate", "model.safetensors", "--split", "val"], "invalid choice: 'val'"),
        ],
        ids=" ".join,
    )
    def test_what_makes_no_sense(
        self, words: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        with pytest.raises(SystemExit) as exit_:
            main(words)
        assert exit_.value.code == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert message in printed.err
        assert not list((tmp_path / "work").iterdir())

    @pytest.mark.parametrize(
        ("text", "pair"),
        [
            ("momentum=0.9", ("momentum", 0.9)),
            ("nesterov=true", ("nesterov", True)),
            ("betas=[0.9, 0.95]", ("betas", [0.9, 0.95])),
            ("mode=triangular2", ("mode", "triangular2")),
            ("a=b=c", ("a", "b=c")),
            ("foreach=null", ("foreach", None)),
            ("empty=", ("empty", "")),
        ],
        ids=str,
    )
    def test_options_are_json_or_else_text(self, text: str, pair: tuple[str, Any]) -> None:
        assert cli.parse(["train", "convnet", "--option", text]).optimizer_options == [pair]


class TestRecipes:
    def test_a_line_each(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["recipes"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == list_recipes()
        (line,) = [line for line in lines if line.startswith("convnet.cifar3 ")]
        assert re.search(r" convnet, 3 classes, 100 epochs, sgd, lr 0\.07; 4 minutes; accuracy 0\.92\d\d ± ", line)

    def test_of_a_pattern(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["recipes", "resnet*", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [recipe["name"] for recipe in found] == list_recipes("resnet*")
        assert {"model", "epochs", "lr"} < found[0].keys()
        assert "no recipe matches 'x*'; `cifarnets recipes` shows all." in fails(capsys, "recipes", "x*")


class TestOptionsOfTrain:
    def test_every_field_of_a_recipe_has_one_option(self) -> None:
        options = cli.parse(["train", "convnet"])
        assert options.name == "convnet"  # the field `model`
        flags = {field.name: options.flags[field.name] for field in fields(Recipe) if field.name != "model"}
        assert len(set(flags.values())) == len(flags)
        assert {name: getattr(options, name) for name in flags} == dict.fromkeys(flags), "nothing is given"

    def test_help_shows_what_a_field_means_and_its_default(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["train", "--help"])
        printed = " ".join(capsys.readouterr().out.split())
        assert "--epochs N passes over the training images (default: 20)" in printed
        assert "--precision {auto,fp32,bf16,fp16}" in printed
        assert "--lr X learning rate" in printed
        assert "cosine, long_tailed, one_cycle" in printed

    @pytest.mark.parametrize(
        ("words", "field", "value"),
        [
            ("--option momentum=0.9 --option nesterov=true", "optimizer_options", {"momentum": 0.9, "nesterov": True}),
            ("--schedule-option warmup=0.1", "schedule_options", {"warmup": 0.1}),
            ("--no-decay-biases", "decay_biases", False),
            ("--decay-biases", "decay_biases", True),
            ("--channels-last", "channels_last", True),
            ("--no-channels-last", "channels_last", False),
            ("--num-classes 4", "config", {"num_classes": 4}),
            ("--config hidden=8 --config pool=avg", "config", {"hidden": 8, "pool": "avg"}),
            ("--config hidden=8 --num-classes 4", "config", {"hidden": 8, "num_classes": 4}),
            ("--classes cat,dog", "classes", ("cat", "dog")),
            ("--val 5000", "val", 5000),
            ("--ema 0.9", "ema", 0.9),
            ("--tta mirror", "tta", "mirror"),
            ("--distill teacher=resnet20", "distill", {"teacher": "resnet20"}),
            ('--distill teacher=["resnet20","fcnet"]', "distill", {"teacher": ["resnet20", "fcnet"]}),
        ],
    )
    def test_spellings(self, words: str, field: str, value: Any) -> None:
        options = cli.parse(["train", "convnet", *words.split()])
        assert getattr(commands._recipe(options, commands._given(options)), field) == value

    def test_a_switch_of_a_recipe_can_be_switched_off(self) -> None:
        options = cli.parse(["train", "--recipe", "convnet.cifar3", "--no-channels-last"])
        assert load_recipe("convnet.cifar3").channels_last
        assert not commands._recipe(options, commands._given(options)).channels_last


class TestTrain:
    def test_leaves_a_run_and_says_where(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*TRAIN, "--epochs", "2"]) == 0
        (folder,) = Path("runs").iterdir()
        assert re.fullmatch(r"convnet-\d{8}-\d{6}", folder.name)
        assert sorted(path.name for path in folder.iterdir()) == CONTENTS
        printed = capsys.readouterr()
        *accuracies, where, page = printed.out.splitlines()
        epochs = re.findall(r"^epoch (\d)/2: loss \d\.\d{4}, accuracy 0\.\d{4}, ", printed.err, re.MULTILINE)
        assert epochs == ["1", "2"]
        found = json.loads((folder / "evaluation.json").read_text())
        assert accuracies == [f"Accuracy {name}: {found[name]['accuracy']:.4f}" for name in ("train", "test")]
        assert where == f"The run is in {folder}: {', '.join(CONTENTS)}"
        assert page == f"Look at it in a browser: {folder / 'report.html'}"
        assert meta_of(folder / "model.safetensors").training["lr"] == 0.01

    def test_a_page_that_fails_does_not_fail_the_training(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def broken(*_: Any, **__: Any) -> Path:
            raise RuntimeError("the page\nbroke")

        monkeypatch.setattr("cifarnets.report.write_report", broken)
        assert main([*TRAIN, "--out", "here", "--quiet"]) == 0
        printed = capsys.readouterr()
        assert printed.err == "cifarnets: no report was written: the page broke\n"
        assert "browser" not in printed.out
        assert sorted(path.name for path in Path("here").iterdir()) == sorted({*CONTENTS} - {"report.html"})

    def test_every_option_reaches_the_recipe(self, capsys: pytest.CaptureFixture[str]) -> None:
        given = """--out here --classes disc,cross,ring --num-classes 4 --val 30 --batch-size 30 --optimizer adamw
            --lr 0.002 --option weight_decay=0.1 --option betas=[0.8,0.9] --no-decay-biases --schedule cosine
            --schedule-option warmup=0.2 --schedule-option final=0.1 --label-smoothing 0.1 --accumulate 2
            --clip-norm 0.5 --ema 0.9 --seed 7 --precision bf16 --channels-last --deterministic
            --checkpoint-every 1 --augment flip=random --augment translate=1 --drop-last --tta mirror"""
        assert main([*TRAIN, *given.split()]) == 0
        expected = {
            "model": "convnet",
            "config": {"num_classes": 4},
            "classes": ["disc", "cross", "ring"],
            "val": 30,
            "epochs": 1,
            "batch_size": 30,
            "optimizer": "adamw",
            "lr": 0.002,
            "optimizer_options": {"weight_decay": 0.1, "betas": [0.8, 0.9]},
            "decay_biases": False,
            "schedule": "cosine",
            "schedule_options": {"warmup": 0.2, "final": 0.1},
            "label_smoothing": 0.1,
            "accumulate": 2,
            "clip_norm": 0.5,
            "ema": 0.9,
            "seed": 7,
            "precision": "bf16",
            "channels_last": True,
            "deterministic": True,
            "compile": False,
            "synthetic": True,
            "augment": {"flip": "random", "translate": 1},
            "drop_last": True,
            "tta": "mirror",
        }
        recipe = recipe_of("here")
        assert {key: recipe[key] for key in expected} == expected
        assert sorted(path.name for path in Path("here").iterdir()) == CONTENTS
        assert re.findall(r"^Accuracy (\w+): 0\.\d{4}$", capsys.readouterr().out, re.MULTILINE) == [
            "train",
            "test",
            "val",
        ]
        assert meta_of("here/model.safetensors").classes == ("disc", "cross", "ring")

    def test_the_defaults_are_the_articles(self) -> None:
        assert commands._recipe(cli.parse(["train", "convnet"]), {}) == Recipe("convnet")

    def test_quiet(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*TRAIN, "--quiet", "--out", "here"]) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert [line.split()[0] for line in printed.out.splitlines()] == ["Accuracy", "Accuracy", "The", "Look"]

    def test_ctrl_c_saves_and_says_how_to_resume(
        self, press: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [*TRAIN, "--epochs", "3", "--option", "momentum=0.9"]
        press()
        assert main([*words, "--out", "stopped"]) == 130
        advice = "Stopped. Resume from the very batch with:\n  cifarnets train --resume stopped\n"
        assert capsys.readouterr().out == advice
        assert main(["train", "--resume", "stopped"]) == 0
        assert "Stopped" not in capsys.readouterr().out
        assert main([*words, "--out", "whole"]) == 0
        model, other = (load(f"{folder}/model.safetensors").state_dict() for folder in ("stopped", "whole"))
        assert all(torch.equal(model[key], other[key]) for key in model)
        assert Path("stopped/evaluation.json").read_bytes() == Path("whole/evaluation.json").read_bytes()

    @pytest.mark.skipif(sys.platform == "win32", reason="Windows ends a program at once")
    def test_sigterm_saves_and_ends_with_its_own_status(
        self, press: Callable[..., None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        press(signal.SIGTERM)
        with pytest.raises(SystemExit) as ended:
            main([*TRAIN, "--epochs", "3", "--out", "here"])
        assert ended.value.code == 143
        assert capsys.readouterr().out.endswith("very batch with:\n  cifarnets train --resume here\n")
        assert Path("here/checkpoint.safetensors").is_file()

    def test_the_advice_names_all_that_is_needed(
        self, tiny_root: Path, press: Callable[..., None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        press()
        words = ["train", "convnet", "--device", "cpu", "--epochs", "3", "--data-root", str(tiny_root)]
        assert main([*words, "--out", "my runs/a"]) == 130
        advice = capsys.readouterr().out.splitlines()[-1]
        assert shlex.split(advice)[1:] == ["train", "--resume", "my runs/a", "--data-root", str(tiny_root)]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--optimizer", "adamw", "--option", "betas=[0.9]"], "AdamW refuses"),
            (["--option", "fused=true", "--option", "foreach=true"], "SGD refuses"),
            (["--schedule", "one_cycle", "--schedule-option", "div_factor=0"], "the schedule 'one_cycle' refuses"),
        ],
    )
    def test_options_that_torch_stumbles_over(
        self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert message in fails(capsys, *TRAIN, *words)

    def test_ctrl_c_twice(self, press: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
        press(times=2)
        assert main([*TRAIN, "--epochs", "2", "--out", "here"]) == 130
        printed = capsys.readouterr().out
        assert printed == "Stopped. Resume from the last checkpoint with:\n  cifarnets train --resume here\n"
        assert not Path("here/model.safetensors").exists()
        assert main(["train", "--resume", "here"]) == 0
        assert len(Path("here/history.csv").read_text().splitlines()) == 3

    def test_ctrl_c_before_anything(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(commands, "run_recipe", stop)
        assert main(TRAIN) == 130
        assert capsys.readouterr() == ("", "")

    def test_in_an_interactive_session_too(
        self, press: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
        press()
        assert main([*TRAIN, "--epochs", "2", "--out", "here"]) == 130
        assert "Resume from the very batch with:" in capsys.readouterr().out

    def test_resume_with_a_name_starts_and_then_goes_on(self, capsys: pytest.CaptureFixture[str]) -> None:
        words = [*TRAIN, "--resume", "here", "--quiet"]
        assert main(words) == 0
        first = capsys.readouterr().out
        assert main(words) == 0  # finished: evaluated again
        assert capsys.readouterr().out == first
        assert "another recipe: lr 0.01, not 0.5." in fails(capsys, *words, "--lr", "0.5")

    def test_resume_where_there_is_no_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert fails(capsys, "train", "--resume", "nowhere") == ("cifarnets: there is no run in 'nowhere' to resume.\n")
        assert not Path("nowhere").exists()

    def test_without_a_name(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert fails(capsys, "train", status=2) == (
            "cifarnets: name a model of `cifarnets list`, a recipe (--recipe NAME), or a run to resume "
            "(--resume DIR).\n"
        )

    def test_a_recipe_and_what_is_said_beside_it(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("mine.toml").write_text(
            'model = "convnet"\nlr = 0.5\nbatch_size = 25\nsynthetic = true\n'
            "optimizer_options = {momentum = 0.9}\nconfig = {hidden = 8}\n"
        )
        words = ["train", "--recipe", "mine.toml", "--epochs", "1", "--lr", "0.02", "--num-classes", "11"]
        assert main([*words, "--option", "nesterov=true", "--out", "here", "--quiet"]) == 0
        recipe = recipe_of("here")
        assert (recipe["epochs"], recipe["lr"], recipe["batch_size"], recipe["synthetic"]) == (1, 0.02, 25, True)
        assert recipe["optimizer_options"] == {"momentum": 0.9, "nesterov": True}
        assert recipe["config"] == {"hidden": 8, "num_classes": 11}
        both = fails(capsys, *words, "convnet", status=2)
        assert "name a model (convnet) or a recipe (mine.toml), not both." in both
        assert "unknown recipe 'convnet.cifar'. Did you mean 'convnet.cifar3'?" in fails(
            capsys, "train", "--recipe", "convnet.cifar"
        )

    def test_a_run_goes_on_in_its_own_folder(self, capsys: pytest.CaptureFixture[str]) -> None:
        said = fails(capsys, *TRAIN, "--resume", "a", "--out", "b", status=2)
        assert "--resume names the run folder already: drop --out" in said

    def test_a_recipe_of_a_file_names_the_run(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "elsewhere").mkdir()
        recipe = tmp_path / "elsewhere" / "mine.toml"
        recipe.write_text('model = "convnet"\nepochs = 1\nbatch_size = 100\nsynthetic = true\n')
        assert main(["train", "--recipe", str(recipe), "--quiet"]) == 0
        assert [path.name[:5] for path in Path("runs").iterdir()] == ["mine-"]
        (folder,) = Path("runs").iterdir()
        assert main(["evaluate", str(folder / "model.safetensors"), "--json"]) == 0, (
            "the drawn pictures are drawn again"
        )
        assert "holds the state of a fit" in fails(capsys, "evaluate", str(folder / "checkpoint.safetensors"))

    def test_a_run_that_starts_badly_leaves_no_folder(self, capsys: pytest.CaptureFixture[str]) -> None:
        def fail(*_: Any) -> None:
            raise InputError("the batch is odd.")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "train_step", fail)
            for words in ([], ["--out", "a/b"]):
                assert "the batch is odd" in fails(capsys, *TRAIN, *words)
            Path("mine").mkdir()
            assert "the batch is odd" in fails(capsys, *TRAIN, "--out", "mine")
        assert [path.name for path in Path().iterdir()] == ["mine"]
        assert not list(Path("mine").iterdir())

    def test_a_finished_run_is_a_model(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*TRAIN, "--quiet", "--out", "here"]) == 0
        capsys.readouterr()
        assert main(["evaluate", "here", "--json"]) == 0
        folder = capsys.readouterr().out
        assert main(["evaluate", "here/model.safetensors", "--json"]) == 0
        assert capsys.readouterr().out == folder
        Path("here/model.safetensors").unlink()
        message = fails(capsys, "evaluate", "here")
        assert "the folder 'here' has no model.safetensors" in message
        assert "cifarnets train --resume here" in message

    def test_where_nothing_can_be_written(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("file").write_text("mine")
        for out in ("file", "file/below"):
            assert f"cannot write into {str(Path(out))!r}: " in fails(capsys, *TRAIN, "--out", out)
        Path("full").mkdir()
        Path("full/thing").touch()
        assert "'full' holds files already (thing …)" in fails(capsys, *TRAIN, "--out", "full")
        assert Path("file").read_text() == "mine"

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--classes", "disc,cros"], "unknown class 'cros'. Did you mean 'cross'?"),
            (["--optimizer", "adamv"], "unknown optimizer 'adamv'. Did you mean"),
            (["--option", "speed=9"], "speed"),
            (["--option", "lr=0.5"], "lr"),
            (["--schedule", "cosine", "--schedule-option", "speed=9"], "speed"),
            (["--val", "300"], "300"),
            (["--val", "-1"], "-1"),
            (["--ema", "1.5"], "1.5"),
            (["--label-smoothing", "2"], "--label-smoothing must be between 0 and 1, not 2.0"),
            (["--clip-norm", "0"], "--clip-norm must be above 0"),
            (["--num-classes", "3"], "10 classes"),
            (["--device", "abacus"], "abacus"),
            (["--lr", "inf"], "--lr has inf"),
            (["--lr", "-1"], "-1"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_what_cannot_be_trained(self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main([*TRAIN, "--epochs", "2", *words]) in (1, 2)
        printed = capsys.readouterr().err
        assert printed.startswith("cifarnets: ")
        assert message in printed
        assert not list(Path().iterdir())

    def test_without_data(self, capsys: pytest.CaptureFixture[str]) -> None:
        message = fails(capsys, "train", "convnet", "--data-root", "empty")
        assert "no CIFAR-10 at" in message
        assert "Pass --data-root, the folder that holds" in message
        assert message.endswith("or use `cifarnets download`.\n")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["--epochs", "0"], "--epochs must be at least 1, "),
            (["--num-classes", "3"], "create it with --num-classes 10"),
            (["--out", "full"], "or resume the run in it (--resume)."),
        ],
    )
    def test_errors_speak_of_options(self, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        Path("full").mkdir()
        Path("full/thing").touch()
        assert main([*TRAIN, *words]) > 0
        assert message in capsys.readouterr().err

    def test_a_process_that_does_not_write_says_nothing(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def silent(*words: Any, **options: Any) -> Any:
            return replace(run_recipe(*words, **options), evaluations={})

        monkeypatch.setattr(commands, "run_recipe", silent)
        assert main([*TRAIN, "--quiet"]) == 0
        assert capsys.readouterr().out == ""


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A convnet of three classes that knows its preprocessing."""
    torch.manual_seed(0)
    model = models.create("convnet", num_classes=3)
    models.annotate(model, classes=("airplane", "automobile", "ship"), mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return str(save(model, tmp_path / "three.safetensors"))


class TestEvaluate:
    @pytest.mark.cifar10
    def test_real_images(self, real_root: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        test = cifar_subset(
            CIFAR10Normalized(train=False, mean=(0.5,) * 3, std=(0.25,) * 3), ["airplane", "automobile", "ship"]
        )
        expected = evaluate(load(weights), BatchLoader(test, 1000, device="cpu"), device="cpu")
        assert main(["evaluate", weights, "--device", "cpu"]) == 0
        assert capsys.readouterr().out == f"{expected}\n"
        assert "images 3,000" in str(expected)
        assert main(["evaluate", weights, "--device", "cpu", "--data-root", str(real_root), "--json"]) == 0
        found = capsys.readouterr().out
        assert json.loads(found)["accuracy"] == pytest.approx(expected.accuracy, rel=1e-5)
        assert json.loads(found)["confusion"] == [list(row) for row in expected.confusion]
        assert json.loads(found)["confidence_interval"] == pytest.approx(expected.confidence_interval(), rel=1e-5)
        assert not re.search(r"\d\.\d{8,}", found), "six digits are enough"

    def test_training_images(self, tiny_root: Path, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        words = ["evaluate", weights, "--data-root", str(tiny_root), "--json"]
        found = []
        for split in ([], ["--split", "test"], ["--split", "train"]):
            assert main([*words, *split]) == 0
            found.append(json.loads(capsys.readouterr().out)["n"])
        assert found == [6, 6, 30]

    def test_a_model_that_knows_nothing_of_classes(
        self, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = save(models.create("convnet"), tmp_path / "ten.safetensors")
        assert main(["evaluate", str(path), "--data-root", str(tiny_root), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["n"] == 20
        assert len(found["per_class"]) == 10

    def test_what_cannot_be_evaluated(
        self, tiny_root: Path, weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = ["--data-root", str(tiny_root)]
        assert "missing.safetensors" in fails(capsys, "evaluate", "missing.safetensors", *data)
        Path("text.safetensors").write_text("This is no model.")
        assert "text.safetensors" in fails(capsys, "evaluate", "text.safetensors", *data)
        assert "no CIFAR-10 at" in fails(capsys, "evaluate", weights, "--data-root", "empty")
        drawn = models.create("convnet", num_classes=1)
        models.annotate(drawn, classes=("disc",))
        assert "unknown class 'disc'" in fails(
            capsys, "evaluate", str(save(drawn, tmp_path / "drawn.safetensors")), *data
        )


def test_where_the_output_knows_no_block_it_gets_question_marks(weights: str) -> None:
    for words in (["info", "convnet"], ["--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "cifarnets", *words],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert b"?" in done.stdout or words == ["--help"]


class TestPredict:
    @pytest.fixture(autouse=True)
    def _pictures(self) -> None:
        for name, colour in (("red.png", (250, 20, 20)), ("sea.png", (10, 60, 200))):
            picture = PIL.Image.new("RGB", (48, 40), colour)
            picture.putpixel((5, 5), (255, 255, 255))
            picture.save(name)

    def test_text(self, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["predict", weights, "red.png", "sea.png", "--topk", "2", "--device", "cpu"]) == 0
        answers: Any = cifarnets.predict(load(weights), ["red.png", "sea.png"], 2, device="cpu")
        assert capsys.readouterr().out.splitlines() == [
            f"{image}: " + ", ".join(f"{name} {probability:.3f}" for name, probability in answer)
            for image, answer in zip(["red.png", "sea.png"], answers, strict=True)
        ]

    def test_json(self, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["predict", weights, "red.png", "--topk", "3", "--json"]) == 0
        (entry,) = json.loads(capsys.readouterr().out)
        assert entry["image"] == "red.png"
        assert {name for name, _ in entry["top"]} == {"airplane", "automobile", "ship"}
        assert sum(probability for _, probability in entry["top"]) == pytest.approx(1, abs=1e-5)

    def test_views(self, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["predict", weights, "red.png", "--topk", "3", "--json", "--tta", "mirror_shift"]) == 0
        (entry,) = json.loads(capsys.readouterr().out)
        expected: Any = cifarnets.predict(load(weights), "red.png", 3, tta="mirror_shift")
        assert entry["top"] == rounded(expected)
        assert expected != cifarnets.predict(load(weights), "red.png", 3)

    def test_one_class_unless_told(self, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["predict", weights, "sea.png"]) == 0
        assert re.fullmatch(r"sea\.png: (airplane|automobile|ship) 0\.\d{3}\n", capsys.readouterr().out)

    def test_what_cannot_be_predicted(self, weights: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert "there is no file 'missing.png'" in fails(capsys, "predict", weights, "missing.png")
        assert "--topk must be between 1 and 3" in fails(capsys, "predict", weights, "red.png", "--topk", "4")
        assert "nowhere.safetensors" in fails(capsys, "predict", "nowhere.safetensors", "red.png")

    def test_a_model_that_does_not_know_its_constants(self, capsys: pytest.CaptureFixture[str]) -> None:
        save(models.create("convnet"), "bare.safetensors")
        message = fails(capsys, "predict", "bare.safetensors", "red.png")
        assert message.endswith("or pass --mean and --std.\n")
        constants = ["--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25", "--classes", "a,b,c,d,e,f,g,h,i,j"]
        assert main(["predict", "bare.safetensors", "red.png", *constants]) == 0
        assert re.fullmatch(r"red\.png: [a-j] 0\.\d{3}\n", capsys.readouterr().out)


class TestDownload:
    def test_says_where_it_is(
        self, tiny_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked: list[Path | None] = []

        def fetch(root: Path | None) -> Path:
            asked.append(root)
            return tiny_root

        monkeypatch.setattr(commands, "download_cifar10", fetch)
        assert main(["download"]) == 0
        assert main(["download", "--data-root", "there"]) == 0
        assert asked == [None, Path("there")]
        assert capsys.readouterr().out.splitlines()[0] == (
            f"CIFAR-10 is in {tiny_root}, and every batch is the published one."
        )

    def test_checks_every_batch(
        self, tiny_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(commands, "download_cifar10", lambda root: tiny_root)
        batch = tiny_root / "cifar-10-batches-py" / "test_batch"
        batch.write_bytes(batch.read_bytes() + b"x")
        assert "test_batch is damaged" in fails(capsys, "download")

    def test_no_way(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(commands, "download_cifar10", no_cifar10)
        assert "no source delivered the file" in fails(capsys, "download")


class TestReport:
    def test_of_one_run_and_of_two(self, capsys: pytest.CaptureFixture[str]) -> None:
        for seed in ("0", "1"):
            assert main([*TRAIN, "--quiet", "--no-report", "--seed", seed, "--out", f"run{seed}"]) == 0
        assert not Path("run0/report.html").exists()
        assert "browser" not in capsys.readouterr().out

        def written(*words: str) -> str:
            assert main(["report", *words]) == 0
            (path,) = re.findall(r"^Look at it in a browser: (.*) \([\d,]+ bytes\)$", capsys.readouterr().out)
            return Path(path).relative_to(Path.cwd().resolve()).as_posix()

        assert written("run0") == "run0/report.html"
        assert written("run0", "run1") == "report.html"
        assert written("run1", "run0", "-o", "both.html") == "both.html"
        shown = Path("both.html").read_text(encoding="utf-8")
        assert shown.index("A: run1") < shown.index("B: run0")

    def test_where_there_is_no_run(self, capsys: pytest.CaptureFixture[str]) -> None:
        Path("file").touch()
        for name in ("nowhere", "file"):
            message = fails(capsys, "report", name)
            assert f"there is no run in '{name}': it has no run.json. Pass a folder that `cifarnets train`" in message


class TestDemo:
    def test_on_drawn_pictures(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(commands, "download_cifar10", no_cifar10)
        assert main(["demo", "--epochs", "2", "--data-root", "empty", "--device", "cpu"]) == 0
        printed = capsys.readouterr().out
        assert printed.splitlines()[0] == (
            "No CIFAR-10 here, and no download: no source delivered the file: somewhere: unreachable. Drawing a "
            "synthetic set instead."
        )
        assert "Training the article's net (disc, cross, stripes; 2 epochs, SGD, lr 0.01, momentum 0.9)" in printed
        assert len(re.findall(r"Epoch \d, Training loss", printed)) == 2
        (folder,) = Path().iterdir()
        assert re.fullmatch(r"cifarnets-demo-\d{8}-\d{6}", folder.name)
        assert f"both agree: {folder / 'model.safetensors'} (" in printed
        assert re.findall(r"^test image \d+, (\w+): \w+ 0\.\d\d, \w+ 0\.\d\d$", printed, re.MULTILINE) == [
            "disc",
            "cross",
            "stripes",
        ]
        assert f"Everything lies in {folder.resolve()}:" in printed
        assert f"\n\nLook at it in a browser: {folder / 'report.html'}\n" in printed
        assert printed.endswith(f"\nThen look into the net: cifarnets explore {folder}\n")
        for name in set(CONTENTS) - {"checkpoint.safetensors"}:
            assert (folder / name).is_file()
            assert re.search(rf"^  {name} +\w", printed, re.MULTILINE)

    @pytest.mark.cifar10
    def test_on_real_images(self, real_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["demo", "--epochs", "1", "--out", "here"]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(f"CIFAR-10: {real_root}\n")
        assert "(airplane, automobile, ship; 1 epochs" in printed
        assert recipe_of("here")["synthetic"] is False
        assert json.loads(Path("here/evaluation.json").read_text())["test"]["accuracy"] > 0.5

    def test_fetches_what_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        asked: list[Any] = []

        def fetch(root: Path, time_limit: float) -> None:
            asked.append((root, time_limit))
            raise KeyboardInterrupt  # enough

        monkeypatch.setattr(commands, "download_cifar10", fetch)
        assert main(["demo", "--data-root", str(tmp_path / "new")]) == 130
        ((root, limit),) = asked
        assert root == tmp_path / "new"
        assert limit <= 60

    def test_interrupted(
        self, press: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setattr(commands, "download_cifar10", no_cifar10)
        press()
        words = ["demo", "--epochs", "3", "--data-root", "empty", "--out", "here"]
        assert main(words) == 130
        assert capsys.readouterr().out.endswith("  cifarnets train --resume here\n")
        assert main(["train", "--resume", "here", "--quiet"]) == 0

    def test_a_file_that_does_not_agree_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def wrong(*words: Any, **options: Any) -> Any:
            return replace(evaluate(*words, **options), loss=9.0)

        monkeypatch.setattr(commands, "download_cifar10", no_cifar10)
        monkeypatch.setattr(cifarnets, "evaluate", wrong)
        message = fails(capsys, "demo", "--epochs", "1", "--data-root", "empty")
        assert "does not agree with the one that was saved" in message


class TestProcess:
    def test_a_reader_that_has_gone_is_no_failure(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reading, writing = os.pipe()
        os.close(reading)
        with os.fdopen(writing, "w") as stream:
            monkeypatch.setattr(sys, "stdout", stream)
            assert main(["list"]) == 0
            stream.write("more")  # flushed on closing, into nothing

    def test_as_a_module(self) -> None:
        ended = subprocess.run(
            [sys.executable, "-m", "cifarnets", "list"], capture_output=True, check=False, encoding="utf-8", timeout=120
        )
        assert ended.returncode == 0
        assert ended.stderr == ""
        assert [line.split()[0] for line in ended.stdout.splitlines()] == models.list_models()


class TestWhatIsSaidInVain:
    """Words that would change nothing are refused, not swallowed."""

    def test_a_resumed_run_keeps_its_recipe(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        words = ["--epochs", "50", "--channels-last", "--option", "momentum=0.9", "--no-decay-biases"]
        said = fails(capsys, "train", "--resume", str(tmp_path), *words, status=2)
        assert {*re.findall(r"--[a-z-]+", said)} == {"--epochs", "--channels-last", "--option", "--no-decay-biases"}

    def test_options_of_no_schedule(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "belong to a named schedule" in fails(capsys, *TRAIN, "--schedule-option", "gamma=0.5")

    @pytest.mark.parametrize(("schedule", "option"), [("cosine", "warmup=2"), ("step", "gamma=x")])
    def test_options_that_a_schedule_cannot_use(
        self, capsys: pytest.CaptureFixture[str], schedule: str, option: str
    ) -> None:
        said = fails(capsys, *TRAIN, "--schedule", schedule, "--schedule-option", option)
        assert f"the schedule '{schedule}' refuses" in said

    def test_a_seed_of_too_many_digits(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert "cifarnets: --seed " in fails(capsys, *TRAIN, "--seed", str(2**64), status=2)

    def test_runs_of_one_second_get_folders_of_their_own(self, tmp_path: Path) -> None:
        first = commands._new_folder(tmp_path / "run")
        first.mkdir()
        second = commands._new_folder(tmp_path / "run")
        assert second != first
        assert not second.exists()
