"""Optimizers by name, class or instance: all of torch's, and Muon for convolutions."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cifarnets.errors import InputError, unknown_name
from cifarnets.training.muon import ConvMuon

OptimizerLike = str | type[torch.optim.Optimizer] | torch.optim.Optimizer


def optimizer_names() -> dict[str, type[torch.optim.Optimizer]]:
    """Every optimizer of `torch.optim`, by its class name in lower case, such as `adamw`; and `convmuon`.

    But for two: LBFGS goes over a batch several times, and SparseAdam takes sparse gradients only.
    """
    classes = [cls for _, cls in inspect.getmembers(torch.optim, inspect.isclass)]
    others = (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    chosen = [cls for cls in classes if issubclass(cls, torch.optim.Optimizer) and cls not in others]
    return {cls.__name__.lower(): cls for cls in [*chosen, ConvMuon]}


def make_optimizer(
    model: nn.Module,
    optimizer: OptimizerLike = "sgd",
    lr: float = 1e-2,
    options: Mapping[str, Any] | None = None,
    decay_biases: bool = True,
) -> torch.optim.Optimizer:
    """An optimizer of the model's parameters that need gradients.

    Args:
        model: Whose parameters.
        optimizer: A name, a class of torch's kind, or an instance, which is returned as it is.
        lr: Learning rate.
        options: Further arguments of the class, such as `{"momentum": 0.9}`.
        decay_biases: Whether weight decay applies to biases and normalisation layers, the parameters of fewer than
            two dimensions, too; with `convmuon` it does.

    Raises:
        UnknownNameError: torch has no optimizer of that name.
        InputError: It refuses the options, or the model has nothing to train.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        return optimizer
    if not 0 <= lr < 1e6:
        raise InputError(f"lr must be a number from 0 to a million, not {lr}.")
    known = optimizer_names()
    if isinstance(optimizer, str) and optimizer.lower() not in known:
        raise unknown_name("optimizer", optimizer, known)
    cls: Any = known[optimizer.lower()] if isinstance(optimizer, str) else optimizer
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise InputError(
            f"{type(model).__name__} has no parameter that needs a gradient, so there is nothing to train."
        )
    groups: Any = parameters
    if cls is ConvMuon:  # tells by their names what they are
        if not decay_biases:
            raise InputError("convmuon decays biases; leave out decay_biases=False, or say weight_decay=0.")
        groups = model
    elif not decay_biases:
        groups = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
    try:
        built: torch.optim.Optimizer = cls(groups, lr=lr, **(options or {}))
    except Exception as error:  # each class has its own ways to stumble over options
        raise InputError(f"{cls.__name__} refuses lr={lr} with {dict(options or {})}: {error}.") from error
    return built


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All that it trains, over its groups."""
    return [p for group in optimizer.param_groups for p in group["params"]]
