"""A convolution and a pooling taken apart: the numbers that go in, and the one that comes out (article, steps 9-13)."""

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnets._checked import checked
from cifarnets._figures import (
    BLUE,
    GREEN,
    INK,
    ORANGE,
    PURPLE,
    SIGNED,
    TEXT,
    VERMILLION,
    new_figure,
    save_figure,
    style_picture,
)
from cifarnets.datasets.pictures import check_dense
from cifarnets.errors import InputError, brief, unknown_name
from cifarnets.viz.pictures import Picture, channels_of, draw_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

KERNELS: dict[str, Tensor] = {
    name: torch.tensor(rows, dtype=torch.float32, device="cpu")
    for name, rows in {
        "edge": [[-1, 0, 1], [-1, 0, 1], [-1, 0, 1]],
        "horizontal edge": [[-1, -1, -1], [0, 0, 0], [1, 1, 1]],
        "sobel": [[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]],
        "outline": [[-1, -1, -1], [-1, 8, -1], [-1, -1, -1]],
        "sharpen": [[0, -1, 0], [-1, 5, -1], [0, -1, 0]],
        "emboss": [[-2, -1, 0], [-1, 1, 1], [0, 1, 2]],
        "blur": [[1 / 9] * 3] * 3,
        "identity": [[0, 0, 0], [0, 1, 0], [0, 0, 0]],
    }.items()
}
"""Classic kernels `[3, 3]`, by name; `"edge"` is the article's, which finds vertical edges (step 11)."""

LARGEST_KERNEL, LARGEST_POOL = 7, 4
"""Sides whose numbers have room."""

WINDOWS = (BLUE, ORANGE, GREEN, PURPLE)
"""Colours of the four windows of a pooling."""


