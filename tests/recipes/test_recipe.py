"""A run leaves a folder that tells all, can be gone on with, and ends the same however often it was stopped."""

import csv
import json
import shutil
import signal
import sys
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import cifarnets
from cifarnets import Trainer, evaluate, load
from cifarnets.datasets import BatchLoader, CIFAR10Normalized, SyntheticCIFAR10
from cifarnets.errors import CifarNetsError, DataNotFoundError, InputError, OutputError, UnknownNameError
from cifarnets.recipes import Recipe, Run, list_recipes, load_recipe, reproduce, run_recipe
from cifarnets.training import Callback

SMALL = Recipe("convnet", {"widths": (4, 4), "hidden": 8}, epochs=2, batch_size=50, lr=0.05, synthetic=True)
RICH = replace(
    SMALL,
    epochs=3,
    classes=("disc", "cross", "stripes", "ring", "square"),
    optimizer_options={"momentum": 0.9},
    decay_biases=False,
    schedule="cosine",
    schedule_options={"warmup": 0.2},
    label_smoothing=0.1,
    accumulate=2,
    clip_norm=1.0,
    ema=0.5,
    augment={"flip": "random", "translate": 2},
    seed=3,
    val=50,
    drop_last=True,
)
CONTENTS = ["checkpoint.safetensors", "evaluation.json", "history.csv", "model.safetensors", "run.json"]


@pytest.fixture(autouse=True)
def _few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    def few(train: bool) -> SyntheticCIFAR10:
        return SyntheticCIFAR10(train, size=400 if train else 100)

    monkeypatch.setattr("cifarnets.recipes.recipe.SyntheticCIFAR10", few)


@pytest.fixture
def _interactive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session in which Ctrl-C ends the fit and not the program."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)


