"""The nets of Simonyan and Zisserman 2015 (arXiv:1409.1556), with BatchNorm and a short head for CIFAR."""

from collections.abc import Sequence

from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models.classifier import Classifier
from cifarnets.models.registry import register


class VGG(Classifier):
    """VGG with BatchNorm: five stages of 3×3 convolutions, a pooling after each, and one linear layer.

    Five poolings leave one pixel of 32×32, so a single linear layer replaces the three of the paper. The convolutions
    have biases although BatchNorm follows, as in torchvision. The names and shapes in `features` are torchvision's too,
    and the parameters of its `vgg11_bn` and `vgg16_bn` load there.

    Subclasses set `depths`, the number of convolutions of each stage.

    Examples:
        >>> import torch
        >>> from cifarnets.models import VGG
        >>> VGG(num_classes=3, widths=(8, 8, 16, 16, 16))(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])

    Args:
        num_classes: Number of outputs; 0 for features `[N, widths[-1]]`.
        in_channels: Channels of the 32×32 images.
        widths: Channels of the five stages.

    Shapes: `[N, in_channels, 32, 32]` to logits `[N, num_classes]`.

    Raises:
        InputError: There is not one width for each stage.
    """

    depths: Sequence[int] = (1, 1, 2, 2, 2)

    def __init__(
        self, num_classes: int = 10, in_channels: int = 3, widths: Sequence[int] = (64, 128, 256, 512, 512)
    ) -> None:
        super().__init__()
        if len(widths) != len(self.depths):
            raise InputError(f"widths must be {len(self.depths)} numbers, one a stage, not {widths!r}.")
        layers: list[nn.Module] = []
        inputs = in_channels
        for depth, width in zip(self.depths, widths, strict=True):
            for _ in range(depth):
                layers += [_conv(inputs, width), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.num_features, self.num_classes = inputs, num_classes
        self.head = self.make_head()

    def forward_features(self, x: Tensor) -> Tensor:
        return self.features(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = x.flatten(1)
        return x if pre_logits else self.head(x)


@register("vgg11_bn")
class VGG11BN(VGG):
    """VGG with BatchNorm and 8 convolutions, configuration A of the paper; 9,231,114 parameters.

    Examples:
        >>> from cifarnets.models import VGG11BN, create
        >>> isinstance(create("vgg11_bn"), VGG11BN)
        True

    Arguments and shapes are those of `VGG`.
    """

    depths = (1, 1, 2, 2, 2)


@register("vgg16_bn")
class VGG16BN(VGG):
    """VGG with BatchNorm and 13 convolutions, configuration D of the paper; 14,728,266 parameters.

    Examples:
        >>> from cifarnets.models import VGG16BN, create
        >>> isinstance(create("vgg16_bn"), VGG16BN)
        True

    Arguments and shapes are those of `VGG`.
    """

    depths = (2, 2, 3, 3, 3)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv
