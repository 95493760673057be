"""MobileNetV2 of Sandler et al. 2018 (arXiv:1801.04381) in its form for CIFAR."""

from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models.classifier import Classifier
from cifarnets.models.registry import register

STAGES = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and first stride of each stage: table 2 of the paper, with strides for 32×32."""


@register("mobilenet_v2")
class MobileNetV2(Classifier):
    """MobileNetV2 for CIFAR: 17 inverted residual blocks; 2,236,682 parameters.

    A block widens its input by a 1×1 convolution, filters each channel on its own by a 3×3 depthwise one, and narrows
    the result by a 1×1 convolution with no activation after it. The first convolution and the second stage have stride
    1 instead of 2, as is usual for 32×32 images; the last maps are 4×4. The names and shapes in `features` are those of
    torchvision, whose dropout before the head is left out.

    Examples:
        >>> import torch
        >>> from cifarnets.models import MobileNetV2
        >>> MobileNetV2(num_classes=3, width=0.25)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])

    Args:
        num_classes: Number of outputs; 0 for features `[N, num_features]`.
        in_channels: Channels of the images.
        width: Multiplier of all channels, rounded to multiples of 8; the last layer has never fewer than 1,280.

    Shapes: `[N, in_channels, H, W]` to logits `[N, num_classes]`; CIFAR's images are 32×32.

    Raises:
        InputError: The width is not above 0, or above 10.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> None:
        super().__init__()
        if not 0 < width <= 10:
            raise InputError(f"width must be a multiplier above 0, and at most 10, not {width!r}.")
        inputs, last = _rounded(32 * width), _rounded(1280 * max(width, 1.0))
        layers: list[nn.Module] = [_conv(in_channels, inputs, 3)]
        for expansion, channels, blocks, first in STAGES:
            outputs = _rounded(channels * width)
            for stride in [first] + [1] * (blocks - 1):
                layers.append(_Block(inputs, outputs, stride, expansion))
                inputs = outputs
        self.features = nn.Sequential(*layers, _conv(inputs, last, 1))
        self.num_features, self.num_classes = last, num_classes
        self.head = self.make_head()

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)

    def make_head(self) -> nn.Module:
        """A fresh head, with small weights as in the reference.

        Examples:
            >>> from cifarnets.models import create
            >>> create("mobilenet_v2", num_classes=0).make_head()
            Identity()
        """
        head = super().make_head()
        if isinstance(head, nn.Linear):
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        return head


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        widen = [_conv(inputs, hidden, 1)] if expansion > 1 else []
        narrow = _conv(hidden, outputs, 1)
        self.conv = nn.Sequential(*widen, _conv(hidden, hidden, 3, stride, groups=hidden), narrow[0], narrow[1])
        self.added = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return x + y if self.added else y  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, side: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU6())


def _rounded(channels: float) -> int:
    """The nearest multiple of 8, at least 8, and not below nine tenths of `channels`, as in the reference."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
