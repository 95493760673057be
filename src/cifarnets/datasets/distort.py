"""Distortions of whole batches: rotation, sharpness and colours, each image with an amount of its own.

Images are float `[B, C, H, W]` from 0 to 255 in any layout of memory, and amounts `[B]`. The formulas are those of
torchvision's functional transforms, which take one amount for all.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 255.0


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Rotate counter-clockwise about the middle, with bilinear interpolation; corners fill up with the reflection.

    Examples:
        >>> import torch
        >>> from cifarnets.datasets.distort import rotate
        >>> image = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
        >>> rotate(image, torch.tensor([90.0])).round()
        tensor([[[[2., 4.],
                  [1., 3.]]]])
    """
    height, width = images.shape[2:]
    angles = torch.deg2rad(degrees)
    cos, sin, zero = angles.cos(), angles.sin(), torch.zeros_like(angles)
    rows = torch.stack([cos, -sin * height / width, zero, sin * width / height, cos, zero], 1)
    grid = F.affine_grid(rows.view(-1, 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, "bilinear", "reflection", align_corners=False)


def sharpen(images: Tensor, factors: Tensor) -> Tensor:
    """Move away from a blurred copy: 0 gives the blurred image, 1 the image, 2 a sharper one.

    Examples:
        >>> import torch
        >>> from cifarnets.datasets.distort import sharpen
        >>> image = torch.zeros(1, 1, 3, 3)
        >>> image[0, 0, 1, 1] = 130.0
        >>> sharpen(image, torch.tensor([0.0]))[0, 0, 1].round()
        tensor([ 0., 50.,  0.])
    """
    if min(images.shape[2:]) < 3:
        return images
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    box = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    blurred = images.clone()
    # A kernel of ones with 5 in the middle; the border has no such neighbourhood.
    blurred[:, :, 1:-1, 1:-1].mul_(4).add_(box).div_(13)
    return _blend(images, blurred, factors)


def brighten(images: Tensor, factors: Tensor) -> Tensor:
    """Multiply the values.

    Examples:
        >>> import torch
        >>> from cifarnets.datasets.distort import brighten
        >>> brighten(torch.full((1, 3, 1, 1), 100.0), torch.tensor([1.5])).flatten()
        tensor([150., 150., 150.])
    """
    return (images * _each(factors)).clamp(0, LARGEST)


def add_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Move away from the mean grey of each image.

    Examples:
        >>> import torch
        >>> from cifarnets.datasets.distort import add_contrast
        >>> add_contrast(torch.tensor([[[[50.0, 150.0]]]]), torch.tensor([0.5])).flatten()
        tensor([ 75., 125.])
    """
    return _blend(images, _grey(images).mean((1, 2, 3), keepdim=True), factors)


def saturate(images: Tensor, factors: Tensor) -> Tensor:
    """Move away from the grey of each pixel; images of other than three channels stay as they are.

    Examples:
        >>> import torch
        >>> from cifarnets.datasets.distort import saturate
        >>> red = torch.tensor([100.0, 0.0, 0.0]).view(1, 3, 1, 1)
        >>> saturate(red, torch.tensor([0.0])).flatten().round()
        tensor([30., 30., 30.])
    """
    return _blend(images, _grey(images), factors) if images.shape[1] == 3 else images


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the colour wheel; half a turn makes red cyan. Images of other than three channels stay as they are.

    Examples:
        >>> import torch
        >>> from cifarnets.datasets.distort import turn_hue
        >>> red = torch.tensor([100.0, 0.0, 0.0]).view(1, 3, 1, 1)
        >>> turn_hue(red, torch.tensor([0.5])).flatten().round()
        tensor([  0., 100., 100.])
    """
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    value, spread = images.amax(1), images.amax(1) - images.amin(1)
    scale = spread.clamp_min(1e-6)
    hue = torch.where(
        value == red,
        (green - blue) / scale,
        torch.where(value == green, 2 + (blue - red) / scale, 4 + (red - green) / scale),
    )
    hue += 6 * turns[:, None, None]  # in sixths of a turn
    # How far the channel stands from the one that the hue names decides how much of the spread it lacks.
    places = torch.arange(5.0, 0.0, -2.0, device=images.device)[:, None, None]  # without a wait for a GPU
    places = (places + hue[:, None]).remainder(6)
    return value[:, None] - spread[:, None] * torch.minimum(places, 4 - places).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    """The brightness of each pixel, `[B, 1, H, W]`, with the weights of ITU-R BT.601."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images.unbind(1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)[:, None]


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    return torch.lerp(others, images, _each(factors)).clamp_(0, LARGEST)


def _each(amounts: Tensor) -> Tensor:
    return amounts[:, None, None, None]
