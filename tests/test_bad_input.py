"""Every public function, called with one bad value at a time: an error of ours, or a result, and nothing else."""

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cifarnets
from cifarnets import Evaluation, Trainer, datasets, distillation, models, recipes, report, sharing, training, viz
from cifarnets.datasets import BatchLoader, ImageDataset, SyntheticCIFAR10
from cifarnets.errors import CifarNetsError, InputError

# Made for each call, so that no call sees what another has done to a value.
BAD: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "empty text": lambda: "",
    "text": lambda: "no such thing",
    "a NUL": lambda: "a\0b",
    "a long name": lambda: "x" * 5000,
    "bytes": lambda: b"\xff",
    "0": lambda: 0,
    "-1": lambda: -1,
    "2**70": lambda: 2**70,
    "0.5": lambda: 0.5,
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "np.int64": lambda: np.int64(-3),
    "np.float32": lambda: np.float32(1e30),
    "empty list": list,
    "empty tuple": tuple,
    "empty dict": dict,
    "a set": lambda: {"a", "b"},
    "list of None": lambda: [None],
    "list of text": lambda: ["x", "x"],
    "nested list": lambda: [[[1.0]]],
    "dict": lambda: {"no such key": object()},
    "object": object,
    "class": lambda: int,
    "function": lambda: len,
    "empty tensor": lambda: torch.empty(0),
    "tensor of NaN": lambda: torch.full((2, 3, 32, 32), float("nan")),
    "0-d tensor": lambda: torch.tensor(3),
    "wrong shape": lambda: torch.zeros(2, 2),
    "whole numbers": lambda: torch.full((4,), -7),
    "complex": lambda: torch.zeros(2, 3, 32, 32, dtype=torch.complex64),
    "array": lambda: np.zeros((0, 3)),
    "array of objects": lambda: np.array([None, "x"], dtype=object),
    "a module": lambda: nn.Identity(),
}


def drawn() -> ImageDataset:
    return SyntheticCIFAR10(size=30)


def run_folder() -> str:
    """The least that a run leaves."""
    Path("run").mkdir(exist_ok=True)
    recipe = recipes.Recipe("convnet", synthetic=True)
    Path("run/run.json").write_text(json.dumps({"recipe": recipe.to_dict(), "starts": []}))
    return "run"


def loader() -> BatchLoader:
    return BatchLoader(drawn(), 15, device="cpu", seed=0)


def net() -> nn.Module:
    model = models.create("convnet", widths=(2, 2), hidden=4)
    models.annotate(model, mean=(0.5,) * 3, std=(0.25,) * 3)
    return model


def trainer() -> Trainer:
    return Trainer(net(), device="cpu", progress=False)


def history() -> training.History:
    return trainer().fit(loader(), epochs=1)


def evaluation() -> Evaluation:
    """Of a net that takes every picture for the first class."""
    return Evaluation.from_logits(torch.eye(10)[:1].expand(30, -1), drawn().labels, drawn().classes)


def image() -> torch.Tensor:
    return torch.zeros(3, 32, 32, dtype=torch.uint8)


def theirs() -> str:
    """A checkpoint of another program."""
    torch.save({"state_dict": net().state_dict()}, "theirs.pth")
    return "theirs.pth"


