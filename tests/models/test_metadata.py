"""What a model knows about itself, through any wrapper."""

import copy
import dataclasses
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cifarnets import load, models, save
from cifarnets.errors import InputError
from cifarnets.models import registry
from cifarnets.models.metadata import ModelMeta, get_meta, unwrap


def test_a_new_model_knows_its_name_and_config_and_nothing_of_data() -> None:
    meta = models.ConvNet(3, pool="avg").meta
    assert meta.architecture == "convnet"
    assert meta.config == {
        "num_classes": 3,
        "in_channels": 3,
        "widths": (16, 8),
        "hidden": 32,
        "kernel_size": 3,
        "pool": "avg",
    }
    assert (meta.classes, meta.mean, meta.std, meta.training) == (None, None, None, {})


def test_what_is_not_told_stays() -> None:
    model = models.ConvNet(3)
    models.annotate(model, classes=["a", "b", "c"], mean=[0.1, 0.2, 0.3])
    models.annotate(model, std=[1, 2, 3], training={"epochs": 1})
    models.annotate(model, training={"epochs": 2})
    assert model.meta.classes == ("a", "b", "c")
    assert (model.meta.mean, model.meta.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))
    assert model.meta.training == {"epochs": 2}
    assert model.meta.architecture == "convnet"


def test_a_model_is_described_on_its_own() -> None:
    one, other = models.ConvNet(), models.ConvNet()
    models.annotate(one, classes=["cat"])
    assert other.meta.classes is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.meta.classes = ("dog",)  # type: ignore[misc, union-attr]


@pytest.mark.parametrize("kind", [torch.tensor, np.array, lambda v: np.array(v, dtype=np.float32)])
def test_constants_may_come_from_a_computation(kind: object, tmp_path: Path) -> None:
    model = models.ConvNet()
    models.annotate(model, mean=kind([0.5, 0.25, 0.125]), std=kind([1.0, 2.0, 4.0]))  # type: ignore[operator]
    assert json.dumps(model.meta.mean) == "[0.5, 0.25, 0.125]"
    assert load(save(model, tmp_path / "model.safetensors")).meta == model.meta


def test_more_classes_than_outputs_are_refused_and_fewer_are_not() -> None:
    model = models.ConvNet(2)
    with pytest.raises(InputError, match=r"3 classes \(a, b, c\) do not fit a model of 2 outputs.*num_classes=3"):
        models.annotate(model, classes=["a", "b", "c"], training={"epochs": 1})
    assert model.meta == models.ConvNet(2).meta  # untouched
    models.annotate(model, classes=["a"])
    assert model.meta.classes == ("a",)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_constants_of_other_channels_are_refused(key: str) -> None:
    with pytest.raises(InputError, match=r"1 constants \(0.5,\) do not fit images of 3 channels"):
        models.annotate(models.ConvNet(), **{key: (0.5,)})
    grey = models.ConvNet(in_channels=1)
    models.annotate(grey, **{key: (0.5,)})
    assert getattr(grey.meta, key) == (0.5,)


def test_a_foreign_module_has_no_meta_and_cannot_be_described() -> None:
    foreign = nn.Linear(2, 2)
    assert get_meta(foreign) is None
    with pytest.raises(InputError, match="Linear has no meta: register its class"):
        models.annotate(foreign, classes=["a"])
    foreign.meta = "something of its own"  # type: ignore[assignment]
    assert get_meta(foreign) is None


def test_wrappers_are_seen_through() -> None:
    model = models.ConvNet()
    for wrapped in (
        nn.DataParallel(model),
        torch.compile(model),
        nn.DataParallel(torch.compile(model)),
        torch.compile(nn.DataParallel(model)),
    ):
        assert unwrap(wrapped) is model
        models.annotate(wrapped, classes=[type(wrapped).__name__])
        assert model.meta.classes == (type(wrapped).__name__,)
        assert get_meta(wrapped) is model.meta
    assert unwrap(model) is model


def test_a_layer_called_module_is_no_wrapper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))

    @models.register("holder")
    class Holder(nn.Module):
        def __init__(self, num_classes: int = 2) -> None:
            super().__init__()
            self.module = nn.Linear(3072, num_classes)

        def forward(self, x: Tensor) -> Tensor:
            return self.module(x.flatten(1))

    model = Holder()
    assert unwrap(nn.DataParallel(model)) is model
    assert isinstance(load(save(model, tmp_path / "model.safetensors")), Holder)


def test_copies_and_pickles_keep_it() -> None:
    model = models.ConvNet(3)
    models.annotate(model, classes=["a", "b", "c"])
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert again.meta == model.meta
        assert isinstance(again.meta, ModelMeta)
