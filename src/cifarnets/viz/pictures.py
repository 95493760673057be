"""Images, kernels and feature maps side by side (article, steps 2, 4, 7, 9, 11 and 14)."""

import math
import operator
import os
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets._figures import (
    BLUE,
    GREEN,
    INK,
    MUTED,
    TEXT,
    VERMILLION,
    WRONG,
    new_figure,
    save_figure,
    style_chart,
    style_picture,
)
from cifarnets.datasets.images import ARTICLE_MEAN, ARTICLE_STD, denormalize, normalize
from cifarnets.datasets.pictures import check_dense
from cifarnets.errors import InputError, brief

if TYPE_CHECKING:
    import PIL.Image
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Picture: TypeAlias = "Tensor | np.ndarray[Any, Any] | PIL.Image.Image"

Label: TypeAlias = "str | int"
"""A class by its name, or by its number."""

MOST_COLUMNS = 8
MOST_KERNELS = 512
"""Pictures of one figure; matplotlib takes seconds for this many."""

LONGEST_LINE = 21
"""Characters of a title in a line: more would run into the next picture's."""

SIDE, SMALL_SIDE, GAP = 1.45, 0.66, 0.12
"""Inches of a picture, of one in a table of kernels, and between them."""


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
    pictures = [_pixels(image, mean, std) for image in _listed(images)]
    return grid(pictures, [titles] if isinstance(titles, str) else titles, path)


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
    return grid(list(maps), [str(channel) for channel in range(len(maps))], path, stretch=True)


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
        return grid(list(unit.permute(0, 2, 3, 1)), [str(number) for number in range(outputs)], path)
    largest = weight.abs().max().clamp_min(torch.finfo(weight.dtype).tiny)
    unit = (weight / largest + 1) / 2
    titles = [f"{output}, {channel}" for output in range(outputs) for channel in range(inputs)]
    return grid(list(unit.flatten(0, 1)), titles, path, columns=inputs if inputs > 1 else None, side=SMALL_SIDE)


