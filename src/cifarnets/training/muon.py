"""Muon for convolutions, with Nesterov SGD for all else, as one optimizer.

torch's own Muon takes matrices only, and this library's fast recipes train convolutions with it; so did the recipe
that they come from (Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", and airbench).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# Of the quintic whose iteration drives all singular values to about one (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class ConvMuon(Optimizer):
    """Steps of unit size in every direction for convolution filters; Nesterov SGD for all other parameters.

    Filters are kept at a norm of the square root of their number, so that the learning rate is relative to them and
    weight decay has nothing to do there.

    Args:
        model: The parameters that need gradients are taken from it.
        lr: Of the filters.
        momentum: Of the filters.
        steps: Of the Newton-Schulz iteration.
        bias_lr: Of biases, those of BatchNorm included, and of all that is neither a filter nor a matrix.
        head_lr: Of linear layers.
        sgd_momentum: Of biases and linear layers.
        weight_decay: Of biases and linear layers, decoupled from their rates: divided by the rate before it is added
            to the gradient, and so to the momentum.
        whiten_until: The part of the fit in which the bias of a whitening layer is trained, 0..1, under the schedule
            `triangular`.

    Raises:
        ValueError: `bias_lr` or `head_lr` is not above 0.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.24,
        momentum: float = 0.6,
        steps: int = 3,
        bias_lr: float = 106.0,
        head_lr: float = 1340.0,
        sgd_momentum: float = 0.85,
        weight_decay: float = 4e-3,
        whiten_until: float = 3 / 8,
    ) -> None:
        if not (bias_lr > 0 and head_lr > 0):
            raise ValueError("bias_lr and head_lr must be above 0")
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        whiten = [p for name, p in named if name.startswith("whiten.")]
        filters = [p for name, p in named if p.ndim == 4 and not name.startswith("whiten.")]
        heads = [p for name, p in named if p.ndim == 2 and not name.startswith("whiten.")]
        taken = {id(p) for p in [*whiten, *filters, *heads]}
        biases = [p for _, p in named if id(p) not in taken]
        plain: dict[str, Any] = {"momentum": sgd_momentum, "muon": False, "until": 1.0}
        groups: list[dict[str, Any]] = [
            {"params": filters, "lr": lr, "momentum": momentum, "muon": True, "until": 1.0, "weight_decay": 0.0},
            {"params": biases, "lr": bias_lr, **plain, "weight_decay": weight_decay / bias_lr},
            {"params": heads, "lr": head_lr, **plain, "weight_decay": weight_decay / head_lr},
            {"params": whiten, "lr": bias_lr, **plain, "until": whiten_until, "weight_decay": weight_decay / bias_lr},
        ]
        super().__init__([group for group in groups if group["params"]], {"steps": steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step from the gradients at hand."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None or group["lr"] == 0:
                    continue
                gradient = parameter.grad
                if group["weight_decay"]:
                    gradient = gradient.add(parameter, alpha=group["weight_decay"])
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(gradient)
                buffer = state["momentum_buffer"]
                buffer.mul_(group["momentum"]).add_(gradient)
                update = gradient.add(buffer, alpha=group["momentum"])
                if group["muon"]:
                    parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
                    update = orthogonalise(update.reshape(len(update), -1), group["steps"]).view(update.shape)
                parameter.add_(update, alpha=-group["lr"])
        return loss


def orthogonalise(matrix: Tensor, steps: int) -> Tensor:
    """About the nearest matrix `[M, N]` whose singular values are one, by Newton-Schulz iteration.

    In bfloat16 on CUDA, which is exact enough; elsewhere in float32, because many CPUs have no bfloat16 and are then
    a hundred times slower in it.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = matrix.bfloat16() if matrix.is_cuda else matrix.float()
    x /= x.norm() + 1e-7
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    x = x.T if tall else x
    return x.to(matrix.dtype)
