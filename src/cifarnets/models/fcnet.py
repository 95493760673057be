"""The fully connected net of the article (step 8).

The article: https://medium.com/mlearning-ai/images-from-the-convolutional-world-596b4aa6cdae
"""

from collections.abc import Sequence

from torch import Tensor, nn

from cifarnets.models.classifier import Classifier
from cifarnets.models.registry import register


@register("fcnet")
class FCNet(Classifier, nn.Sequential):
    """Fully connected net of the article, step 8: 3072-1024-512-128-10 with tanh between.

    With ten outputs there are 3,738,506 parameters.

    Examples:
        >>> import torch
        >>> from cifarnets.models import FCNet
        >>> FCNet(num_classes=3, widths=(64, 32))(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])

    Args:
        num_classes: Number of outputs; 0 for the last hidden units `[N, widths[-1]]`.
        in_channels: Channels of the 32×32 images.
        widths: Units of the hidden layers, any number of them.

    Shapes: `[N, in_channels, 32, 32]` to logits `[N, num_classes]`.
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 3, widths: Sequence[int] = (1024, 512, 128)) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        sizes = [in_channels * 32 * 32, *widths]
        for inputs, outputs in zip(sizes, widths, strict=False):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        super().__init__(*layers)
        self.num_features, self.num_classes = sizes[-1], num_classes
        self.head_index = len(layers)
        self.head_name = str(self.head_index)
        self.append(self.make_head())

    def forward_features(self, x: Tensor) -> Tensor:
        # A slice, self[:-1], would build another FCNet.
        for index, layer in enumerate(self):
            if index < self.head_index:
                x = layer(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return x if pre_logits else self[-1](x)
