"""2×2 max-pooling for compiled training on a CPU.

The models use torch's own pooling. `torch.compile` turns its gradient into a loop over indices, which is slow on a CPU.
`compiled` hands the compiler the same pooling as comparisons, and the compiler fuses them with the layers around them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn


def compiled(model: nn.Module, options: Mapping[str, Any] | None = None) -> Callable[..., Any]:
    """Compile a model with `torch.compile`, with a max-pooling that trains fast on a CPU.

    The written-out pooling gives the numbers of torch's own, bit for bit, and so do its gradients.

    Examples:
        >>> from cifarnets.models import create
        >>> from cifarnets.training.pooling import compiled
        >>> model = compiled(create("convnet"))  # compiles at the first call, for the shape of that batch

    Args:
        model: Any module that takes images `[B, C, H, W]`. It is compiled anew for each size of them, and no more than
            twice for their number: code for one size is faster, and only with known sides is pooling written out.
        options: Options of torch's compiler, `torch.compile(options=…)`.
    """
    program = torch.compile(model, backend=_Backend(tuple(sorted((options or {}).items()))))

    def run(images: Tensor) -> Any:
        for axis in range(1, images.ndim):
            torch._dynamo.mark_static(images, axis)
        return program(images)

    return run


@dataclass(frozen=True)
class _Backend:
    """torch's own backend, after `write_out_pooling`.

    Two backends with the same options are equal, so torch uses compiled code again for a second model of the same kind.
    """

    options: tuple[tuple[str, Any], ...]

    def __call__(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        write_out_pooling(graph)
        return inductor(graph, inputs, dict(self.options))


def inductor(graph: fx.GraphModule, inputs: list[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
    """Compile a graph with the default backend of `torch.compile`.

    Examples:
        >>> import torch
        >>> from cifarnets.training.pooling import inductor
        >>> backend = lambda graph, inputs: inductor(graph, inputs, {"max_autotune": True})
        >>> model = torch.compile(torch.nn.Linear(2, 2), backend=backend)  # compiles at the first call
    """
    from torch._dynamo import lookup_backend  # loads the compiler, which takes seconds

    backend: Any = lookup_backend("inductor")
    return backend(graph, inputs, config_patches=options)  # type: ignore[no-any-return]


def write_out_pooling(graph: fx.GraphModule) -> int:
    """Put `max_pool2d` of this module in the place of torch's own 2×2 max-poolings in a graph that is being compiled.

    Only poolings on a CPU whose images have even sides are replaced.

    Examples:
        >>> import torch
        >>> from cifarnets.training.pooling import write_out_pooling
        >>> def backend(graph, inputs):
        ...     print(write_out_pooling(graph), "pooling replaced")
        ...     return graph.forward
        >>> torch.compile(torch.nn.MaxPool2d(2), backend=backend)(torch.zeros(1, 3, 32, 32)).shape
        1 pooling replaced
        torch.Size([1, 3, 16, 16])

    Args:
        graph: What a backend of `torch.compile` is given; it is changed in place.

    Returns:
        The number of replaced poolings.
    """
    replaced = 0
    for module in graph.modules():
        if isinstance(module, fx.GraphModule):
            nodes = [node for node in module.graph.nodes if _is_2x2_on_cpu(node)]
            for node in nodes:
                node.target, node.args, node.kwargs = max_pool2d, node.args[:1], {}
            if nodes:
                module.recompile()
            replaced += len(nodes)
    return replaced


def _is_2x2_on_cpu(node: fx.Node) -> bool:
    if node.op != "call_function" or node.target not in (F.max_pool2d, torch.max_pool2d):
        return False
    names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
    given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
    if not isinstance(node.args[0] if node.args else None, fx.Node):
        return False
    usual = {"stride": 2, "padding": 0, "dilation": 1, "ceil_mode": False, "return_indices": False}
    # torch takes one number for both sides, and no stride for the size of the window.
    if any(_single(given.get(key) if given.get(key) is not None else usual[key]) != usual[key] for key in usual):
        return False
    images = node.args[0].meta.get("example_value")  # type: ignore[union-attr]
    return (
        _single(given["kernel_size"]) == 2
        and isinstance(images, Tensor)
        and images.device.type == "cpu"
        and images.ndim == 4
        and all(isinstance(side, int) and side % 2 == 0 for side in images.shape[2:])
    )


def _single(value: Any) -> Any:
    """`(2, 2)` and `(2,)` as 2; everything else as it is."""
    return value[0] if isinstance(value, (tuple, list)) and value and len(set(value)) == 1 else value


def max_pool2d(x: Tensor) -> Tensor:
    """`F.max_pool2d(x, 2)` written out as comparisons, with the same gradient bit for bit.

    Not compiled, it is slower than torch's own.

    Examples:
        >>> import torch
        >>> from cifarnets.training.pooling import max_pool2d
        >>> max_pool2d(torch.arange(4.0).view(1, 1, 2, 2))
        tensor([[[[3.]]]])

    Shapes: `[N, C, H, W]` with even sides to `[N, C, H / 2, W / 2]`.
    """
    return _WrittenOut.apply(x)  # type: ignore[no-any-return]


class _WrittenOut(torch.autograd.Function):
    """The form from which a CPU's compiler makes the fastest code, for either memory format.

    The channels come last, so that the code computes many of them at once. `chosen` holds the corner of the maximum, 0
    to 3, as bfloat16: the compiler would convert bytes one by one, and would rather keep three comparisons than one
    float32, because they take less memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        windows = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c)
        top_left, top_right = windows[:, :, 0, :, 0], windows[:, :, 0, :, 1]
        bottom_left, bottom_right = windows[:, :, 1, :, 0], windows[:, :, 1, :, 1]
        top, bottom = torch.maximum(top_left, top_right), torch.maximum(bottom_left, bottom_right)
        # Among equals torch chooses the first.
        right, lower_right = ((b > a).bfloat16() for a, b in ((top_left, top_right), (bottom_left, bottom_right)))
        ctx.save_for_backward(torch.where(bottom > top, 2 + lower_right, right))
        return torch.maximum(top, bottom).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (chosen,) = ctx.saved_tensors
        n, c, h, w = gradient.shape
        corners = torch.arange(4, dtype=torch.bfloat16, device=gradient.device).view(2, 1, 2, 1)
        here = chosen[:, :, None, :, None, :] == corners
        spread = torch.where(here, gradient.permute(0, 2, 3, 1)[:, :, None, :, None, :], 0)
        return spread.reshape(n, 2 * h, 2 * w, c).permute(0, 3, 1, 2)
