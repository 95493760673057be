"""The nets of Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv:2404.00498), known as airbench.

Widths, depths and shortcuts of the larger two are those of github.com/KellerJordan/cifar10-airbench.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models.classifier import Classifier
from cifarnets.models.registry import register


class Airbench(Classifier):
    """Whitening 2×2 convolution, three blocks of convolutions with BatchNorm and GELU, scaled logits.

    The first convolution is set from training images (`init_from_images`) and stays as it is; its bias is trained.
    The other convolutions start as the identity on their first channels (a Dirac), the scales of BatchNorm stay at
    one.

    Examples:
        >>> import torch
        >>> from cifarnets.models import Airbench
        >>> model = Airbench(10, 3, widths=(8, 16, 16), depth=2, momentum=0.4, scale=1.0)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])

    Args:
        num_classes: Number of outputs; 0 for features `[N, widths[-1]]`.
        in_channels: Channels of the 32×32 images.
        widths: Channels of the three blocks.
        depth: Convolutions of each block, 2 or 3. With three, a shortcut goes around the last two and is added before
            the last GELU.
        momentum: Weight of a new batch in the statistics of BatchNorm, as in torch.
        scale: Factor of the logits, which are divided by the number of inputs of the head as well.

    Shapes: `[N, in_channels, 32, 32]` to logits `[N, num_classes]`; smaller and larger images will do, for the last
        maximum is taken over the whole map.

    Raises:
        InputError: There are not three widths, or the depth is neither 2 nor 3.
    """

    def __init__(
        self, num_classes: int, in_channels: int, widths: Sequence[int], depth: int, momentum: float, scale: float
    ) -> None:
        super().__init__()
        # The whitening layer is trained in the first part of a fit only, as in the paper; see `training.param_groups`.
        self.trained_until = {"whiten.bias": 3 / 8}
        if len(widths) != 3:
            raise InputError(f"widths must be three numbers, one a block, not {widths!r}.")
        if depth not in (2, 3):
            raise InputError(f"depth must be 2 or 3 convolutions a block, not {depth!r}.")
        filters = 2 * in_channels * 2 * 2
        self.whiten = nn.Conv2d(in_channels, filters, 2)
        self.whiten.weight.requires_grad_(False)
        nn.init.zeros_(self.whiten.bias)  # type: ignore[arg-type]
        self.block1 = _Block(filters, widths[0], depth, momentum)
        self.block2 = _Block(widths[0], widths[1], depth, momentum)
        self.block3 = _Block(widths[1], widths[2], depth, momentum)
        self.num_features, self.num_classes = widths[2], num_classes
        self.head = self.make_head()
        self.scale = scale / widths[2]

    def forward_features(self, x: Tensor) -> Tensor:
        x = F.gelu(self.whiten(x))
        return self.block3(self.block2(self.block1(x)))  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = F.max_pool2d(x, x.shape[2:]).flatten(1)  # a single window, 3×3 for whole images
        if pre_logits:
            return x
        x = self.head(x)
        return x * self.scale if self.num_classes else x  # logits are scaled, features are not

    def make_head(self) -> nn.Module:
        if not self.num_classes:
            return nn.Identity()
        head = nn.Linear(self.num_features, self.num_classes, bias=False)
        # A standard deviation of one, and a small scale of the logits: one learning rate of ConvMuon then suits the
        # heads of all three nets. (The source's scripts for SGD keep torch's head and multiply its logits by 1/9.)
        with torch.no_grad():
            head.weight.div_(head.weight.std())
        return head

    @torch.no_grad()
    def init_from_images(self, images: Tensor) -> None:
        """Set the first convolution from images: its outputs for their 2×2 patches are then uncorrelated.

        Each filter is there with both signs.

        Examples:
            >>> import torch
            >>> from cifarnets.models import create
            >>> model = create("airbench94")
            >>> model.init_from_images(torch.randn(100, 3, 32, 32))

        Args:
            images: Some thousand normalised training images, `[N, in_channels, H, W]`.
        """
        channels = images.shape[1]
        images = images.cpu() if images.device.type == "mps" else images  # which has no float64
        patches = F.unfold(images, 2).transpose(1, 2).reshape(-1, channels * 4).double()
        values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
        whitening = (vectors / (values + 5e-4).sqrt()).T.flip(0).view(-1, channels, 2, 2)
        self.whiten.weight.copy_(torch.cat([whitening, -whitening]))


@register("airbench94")
class Airbench94(Airbench):
    """Whitening 2×2 convolution, three blocks of two convolutions with BatchNorm and GELU, scaled logits.

    With ten outputs there are 1,972,792 parameters, of which 1,971,352 are trained.

    Examples:
        >>> import torch
        >>> from cifarnets.models import Airbench94
        >>> Airbench94(num_classes=3, widths=(8, 16, 16))(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 3])

    Arguments and shapes are those of `Airbench`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 256, 256),
        scale: float = 1.0,
    ) -> None:
        # The statistics forget fast, for the fit is short.
        super().__init__(num_classes, in_channels, widths, depth=2, momentum=0.4, scale=scale)


@register("airbench95")
class Airbench95(Airbench):
    """`Airbench94` with wider blocks; 4,606,520 parameters, of which 4,604,440 are trained.

    With the default scale, logits start as large as in the source, which keeps torch's head and takes a ninth of it.

    Examples:
        >>> from cifarnets.models import Airbench95, create
        >>> isinstance(create("airbench95"), Airbench95)
        True

    Arguments and shapes are those of `Airbench`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (128, 384, 384),
        depth: int = 2,
        scale: float = 1.26,
    ) -> None:
        super().__init__(num_classes, in_channels, widths, depth, momentum=0.4, scale=scale)


@register("airbench96")
class Airbench96(Airbench):
    """`Airbench95` with deeper blocks and shortcuts; 9,918,776 parameters, of which 9,915,416 are trained.

    This is the version of the source that takes 34.7 seconds. The version of the paper is wider (128, 512, 512), adds
    the shortcut after the last GELU, and has the momentum of the smaller two.

    Examples:
        >>> from cifarnets.models import Airbench96, create
        >>> isinstance(create("airbench96"), Airbench96)
        True

    Arguments and shapes are those of `Airbench`.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (128, 384, 512),
        depth: int = 3,
        scale: float = 1.45,
    ) -> None:
        super().__init__(num_classes, in_channels, widths, depth, momentum=0.1, scale=scale)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, depth: int, momentum: float) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(inputs, outputs), _norm(outputs, momentum)
        self.conv2, self.norm2 = _conv(outputs, outputs), _norm(outputs, momentum)
        self.conv3 = _conv(outputs, outputs) if depth == 3 else None
        self.norm3 = _norm(outputs, momentum) if depth == 3 else None

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        y = self.norm2(self.conv2(x))
        if self.conv3 is not None and self.norm3 is not None:
            y = x + self.norm3(self.conv3(F.gelu(y)))
        return F.gelu(y)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight.data[:inputs])
    return conv


def _norm(channels: int, momentum: float) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(channels, eps=1e-12, momentum=momentum)
    norm.weight.requires_grad_(False)
    return norm
