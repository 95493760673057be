"""The fully connected net of the article (step 8)."""

from collections.abc import Sequence

from torch import nn

from cifarnets.models.registry import register


@register("fcnet")
class FCNet(nn.Sequential):
    """Fully connected net of the article, step 8: 3072-1024-512-128-10 with tanh between.

    With ten outputs there are 3,738,506 parameters.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the 32×32 images.
        widths: Units of the hidden layers, any number of them.

    Shapes: `[N, in_channels, 32, 32]` to logits `[N, num_classes]`.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, widths: Sequence[int] = (1024, 512, 128)) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        sizes = [in_channels * 32 * 32, *widths]
        for inputs, outputs in zip(sizes, widths, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        super().__init__(*layers, nn.Linear(sizes[-1], num_classes))