@checked
def show_predictions(
    images: "Picture | Sequence[Picture]",
    predictions: Sequence[Any],
    labels: Sequence[Any] | str | int | None = None,
    *,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    path: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Show images with what a model takes them for, right answers in blue with ✓ and wrong ones in red with ✗.

    Examples:
        >>> from cifarnets import load, predict, viz
        >>> from cifarnets.datasets import SyntheticCIFAR10
        >>> images = SyntheticCIFAR10(size=100).images[:4]
        >>> figure = viz.show_predictions(images, predict(load("convnet"), images, topk=3))

    Args:
        images: As `show` takes them.
        predictions: What `predict` returns for them. If it names several classes, their probabilities are bars.
        labels: The true class of each image, by name or by number; without them nothing is right or wrong.
        classes: The names of the numbers in `labels`.
        mean: With `std`: the constants of normalised images, which are undone.
        std: With `mean`: the constants of normalised images, which are undone.
        path: Where to save the figure too.

    Raises:
        InputError: Images, predictions and labels are not equally many, or labels are numbers without names.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    pictures = [_pixels(image, mean, std) for image in _listed(images)]
    guesses = _guesses(predictions)
    truths = [None] * len(pictures) if labels is None else _names(labels, classes)
    if not len(pictures) == len(guesses) == len(truths) or not pictures:
        raise InputError(
            f"each image needs a prediction and a label: {len(pictures)} images, {len(guesses)} predictions, "
            f"{len(truths)} labels."
        )
    titles, colors = [], []
    for guess, truth in zip(guesses, truths, strict=True):
        name, probability = guess[0]
        right = truth in (None, name)
        mark = "" if truth is None else "✓ " if right else "✗ "
        titles.append(f"{mark}{name} {probability:.2f}" + ("" if truth is None or right else f"\nis: {truth}"))
        colors.append(INK if truth is None else BLUE if right else WRONG)
    most = max(map(len, guesses))
    if most == 1:
        return grid(pictures, titles, path, colors=colors)
    lines = max(title.count("\n") for title in titles) + 1
    figure, panels = _cells(len(pictures), 4, lines, bars=0.08 + 0.27 * most)
    for index, (picture, guess) in enumerate(zip(pictures, guesses, strict=True)):
        draw_picture(panels[index], picture, titles[index], color=colors[index])
        _bars(panels[len(pictures) + index], guess, truths[index], most)
    return save_figure(figure, path)


@checked
def show_normalized(
    image: "Picture",
    *,
    mean: Sequence[float] = ARTICLE_MEAN,
    std: Sequence[float] = ARTICLE_STD,
    path: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Show an image beside its normalised self, and how the values of each channel move (article, step 7).

    Values of a normalised image lie around 0. A screen shows none below 0 or above 1, so it clips them, as the
    article's picture does.

    Examples:
        >>> from cifarnets import viz
        >>> from cifarnets.datasets import SyntheticCIFAR10
        >>> figure = viz.show_normalized(SyntheticCIFAR10(size=100).images[0])

    Args:
        image: One image, as `show` takes it.
        mean: The mean of each channel of images in 0..1.
        std: The standard deviation of each channel.
        path: Where to save the figure too.

    Raises:
        InputError: It is no image, a value is NaN, or the constants do not fit its channels.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    before = channels_of(image).clamp(0, 1)
    if before.isnan().any():
        raise InputError("some values of the image are NaN, which have no place among the others.")
    after = normalize(before, mean, std)
    names = ("red", "green", "blue") if len(before) == 3 else ("grey",)
    figure = new_figure(5, 4.2)
    panels = figure.subplots(2, 2, height_ratios=[1.4, 1])
    for column, (values, title) in enumerate(((before, "the image, 0 to 1"), (after, "normalised, clipped to 0 to 1"))):
        draw_picture(panels[0, column], _upright(values.clamp(0, 1)), title)
        axes = panels[1, column]
        edges = np.linspace(float(values.min()), float(values.max()) + 1e-6, 33)
        for channel, (name, style) in enumerate(zip(names, ("-", "--", ":"), strict=False)):
            heights, _ = np.histogram(values[channel].numpy(), edges)
            color = (VERMILLION, GREEN, BLUE)[channel] if len(names) == 3 else INK
            axes.stairs(heights, edges, label=name, color=color, linestyle=style, linewidth=1.4)
        axes.margins(y=0.06)
        style_chart(axes, xlabel="value", ylabel="pixels" if column == 0 else "", grid="x")
    return save_figure(figure, path)


def _floats(values: Tensor) -> Tensor:
    if not isinstance(values, Tensor):
        raise InputError(f"a tensor is needed here, not {type(values).__name__}.")
    check_dense(values)
    return values.detach().cpu().float()  # matplotlib knows neither bfloat16 nor float16


def channels_of(image: "Picture") -> Tensor:
    """An image or a map as float32 `[C, H, W]`, or `[H, W]`: integers are scaled to 0..1, floats stay what they are.

    Examples:
        >>> import torch
        >>> channels_of(torch.full((2, 2), 255, dtype=torch.uint8)).shape
        torch.Size([1, 2, 2])

    Raises:
        InputError: It is no image.
    """
    if isinstance(image, Tensor):
        check_dense(image)
        if image.ndim == 2:
            image = image[None]
        elif image.ndim == 4 and len(image) == 1:
            image = image[0]
    found = _tensor(image)
    return found if found.is_floating_point() else found / 255


def _tensor(image: "Picture") -> Tensor:
    """A picture of any kind as `[C, H, W]`, float32 or whole numbers, on the CPU."""
    found = _converted(image)
    if not found.numel():
        raise InputError(f"an image has pixels, and this one has none: {list(found.shape)}.")
    return found


def _converted(image: "Picture") -> Tensor:
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
        array = np.array(image if image.mode in ("L", "RGB") else image.convert("RGB"))
        return torch.from_numpy(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0))
    check_dense(image)
    if image.ndim != 3 or image.shape[0] not in (1, 3) or image.is_complex():
        raise InputError(f"an image is a tensor [3, H, W] or [1, H, W], not {image.dtype} {list(image.shape)}.")
    return _floats(image) if image.is_floating_point() else image.detach().cpu()


def _pixels(image: "Picture", mean: Sequence[float] | None, std: Sequence[float] | None) -> Tensor:
    """`[H, W, 3]` or `[H, W]`, float in 0..1 or integers in 0..255, as matplotlib wants it."""
    found = _tensor(image)
    if found.is_floating_point() and (mean is not None or isinstance(image, (Tensor, np.ndarray))):
        found = found.clamp(0, 1) if mean is None or std is None else denormalize(found, mean, std)
    return _upright(found)


def _upright(channels: Tensor) -> Tensor:
    return channels[0] if len(channels) == 1 else channels.permute(1, 2, 0)


def _listed(images: Any) -> Sequence[Any]:
    several = isinstance(images, (list, tuple)) or (isinstance(images, (Tensor, np.ndarray)) and images.ndim == 4)
    return images if several else [images]


def draw_picture(
    axes: "Axes", picture: Tensor, title: str = "", *, color: str = INK, stretch: bool = False, cmap: str = "gray"
) -> None:
    """Draw `[H, W, 3]` or `[H, W]` as it is, or stretched from its lowest to its highest value.

    Examples:
        >>> import torch
        >>> axes = new_figure(2, 2).subplots()
        >>> draw_picture(axes, torch.zeros(4, 4), "black")
        >>> axes.images[0].get_clim()
        (0.0, 1.0)
    """
    # By default, matplotlib stretches every grey picture from black to white.
    limits = (None, None) if stretch else (0, 1 if picture.is_floating_point() else 255)
    axes.imshow(picture.numpy(), cmap=cmap, interpolation="nearest", vmin=limits[0], vmax=limits[1])
    style_picture(axes, title, color)


def grid(
    pictures: Sequence[Tensor],
    titles: Sequence[str],
    path: str | os.PathLike[str] | None,
    *,
    stretch: bool = False,
    columns: int | None = None,
    side: float = SIDE,
    colors: Sequence[str] = (),
) -> "Figure":
    """Pictures `[H, W, 3]` or `[H, W]` side by side, in as many rows as they need.

    Examples:
        >>> import torch
        >>> len(grid([torch.zeros(4, 4)] * 3, ["a", "b", "c"], None).axes)
        3

    Raises:
        InputError: There is none.
    """
    if not pictures:
        raise InputError("there is no image to show.")
    titles = ["\n".join(textwrap.fill(line, LONGEST_LINE) for line in title.split("\n")) for title in titles]
    lines = max((1 + title.count("\n") for title in titles[: len(pictures)] if title), default=0)
    figure, panels = _cells(len(pictures), columns or _columns(len(pictures)), lines, side)
    for index, (axes, picture) in enumerate(zip(panels, pictures, strict=True)):
        title = titles[index] if index < len(titles) else ""
        color = colors[index] if index < len(colors) else INK
        draw_picture(axes, picture, title, color=color, stretch=stretch)
    return save_figure(figure, path)


def _cells(
    count: int, columns: int, lines: int, side: float = SIDE, bars: float = 0.0
) -> tuple["Figure", list["Axes"]]:
    """A figure with a place for each picture: `side` inches, below titles of some lines and above `bars` inches.

    The places are computed, since matplotlib takes seconds to find those of many pictures. With bars, their axes follow
    those of the pictures.
    """
    columns = min(columns, count)
    rows = math.ceil(count / columns)
    above = 0.06 + 0.155 * lines
    width, height = columns * (side + GAP) + GAP, rows * (above + side + bars + GAP) + GAP
    figure = new_figure(width, height)
    figure.set_layout_engine("none")
    corners = [(GAP + place % columns * (side + GAP), place // columns * (above + side + bars + GAP) + GAP / 2)
               for place in range(count)]  # fmt: skip

    def add(left: float, top: float, tall: float) -> "Axes":
        return figure.add_axes((left / width, 1 - (top + tall) / height, side / width, tall / height))

    panels = [add(left, top + above, side) for left, top in corners]
    return figure, panels + [add(left, top + above + side, bars) for left, top in corners if bars]


def _columns(count: int) -> int:
    """How many pictures stand side by side: few places stay empty, and the figure is not higher than wide."""
    widest = min(MOST_COLUMNS, count)
    candidates = range(min(widest, math.ceil(math.sqrt(count))), widest + 1)
    return min(candidates, key=lambda columns: (-count % columns, abs(columns - math.sqrt(2 * count))))


def _guesses(predictions: Sequence[Any]) -> list[list[tuple[str, float]]]:
    """What `predict` returns for one picture or for several, as a list with one entry for each picture."""
    several = predictions if not predictions or isinstance(predictions[0], (list, Tensor)) else [predictions]
    try:
        found = [[(str(name), float(share)) for name, share in guess] for guess in several]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"predictions are what cifarnets.predict returns, [('cat', 0.9), …] for each image, not "
            f"{brief(predictions)}."
        ) from error
    if not all(found):
        raise InputError("one of the predictions names no class.")
    return found


def _names(labels: Sequence[Any] | str | int, classes: Sequence[str] | None) -> list[str]:
    """The names of labels, which may be numbers."""
    found = []
    for label in [labels] if isinstance(labels, (str, int)) else labels:
        if isinstance(label, str):
            found.append(label)
            continue
        try:
            found.append(str(classes[operator.index(label)]) if classes is not None and label >= 0 else "")
        except (TypeError, IndexError, RuntimeError) as error:
            raise InputError(f"{brief(label)} is no number of one of the classes {brief(classes)}.") from error
        if not found[-1]:
            raise InputError(
                f"the label {brief(label)} is a number: pass classes=, the names of all numbers from 0 on."
            )
    return found


def _bars(axes: "Axes", guess: Sequence[tuple[str, float]], truth: str | None, most: int) -> None:
    """The probabilities of one picture as bars, with their names beside them."""
    for place, (name, share) in enumerate(guess):
        color = BLUE if name == truth else MUTED
        axes.barh(place + 0.28, share, color=color, height=0.25)
        axes.text(0, place - 0.15, f"{name} {share:.2f}", fontsize=TEXT, color=INK, va="center")
    axes.set(xlim=(0, 1), ylim=(most - 0.5, -0.5))
    axes.axis("off")
