"""A model's own preprocessing, inside the model or as a transform."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets.errors import InputError
from cifarnets.models.metadata import get_meta

Constants = tuple[tuple[float, ...], tuple[float, ...]]


class NormalizedModel(nn.Module):
    """A model for images in 0..1: it normalises them and calls the model in `model`.

    `with_normalization` makes one.

    Examples:
        >>> import torch
        >>> from cifarnets import load
        >>> from cifarnets.models import with_normalization
        >>> view = with_normalization(load("convnet"))
        >>> view(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
        >>> next(iter(view.state_dict()))
        'model.conv1.weight'

    Args:
        model: A model for normalised images.
        mean: Mean of each channel of images in 0..1.
        std: Standard deviation of each channel.

    Shapes: float `[N, C, H, W]` in 0..1 to the outputs of the model.
    """

    mean: Tensor
    std: Tensor

    @checked
    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        like = next(model.parameters(), torch.empty(0))
        for name, values in (("mean", mean), ("std", std)):
            # Not in the state dict, which holds the keys of the model only.
            buffer = torch.tensor(values, dtype=like.dtype, device=like.device).view(-1, 1, 1)
            self.register_buffer(name, buffer, persistent=False)
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)  # type: ignore[no-any-return]


@checked
def with_normalization(
    model: nn.Module, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> NormalizedModel:
    """A view of a model that takes images in 0..1 and normalises them itself.

    Tools for attacks, saliency and out-of-distribution detection expect such models. The view shares the parameters of
    the model, has gradients for its images, and is in the mode (train or eval) of the model.

    Examples:
        >>> import torch
        >>> from cifarnets import load
        >>> from cifarnets.models import with_normalization
        >>> images = torch.rand(2, 3, 32, 32, requires_grad=True)
        >>> with_normalization(load("resnet20"))(images).sum().backward()
        >>> images.grad.shape
        torch.Size([2, 3, 32, 32])

    Args:
        model: A trained model.
        mean: Mean of each channel of images in 0..1; None for that in `model.meta`.
        std: Standard deviation of each channel; None for that in `model.meta`.

    Raises:
        InputError: The model does not know its constants and none are passed, or they do not fit its channels.
    """
    return NormalizedModel(model, *_constants(model, mean, std))


@checked
def transform_for(
    model: nn.Module,
    *,
    size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Any:
    """The transform from a picture to what a model takes, for datasets and data loaders of torchvision.

    It does what `predict` does: the colours of the model, the size of its images (bilinear, antialiased), and the
    constants that it was trained with.

    Examples:
        >>> import PIL.Image
        >>> from cifarnets import load
        >>> from cifarnets.models import transform_for
        >>> transform = transform_for(load("resnet20"))
        >>> transform(PIL.Image.new("RGB", (100, 80))).shape
        torch.Size([3, 32, 32])

    Args:
        model: A trained model.
        size: Height and width of the result; None for those in `model.meta`, or 32 where they are not there.
        mean: Mean of each channel of images in 0..1; None for that in `model.meta`.
        std: Standard deviation of each channel; None for that in `model.meta`.

    Returns:
        A `torchvision.transforms.v2.Compose`. It maps PIL images and uint8 tensors `[C, H, W]` to float32 tensors
        `[C, H, W]`.

    Raises:
        InputError: As `with_normalization`.
    """
    from torchvision.transforms import v2

    mean, std = _constants(model, mean, std)
    sides = (size, size) if size is not None else getattr(get_meta(model), "size", None) or (32, 32)
    colours = {1: [v2.Grayscale(1)], 3: [v2.RGB()]}.get(len(mean), [])
    return v2.Compose(
        [
            v2.Resize(sides, antialias=True),  # first, so that PIL resizes its own images, as in `predict`
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            *colours,
            v2.Normalize(mean, std),
            v2.ToPureTensor(),
        ]
    )


def _constants(model: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None) -> Constants:
    meta = get_meta(model)
    mean = mean if mean is not None else meta.mean if meta else None
    std = std if std is not None else meta.std if meta else None
    if mean is None or std is None:
        raise InputError(
            f"{type(model).__name__} does not know how its images were normalised: pass mean= and std=, or note them "
            "in the model with cifarnets.models.annotate."
        )
    channels = meta.config.get("in_channels") if meta else None
    if len(mean) != len(std) or (channels is not None and len(mean) != channels):
        raise InputError(
            f"mean {tuple(mean)} and std {tuple(std)} must have one number for each channel"
            + (f", and the model takes {channels}." if channels is not None else ".")
        )
    if not min(std) > 0:
        raise InputError(f"every std must be above 0, not {tuple(std)}.")
    return tuple(map(float, mean)), tuple(map(float, std))
