"""The densely connected nets of Huang et al. 2017 (arXiv:1608.06993) in their form for CIFAR."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models.classifier import Classifier
from cifarnets.models.registry import register


class DenseNet(Classifier):
    """DenseNet-BC for CIFAR, section 3 of the paper: every layer sees the maps of all layers before it in its stage.

    A layer makes `growth` maps: BatchNorm, ReLU, a 1×1 convolution to four times as many (the B of BC), BatchNorm,
    ReLU, a 3×3 convolution. Between the three stages, a 1×1 convolution halves the channels (the C) and an average
    pooling the sides.

    Subclasses set `depth`, which is 6n + 4 for n layers in each stage.

    Examples:
        >>> import torch
        >>> from cifarnets.models import DenseNet
        >>> DenseNet(num_classes=3, growth=4)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])

    Args:
        num_classes: Number of outputs; 0 for features `[N, num_features]`.
        in_channels: Channels of the images.
        growth: Maps that each layer adds; the paper calls it k.

    Shapes: `[N, in_channels, H, W]` to logits `[N, num_classes]`; CIFAR's images are 32×32.

    Raises:
        InputError: The growth is below 1, or the depth is not 6n + 4.
    """

    depth = 40

    def __init__(self, num_classes: int = 10, in_channels: int = 3, growth: int = 12) -> None:
        super().__init__()
        if growth < 1:
            raise InputError(f"growth must be at least 1, not {growth!r}.")
        if self.depth < 10 or self.depth % 6 != 4:
            raise InputError(f"the depth of {type(self).__name__} must be 6n + 4 (10, 16, 22 …), not {self.depth}.")
        inputs = 2 * growth
        self.conv = _conv(in_channels, inputs, 3)
        layers: list[nn.Module] = []
        for stage in range(3):
            if stage:
                layers.append(_Transition(inputs, inputs // 2))
                inputs //= 2
            for _ in range((self.depth - 4) // 6):
                layers.append(_Layer(inputs, growth))
                inputs += growth
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(inputs)
        self.num_features, self.num_classes = inputs, num_classes
        self.head = self.make_head()

    def forward_features(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.layers(self.conv(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)


@register("densenet40_bc")
class DenseNet40BC(DenseNet):
    """DenseNet-BC for CIFAR with 40 layers that add 12 maps each; 176,122 parameters.

    Examples:
        >>> from cifarnets.models import DenseNet40BC, create
        >>> isinstance(create("densenet40_bc"), DenseNet40BC)
        True

    Arguments and shapes are those of `DenseNet`.
    """

    depth = 40


class _Layer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), _conv(inputs, 4 * growth, 1)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), _conv(4 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.norm1(x)))
        y = self.conv2(F.relu(self.norm2(y)))
        return torch.cat([x, y], 1)


class _Transition(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(inputs), _conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(self.conv(F.relu(self.norm(x))), 2)


def _conv(inputs: int, outputs: int, side: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return conv
