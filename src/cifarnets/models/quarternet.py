"""Small nets that mix in space by quarters of the channels, after cifar10-tiniest (https://github.com/xvel/cifar10-tiniest)."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models.classifier import Classifier
from cifarnets.models.registry import register

GROUPS = 16
"""Of the convolution between two stages, where their widths are multiples of it."""
DEEPEST = 100
"""Blocks a stage, and stages; a file that asks for a billion is refused."""


class QuarterNet(Classifier):
    """Convolutions of one map at a time, of three sizes, each on a quarter of the maps, and gates between maps.

    A 3×3 convolution, stages of blocks, a mean, a linear layer. A 4×4 convolution with stride 2, in 16 groups, leads
    from one stage to the next; a normalisation comes before each stage. A block splits its maps into quarters: the
    first stays, the second gets a 3×3 and the third a 7×7 depthwise convolution, and of the fourth each pixel becomes
    the mean of its 3×3 neighbours before a 7×7 depthwise convolution with dilation 3, which thus sees 21×21 pixels.
    After a normalisation, two 1×1 convolutions a and b give a · tanh(exp(a)) · b (TanhExp: Liu & Di 2020,
    arXiv:2003.09855), and a third one mixes the maps again. The block's input, times a learned factor, is added.

    Layers and numbers of parameters are those of cifar10-tiniest, which reached 94.4 % with widths of 48 and 80.

    Examples:
        >>> import torch
        >>> from cifarnets.models import QuarterNet
        >>> QuarterNet(num_classes=3, widths=(4, 8), depth=1)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])

    Args:
        num_classes: Number of outputs; 0 for features `[N, widths[-1]]`.
        in_channels: Channels of the images.
        widths: Channels of each stage, multiples of 4.
        depth: Blocks a stage.
        norm: `"layer"` normalises the channels of each pixel (Ba et al. 2016, arXiv:1607.06450); `"batch"` each
            channel, over the batch.

    Shapes: `[N, in_channels, H, W]` to logits `[N, num_classes]`; CIFAR's images are 32×32.

    Raises:
        InputError: There is no width, or one is no multiple of 4; or the depth is not within 1..100; or there is
            no such norm.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32),
        depth: int = 3,
        norm: Literal["layer", "batch"] = "layer",
    ) -> None:
        super().__init__()
        if not widths or any(width < 4 or width % 4 for width in widths):
            raise InputError(f"widths must be one multiple of 4 a stage, not {widths!r}.")
        if not 1 <= depth <= DEEPEST or len(widths) > DEEPEST:
            raise InputError(f"there must be 1 to {DEEPEST} blocks a stage, and stages, not {depth} and {len(widths)}.")
        if norm not in ("layer", "batch"):
            raise InputError(f"norm must be 'layer' or 'batch', not {norm!r}.")
        normalisation = LayerNorm2d if norm == "layer" else nn.BatchNorm2d
        entries = [nn.Conv2d(in_channels, widths[0], 3, padding=1)]
        for inputs, outputs in pairwise(widths):
            groups = math.gcd(GROUPS, inputs, outputs)
            entries.append(GroupedConv2d(inputs, outputs, 4, stride=2, padding=1, groups=groups))
        self.stages = nn.Sequential()
        for entry, width in zip(entries, widths, strict=True):
            blocks = [_Block(width, normalisation(width)) for _ in range(depth)]
            self.stages.append(nn.Sequential(entry, normalisation(width), *blocks))
        self.num_features, self.num_classes = widths[-1], num_classes
        self.head = self.make_head()

    def forward_features(self, x: Tensor) -> Tensor:
        return self.stages(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)


@register("quarternet16")
class QuarterNet16(QuarterNet):
    """QuarterNet with 16 and 32 channels; 17,762 parameters, fewer than the article's net.

    Examples:
        >>> from cifarnets.models import QuarterNet16, create
        >>> isinstance(create("quarternet16"), QuarterNet16)
        True

    Arguments and shapes are those of `QuarterNet`.
    """


@register("quarternet32")
class QuarterNet32(QuarterNet):
    """QuarterNet with 32 and 64 channels; 59,578 parameters.

    Examples:
        >>> from cifarnets.models import QuarterNet32, create
        >>> isinstance(create("quarternet32"), QuarterNet32)
        True

    Arguments and shapes are those of `QuarterNet`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (32, 64),
        depth: int = 3,
        norm: Literal["layer", "batch"] = "layer",
    ) -> None:
        super().__init__(num_classes, in_channels, widths, depth, norm)


@register("quarternet48")
class QuarterNet48(QuarterNet):
    """QuarterNet with 48 and 80 channels; 97,530 parameters, those of cifar10-tiniest.

    Examples:
        >>> from cifarnets.models import QuarterNet48, create
        >>> isinstance(create("quarternet48"), QuarterNet48)
        True

    Arguments and shapes are those of `QuarterNet`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (48, 80),
        depth: int = 3,
        norm: Literal["layer", "batch"] = "layer",
    ) -> None:
        super().__init__(num_classes, in_channels, widths, depth, norm)