@checked
def show_convolution(
    image: "Picture",
    kernel: str | Tensor | Sequence[Sequence[float]] = "edge",
    *,
    at: Sequence[int] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Take a convolution apart: image, patch, kernel, products, their sum, and the place of the sum in the output.

    The kernel slides over the image without padding (article, steps 9 and 11). A kernel `[height, width]` does the same
    in every channel, and the sum runs over all of them.

    Examples:
        >>> import torch
        >>> from cifarnets import viz
        >>> from cifarnets.datasets import SyntheticCIFAR10
        >>> figure = viz.show_convolution(SyntheticCIFAR10(size=100).images[0], "edge")
        >>> weight = torch.nn.Conv2d(3, 16, 3).weight
        >>> figure = viz.show_convolution(SyntheticCIFAR10(size=100).images[0], weight[5], at=(10, 12))

    Args:
        image: One image as `show` takes it, or a map `[H, W]`. Integers are scaled to 0..1, floats stay what they are.
        kernel: A name in `KERNELS`, numbers `[height, width]`, or `[channels, height, width]` such as `conv.weight[0]`.
        at: Row and column of the output; by default where it is farthest from 0.
        path: Where to save the figure too.

    Raises:
        UnknownNameError: There is no kernel of that name.
        InputError: The kernel does not fit the image or is larger than 7×7, or the place is not in the output.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    channels = channels_of(image)
    weight = _kernel(kernel, channels)
    height, width = weight.shape[1:]
    output = F.conv2d(channels[None], weight[None])[0, 0]
    row, column = _place(at, output, output.abs())
    patches = channels[:, row : row + height, column : column + width]
    products, total = patches * weight, float(output[row, column])

    depth = len(channels)
    scale = max(width / 4, 1.0)  # numbers of large kernels need room
    figure = new_figure(5.6 * scale, (2.7 + 1.75 * depth) * scale)
    parts: Any = figure.subfigures(2, 1, height_ratios=[2.6, 1.75 * depth])
    above, below = parts
    before, after = above.subplots(1, 2)
    draw_picture(before, _shown(channels), f"the image, {_shape(channels)}", stretch=depth == 1)
    _mark(before, row, column, height, width)
    _draw_signed(after, output, f"the output, {_shape(output)}")
    _mark(after, row, column, 1, 1, inset=-0.5)

    panels = below.subplots(depth, 3, squeeze=False)
    names = ("red", "green", "blue") if depth == 3 else ("",)
    light = min(float(channels.min()), 0.0), max(float(channels.max()), 1.0)
    largest = max(float(weight.abs().max()), 1e-12), max(float(products.abs().max()), 1e-12)
    for channel, name in enumerate(names):
        grids = (patches[channel], "gray", light), (weight[channel], SIGNED, (-largest[0], largest[0]))
        titles = [f"the patch{f' in {name}' if name else ''}", "the kernel", "the products"]
        for place, (values, cmap, limits) in enumerate(
            (*grids, (products[channel], SIGNED, (-largest[1], largest[1])))
        ):
            _draw_numbers(panels[channel, place], values, titles[place], cmap, limits, 94 * scale)
        for place, sign in ((1, "×"), (2, "=")):
            panels[channel, place].text(
                -0.14, 0.5, sign, transform=panels[channel, place].transAxes, fontsize=13, color=INK, ha="center",
                va="center",
            )  # fmt: skip
    note = f"the sum of the {products.numel()} products, the marked value of the output = {_number(total)}"
    below.supxlabel(note, fontsize=TEXT, color=INK)
    return save_figure(figure, path)


@checked
def show_pooling(
    image: "Picture",
    *,
    size: int = 2,
    at: Sequence[int] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Show average and maximum pooling side by side, as pictures and as the numbers of four windows (article, step 13).

    Examples:
        >>> from cifarnets import viz
        >>> from cifarnets.datasets import SyntheticCIFAR10
        >>> figure = viz.show_pooling(SyntheticCIFAR10(size=100).images[0])

    Args:
        image: One image as `show` takes it, or a map `[H, W]`; the numbers of an image in colour are those of its
            first channel.
        size: Side of a window, 2 to 4. A rest at the right and the lower side is left out, as torch does it.
        at: Row and column of the first of the four windows in the output; by default where average and maximum differ
            most.
        path: Where to save the figure too.

    Raises:
        InputError: The image has fewer than four windows, or the place is not in the output.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    channels = channels_of(image)
    if not 2 <= size <= LARGEST_POOL:
        raise InputError(
            f"size must be 2 to {LARGEST_POOL}, the side of a window whose numbers can be read, not {size}."
        )
    if min(channels.shape[1:]) < 2 * size:
        raise InputError(f"an image of {_shape(channels)} has no four windows of {size}×{size}: pass a larger one.")
    average, maximum = F.avg_pool2d(channels[None], size)[0], F.max_pool2d(channels[None], size)[0]
    first = maximum[0] - average[0]
    row, column = _place(at, first[:-1, :-1], first[:-1, :-1])
    inside = slice(row * size, (row + 2) * size), slice(column * size, (column + 2) * size)
    windows = slice(row, row + 2), slice(column, column + 2)

    scale = max(2 * size / 5.2, 1.0)  # numbers of large windows need room
    figure = new_figure(6.4 * scale, 4.5 * scale)
    panels = figure.subplots(2, 3)
    depth = len(channels)
    for place, (values, title) in enumerate(((channels, "before"), (average, "average"), (maximum, "maximum"))):
        draw_picture(panels[0, place], _shown(values), f"{title}, {_shape(values)}", stretch=depth == 1)
        _mark(panels[0, place], row * (size if not place else 1), column * (size if not place else 1),
              2 * size if not place else 2, 2 * size if not place else 2)  # fmt: skip
    low, high = float(channels[0].min()), float(channels[0].max())
    note = "red in the frame" if depth == 3 else "in the frame"
    cuts = ((channels[0][inside], size), (average[0][windows], 1), (maximum[0][windows], 1))
    for place, ((values, side), title) in enumerate(zip(cuts, (note, "the averages", "the maxima"), strict=True)):
        _draw_numbers(panels[1, place], values, title, "gray", (low, high), 135 * scale)
        for window, color in enumerate(WINDOWS):
            _mark(panels[1, place], window // 2 * side, window % 2 * side, side, side, color=color, inset=0.06)
    return save_figure(figure, path)


def _kernel(kernel: str | Tensor | Sequence[Sequence[float]], channels: Tensor) -> Tensor:
    """A kernel as float32 `[C, height, width]` for an image `[C, H, W]`."""
    if isinstance(kernel, str):
        if kernel not in KERNELS:
            raise unknown_name("kernel", kernel, KERNELS)
        kernel = KERNELS[kernel]
    if isinstance(kernel, Tensor):
        check_dense(kernel)
    try:
        weight = torch.as_tensor(kernel, device="cpu").detach().float()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"a kernel is rows of numbers, not {brief(kernel)}.") from error
    if weight.ndim == 2:
        weight = weight.expand(len(channels), -1, -1)
    if weight.ndim != 3 or not weight.numel() or max(weight.shape[1:]) > LARGEST_KERNEL:
        raise InputError(
            f"a kernel is [height, width] or [channels, height, width], with sides of 1 to {LARGEST_KERNEL}, not "
            f"{list(weight.shape)}."
        )
    if len(weight) != len(channels):
        raise InputError(f"a kernel of {len(weight)} channels does not fit an image of {len(channels)}.")
    if weight.shape[1] > channels.shape[1] or weight.shape[2] > channels.shape[2]:
        raise InputError(f"the kernel, {_shape(weight)}, is larger than the image, {_shape(channels)}.")
    return weight


def _place(at: Sequence[int] | None, output: Tensor, interest: Tensor) -> tuple[int, int]:
    """Row and column in an output `[H, W]`; by default where `interest` is largest."""
    height, width = output.shape
    if at is None:
        row, column = divmod(int(interest.nan_to_num().flatten().argmax()), width)
        return row, column
    if len(at) != 2 or not (0 <= at[0] < height and 0 <= at[1] < width):
        raise InputError(f"at must be a row below {height} and a column below {width}, not {brief(at)}.")
    return at[0], at[1]


def _shown(channels: Tensor) -> Tensor:
    return channels[0] if len(channels) == 1 else channels.clamp(0, 1).permute(1, 2, 0)


def _shape(values: Tensor) -> str:
    return "×".join(map(str, values.shape[-2:]))


def _draw_signed(axes: "Axes", values: Tensor, title: str) -> None:
    """A map: around white where it has both signs, else in grey."""
    low, high = float(values.min()), float(values.max())
    signed = low < 0 < high
    limit = max(-low, high)
    limits = (-limit, limit) if signed else (None, None)
    axes.imshow(
        values.numpy(), cmap=SIGNED if signed else "gray", interpolation="nearest", vmin=limits[0], vmax=limits[1]
    )
    style_picture(axes, title)


def _draw_numbers(
    axes: "Axes", values: Tensor, title: str, cmap: str, limits: tuple[float, float], points: float
) -> None:
    """A small table, `points` wide, whose cells are as bright as their numbers."""
    image = axes.imshow(values.numpy(), cmap=cmap, vmin=limits[0], vmax=limits[1], interpolation="nearest")
    style_picture(axes, title)
    height, width = values.shape
    _mark(axes, 0, 0, height, width, color=INK, halo=False)
    whole = bool((values == values.round()).all())
    size = min(TEXT, 0.27 * points / width)
    for row in range(height):
        for column in range(width):
            value = float(values[row, column])
            red, green, blue, _ = image.to_rgba(np.array([value]))[0]
            dark = 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 < 0.18
            axes.text(
                column, row, _number(value, whole), ha="center", va="center", fontsize=size,
                color="white" if dark else INK,
            )  # fmt: skip


def _number(value: float, whole: bool = False) -> str:
    """A number as a table shows it, with a real minus."""
    if not math.isfinite(value):
        return str(value)
    text = f"{value:.0f}" if whole else f"{value:.2f}"
    return text.replace("-", "−") if float(text) else text.lstrip("-")


def _mark(
    axes: "Axes", row: int, column: int, height: int, width: int, *, color: str = VERMILLION, halo: bool = True,
    inset: float = 0.0,
) -> None:  # fmt: skip
    """A frame around pixels, with a white line beside it so that it is seen on every picture."""
    from matplotlib.patches import Rectangle
    from matplotlib.patheffects import Normal, withStroke

    options: dict[str, Any] = {"fill": False, "edgecolor": color, "linewidth": 1.8 if halo else 0.8, "clip_on": False}
    if halo:
        options["path_effects"] = [withStroke(linewidth=3.6, foreground="white"), Normal()]
    corner = (column - 0.5 + inset, row - 0.5 + inset)
    axes.add_patch(Rectangle(corner, width - 2 * inset, height - 2 * inset, **options))