Target = tuple[Callable[[], Callable[..., Any]], Callable[[], dict[str, Any]]]
CPU = {"device": "cpu"}
NOWHERE = ("http://127.0.0.1:9/cifar-10-python.tar.gz",)
# What is called, and arguments with which the call works.
TARGETS: dict[str, Target] = {
    # cifarnets
    "evaluate": (lambda: cifarnets.evaluate, lambda: {"model": net(), "loader": loader(), **CPU}),
    "predict": (lambda: cifarnets.predict, lambda: {"model": net(), "images": image(), **CPU}),
    "features": (lambda: cifarnets.features, lambda: {"model": net(), "images": image(), **CPU}),
    "load": (lambda: cifarnets.load, lambda: {"source": "convnet"}),
    "save": (lambda: cifarnets.save, lambda: {"model": net(), "path": "m.safetensors"}),
    "verify": (lambda: cifarnets.verify, lambda: {"names": "convnet"}),
    "seed_everything": (lambda: cifarnets.seed_everything, lambda: {"seed": 1}),
    "Evaluation.from_dict": (lambda: Evaluation.from_dict, lambda: {"content": evaluation().to_dict()}),
    "Evaluation.confidence_interval": (lambda: evaluation().confidence_interval, lambda: {"level": 0.9}),
    "History.from_csv": (lambda: training.History.from_csv, lambda: {"path": "history.csv"}),
    "Evaluation.from_logits": (
        lambda: Evaluation.from_logits,
        lambda: {"logits": torch.zeros(2, 3), "labels": torch.tensor([0, 1])},
    ),
    # models
    "create": (lambda: models.create, lambda: {"name": "convnet"}),
    "info": (lambda: models.info, lambda: {"name": "convnet"}),
    "list_models": (lambda: models.list_models, dict),
    "annotate": (lambda: models.annotate, lambda: {"model": net()}),
    "summary": (lambda: models.summary, lambda: {"model": net()}),
    "head": (lambda: models.head, lambda: {"model": net()}),
    "with_normalization": (lambda: models.with_normalization, lambda: {"model": net()}),
    "transform_for": (lambda: models.transform_for, lambda: {"model": net()}),
    "NormalizedModel": (
        lambda: models.NormalizedModel,
        lambda: {"model": net(), "mean": (0.5,) * 3, "std": (0.5,) * 3},
    ),
    "Ensemble": (lambda: models.Ensemble, lambda: {"models": [net()]}),
    "register": (lambda: models.register, lambda: {"name": "convnet"}),
    "ConvNet": (lambda: models.ConvNet, dict),
    "ConvNetFunctional": (lambda: models.ConvNetFunctional, dict),
    "FCNet": (lambda: models.FCNet, dict),
    "ResNet20": (lambda: models.ResNet20, lambda: {"widths": (2, 2, 2)}),
    "VGG11BN": (lambda: models.VGG11BN, lambda: {"widths": (2, 2, 2, 2, 2)}),
    "Airbench94": (lambda: models.Airbench94, lambda: {"widths": (8, 8, 8)}),
    "MobileNetV2": (lambda: models.MobileNetV2, lambda: {"width": 0.1}),
    "QuarterNet16": (lambda: models.QuarterNet16, lambda: {"widths": (4, 4), "depth": 1}),
    "DenseNet40BC": (lambda: models.DenseNet40BC, lambda: {"growth": 1}),
    # datasets
    "ImageDataset": (
        lambda: ImageDataset,
        lambda: {"images": image()[None], "labels": torch.tensor([0]), "classes": ["a"]},
    ),
    "ImageDataset.select": (lambda: drawn().select, lambda: {"indices": [0, 1]}),
    "CIFAR10Normalized": (lambda: datasets.CIFAR10Normalized, lambda: {"root": "nowhere"}),
    "SyntheticCIFAR10": (lambda: SyntheticCIFAR10, lambda: {"size": 20}),
    "BatchLoader": (lambda: BatchLoader, lambda: {"dataset": drawn(), **CPU}),
    "Augment": (lambda: datasets.Augment, dict),
    "cifar_subset": (lambda: datasets.cifar_subset, lambda: {"dataset": drawn(), "classes": [0]}),
    "find_cifar10": (lambda: datasets.find_cifar10, lambda: {"root": "nowhere"}),
    "dataset_for": (lambda: datasets.dataset_for, lambda: {"meta": net().meta, "root": "nowhere"}),
    "train_val_split": (lambda: datasets.train_val_split, lambda: {"dataset": drawn(), "val": 5}),
    "channel_stats": (lambda: datasets.channel_stats, lambda: {"dataset": drawn()}),
    "normalize": (lambda: datasets.normalize, lambda: {"images": image()}),
    "denormalize": (lambda: datasets.denormalize, lambda: {"images": torch.zeros(3, 8, 8)}),
    "download_cifar10": (
        lambda: datasets.download_cifar10,
        lambda: {"root": "data", "sources": NOWHERE, "time_limit": 2},
    ),
    # training
    "Trainer": (lambda: Trainer, lambda: {"model": net(), "progress": False, **CPU}),
    "Trainer.fit": (lambda: trainer().fit, lambda: {"loader": loader(), "epochs": 1}),
    "Trainer.plan": (lambda: trainer().plan, lambda: {"loader": loader(), "epochs": 1}),
    "Trainer.load_state_dict": (lambda: trainer().load_state_dict, dict),
    "History.column": (lambda: history().column, lambda: {"key": "loss"}),
    "History.to_csv": (lambda: history().to_csv, lambda: {"path": "h.csv"}),
    "History.to_jsonl": (lambda: history().to_jsonl, lambda: {"path": "h.jsonl"}),
    "History.plot": (lambda: history().plot, dict),
    "find_lr": (lambda: training.find_lr, lambda: {"trainer": trainer(), "loader": loader(), "steps": 10}),
    "make_optimizer": (lambda: training.make_optimizer, lambda: {"model": net()}),
    "make_schedule": (
        lambda: training.make_schedule,
        lambda: {"optimizer": trainer().optimizer, "schedule": "cosine", "steps": 10},
    ),
    "EMA": (lambda: training.EMA, dict),
    "EarlyStopping": (lambda: training.EarlyStopping, dict),
    "Checkpoint": (lambda: training.Checkpoint, lambda: {"folder": "c"}),
    "ProgressBar": (lambda: training.ProgressBar, dict),
    "ArticleLog": (lambda: training.ArticleLog, dict),
    "CSVLog": (lambda: training.CSVLog, lambda: {"path": "h.csv"}),
    "JSONLinesLog": (lambda: training.JSONLinesLog, lambda: {"path": "h.jsonl"}),
    "TensorBoardLog": (lambda: training.TensorBoardLog, lambda: {"folder": "t"}),
    # recipes
    "Recipe": (lambda: recipes.Recipe, lambda: {"model": "convnet"}),
    "load_recipe": (lambda: recipes.load_recipe, lambda: {"name": "convnet"}),
    "list_recipes": (lambda: recipes.list_recipes, dict),
    "run_recipe": (
        lambda: recipes.run_recipe,
        lambda: {"recipe": recipes.Recipe("no such model", synthetic=True), "folder": "r", **CPU},
    ),
    "reproduce": (lambda: recipes.reproduce, lambda: {"name": "no such recipe"}),
    "soft_labels": (lambda: distillation.soft_labels, lambda: {"dataset": drawn(), "teacher": net(), **CPU}),
    "calibrate": (lambda: cifarnets.calibrate, lambda: {"model": net(), "val_loader": loader(), **CPU}),
    # sharing; no test reaches the Hub
    "push": (lambda: sharing.push, lambda: {"model": net(), "repo": "me/nets"}),
    "pull": (lambda: sharing.pull, lambda: {"address": "hf://me/nets", "folder": "f"}),
    "model_card": (lambda: sharing.model_card, lambda: {"model": net()}),
    "load_state": (lambda: sharing.load_state, lambda: {"model": net(), "file": theirs()}),
    "import_model": (
        lambda: functools.partial(sharing.import_model, widths=(2, 2), hidden=4),
        lambda: {"file": theirs(), "name": "convnet", "mean": (0.5,) * 3, "std": (0.25,) * 3},
    ),
    "export": (lambda: sharing.export, lambda: {"model": net(), "path": "m.pt2"}),
    "evaluate_exported": (lambda: sharing.evaluate_exported, lambda: {"path": "m.pt2", "dataset": drawn()}),
    # report
    "write_explorer": (lambda: report.write_explorer, lambda: {"model": net(), "path": "p.html"}),
    "write_report": (lambda: report.write_report, lambda: {"runs": run_folder(), "path": "p.html"}),
    # viz
    "viz.show": (lambda: viz.show, lambda: {"images": image()}),
    "viz.show_kernels": (lambda: viz.show_kernels, lambda: {"weight": torch.zeros(2, 3, 3, 3)}),
    "viz.show_maps": (lambda: viz.show_maps, lambda: {"maps": torch.zeros(2, 8, 8)}),
    "viz.show_predictions": (
        lambda: viz.show_predictions,
        lambda: {"images": image(), "predictions": [("cat", 0.9)], "labels": [0], "classes": ["cat"]},
    ),
    "viz.show_normalized": (lambda: viz.show_normalized, lambda: {"image": image()}),
    "viz.show_convolution": (lambda: viz.show_convolution, lambda: {"image": image()}),
    "viz.show_pooling": (lambda: viz.show_pooling, lambda: {"image": image()}),
    "viz.show_attribution": (lambda: viz.show_attribution, lambda: {"model": net(), "image": image(), **CPU}),
    "viz.show_mistakes": (
        lambda: viz.show_mistakes,
        lambda: {"evaluation": evaluation(), "dataset": drawn(), "count": 2},
    ),
    "viz.plot_softmax": (lambda: viz.plot_softmax, dict),
    "viz.plot_losses": (lambda: viz.plot_losses, dict),
    "viz.plot_history": (lambda: viz.plot_history, lambda: {"history": history()}),
    "viz.plot_confusion": (lambda: viz.plot_confusion, lambda: {"evaluation": evaluation()}),
    "viz.plot_reliability": (lambda: viz.plot_reliability, lambda: {"evaluation": evaluation()}),
    "viz.plot_per_class": (lambda: viz.plot_per_class, lambda: {"evaluation": evaluation()}),
    "viz.plot_projection": (
        lambda: viz.plot_projection,
        lambda: {"features": torch.arange(12.0).view(4, 3), "labels": [0, 1, 0, 1], "classes": ["a", "b"]},
    ),
    "viz.plot_zoo": (lambda: viz.plot_zoo, dict),
    "viz.explorer": (lambda: viz.explorer, lambda: {"model": net(), "path": "page.html"}),
}


