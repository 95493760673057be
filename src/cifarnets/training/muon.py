"""Muon for convolution filters and Nesterov SGD for all other parameters, as one optimizer.

torch's own Muon takes matrices only. The fast recipes here train convolutions with it, as does their source (Jordan et
al. 2024, "Muon: An optimizer for hidden layers in neural networks", and airbench).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.optim import Optimizer

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""The quintic of Jordan et al. 2024. Its iteration brings all singular values near one."""

Params: TypeAlias = Iterable[Tensor] | Iterable[tuple[str, Tensor]] | Iterable[dict[str, Any]]


class ConvMuon(Optimizer):
    """Optimizer that moves convolution filters by the same step in every direction, and all else by Nesterov SGD.

    The shape of a parameter decides: four dimensions make a filter, two make the weight of a linear layer. Each kind
    gets a parameter group, in the order filters, biases, linear layers.

    Filters are kept at a norm of the square root of their number. Their learning rate is therefore relative to that
    norm, and they need no weight decay.

    Examples:
        >>> import torch
        >>> from cifarnets.models import create
        >>> from cifarnets.training import ConvMuon
        >>> model = create("airbench94")
        >>> optimizer = ConvMuon(model.parameters(), lr=0.1)
        >>> model(torch.rand(2, 3, 32, 32)).square().mean().backward()
        >>> optimizer.step()
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.1, 106.0, 1340.0]

    Args:
        params: Parameters, pairs of names and parameters (`model.named_parameters()`), or groups of either as torch's
            optimizers take them. A group is split by shape; its own options, such as `lr` or `weight_decay`, hold for
            all its kinds, and other entries stay in it.
        lr: Learning rate of the filters.
        momentum: Momentum of the filters.
        steps: Steps of the Newton-Schulz iteration.
        bias_lr: Learning rate of biases, of BatchNorm, and of all that is neither a filter nor a matrix.
        head_lr: Learning rate of linear layers.
        sgd_momentum: Momentum of biases and linear layers.
        weight_decay: Weight decay of biases and linear layers. It is divided by their learning rate before it is added
            to the gradient (and so to the momentum), so the rate does not change its strength.

    Raises:
        ValueError: `bias_lr` or `head_lr` is not above 0, or there are no parameters.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 0.24,
        momentum: float = 0.6,
        steps: int = 3,
        bias_lr: float = 106.0,
        head_lr: float = 1340.0,
        sgd_momentum: float = 0.85,
        weight_decay: float = 4e-3,
    ) -> None:
        if not (bias_lr > 0 and head_lr > 0):
            raise ValueError("bias_lr and head_lr must be above 0")
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= 100:
            raise ValueError("steps must be a whole number from 1 to 100")
        kinds: dict[str, dict[str, Any]] = {
            "filter": {"lr": lr, "momentum": momentum, "muon": True},
            "bias": {"lr": bias_lr, "momentum": sgd_momentum, "muon": False},
            "matrix": {"lr": head_lr, "momentum": sgd_momentum, "muon": False},
        }
        groups = []
        for group in _as_groups(params):
            for kind, options in kinds.items():
                chosen = [item for item in group["params"] if _kind(item) == kind]
                merged = {**options, **group, "params": chosen}
                decay = 0.0 if kind == "filter" else group.get("weight_decay", weight_decay)
                if chosen:  # with a rate of 0 there is no step, and so no decay
                    groups.append({**merged, "weight_decay": decay / merged["lr"] if merged["lr"] else 0.0})
        super().__init__(groups, {"steps": steps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Take one step with the present gradients.

        Examples:
            >>> import torch
            >>> from cifarnets.training import ConvMuon
            >>> layer = torch.nn.Linear(2, 1, bias=False)
            >>> layer.weight.grad = torch.zeros(1, 2)
            >>> ConvMuon(layer.parameters(), weight_decay=0).step()

        Args:
            closure: Computes the loss and the gradients again, and gives the loss.

        Returns:
            The loss of the closure, if there is one.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters or group["lr"] == 0:
                continue
            for parameter in parameters:
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
            buffers = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
            # A GPU waits for the many small operations of one parameter after the other.
            move = move_together if parameters[0].is_cuda else move_each
            move(parameters, buffers, group)
        return loss


def _as_groups(params: Params) -> list[Mapping[str, Any]]:
    items: list[Any] = list(params)
    groups = items if items and isinstance(items[0], dict) else [{"params": items}]
    return [{**group, "params": _as_list(group["params"])} for group in groups]


def _as_list(params: Any) -> list[Any]:
    return [params] if isinstance(params, Tensor) else list(params)


def _kind(item: Tensor | tuple[str, Tensor]) -> str:
    parameter = item[1] if isinstance(item, tuple) else item
    return {4: "filter", 2: "matrix"}.get(parameter.ndim, "bias")


def move_each(parameters: Sequence[Tensor], buffers: Sequence[Tensor], group: Mapping[str, Any]) -> None:
    """Take the step of one parameter group, parameter by parameter."""
    for parameter, buffer in zip(parameters, buffers, strict=True):
        gradient = parameter.grad
        assert gradient is not None
        if group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        buffer.mul_(group["momentum"]).add_(gradient)
        update = gradient.add(buffer, alpha=group["momentum"])
        if group["muon"]:
            parameter.mul_(len(parameter) ** 0.5 / parameter.norm())
            update = orthogonalise(update.reshape(len(update), -1), group["steps"]).view(update.shape)
        parameter.add_(update, alpha=-group["lr"])


def move_together(parameters: list[Tensor], buffers: list[Tensor], group: Mapping[str, Any]) -> None:
    """Take the step of one parameter group in a few operations: those of `move_each`, with other rounding.

    Filters of one shape go through one Newton-Schulz iteration together.
    """
    momentum, weight_decay = group["momentum"], group["weight_decay"]
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]  # which all of them have
    if weight_decay:
        gradients = list(torch._foreach_add(gradients, parameters, alpha=weight_decay))
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, gradients)
    updates = torch._foreach_add(gradients, buffers, alpha=momentum)
    if not group["muon"]:
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])
        return
    kinds: dict[Any, list[int]] = {}
    for number, parameter in enumerate(parameters):
        kinds.setdefault((parameter.shape, parameter.dtype, parameter.device), []).append(number)
    for (shape, *_), numbers in kinds.items():
        chosen = [parameters[number] for number in numbers]
        filters = torch.stack(chosen).flatten(2)
        norms = torch.linalg.vector_norm(filters, dim=(1, 2), keepdim=True)
        steps = orthogonalise_all(torch.stack([updates[number] for number in numbers]).flatten(2), group["steps"])
        moved = filters * (shape[0] ** 0.5 / norms) - group["lr"] * steps
        torch._foreach_copy_(chosen, list(moved.view(len(chosen), *shape).unbind()))


def orthogonalise_all(matrices: Tensor, steps: int) -> Tensor:
    """`orthogonalise` for matrices of one shape, `[K, M, N]`, which a GPU computes together."""
    a, b, c = COEFFICIENTS
    x = matrices.float()
    x = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


def orthogonalise(matrix: Tensor, steps: int) -> Tensor:
    """Approximate the nearest matrix whose singular values are all one, by Newton-Schulz iteration.

    It computes in bfloat16 on CUDA, which is exact enough. Elsewhere it computes in float32, because many CPUs have no
    bfloat16 and are a hundred times slower in it.

    Examples:
        >>> import torch
        >>> from cifarnets.training.muon import orthogonalise
        >>> torch.linalg.svdvals(orthogonalise(torch.diag(torch.tensor([3.0, 1.0])), 6)).round(decimals=0)
        tensor([1., 1.])

    Args:
        matrix: Any matrix `[M, N]`.
        steps: Steps of the iteration; 3 are enough for training.
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