class StopAfter(Callback):
    """Sends Ctrl-C after some batches."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def on_batch_end(self, trainer: Trainer) -> None:
        self.left -= 1
        if not self.left:
            signal.raise_signal(signal.SIGINT)


class CountBatches(Callback):
    count = 0

    def on_batch_end(self, trainer: Trainer) -> None:
        self.count += 1


class Spy(Callback):
    """Keeps the trainer, and what it learnt last."""

    trainer: Trainer

    def on_fit_end(self, trainer: Trainer) -> None:
        self.trainer = trainer


class Unspeakable:
    """What cannot even be printed."""

    def __repr__(self) -> str:
        raise ZeroDivisionError


_deep: Any = []
for _ in range(2000):
    _deep = [_deep]


def go(recipe: Recipe | None, folder: Path, *callbacks: Callback, **options: Any) -> Run:
    return run_recipe(recipe, folder, callbacks=callbacks, device="cpu", progress=False, **options)


def read(folder: Path, name: str = "run.json") -> Any:
    return json.loads((folder / name).read_text())


def rows(folder: Path) -> list[dict[str, str]]:
    """The history on disk, without what the clock says."""
    with (folder / "history.csv").open() as file:
        return [{key: value for key, value in row.items() if "second" not in key} for row in csv.DictReader(file)]


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def on_test(recipe: Recipe, **options: Any) -> BatchLoader:
    return BatchLoader(recipe.dataset(False), 1000, device="cpu", **options)


class TestFolder:
    def test_holds_all_that_is_needed_later(self, tmp_path: Path) -> None:
        folder = tmp_path / "some" / "where"
        result = go(SMALL, folder)
        assert sorted(path.name for path in folder.iterdir()) == CONTENTS
        assert result.folder == folder
        assert result.recipe == SMALL
        assert not result.interrupted
        assert not result.model.training

        content = read(folder)
        assert content["recipe"] == json.loads(json.dumps(asdict(SMALL)))
        (start,) = content["starts"]
        assert start["versions"]["cifarnets"] == cifarnets.__version__
        assert start["versions"]["torch"] == torch.__version__
        assert start["machine"]["device"] == "cpu"
        assert start["machine"]["processes"] == 1
        assert start["command"] == sys.argv
        assert start["time"].endswith("+00:00")

        assert [row["epoch"] for row in rows(folder)] == ["1", "2"]
        assert [float(row["loss"]) for row in rows(folder)] == result.history.column("loss")

    def test_the_model_is_loaded_by_itself_and_says_how_it_was_trained(self, tmp_path: Path) -> None:
        result = go(RICH, tmp_path / "run")
        model: Any = load(tmp_path / "run" / "model.safetensors")
        assert same_weights(model, result.model)
        assert evaluate(model, on_test(RICH), device="cpu") == result.evaluations["test"]
        assert model.meta.classes == RICH.classes
        assert model.meta.config["num_classes"] == 5
        assert model.meta.mean == pytest.approx(RICH.dataset(True).constants[0])
        assert model.meta.training == json.loads(json.dumps(asdict(RICH)))

    def test_evaluations_are_those_of_the_images_they_name(self, tmp_path: Path) -> None:
        result = go(replace(SMALL, val=50), tmp_path / "run")
        assert {name: found.n for name, found in result.evaluations.items()} == {"train": 350, "test": 100, "val": 50}
        assert result.evaluations["val"].accuracy == result.history[-1]["val_accuracy"]
        assert result.evaluations["test"] == evaluate(result.model, on_test(SMALL), device="cpu")
        written = read(tmp_path / "run", "evaluation.json")
        assert written == json.loads(json.dumps({name: e.to_dict() for name, e in result.evaluations.items()}))

    def test_test_time_augmentation_is_an_entry_of_its_own(self, tmp_path: Path) -> None:
        result = go(replace(SMALL, epochs=1, tta="mirror", val=50), tmp_path / "run")
        assert set(result.evaluations) == {"train", "test", "val", "test (mirror)", "val (mirror)"}
        assert result.evaluations["test (mirror)"] == evaluate(result.model, on_test(SMALL), device="cpu", tta="mirror")
        assert result.evaluations["test"] == evaluate(result.model, on_test(SMALL), device="cpu")
        assert set(read(tmp_path / "run", "evaluation.json")) == set(result.evaluations)

    def test_a_moving_average_is_what_is_evaluated_and_saved(self, tmp_path: Path) -> None:
        spy = Spy()
        result = go(replace(SMALL, ema=0.9), tmp_path / "run", spy)
        saved = load(tmp_path / "run" / "model.safetensors")
        assert same_weights(saved, result.model)
        assert not same_weights(saved, spy.trainer.model)
        assert evaluate(saved, on_test(SMALL), device="cpu") == result.evaluations["test"]
        assert evaluate(spy.trainer.model, on_test(SMALL), device="cpu") != result.evaluations["test"]

    def test_a_folder_that_is_not_empty_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.txt").write_text("all I have")
        with pytest.raises(OutputError, match=r"holds files already \(thesis.txt …\); name another folder"):
            go(SMALL, tmp_path)
        with pytest.raises(OutputError, match="holds files already"):  # nothing in it to go on with
            go(SMALL, tmp_path, resume=True)
        assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]

    def test_a_second_run_does_not_write_over_the_first(self, tmp_path: Path) -> None:
        go(replace(SMALL, epochs=1), tmp_path / "run")
        before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
        with pytest.raises(OutputError, match=r"resume the run in it \(resume=True\)"):
            go(replace(SMALL, epochs=1), tmp_path / "run")
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before

    @pytest.mark.parametrize("resume", [False, True])
    def test_a_file_in_place_of_the_folder(self, resume: bool, tmp_path: Path) -> None:
        (tmp_path / "run").write_text("mine")
        for folder in (tmp_path / "run", tmp_path / "run" / "below"):
            with pytest.raises(OutputError, match=r"cannot write into '.*run.*': "):
                go(SMALL, folder, resume=resume)
        assert (tmp_path / "run").read_text() == "mine"


class TestRecipe:
    def test_the_same_recipe_gives_the_same_run(self, tmp_path: Path) -> None:
        one, other = (go(SMALL, tmp_path / name) for name in ("one", "other"))
        assert same_weights(one.model, other.model)
        assert one.evaluations == other.evaluations
        assert rows(tmp_path / "one") == rows(tmp_path / "other")

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 1},
            {"lr": 0.02},
            {"batch_size": 40},
            {"optimizer": "adamw"},
            {"optimizer_options": {"momentum": 0.9}},
            {"schedule": "cosine"},
            {"label_smoothing": 0.2},
            {"accumulate": 3},
            {"clip_norm": 0.01},
            {"precision": "bf16"},
            {"ema": 0.9},
            {"augment": {"flip": "random"}},
            {"augment": {"flip": None, "cutout": 8}},
            {"val": 50},
        ],
        ids=str,
    )
    def test_each_field_changes_what_is_learnt(self, change: dict[str, Any], plain: Run, tmp_path: Path) -> None:
        assert not same_weights(go(replace(plain.recipe, **change), tmp_path / "run").model, plain.model)

    @pytest.fixture
    def plain(self, tmp_path: Path) -> Run:
        return go(replace(SMALL, epochs=1), tmp_path / "plain")

    def test_decay_spares_biases_when_told_to(self, tmp_path: Path) -> None:
        decayed = replace(SMALL, epochs=1, lr=0.1, optimizer_options={"weight_decay": 9.0})
        both, spared = Spy(), Spy()
        go(decayed, tmp_path / "both", both)
        go(replace(decayed, decay_biases=False), tmp_path / "spared", spared)

        def biases(spy: Spy) -> Tensor:
            return torch.cat([p.flatten() for name, p in spy.trainer.model.named_parameters() if "bias" in name])

        assert biases(both).norm() < biases(spared).norm() / 2

    def test_what_only_changes_the_way(self, tmp_path: Path) -> None:
        plain = go(replace(SMALL, epochs=1), tmp_path / "plain")
        other = replace(SMALL, epochs=1, channels_last=True, deterministic=True)
        result = go(other, tmp_path / "other")
        assert result.evaluations["test"].loss == pytest.approx(plain.evaluations["test"].loss, abs=1e-4)
        assert not torch.are_deterministic_algorithms_enabled()  # afterwards as before

    @pytest.mark.parametrize(("drop_last", "steps"), [(False, 3), (True, 2)])
    def test_a_last_batch_that_is_not_full(self, drop_last: bool, steps: int, tmp_path: Path) -> None:
        spy = Spy()
        go(replace(SMALL, epochs=1, batch_size=150, drop_last=drop_last), tmp_path / "run", spy)
        assert spy.trainer.global_step == steps

    def test_a_model_that_is_set_from_images_is(self, tmp_path: Path) -> None:
        recipe = replace(SMALL, model="airbench94", config={"widths": (24, 24, 24)}, epochs=1, val=50)
        model: Any = go(recipe, tmp_path / "run").model
        fresh: Any = cifarnets.models.create("airbench94", widths=(24, 24, 24))
        torch.manual_seed(0)
        train, _ = cifarnets.datasets.train_val_split(recipe.dataset(True), 50, 0)
        fresh.init_from_images(torch.stack([train[index][0] for index in range(len(train))]))
        assert torch.allclose(model.whiten.weight, fresh.whiten.weight, atol=1e-4)

    def test_more_outputs_than_classes(self, tmp_path: Path) -> None:
        recipe = replace(SMALL, config={**SMALL.config, "num_classes": 12}, epochs=1)
        assert load(go(recipe, tmp_path / "run").folder / "model.safetensors").meta.config["num_classes"] == 12

    def test_datasets(self, tiny_root: Path) -> None:
        some = replace(SMALL, classes=("ring", "disc"))
        assert some.dataset(True).classes == ("ring", "disc")
        assert len(some.dataset(False)) == 20
        assert len(SMALL.dataset(True)) == 400
        real = Recipe("convnet").dataset(False, tiny_root)
        assert isinstance(real, CIFAR10Normalized)
        assert len(real) == 20
        assert len(Recipe("convnet", classes=["cat"]).dataset(True, tiny_root)) == 10

    def test_trains_on_cifar10_files(self, tiny_root: Path, tmp_path: Path) -> None:
        result = go(replace(SMALL, synthetic=False, epochs=1), tmp_path / "run", root=tiny_root)
        assert result.evaluations["train"].n == 100
        assert list(result.evaluations["test"].per_class) == list(cifarnets.datasets.cifar10.CLASSES)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"model": "convnett"}, UnknownNameError, "Did you mean 'convnet'"),
            ({"optimizer": "sdg"}, UnknownNameError, "Did you mean 'sgd'"),
            ({"schedule": "cosin"}, UnknownNameError, "Did you mean 'cosine'"),
            ({"classes": ("disk",)}, UnknownNameError, "Did you mean 'disc'"),
            ({"config": {"depth": 3}}, InputError, "depth"),
            ({"optimizer_options": {"speed": 3}}, InputError, "speed"),
            ({"augment": {"flip": "always"}}, InputError, "flip must be"),
            ({"ema": 2.0}, InputError, "decay must be"),
            ({"val": 400}, InputError, "400"),
            ({"epochs": 0}, InputError, "epochs must be at least 1"),
            ({"synthetic": False}, DataNotFoundError, "no CIFAR-10 at"),
        ],
        ids=lambda value: str(value) if isinstance(value, dict) else "",
    )
    def test_what_cannot_be_run(
        self, change: dict[str, Any], error: type[CifarNetsError], message: str, tmp_path: Path
    ) -> None:
        with pytest.raises(error, match=message):
            go(replace(SMALL, **change), tmp_path / "run", root=tmp_path)


@pytest.mark.usefixtures("_interactive")
class TestResume:
    @pytest.mark.parametrize("recipe", [SMALL, RICH], ids=["small", "rich"])
    @pytest.mark.parametrize("stops", [(3,), (8,), (1, 2, 5)], ids=str)
    def test_ends_as_if_it_had_never_stopped(self, recipe: Recipe, stops: tuple[int, ...], tmp_path: Path) -> None:
        whole = go(recipe, tmp_path / "whole")
        folder = tmp_path / "stopped"
        for count, batches in enumerate(stops):
            stopped = go(None if count else recipe, folder, StopAfter(batches), resume=bool(count))
            assert stopped.interrupted
            assert len(stopped.history) < recipe.epochs
            torch.rand(7)  # whatever else the process does
        result = go(None, folder, resume=True)
        assert not result.interrupted
        assert json.dumps(asdict(result.recipe)) == json.dumps(asdict(recipe))
        assert same_weights(result.model, whole.model)
        assert result.evaluations == whole.evaluations
        assert rows(folder) == rows(tmp_path / "whole")
        assert sorted(path.name for path in folder.iterdir()) == CONTENTS
        assert len(read(folder)["starts"]) == len(stops) + 1

    def test_the_figures_of_a_part_go_when_the_run_goes_on(self, tmp_path: Path) -> None:
        """So that a run that is killed after its last epoch is not taken for whole."""
        seen: list[bool] = []

        class Look(Callback):
            def on_fit_start(self, trainer: Trainer) -> None:
                seen.append((tmp_path / "run" / "evaluation.json").exists())

        go(SMALL, tmp_path / "run", StopAfter(3))
        assert (tmp_path / "run" / "evaluation.json").exists()
        go(None, tmp_path / "run", Look(), resume=True)
        assert seen == [False]
        assert (tmp_path / "run" / "evaluation.json").exists()

    def test_what_a_second_ctrl_c_tears_is_not_kept(self, tmp_path: Path) -> None:
        class Impatient(Callback):
            def on_batch_end(self, trainer: Trainer) -> None:
                if trainer.epoch == 1 and trainer.batches_done == 3:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            go(SMALL, tmp_path / "run", Impatient())
        names = sorted(path.name for path in (tmp_path / "run").iterdir())
        assert names == ["checkpoint.safetensors", "history.csv", "last.safetensors", "run.json"]
        whole = go(SMALL, tmp_path / "whole")
        assert same_weights(go(None, tmp_path / "run", resume=True).model, whole.model)

    def test_a_stopped_run_leaves_a_model_that_says_how_far_it_came(self, tmp_path: Path) -> None:
        stopped = go(replace(SMALL, epochs=9), tmp_path / "run", StopAfter(12))  # of 8 batches an epoch
        model: Any = load(tmp_path / "run" / "model.safetensors")
        assert model.meta.training["epochs"] == len(stopped.history) == 1
        assert same_weights(model, stopped.model)
        assert set(stopped.evaluations) == {"train", "test"}

    def test_checkpoints_within_an_epoch_outlive_a_crash(self, tmp_path: Path) -> None:
        class Crash(Callback):
            def on_batch_end(self, trainer: Trainer) -> None:
                if trainer.batches_done == 6:
                    raise MemoryError("out of memory")

        whole = go(SMALL, tmp_path / "whole")
        folder = tmp_path / "crashed"
        with pytest.raises(CifarNetsError, match="out of memory"):
            go(SMALL, folder, Crash(), checkpoint_every=4)
        assert sorted(path.name for path in folder.iterdir()) == ["checkpoint.safetensors", "run.json"]
        spy = StopAfter(12)
        assert same_weights(go(SMALL, folder, spy, resume=True).model, whole.model)
        assert spy.left == 0  # the twelve that were left, of sixteen

    def test_a_finished_run_is_evaluated_again(self, tmp_path: Path) -> None:
        first = go(SMALL, tmp_path / "run")
        (tmp_path / "run" / "model.safetensors").unlink()
        again = go(None, tmp_path / "run", resume=True)
        assert again.evaluations == first.evaluations
        assert same_weights(load(tmp_path / "run" / "model.safetensors"), first.model)

    def test_starts_a_run_that_is_not_there(self, tmp_path: Path) -> None:
        result = go(replace(SMALL, epochs=1), tmp_path / "run", resume=True)
        assert sorted(path.name for path in result.folder.iterdir()) == CONTENTS
        assert len(read(result.folder)["starts"]) == 1

    def test_takes_the_same_recipe_whatever_its_sequences_are(self, tmp_path: Path) -> None:
        recipe = replace(SMALL, epochs=1, classes=("disc", "ring"))
        go(recipe, tmp_path / "run")
        go(replace(recipe, classes=["disc", "ring"]), tmp_path / "run", resume=True)

    def test_refuses_another_recipe_and_says_what_differs(self, tmp_path: Path) -> None:
        go(replace(SMALL, epochs=1), tmp_path / "run")
        before = (tmp_path / "run" / "run.json").read_bytes()
        with pytest.raises(
            InputError, match=r"has another recipe: epochs 1, not 2; optimizer 'sgd', not 'adamw'; lr 0.05, not 0.1\.$"
        ):
            go(replace(SMALL, optimizer="adamw", lr=0.1), tmp_path / "run", resume=True)
        assert (tmp_path / "run" / "run.json").read_bytes() == before

    def test_there_is_no_run(self, tmp_path: Path) -> None:
        for folder in (tmp_path, tmp_path / "nowhere"):
            with pytest.raises(InputError, match=r"there is no run in '.*' to resume"):
                go(None, folder, resume=True)
        with pytest.raises(InputError, match="there is no run"):
            go(None, tmp_path)
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b'{"recipe": {',
            b"[]",
            b"{}",
            b"\xff\xfe",
            b'{"recipe": {"model": "convnet"}}',
            b'{"recipe": {"epochs": 3}, "starts": []}',
            b'{"recipe": {"model": "convnet", "colour": "red"}, "starts": []}',
            b'{"recipe": {"model": "convnet"}, "starts": 3}',
            b'{"recipe": ["model"], "starts": []}',
        ],
        ids=str,
    )
    def test_a_damaged_run_file(self, content: bytes, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_bytes(content)
        for recipe in (None, SMALL):
            with pytest.raises(InputError, match=r"run.json' is damaged: "):
                go(recipe, tmp_path, resume=True)
        assert (tmp_path / "run.json").read_bytes() == content


def test_every_recipe_of_the_library_can_be_built(tmp_path: Path) -> None:
    assert "convnet.cifar3" in list_recipes("convnet*")
    assert list_recipes("no*") == []
    for name in list_recipes():
        recipe = load_recipe(name)
        assert recipe.model == name.partition(".")[0], "a recipe is named model.tag"
        classes = len(recipe.classes) or 10
        model = cifarnets.models.create(recipe.model, **{"num_classes": classes, **recipe.config})
        trainer = Trainer(model, device="cpu", **recipe.trainer_options())
        labels = torch.arange(4) % classes
        trainer.fit([(torch.randn(4, 3, 32, 32), labels)] * 2, epochs=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = ", "cannot read the recipe '.*mine.toml': Invalid value"),
        ("epochs = 3", "the recipe '.*mine.toml' names no model."),
        ('model = "convnet"\nepoch = 3', "the recipe '.*mine.toml' has epoch, which no recipe has; it may have: accum"),
    ],
)
def test_a_recipe_that_cannot_be_read(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "mine.toml")


def test_recipes_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown recipe 'convnet\.cifar'\. Did you mean 'convnet.cifar3'?"):
        load_recipe("convnet.cifar")
    with pytest.raises(InputError, match=r"cannot read the recipe '.*nowhere\.toml': "):
        load_recipe(tmp_path / "nowhere.toml")


def test_reproducing_is_running_a_recipe_with_a_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("small.toml").write_text(
        'model = "convnet"\nepochs = 1\nbatch_size = 50\nsynthetic = true\nconfig = {widths = [4, 4], hidden = 8}\n'
    )
    done = reproduce("small.toml", seed=3, device="cpu", progress=False)
    assert done.recipe.seed == 3
    assert done.folder == Path("runs/small-seed3")
    again = reproduce("small.toml", seed=3, device="cpu", progress=False)  # found finished
    assert again.history == done.history


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": "3"}, "epochs of a recipe must be a whole number, not '3'"),
        ({"epochs": True}, "epochs of a recipe must be a whole number, not True"),
        ({"epochs": 0}, "epochs must be at least 1, and below 2..31, not 0"),
        ({"lr": "fast"}, "lr of a recipe must be a number, not 'fast'"),
        ({"ema": "0.9"}, "ema of a recipe must be a number or nothing, not '0.9'"),
        ({"optimizer_options": [1]}, r"optimizer_options of a recipe must be a table, not \[1\]"),
        ({"classes": "cat"}, "classes of a recipe must be a list of text, not 'cat'"),
        ({"tta": "miror"}, "tta of a recipe must be one of .*'mirror_shift'.*, not 'miror'"),
        ({"precision": "int8"}, "precision of a recipe must be one of .*, not 'int8'"),
        ({"augment": {"foo": 1}}, "augment of a recipe does not take .*foo"),
        ({"augment": {"translate": 1.5}}, "translate and cutout must be whole numbers of pixels"),
        ({"augment": {"mixup": "much"}}, "mixup and cutmix must be numbers"),
    ],
)
def test_values_that_no_recipe_can_have(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(SMALL, **change)


def test_a_model_that_is_not_there_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'convnet'"):
        run_recipe(Recipe("convne"), tmp_path / "new", root=tmp_path)
    with pytest.raises(InputError, match="SGD refuses"):
        run_recipe(replace(SMALL, optimizer_options={"speed": 9}), tmp_path / "new")
    with pytest.raises(UnknownNameError, match="Did you mean 'cosine'"):
        run_recipe(replace(SMALL, schedule="cosin"), tmp_path / "new")
    with pytest.raises(UnknownNameError, match="Did you mean 'convnet'"):
        run_recipe(replace(SMALL, distill={"teacher": "convnt"}), tmp_path / "new")
    assert not (tmp_path / "new").exists()


BAD: list[tuple[dict[str, Any], str]] = [
    ({"config": {"a": _deep}}, "config of a recipe is nested more than 8 deep"),
    ({"optimizer_options": {"momentum": _deep}}, "nested more than 8 deep"),
    ({"lr": _deep}, "lr of a recipe must be a number, not "),
    ({"model": 16**4000}, "model of a recipe must be text, not a int"),
    ({"seed": 2**63}, "seed of a recipe has a number that is not within"),
    ({"seed": 10**5000}, "seed of a recipe has a number that is not within .*: a int"),
    ({"batch_size": 2**63 - 1}, r"batch_size must be at least 1, and below 2\*\*31"),
    ({"batch_size": 2**63}, "batch_size of a recipe has a number that is not within"),
    ({"epochs": 2**40}, r"epochs must be at least 1, and below 2\*\*31"),
    ({"accumulate": 10**400}, "accumulate of a recipe has a number that is not within"),
    ({"val": -1}, "val must be at least 0"),
    ({"lr": float("nan")}, "lr of a recipe has nan, which is not a finite number"),
    ({"lr": float("inf")}, "not a finite number"),
    ({"config": {"widths": date(1979, 5, 27)}}, "config of a recipe has a date, which no recipe can hold"),
    ({"config": {"a": {5: 1}}}, "config of a recipe has a key that is no text"),
    ({"config": {"a": object}}, "config of a recipe has a type, which no recipe can hold"),
    (
        {"config": {"a": Unspeakable()}},
        "has a Unspeakable, which no recipe can hold: a Unspeakable that cannot be shown",
    ),
    ({"distill": {5: 1}}, "distill of a recipe must be a table"),
    ({"classes": ["cat"] * 20_000}, "classes of a recipe has more than 10,000 entries"),
    ({"classes": ["c" * 6_000]}, "classes of a recipe has a text of 6,000 characters"),
    ({"classes": [3]}, "classes of a recipe must be a list of text"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_hostile_values_are_refused_as_they_come(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        replace(SMALL, **change)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": "convmuon", "optimizer_options": {"steps": "x"}}, "steps must be a whole number from 1 to 100"),
        ({"optimizer": "adamw", "optimizer_options": {"capturable": True}}, "AdamW refuses {'capturable': True}"),
        ({"optimizer_options": {"momentum": "much"}}, "SGD refuses"),
        ({"schedule": "cosine", "schedule_options": {"warmup": "long"}}, "the schedule 'cosine' refuses"),
        ({"label_smoothing": 7.0}, "label_smoothing must be between 0 and 1"),
        ({"config": {"widths": "abc"}}, "widths"),
        ({"tta": "mirror", "distill": {"teacher": "convnet", "temperature": "hot"}}, "temperature"),
    ],
    ids=str,
)
def test_what_only_a_later_step_would_notice_is_refused_before_the_folder_is_made(
    change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(CifarNetsError, match=message):
        go(replace(SMALL, **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds = " + "[" * 3000, "cannot read the recipe"),
        ('model = "convnet"\nconfig = {a = ' + "[" * 300 + "]" * 300 + "}", "nested more than 8 deep"),
        ("model = 0x" + "f" * 4000, "model of a recipe must be text, not a int"),
        (".".join(["a"] * 24_000) + " = 1", "cannot read the recipe .*: it is larger than 16,000 bytes"),
        (".".join(["a"] * 2_000) + " = 1", "cannot read the recipe .*: a line has more than 100 dots"),
        ('model = "convnet"\nconfig = {day = 1979-05-27}', "config of a recipe has a date"),
        ('model = "convnet"\nlr = nan', "not a finite number"),
        ("model = 'a\x00'", "cannot read the recipe"),
        ("\x1b[2J", "cannot read the recipe"),
    ],
    ids=lambda text: text[:40],
)
def test_hostile_recipe_files(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(path)
    assert len(str(caught.value)) < 1000
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot read the recipe"):
        load_recipe(path)


@pytest.mark.parametrize("name", ["a\0b.toml", "x" * 300 + ".toml", "\ud800.toml", "a\0b", "x" * 300, ""])
def test_recipe_names_that_no_file_has(name: str) -> None:
    with pytest.raises(CifarNetsError):
        load_recipe(name)


@pytest.mark.parametrize(
    "content",
    [
        "[" * 2000,
        '{"recipe": {"model": "convnet"}, "starts": ' + "[" * 500 + "]" * 500 + "}",
        '{"recipe": {"model": "convnet", "config": {"a": ' + "[" * 500 + "]" * 500 + '}}, "starts": []}',
        '{"recipe": {"model": "convnet", "seed": ' + "9" * 5000 + '}, "starts": []}',
        '{"recipe": {"model": "convnet", "seed": ' + "9" * 400 + '}, "starts": []}',
        '{"recipe": {"model": "convnet"}, "starts": "abc"}',
        '{"recipe": {"model": "convnet"}, "starts": [' + "0," * 600_000 + "0]}",
        '{"recipe": null, "starts": []}',
        '{"recipe": {"model": "convnet", "lr": NaN}, "starts": []}',
    ],
    ids=lambda content: content[:60],
)
def test_a_hostile_run_file(content: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match=r"run.json' is damaged: ") as caught:
        go(None, tmp_path, resume=True)
    assert len(str(caught.value)) < 1000
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_that_no_system_has(tmp_path: Path) -> None:
    for name in ("a\0b", "x" * 300):
        with pytest.raises(InputError, match="cannot be used"):
            go(replace(SMALL, epochs=1), tmp_path / name)


@pytest.mark.parametrize(("epoch", "hook"), [(1, "on_batch_end"), (1, "on_epoch_end"), (2, "on_fit_end")])
def test_a_folder_that_is_removed_meanwhile_ends_the_run_with_an_error(epoch: int, hook: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    class Remove(Callback):
        def remove(self, trainer: Trainer) -> None:
            if trainer.epoch == epoch and folder.exists():
                shutil.rmtree(folder)

    setattr(Remove, hook, Remove.remove)
    with pytest.raises(OutputError, match=r"run.json' has been removed while the run was going on"):
        go(replace(SMALL, epochs=2), folder, Remove())
    assert not (folder / "model.safetensors").exists()


def test_ctrl_c_in_a_script_saves_and_then_ends_it(tmp_path: Path) -> None:
    whole = go(SMALL, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        go(SMALL, tmp_path / "run", StopAfter(11))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    spy = CountBatches()
    assert same_weights(go(None, tmp_path / "run", spy, resume=True).model, whole.model)
    assert spy.count == 5, "exactly the five batches that were left have been trained on"


def test_a_run_that_was_killed_in_its_first_write_is_resumed(tmp_path: Path) -> None:
    (tmp_path / ".cifarnets-abcdef0123456789.tmp").write_text("a part of run.json")
    run = run_recipe(replace(SMALL, epochs=1), tmp_path, resume=True, progress=False, device="cpu")
    assert len(run.history) == 1
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("path", ["x" * 300, "~nobody-of-this-name/run", "a\0b"])
def test_a_folder_that_no_system_can_have(path: str) -> None:
    with pytest.raises(InputError, match="cannot be used"):
        run_recipe(None, path, resume=True)
    with pytest.raises(InputError, match="cannot be used"):
        load_recipe(f"{path}.toml")


def test_numpys_numbers_are_plain_in_a_recipe() -> None:
    recipe = Recipe("convnet", epochs=np.int64(3), lr=np.float32(0.5))
    assert (recipe.epochs, recipe.lr) == (3, 0.5)
    assert recipe.to_dict()["epochs"] == 3
