"""The convolutional net of the article, as modules (step 16) and through the functional API (step 17).

The article: https://medium.com/mlearning-ai/images-from-the-convolutional-world-596b4aa6cdae

Both take the maximum before the tanh, and the article takes the tanh first. Tanh is monotonic, so
`tanh(max(x)) == max(tanh(x))` bit for bit, with a quarter of the work. An average is another matter: with `pool="avg"`
the tanh comes first, as in the article.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models.classifier import Classifier
from cifarnets.models.registry import register

Pool = Literal["max", "avg"]


@register("convnet")
class ConvNet(Classifier):
    """Convolutional net of the article, step 16: two convolutions, two poolings, two linear layers.

    With ten outputs there are 18,354 parameters.

    Examples:
        >>> import torch
        >>> from cifarnets.models import ConvNet
        >>> ConvNet(num_classes=3, pool="avg")(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])

    Args:
        num_classes: Number of outputs; 0 for the hidden units `[N, hidden]`.
        in_channels: Channels of the 32×32 images.
        widths: Channels after the first and the second convolution.
        hidden: Units of the first linear layer.
        kernel_size: Side of both kernels, odd (step 12: 3 or 5); the padding keeps 32×32.
        pool: `"max"` as in the article, or `"avg"` (step 13).

    Shapes: `[N, in_channels, 32, 32]` to logits `[N, num_classes]`.

    Raises:
        InputError: The kernel size is even, `pool` is unknown, or `widths` are not two.
    """

    head_name = "fc2"

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 8),
        hidden: int = 32,
        kernel_size: int = 3,
        pool: Pool = "max",
    ) -> None:
        super().__init__()
        first, second = _checked(widths, kernel_size, pool)
        self.conv1 = nn.Conv2d(in_channels, first, kernel_size, padding=kernel_size // 2)
        self.act1 = nn.Tanh()
        self.pool1 = nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2)
        self.conv2 = nn.Conv2d(first, second, kernel_size, padding=kernel_size // 2)
        self.act2 = nn.Tanh()
        self.pool2 = nn.MaxPool2d(2) if pool == "max" else nn.AvgPool2d(2)
        self.fc1 = nn.Linear(second * 8 * 8, hidden)
        self.act3 = nn.Tanh()
        self.num_features, self.num_classes = hidden, num_classes
        self.fc2 = self.make_head()
        self.pool_first = pool == "max"

    def forward_features(self, x: Tensor) -> Tensor:
        if self.pool_first:
            x = self.act1(self.pool1(self.conv1(x)))
            x = self.act2(self.pool2(self.conv2(x)))
        else:
            x = self.pool1(self.act1(self.conv1(x)))
            x = self.pool2(self.act2(self.conv2(x)))
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.act3(self.fc1(x.flatten(1)))
        return x if pre_logits else self.fc2(x)


@register("convnet_functional")
class ConvNetFunctional(Classifier):
    """`ConvNet` through the functional API, step 17: only the four layers with parameters are modules.

    Arguments, shapes and parameter names are those of `ConvNet`. Each of the two loads the weights of the other, and
    gives the same outputs bit for bit.

    Examples:
        >>> from cifarnets.models import ConvNet, ConvNetFunctional
        >>> ConvNetFunctional().load_state_dict(ConvNet().state_dict())
        <All keys matched successfully>
    """

    head_name = "fc2"

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (16, 8),
        hidden: int = 32,
        kernel_size: int = 3,
        pool: Pool = "max",
    ) -> None:
        super().__init__()
        first, second = _checked(widths, kernel_size, pool)
        self.conv1 = nn.Conv2d(in_channels, first, kernel_size, padding=kernel_size // 2)
        self.conv2 = nn.Conv2d(first, second, kernel_size, padding=kernel_size // 2)
        self.fc1 = nn.Linear(second * 8 * 8, hidden)
        self.num_features, self.num_classes = hidden, num_classes
        self.fc2 = self.make_head()
        self.pool_first = pool == "max"

    def forward_features(self, x: Tensor) -> Tensor:
        if self.pool_first:
            x = torch.tanh(F.max_pool2d(self.conv1(x), 2))
            x = torch.tanh(F.max_pool2d(self.conv2(x), 2))
        else:
            x = F.avg_pool2d(torch.tanh(self.conv1(x)), 2)
            x = F.avg_pool2d(torch.tanh(self.conv2(x)), 2)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = torch.tanh(self.fc1(x.flatten(1)))
        return x if pre_logits else self.fc2(x)


def _checked(widths: Sequence[int], kernel_size: int, pool: str) -> tuple[int, int]:
    if kernel_size % 2 == 0 or kernel_size < 1:
        raise InputError(f"kernel_size must be odd (1, 3, 5 …) so that the padding keeps 32×32, not {kernel_size}.")
    if pool not in ("max", "avg"):
        raise InputError(f"pool must be 'max' or 'avg', not {pool!r}.")
    if len(widths) != 2:
        raise InputError(f"widths must be two numbers, one a convolution, not {widths!r}.")
    return widths[0], widths[1]
