"""The nets of Zagoruyko and Komodakis 2016, "Wide Residual Networks" (arXiv:1605.07146)."""

import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models.classifier import Classifier
from cifarnets.models.registry import register


class WideResNet(Classifier):
    """Wide ResNet: a 3×3 convolution, three stages of pre-activated blocks, an average and a linear layer.

    The stages have 16, 32 and 64 channels times `factor`; the second and the third begin with stride 2. Where the
    number of channels changes, the shortcut is a 1×1 convolution of the activated input.

    Subclasses set `depth`, which is 6n + 4 for n blocks in each stage, and `factor`.

    Examples:
        >>> import torch
        >>> from cifarnets.models import WideResNet16x4
        >>> WideResNet16x4(num_classes=3, dropout=0.3)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])

    Args:
        num_classes: Number of outputs; 0 for features `[N, 64 * factor]`.
        in_channels: Channels of the images.
        dropout: Probability that a number between the two convolutions of a block is dropped in training; the paper
            tries 0.3 (section 3.3).

    Shapes: `[N, in_channels, H, W]` to logits `[N, num_classes]`; CIFAR's images are 32×32.

    Raises:
        InputError: The dropout is not in 0..1, or the depth is not 6n + 4.
    """

    depth = 16
    factor = 4

    def __init__(self, num_classes: int = 10, in_channels: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must be a share, at least 0 and below 1, not {dropout}.")
        if self.depth < 10 or self.depth % 6 != 4:
            raise InputError(f"the depth of {type(self).__name__} must be 6n + 4 (10, 16, 22 …), not {self.depth}.")
        blocks = []
        inputs = 16
        for width, first in ((16, 1), (32, 2), (64, 2)):
            for stride in [first] + [1] * (self.depth // 6 - 1):
                blocks.append(_Block(inputs, width * self.factor, stride, dropout))
                inputs = width * self.factor
        self.conv = _conv(in_channels, 16, 3)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(inputs)
        self.num_features, self.num_classes = inputs, num_classes
        self.head = self.make_head()

    def forward_features(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.blocks(self.conv(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)


@register("wide_resnet16_4")
class WideResNet16x4(WideResNet):
    """Wide ResNet with 16 layers, four times as wide; 2,748,890 parameters.

    Examples:
        >>> from cifarnets.models import WideResNet16x4, create
        >>> isinstance(create("wide_resnet16_4"), WideResNet16x4)
        True

    Arguments and shapes are those of `WideResNet`.
    """

    depth = 16
    factor = 4


@register("wide_resnet28_10")
class WideResNet28x10(WideResNet):
    """Wide ResNet with 28 layers, ten times as wide; 36,479,194 parameters.

    Examples:
        >>> from cifarnets.models import info
        >>> info("wide_resnet28_10").parameters
        36479194

    Arguments and shapes are those of `WideResNet`.
    """

    depth = 28
    factor = 10


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, outputs, 3, stride)
        self.norm2, self.conv2 = nn.BatchNorm2d(outputs), _conv(outputs, outputs, 3)
        self.shortcut = _conv(inputs, outputs, 1, stride) if inputs != outputs else None
        self.dropout = dropout

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(x))
        if self.shortcut is not None:
            x = self.shortcut(y)
        y = F.relu(self.norm2(self.conv1(y)))
        return x + self.conv2(F.dropout(y, self.dropout, self.training))  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
