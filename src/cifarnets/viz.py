"""Figures of images, feature maps and kernels (article, steps 2, 4, 7, 9, 11 and 14). Needs the extra `plots`."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets._figures import new_figure, save_figure
from cifarnets.datasets.images import denormalize
from cifarnets.datasets.pictures import check_dense
from cifarnets.errors import InputError

if TYPE_CHECKING:
    import PIL.Image
    from matplotlib.figure import Figure

Picture: TypeAlias = "Tensor | np.ndarray[Any, Any] | PIL.Image.Image"

MOST_COLUMNS = 8
MOST_KERNELS = 512
"""Pictures of one figure; matplotlib takes seconds for this many."""


@checked
def show(
    images: "Picture | Sequence[Picture]",
    titles: str | Sequence[str] = (),
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Show images side by side, as a matplotlib figure, which a notebook draws by itself.

    Examples:
        >>> from cifarnets import viz
        >>> from cifarnets.datasets import SyntheticCIFAR10
        >>> data = SyntheticCIFAR10(size=100)
        >>> figure = viz.show(data.images[:8], [data.classes[label] for label in data.targets[:8]])

    Args:
        images: A PIL image; a tensor `[3, H, W]` or `[1, H, W]`; or an array `[H, W]`, `[H, W, 1]` or `[H, W, 3]` in
            the order red, green, blue. Tensors and arrays are uint8 or float; floats outside 0..1 are clipped.
            For several: a list of these, a tensor `[N, C, H, W]` or an array `[N, H, W, C]`.
        titles: One for each image.
        mean: With `std`: the constants of normalised images, which are undone.
        std: With `mean`: the constants of normalised images, which are undone.
        path: Where to save the figure too.

    Raises:
        InputError: There is nothing to show, something is no image, or only one of `mean` and `std` is given.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    if (mean is None) != (std is None):
        raise InputError("mean= and std= belong together: pass both, or neither.")
    if isinstance(images, nn.Parameter):
        raise InputError("the weights of a layer are no images: use cifarnets.viz.show_kernels.")
    several = isinstance(images, (list, tuple)) or (isinstance(images, (Tensor, np.ndarray)) and images.ndim == 4)
    listed: Any = images if several else [images]
    pictures = [_pixels(image, mean, std) for image in listed]
    return _grid(pictures, [titles] if isinstance(titles, str) else titles, path)


def show_maps(maps: Tensor, *, path: str | os.PathLike[str] | None = None) -> "Figure":
    """Show the feature maps of one image: each channel of a layer's output as a picture (article, step 14).

    Examples:
        >>> import torch
        >>> from cifarnets import viz
        >>> conv = torch.nn.Conv2d(3, 16, 5)
        >>> figure = viz.show_maps(conv(torch.rand(1, 3, 32, 32)))

    Args:
        maps: `[C, H, W]` or `[1, C, H, W]`, any range; each map is stretched from its lowest to its highest value.
        path: Where to save the figure too.

    Raises:
        InputError: It is not the output of a convolution for one image.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    maps = _floats(maps)
    if maps.ndim == 4 and len(maps) == 1:
        maps = maps[0]
    if maps.ndim != 3 or not maps.numel():
        hint = (
            "; for one image of several pass maps[0], and for the weights of a layer use cifarnets.viz.show_kernels"
            if maps.ndim == 4 and maps.numel()
            else ""
        )
        raise InputError(f"feature maps of one image are [C, H, W] or [1, C, H, W], not {list(maps.shape)}{hint}.")
    return _grid(list(maps), [str(channel) for channel in range(len(maps))], path, stretch=True)


