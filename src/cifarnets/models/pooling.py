"""2×2 max-pooling: torch's own, and written out for a CPU where torch.compile can then fuse it."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MaxPool2d(nn.MaxPool2d):
    """`nn.MaxPool2d(2)`, which `torch.compile` does not slow down on a CPU; see `max_pool2d`."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        return max_pool2d(x)


def max_pool2d(x: Tensor) -> Tensor:
    """`F.max_pool2d(x, 2)` and its gradient, bit for bit.

    Compiled for a CPU, torch's own spreads the gradient by index, number by number, and slows the net down. There, and
    where all windows are whole, it is written out as comparisons, which the compiler fuses with the layers around it.
    Exported nets keep torch's own.

    Shapes: `[N, C, H, W]` to `[N, C, H // 2, W // 2]`.
    """
    compiled = torch.compiler.is_dynamo_compiling() and x.device.type == "cpu"
    if compiled and x.ndim == 4 and x.shape[2] % 2 == x.shape[3] % 2 == 0:
        return _WrittenOut.apply(x)  # type: ignore[no-any-return]
    return F.max_pool2d(x, 2)


class _WrittenOut(torch.autograd.Function):
    """Written as a CPU's compiler makes the fastest code of it, whatever the layout of the images.

    The channels come last, so that it computes many at once. The chosen corner, 0 to 3, is kept as bfloat16: a byte
    would be converted number by number, and instead of a float32 the compiler would rather keep three comparisons, for
    they are smaller.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        windows = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c)
        top_left, top_right = windows[:, :, 0, :, 0], windows[:, :, 0, :, 1]
        bottom_left, bottom_right = windows[:, :, 1, :, 0], windows[:, :, 1, :, 1]
        top, bottom = torch.maximum(top_left, top_right), torch.maximum(bottom_left, bottom_right)
        # The first among equals, as torch chooses.
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
