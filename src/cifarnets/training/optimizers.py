"""Optimizers by name, class or instance: those of torch, and Muon for convolutions."""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cifarnets._checked import checked
from cifarnets.errors import InputError, unknown_name
from cifarnets.models.metadata import unwrap
from cifarnets.training.muon import ConvMuon

OptimizerLike = str | type[torch.optim.Optimizer] | torch.optim.Optimizer


def optimizer_names() -> dict[str, type[torch.optim.Optimizer]]:
    """The optimizers by name: those of `torch.optim`, by class name in lower case, and `convmuon`.

    Two of torch are missing. LBFGS computes a batch several times, and SparseAdam takes sparse gradients only.

    Examples:
        >>> from cifarnets.training.optimizers import optimizer_names
        >>> optimizer_names()["adamw"].__name__
        'AdamW'
    """
    classes = [cls for _, cls in inspect.getmembers(torch.optim, inspect.isclass)]
    others = (torch.optim.Optimizer, torch.optim.LBFGS, torch.optim.SparseAdam)
    chosen = [cls for cls in classes if issubclass(cls, torch.optim.Optimizer) and cls not in others]
    return {cls.__name__.lower(): cls for cls in [*chosen, ConvMuon]}


@checked
def make_optimizer(
    model: nn.Module,
    optimizer: OptimizerLike = "sgd",
    lr: float = 1e-2,
    options: Mapping[str, Any] | None = None,
    decay_biases: bool = True,
) -> torch.optim.Optimizer:
    """An optimizer for the parameters of a model that need gradients.

    Examples:
        >>> from cifarnets.models import create
        >>> from cifarnets.training import make_optimizer
        >>> optimizer = make_optimizer(create("convnet"), "adamw", lr=1e-3, options={"betas": (0.9, 0.95)})
        >>> type(optimizer).__name__, optimizer.param_groups[0]["betas"]
        ('AdamW', (0.9, 0.95))

    Args:
        model: The model.
        optimizer: A name of `optimizer_names()`, a class like those of torch, or an instance, which is returned.
        lr: Learning rate.
        options: Other arguments of the class, such as `{"momentum": 0.9}`.
        decay_biases: Whether weight decay applies to parameters of fewer than two dimensions, which are biases and
            normalisation layers.

    Raises:
        UnknownNameError: There is no optimizer of that name.
        InputError: The class refuses the options, or the model has no parameter that needs a gradient.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        return optimizer
    if not 0 <= lr < 1e6:
        raise InputError(f"lr must be a number from 0 to a million, not {lr}.")
    known = optimizer_names()
    if isinstance(optimizer, str) and optimizer.lower() not in known:
        raise unknown_name("optimizer", optimizer, known)
    cls: Any = known[optimizer.lower()] if isinstance(optimizer, str) else optimizer
    groups = param_groups(model, decay_biases)
    if not groups:
        raise InputError(
            f"{type(model).__name__} has no parameter that needs a gradient, so there is nothing to train."
        )
    try:
        built: torch.optim.Optimizer = cls(groups, lr=lr, **(options or {}))
    except Exception as error:  # each class refuses its options in its own way
        raise InputError(f"{cls.__name__} refuses lr={lr} with {dict(options or {})}: {error}.") from error
    return built


def param_groups(model: nn.Module, decay_biases: bool = True) -> list[dict[str, Any]]:
    """The parameters of a model that need gradients, with their names, as groups for any of torch's optimizers.

    Parameters that a model lists in `model.trained_until`, a dict from names to parts of a fit in 0..1, come last, in
    groups with the entry `until`: the schedule `triangular` brings their learning rate down at that part of the fit,
    and keeps it there. The airbench nets list the bias of their whitening layer so.

    Examples:
        >>> from cifarnets.models import create
        >>> from cifarnets.training.optimizers import param_groups
        >>> *_, last = param_groups(create("airbench94"))
        >>> [name for name, _ in last["params"]], last["until"]
        (['whiten.bias'], 0.375)

    Args:
        model: The model.
        decay_biases: If False, parameters of fewer than two dimensions get groups of their own without weight decay.
    """
    untils: Mapping[str, float] = getattr(unwrap(model), "trained_until", {})
    # By identity: a wrapper such as DDP changes the names.
    until = {id(parameter): untils.get(name, 1.0) for name, parameter in unwrap(model).named_parameters()}
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        part, spared = until.get(id(parameter), 1.0), not decay_biases and parameter.ndim <= 1
        options = {**({"until": part} if part < 1 else {}), **({"weight_decay": 0.0} if spared else {})}
        groups.setdefault((-part, spared), {"params": [], **options})["params"].append((name, parameter))
    return [groups[key] for key in sorted(groups)]


def parameters_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    """All parameters that an optimizer trains.

    Examples:
        >>> import torch
        >>> from cifarnets.training.optimizers import parameters_of
        >>> layer = torch.nn.Linear(2, 1)
        >>> parameters_of(torch.optim.SGD(layer.parameters(), lr=0.1)) == list(layer.parameters())
        True
    """
    return [p for group in optimizer.param_groups for p in group["params"]]