def show_kernels(weight: Tensor, *, path: str | os.PathLike[str] | None = None) -> "Figure":
    """Show the kernels of a convolution as pictures: what each output channel looks for.

    Kernels of three input channels are shown in colour, each stretched from its lowest to its highest weight. Others
    are shown in grey, a row for each output channel and a column for each input channel, all on one scale, where 0 is
    the middle grey.

    Examples:
        >>> from cifarnets import viz
        >>> from cifarnets.models import create
        >>> figure = viz.show_kernels(create("convnet").conv1.weight)

    Args:
        weight: `conv.weight`, `[outputs, inputs, height, width]`.
        path: Where to save the figure too.

    Raises:
        InputError: It is not the weight of a convolution, or it has too many kernels to see anything.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    weight = _floats(weight)
    if weight.ndim != 4 or not weight.numel():
        raise InputError(
            f"the kernels of a convolution are [outputs, inputs, height, width], not {list(weight.shape)}."
        )
    outputs, inputs = weight.shape[:2]
    count = outputs if inputs == 3 else outputs * inputs
    if count > MOST_KERNELS:
        raise InputError(f"{count:,} kernels are too many for one figure: pass a part, such as weight[:8, :8].")
    if inputs == 3:
        low, high = weight.amin((1, 2, 3), keepdim=True), weight.amax((1, 2, 3), keepdim=True)
        unit = (weight - low) / (high - low).clamp_min(torch.finfo(weight.dtype).tiny)
        return _grid(list(unit.permute(0, 2, 3, 1)), [str(number) for number in range(outputs)], path)
    largest = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    unit = (weight / largest + 1) / 2
    titles = [f"{output}, {channel}" for output in range(outputs) for channel in range(inputs)]
    return _grid(list(unit.flatten(0, 1)), titles, path, columns=inputs if inputs > 1 else None)


def _floats(values: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise InputError(f"a tensor is needed here, not {type(values).__name__}.")
    check_dense(values)
    return values.detach().cpu().float()  # matplotlib knows neither bfloat16 nor float16


def _pixels(image: Picture, mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """`[H, W, 3]` or `[H, W]`, float in 0..1 or integers in 0..255, as matplotlib wants it."""
    if isinstance(image, np.ndarray):
        if (
            image.ndim not in (2, 3)
            or (image.ndim == 3 and image.shape[-1] not in (1, 3))
            or image.dtype.kind not in "uif"
        ):
            raise InputError(
                f"an array is shown as [H, W], [H, W, 1] or [H, W, 3], uint8 or float, not {image.dtype} "
                f"{list(image.shape)}."
            )
        image = torch.from_numpy(image.astype(np.float32 if image.dtype.kind == "f" else image.dtype.newbyteorder("=")))
        image = image[None] if image.ndim == 2 else image.movedim(-1, 0)
    if not isinstance(image, Tensor):
        from PIL import Image

        if not isinstance(image, Image.Image):
            raise InputError(f"a picture is a PIL image, a tensor or an array, not {type(image).__name__}.")
        return torch.from_numpy(np.array(image if image.mode in ("L", "RGB", "RGBA") else image.convert("RGB")))
    check_dense(image)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.is_complex():
        raise InputError(f"an image is a tensor [3, H, W] or [1, H, W], not {image.dtype} {list(image.shape)}.")
    image = image.detach().cpu()
    if image.is_floating_point():
        image = _floats(image)
        image = image.clamp(0, 1) if mean is None or std is None else denormalize(image, mean, std)
    return image[0] if len(image) == 1 else image.permute(1, 2, 0)


def _grid(
    pictures: Sequence[Tensor],
    titles: Sequence[str],
    path: str | os.PathLike[str] | None,
    *,
    stretch: bool = False,
    columns: int | None = None,
) -> "Figure":
    if not pictures:
        raise InputError("there is no image to show.")
    columns = columns or _columns(len(pictures))
    rows = math.ceil(len(pictures) / columns)
    figure = new_figure(1.6 * columns, 1.7 * rows)
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if index < len(pictures):
            picture = pictures[index]
            # By default, matplotlib stretches every grey picture from black to white.
            limits = (None, None) if stretch else (0, 1 if picture.is_floating_point() else 255)
            axes.imshow(picture.numpy(), cmap="gray", interpolation="nearest", vmin=limits[0], vmax=limits[1])
            if index < len(titles):
                axes.set_title(titles[index], fontsize=8)
    return save_figure(figure, path)


def _columns(count: int) -> int:
    """How many pictures stand side by side: few places stay empty, and the figure is not higher than wide."""
    widest = min(MOST_COLUMNS, count)
    candidates = range(min(widest, math.ceil(math.sqrt(count))), widest + 1)
    return min(candidates, key=lambda columns: (-count % columns, abs(columns - math.sqrt(2 * count))))