@register("quarternet64")
class QuarterNet64(QuarterNet):
    """QuarterNet with 64 and 128 channels; 215,402 parameters.

    Examples:
        >>> from cifarnets.models import QuarterNet64, create
        >>> isinstance(create("quarternet64"), QuarterNet64)
        True

    Arguments and shapes are those of `QuarterNet`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128),
        depth: int = 3,
        norm: Literal["layer", "batch"] = "layer",
    ) -> None:
        super().__init__(num_classes, in_channels, widths, depth, norm)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm of the channels of each pixel.

    Examples:
        >>> import torch
        >>> from cifarnets.models.quarternet import LayerNorm2d
        >>> LayerNorm2d(4)(torch.zeros(2, 4, 8, 8)).shape
        torch.Size([2, 4, 8, 8])
    """

    def forward(self, x: Tensor) -> Tensor:
        x = F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class _Block(nn.Module):
    def __init__(self, width: int, norm: nn.Module) -> None:
        super().__init__()
        quarter = width // 4
        self.near = nn.Conv2d(quarter, quarter, 3, padding=1, groups=quarter)
        self.wide = nn.Conv2d(quarter, quarter, 7, padding=3, groups=quarter)
        self.far = FarConv2d(quarter, quarter, 7, padding=9, dilation=3, groups=quarter)
        self.norm = norm
        # One convolution of twice the width would do; in channels_last its halves would have gaps, which is slower.
        self.gate, self.value = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.mix = nn.Conv2d(width, width, 1)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        same, near, wide, far = x.chunk(4, 1)
        y = self.norm(torch.cat([same, self.near(near), self.wide(wide), self.far(far)], 1))
        gate = self.gate(y)
        y = self.mix(gate * gate.exp().tanh() * self.value(y))
        return y + x * self.scale  # type: ignore[no-any-return]


# In training, two layers compute the same in a form whose gradients take less time on a CPU. In eval mode they are
# plain convolutions, so that exported nets are simple.


class GroupedConv2d(nn.Conv2d):
    """A convolution in groups: in training, one of all channels whose other weights are 0.

    Groups of one or two maps leave most of each vector register empty.

    Examples:
        >>> import torch
        >>> from cifarnets.models.quarternet import GroupedConv2d
        >>> GroupedConv2d(4, 8, 4, stride=2, padding=1, groups=4)(torch.zeros(2, 4, 32, 32)).shape
        torch.Size([2, 8, 16, 16])
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        own = torch.eye(self.groups, dtype=self.weight.dtype, device=self.weight.device)
        own = own.repeat_interleave(self.out_channels // self.groups, 0)
        own = own.repeat_interleave(self.in_channels // self.groups, 1)
        weight = self.weight.repeat(1, self.groups, 1, 1) * own[:, :, None, None]
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class FarConv2d(nn.Conv2d):
    """The mean of 3×3 neighbours, then a 7×7 depthwise convolution with dilation 3: in training, products of matrices.

    Every third row and column of an image make up an image of its own, and the convolution is a plain one of each of
    these nine. They are so small that it takes less time to multiply all their pixels with all, with weights of 0
    where the kernel does not reach, than to go through them with the kernel.

    Examples:
        >>> import torch
        >>> from cifarnets.models.quarternet import FarConv2d
        >>> FarConv2d(4, 4, 7, padding=9, dilation=3, groups=4)(torch.zeros(2, 4, 32, 32)).shape
        torch.Size([2, 4, 32, 32])
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            x = F.avg_pool2d(x, 3, 1, 1)
            return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)
        mean = torch.full_like(self.weight[:, :, :3, :3], 1 / 9)
        return dilated(F.conv2d(x, mean, padding=1, groups=self.groups), self.weight, self.bias)


def dilated(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The depthwise 7×7 convolution with dilation 3 and padding 9, as products of matrices.

    Examples:
        >>> import torch
        >>> from cifarnets.models.quarternet import dilated
        >>> dilated(torch.zeros(2, 4, 32, 32), torch.zeros(4, 1, 7, 7), None).shape
        torch.Size([2, 4, 32, 32])

    Args:
        x: Maps `[N, C, H, W]`.
        weight: A kernel for each map, `[C, 1, 7, 7]`.
        bias: A number for each map, `[C]`; None for 0.
    """
    count, channels, height, width = x.shape
    rows, columns = (height + 2) // 3, (width + 2) // 3
    x = F.pad(x, (0, 3 * columns - width, 0, 3 * rows - height))
    parts = x.reshape(count, channels, rows, 3, columns, 3).permute(1, 0, 3, 5, 2, 4)
    # From pixel i to pixel o of a part goes the weight i - o + 3, which is 0 outside the kernel.
    spread = F.pad(weight[:, 0], (columns - 4, columns - 4, rows - 4, rows - 4))
    down, across = torch.arange(rows, device=x.device), torch.arange(columns, device=x.device)
    down, across = down[:, None] - down + rows - 1, across[:, None] - across + columns - 1
    table = spread[:, down[:, None, :, None], across[None, :, None, :]]
    y = torch.bmm(parts.reshape(channels, -1, rows * columns), table.reshape(channels, rows * columns, -1))
    y = y.view(channels, count, 3, 3, rows, columns).permute(1, 0, 4, 2, 5, 3)
    y = y.reshape(count, channels, 3 * rows, 3 * columns)[:, :, :height, :width]
    return y if bias is None else y + bias[:, None, None]