def calls(name: str) -> Iterator[tuple[str, str]]:
    """Each parameter of a target with each bad value."""
    for parameter in inspect.signature(TARGETS[name][0]()).parameters.values():
        if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            yield from ((parameter.name, bad) for bad in BAD)


@pytest.mark.filterwarnings("ignore")  # torch warns of some values that it takes
@pytest.mark.parametrize("name", TARGETS)
def test_a_bad_value_is_refused_with_an_error_of_ours(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIFARNETS_DATA", str(tmp_path / "none"))  # where there is none, so that calls are quick
    monkeypatch.setattr(models.registry, "_MODELS", dict(models.registry._MODELS))
    make, arguments = TARGETS[name]
    escaped = []
    for parameter, bad in calls(name):
        try:
            make()(**{**arguments(), parameter: BAD[bad]()})
        except CifarNetsError as error:
            if len(str(error)) > 1500:
                escaped.append(f"{parameter} = {bad}: the message is too long to read")
        except Exception as error:
            escaped.append(f"{parameter} = {bad}: {type(error).__name__}: {str(error)[:90]}")
    assert not escaped, f"{len(escaped)} of {name}:\n" + "\n".join(escaped)


def test_every_public_function_is_swept() -> None:
    packages = (cifarnets, models, datasets, training, recipes, distillation, report, sharing, viz)
    public = {name for package in packages for name in package.__all__ if callable(getattr(package, name))}
    swept = {name.removeprefix("viz.").partition(".")[0] for name in TARGETS}
    # Records that the library makes and hands out, bases, and classes that differ from one of the above by a number.
    records = {"Check", "CifarNetsError", "Evaluation", "History", "Layer", "LRSearch", "ModelInfo", "ModelMeta"}
    records |= {"Exported", "LoadReport", "Pushed", "Release", "Run", "Summary", "Callback", "Classifier", "ConvMuon"}
    alike = {
        name
        for name in public
        if name.startswith(("ResNet", "VGG", "Airbench", "WideResNet", "DenseNet", "QuarterNet"))
    }
    assert public - swept - records - alike == set()


def test_how_many_calls_that_is() -> None:
    assert sum(1 for name in TARGETS for _ in calls(name)) > 5000


def test_a_name_where_a_model_is_wanted_is_told_to_be_loaded() -> None:
    loader = BatchLoader(SyntheticCIFAR10(size=20), 20)
    calls: list[Callable[[], object]] = [
        lambda: cifarnets.evaluate("convnet", loader),  # type: ignore[arg-type]
        lambda: cifarnets.Trainer("convnet"),  # type: ignore[arg-type]
        lambda: cifarnets.calibrate("convnet", loader),  # type: ignore[arg-type]
        lambda: cifarnets.predict("convnet", torch.zeros(3, 32, 32)),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(InputError, match=r"'convnet': load it first, cifarnets\.load\('convnet'\)"):
            call()
