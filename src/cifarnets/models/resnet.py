"""The residual nets for CIFAR of He et al. 2015, "Deep Residual Learning for Image Recognition" (arXiv:1512.03385)."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models.classifier import Classifier
from cifarnets.models.registry import register


class ResNet(Classifier):
    """ResNet for CIFAR, section 4.2 of the paper: a 3×3 convolution, three stages of blocks, a mean, a linear layer.

    Each block has two 3×3 convolutions; every stage but the first begins with stride 2. Shortcuts have no
    parameters (option A): where the size changes they take every other pixel and pad the new channels with zeros,
    half before and half after. Many nets of other libraries have a 1×1 convolution with BatchNorm there (option B).
    Convolutions start from a normal distribution (He et al. 2015, arXiv:1502.01852).

    Subclasses set `depth`, which is 2sn + 2 for s stages of n blocks each: 6n + 2 for three stages.

    Examples:
        >>> import torch
        >>> from cifarnets.models import ResNet
        >>> ResNet(num_classes=3, widths=(4, 8, 16), se=True)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])

    Args:
        num_classes: Number of outputs; 0 for features `[N, widths[-1]]`.
        in_channels: Channels of the images.
        widths: Channels of each stage; none may be narrower than the one before.
        se: Squeeze and excitation before each addition (Hu et al. 2018, arXiv:1709.01507): a net of two linear layers
            weights the channels. As in the paper it has biases, and a sixteenth of the channels (at least one) between.
        preact: BatchNorm and ReLU before each convolution instead of after it (He et al. 2016, arXiv:1603.05027).
            Shortcuts are then identities from end to end. The number of parameters does not change.
        shortcut: `"A"` or `"B"`, as the paper calls what a shortcut does where the size changes.

    Shapes: `[N, in_channels, H, W]` to logits `[N, num_classes]`; CIFAR's images are 32×32.

    Raises:
        InputError: There is no width, or one is below the one before; or the depth is not 2sn + 2; or the shortcut is
            neither A nor B, or B with `preact`.
    """

    depth = 20

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        se: bool = False,
        preact: bool = False,
        shortcut: Literal["A", "B"] = "A",
    ) -> None:
        super().__init__()
        if not widths or list(widths) != sorted(widths):
            raise InputError(f"widths must be one number a stage, and they must not fall, not {widths!r}.")
        blocks_per_stage, rest = divmod(self.depth - 2, 2 * len(widths))
        if blocks_per_stage < 1 or rest:
            raise InputError(
                f"the depth of {type(self).__name__} must be {2 * len(widths)}n + 2 for {len(widths)} widths, "
                f"not {self.depth}."
            )
        if shortcut not in ("A", "B") or (preact and shortcut == "B"):
            raise InputError(f"shortcut must be 'A' or 'B', and 'A' with preact=True, not {shortcut!r}.")
        blocks = []
        inputs = widths[0]
        for stage, width in enumerate(widths):
            for stride in [2 if stage else 1] + [1] * (blocks_per_stage - 1):
                blocks.append(_Block(inputs, width, stride, se, preact, shortcut == "B"))
                inputs = width
        self.conv = _conv(in_channels, widths[0])
        self.norm = nn.BatchNorm2d(inputs if preact else widths[0])
        self.blocks = nn.Sequential(*blocks)
        self.num_features, self.num_classes = inputs, num_classes
        self.head = self.make_head()
        self.preact = preact

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return F.relu(self.norm(self.blocks(x))) if self.preact else self.blocks(F.relu(self.norm(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.mean((2, 3))
        return x if pre_logits else self.head(x)


@register("resnet8")
class ResNet8(ResNet):
    """ResNet for CIFAR with 8 layers and learned shortcuts; 78,042 parameters.

    MLPerf Tiny's image classifier (Banbury et al. 2021, arXiv:2106.07597), whose convolutions have biases besides, and
    whose shortcuts have no BatchNorm: 78,666 numbers with the statistics of BatchNorm.

    Examples:
        >>> from cifarnets.models import ResNet8, create
        >>> isinstance(create("resnet8"), ResNet8)
        True

    Arguments and shapes are those of `ResNet`; shortcuts are those of option B.
    """

    depth = 8

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 32, 64),
        se: bool = False,
        preact: bool = False,
        shortcut: Literal["A", "B"] = "B",
    ) -> None:
        super().__init__(num_classes, in_channels, widths, se, preact, shortcut)


@register("resnet18")
class ResNet18(ResNet):
    """ResNet-18 in its form for CIFAR: four stages of two blocks, and learned shortcuts; 11,173,962 parameters.

    The net of section 4.1 of the paper with a 3×3 convolution in front instead of the 7×7 one with stride 2 and the
    pooling, as in kuangliu's `pytorch-cifar`.

    Examples:
        >>> from cifarnets.models import ResNet18, create
        >>> isinstance(create("resnet18", widths=(8, 16, 32, 64)), ResNet18)
        True

    Arguments and shapes are those of `ResNet`; there are four stages, and shortcuts are those of option B.
    """

    depth = 18

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 128, 256, 512),
        se: bool = False,
        preact: bool = False,
        shortcut: Literal["A", "B"] = "B",
    ) -> None:
        super().__init__(num_classes, in_channels, widths, se, preact, shortcut)


@register("resnet20")
class ResNet20(ResNet):
    """ResNet for CIFAR with 20 layers; 269,722 parameters.

    Examples:
        >>> from cifarnets.models import ResNet20, create
        >>> isinstance(create("resnet20"), ResNet20)
        True

    Arguments and shapes are those of `ResNet`.
    """

    depth = 20


@register("resnet32")
class ResNet32(ResNet):
    """ResNet for CIFAR with 32 layers; 464,154 parameters.

    Examples:
        >>> from cifarnets.models import ResNet32, create
        >>> isinstance(create("resnet32"), ResNet32)
        True

    Arguments and shapes are those of `ResNet`.
    """

    depth = 32


@register("resnet44")
class ResNet44(ResNet):
    """ResNet for CIFAR with 44 layers; 658,586 parameters.

    Examples:
        >>> from cifarnets.models import ResNet44, create
        >>> isinstance(create("resnet44"), ResNet44)
        True

    Arguments and shapes are those of `ResNet`.
    """

    depth = 44


@register("resnet56")
class ResNet56(ResNet):
    """ResNet for CIFAR with 56 layers; 853,018 parameters.

    Examples:
        >>> from cifarnets.models import ResNet56, create
        >>> isinstance(create("resnet56"), ResNet56)
        True

    Arguments and shapes are those of `ResNet`.
    """

    depth = 56


@register("resnet110")
class ResNet110(ResNet):
    """ResNet for CIFAR with 110 layers; 1,727,962 parameters.

    Examples:
        >>> from cifarnets.models import ResNet110, create
        >>> isinstance(create("resnet110"), ResNet110)
        True

    Arguments and shapes are those of `ResNet`.
    """

    depth = 110


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, se: bool, preact: bool, learned: bool) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs, stride), nn.BatchNorm2d(inputs if preact else outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs), nn.BatchNorm2d(outputs)
        self.gate = _Gate(outputs) if se else None
        self.shortcut = None
        if learned and (stride > 1 or inputs != outputs):
            self.shortcut = nn.Sequential(_conv(inputs, outputs, stride, 1), nn.BatchNorm2d(outputs))
        self.stride, self.added, self.preact = stride, outputs - inputs, preact

    def forward(self, x: Tensor) -> Tensor:
        if self.preact:
            y = self.conv1(F.relu(self.norm1(x)))
            y = self.conv2(F.relu(self.norm2(y)))
        else:
            y = F.relu(self.norm1(self.conv1(x)))
            y = self.norm2(self.conv2(y))
        if self.gate is not None:
            y = self.gate(y)
        y = y + self._shortcut(x)
        return y if self.preact else F.relu(y)

    def _shortcut(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            return self.shortcut(x)  # type: ignore[no-any-return]
        if self.stride > 1:
            x = x[:, :, :: self.stride, :: self.stride]
        if self.added:
            x = F.pad(x, (0, 0, 0, 0, self.added // 2, self.added - self.added // 2))
        return x


class _Gate(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 16)
        self.squeeze, self.excite = nn.Linear(channels, hidden), nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.excite(F.relu(self.squeeze(x.mean((2, 3))))).sigmoid()
        return x * weights[:, :, None, None]  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, stride: int = 1, side: int = 3) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, side, stride, padding=side // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
