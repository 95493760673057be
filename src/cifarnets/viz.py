"""Pictures to look at (article, steps 2, 4, 7, 9, 11 and 14). Needs the extra `plots`."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from cifarnets._figures import new_figure, save_figure
from cifarnets.datasets.images import denormalize
from cifarnets.errors import InputError

if TYPE_CHECKING:
    import PIL.Image
    from matplotlib.figure import Figure

Picture: TypeAlias = "Tensor | PIL.Image.Image"


def show(
    images: "Picture | Sequence[Picture]",
    titles: str | Sequence[str] = (),
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Images side by side, as a matplotlib figure (a notebook draws it by itself).

    Args:
        images: A PIL image, or a tensor `[3, H, W]` or `[1, H, W]`: uint8 or float; floats outside 0..1 are clipped.
            A list of these, or a tensor `[N, C, H, W]`, for several.
        titles: One for each.
        mean: With `std`: the constants of normalised images, so that they are shown as they were.
        std: Likewise.
        path: Where to save the figure too.

    Raises:
        InputError: There is nothing to show, something is no image, or only one of `mean` and `std` is given.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    if (mean is None) != (std is None):
        raise InputError("mean= and std= belong together: pass both, or neither.")
    several = isinstance(images, (list, tuple)) or (isinstance(images, Tensor) and images.ndim == 4)
    listed: Any = images if several else [images]
    pictures = [_pixels(image, mean, std) for image in listed]
    return _grid(pictures, [titles] if isinstance(titles, str) else titles, path)


def show_maps(maps: Tensor, *, path: str | os.PathLike[str] | None = None) -> "Figure":
    """The feature maps of one image: each channel of a layer's output as a picture of its own (step 14).

    Args:
        maps: `[C, H, W]` or `[1, C, H, W]`, any range; each map is stretched from its lowest to its highest value.
        path: Where to save the figure too.

    Raises:
        InputError: It is not the output of a convolution for one image.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    maps = maps.detach().cpu().float()
    if maps.ndim == 4 and len(maps) == 1:
        maps = maps[0]
    if maps.ndim != 3 or not maps.numel():
        raise InputError(f"feature maps of one image are [C, H, W] or [1, C, H, W], not {list(maps.shape)}.")
    return _grid(list(maps), [str(channel) for channel in range(len(maps))], path, stretch=True)


def _pixels(image: Picture, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """`[H, W, 3]` or `[H, W]`, float in 0..1 or integers in 0..255, as matplotlib wants it."""
    if not isinstance(image, Tensor):
        import numpy as np
        from PIL import Image

        if not isinstance(image, Image.Image):
            raise InputError(f"a picture is a PIL image or a tensor, not {type(image).__name__}.")
        return torch.from_numpy(np.array(image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")))
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        raise InputError(f"an image is a tensor [3, H, W] or [1, H, W], not {list(image.shape)}.")
    image = image.detach().cpu()
    if image.is_floating_point():
        image = image.float()  # matplotlib knows neither bfloat16 nor float16
        image = image.clamp(0, 1) if mean is None or std is None else denormalize(image, mean, std)
    return image[0] if len(image) == 1 else image.permute(1, 2, 0)


def _grid(
    pictures: Sequence[Tensor],
    titles: Sequence[str],
    path: str | os.PathLike[str] | None,
    *,
    stretch: bool = False,
) -> "Figure":
    if not pictures:
        raise InputError("there is no image to show.")
    columns = min(8, len(pictures), math.ceil(math.sqrt(len(pictures) * 2)))
    rows = math.ceil(len(pictures) / columns)
    figure = new_figure(1.6 * columns, 1.7 * rows)
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if index < len(pictures):
            picture = pictures[index]
            # Left to itself, matplotlib stretches every grey picture from black to white.
            limits = (None, None) if stretch else (0, 1 if picture.is_floating_point() else 255)
            axes.imshow(picture.numpy(), cmap="gray", interpolation="nearest", vmin=limits[0], vmax=limits[1])
            if index < len(titles):
                axes.set_title(titles[index], fontsize=8)
    return save_figure(figure, path)
