"""The nets of Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv:2404.00498), known as airbench."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models.registry import register


@register("airbench94")
class Airbench94(nn.Module):
    """Whitening 2×2 convolution, three blocks of two convolutions with BatchNorm and GELU, scaled logits.

    The first convolution is set from training images (`prepare`) and stays as it is; its bias is trained. The other
    convolutions start as the identity on their first channels (a Dirac), the scales of BatchNorm stay at one.
    With ten outputs there are 1,972,792 numbers, of which 1,971,352 are trained.

    Args:
        num_classes: Outputs.
        in_channels: Channels of the 32×32 images.
        widths: Channels of the three blocks.
        scale: What logits are multiplied by beside one over the head's inputs.

    Shapes: `[N, in_channels, 32, 32]` to logits `[N, num_classes]`.

    Raises:
        InputError: There are not three widths.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 256, 256),
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        if len(widths) != 3:
            raise InputError(f"widths must be three numbers, one a block, not {widths!r}.")
        filters = 2 * in_channels * 2 * 2
        self.whiten = nn.Conv2d(in_channels, filters, 2)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        self.block1 = _Block(filters, widths[0])
        self.block2 = _Block(widths[0], widths[1])
        self.block3 = _Block(widths[1], widths[2])
        self.head = nn.Linear(widths[2], num_classes, bias=False)
        with torch.no_grad():
            self.head.weight.div_(self.head.weight.std())
        self.scale = scale / widths[2]

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.whiten(x))
        x = self.block3(self.block2(self.block1(x)))
        x = F.max_pool2d(x, 3).flatten(1)
        return self.head(x) * self.scale  # type: ignore[no-any-return]

    @torch.no_grad()
    def prepare(self, images: Tensor) -> None:
        """Set the first convolution so that its outputs on 2×2 patches are uncorrelated, each with both signs.

        Args:
            images: Some thousand training images as the model is fed them, `[N, in_channels, H, W]`.
        """
        channels = images.shape[1]
        patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, channels * 4).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        whitening = (vectors / (values + 5e-4).sqrt()).T.flip(0).view(-1, channels, 2, 2)
        self.whiten.weight.copy_(torch.cat([whitening, -whitening]))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs), _norm(outputs)
        self.conv2, self.norm2 = _conv(outputs, outputs), _norm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inputs])
    return conv


def _norm(channels: int) -> nn.BatchNorm2d:
    # torch's momentum is the weight of the new batch: the statistics forget fast, for the fit is short.
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=0.4)
    norm.weight.requires_grad_(False)
    return norm
