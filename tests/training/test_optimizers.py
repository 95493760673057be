"""Optimizers by name, class and instance."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from cifarnets import Trainer
from cifarnets.datasets import BatchLoader
from cifarnets.errors import InputError, UnknownNameError
from cifarnets.models import create
from cifarnets.training import make_optimizer
from cifarnets.training.muon import ConvMuon
from cifarnets.training.optimizers import optimizer_names, param_groups

Net = Callable[..., nn.Module]


@pytest.mark.parametrize("name", sorted(optimizer_names()))
def test_every_name_that_is_offered_trains_or_says_why_not(net: Net, loader: BatchLoader, name: str) -> None:
    model = net()
    before = [parameter.clone() for parameter in model.parameters()]
    if name == "muon":
        with pytest.raises(InputError, match=r"Muon refuses lr=0\.01 with {}: "):  # it takes matrices only
            Trainer(model, optimizer=name, device="cpu")
        return
    Trainer(model, optimizer=name, device="cpu").fit(loader, epochs=1)
    assert any(not torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))


def test_names_classes_and_instances(net: Net) -> None:
    model = net()
    for given in ("adamw", "AdamW", torch.optim.AdamW):
        made = make_optimizer(model, given, lr=0.3, options={"betas": (0.5, 0.9)})
        assert type(made) is torch.optim.AdamW
        (group,) = made.param_groups
        assert (group["lr"], group["betas"]) == (0.3, (0.5, 0.9))
        assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert make_optimizer(model, made, lr=7) is made
    assert isinstance(make_optimizer(model, "convmuon", lr=0.1), ConvMuon)


def test_the_defaults_are_the_articles(net: Net) -> None:
    made = make_optimizer(net())
    assert type(made) is torch.optim.SGD
    (group,) = made.param_groups
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.01, 0, 0)


def test_decay_can_spare_what_has_one_dimension() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    weights, others = make_optimizer(model, options={"weight_decay": 0.1}, decay_biases=False).param_groups
    assert [list(p.shape) for p in weights["params"]] == [[4, 3, 3, 3], [2, 4]]
    assert weights["weight_decay"] == 0.1
    assert [list(p.shape) for p in others["params"]] == [[4], [4], [4], [2]]
    assert others["weight_decay"] == 0.0
    (together,) = make_optimizer(model, options={"weight_decay": 0.1}).param_groups
    assert together["weight_decay"] == 0.1


def test_frozen_parameters_are_left_out(net: Net) -> None:
    model = net()
    model.conv1.requires_grad_(False)
    (group,) = make_optimizer(model).param_groups
    assert len(group["params"]) == len(list(model.parameters())) - 2
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(
        InputError, match="ConvNet has no parameter that needs a gradient, so there is nothing to train"
    ):
        make_optimizer(model)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"lr": -1}, "lr must be a number from 0"),
        ({"lr": float("nan")}, "lr must be a number from 0"),
        ({"options": {"speed": 9}}, "SGD refuses lr=0.01 with {'speed': 9}: "),
        ({"options": {"momentum": -1}}, "SGD refuses lr=0.01 with {'momentum': -1}: Invalid momentum value"),
        ({"options": {"momentum": "much"}}, "SGD refuses lr=0.01 with {'momentum': 'much'}: "),
        ({"options": {"lr": 0.1}}, "SGD refuses"),
    ],
)
def test_what_torch_refuses_is_repeated(net: Net, how: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        make_optimizer(net(), **how)


def test_a_misspelt_name(net: Net) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown optimizer 'adan'\. Did you mean 'adam'\? Available: .*adamw"):
        make_optimizer(net(), "adan")


@pytest.mark.parametrize("name", ["lbfgs", "sparseadam", "optimizer"])
def test_what_cannot_train_such_nets_is_not_offered(net: Net, name: str) -> None:
    with pytest.raises(UnknownNameError):
        make_optimizer(net(), name)


def test_a_model_may_train_some_parameters_for_a_part_of_the_fit() -> None:
    model: Any = create("airbench94", widths=(8, 8, 8))
    groups = param_groups(torch.nn.DataParallel(model), decay_biases=False)
    named = [([name for name, _ in group["params"]], group.get("until"), group.get("weight_decay")) for group in groups]
    weights, biases, whiten = named
    assert (weights[1:], biases[1:]) == ((None, None), (None, 0.0))
    assert whiten == (["module.whiten.bias"], 3 / 8, 0.0)
    assert "module.head.weight" in weights[0]
    model.trained_until = {"head.weight": 0.5}
    assert [group.get("until") for group in param_groups(model)] == [None, 0.5]


def test_the_optimizer_knows_the_names_of_its_parameters(net: Net) -> None:
    model = net()
    (group,) = make_optimizer(model, "adamw").param_groups
    assert group["param_names"] == [name for name, _ in model.named_parameters()]


def test_the_state_of_an_optimizer_without_names_loads(net: Net) -> None:
    model = net()
    old, new = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9), make_optimizer(model)
    new.load_state_dict(old.state_dict())
    assert new.param_groups[0]["lr"] == 0.3
