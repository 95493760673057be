"""Which pixels of an image a model's answer rests on."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets._device import resolve_device
from cifarnets._figures import UNSIGNED, new_figure, save_figure, style_picture
from cifarnets.errors import InputError
from cifarnets.inference import check_probabilities, eval_mode, forward_logits, name_outputs
from cifarnets.prediction import Preprocessing
from cifarnets.viz.pictures import Picture, draw_picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BATCH_SIZE = 64
"""Covered images that go through the model at a time."""


@checked
def show_attribution(
    model: nn.Module,
    image: "Picture | str | os.PathLike[str] | bytes",
    *,
    method: Literal["occlusion", "gradient"] = "occlusion",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    device: str | torch.device = "auto",
    path: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Show which pixels of an image the likeliest class owes its probability to.

    Both ways say what this model looks at, and not what is in the image. They often disagree, so look at both.

    Examples:
        >>> from cifarnets import load, viz
        >>> from cifarnets.datasets import SyntheticCIFAR10
        >>> image = SyntheticCIFAR10(size=100).images[0]
        >>> figure = viz.show_attribution(load("convnet"), image)
        >>> figure = viz.show_attribution(load("convnet"), image, method="gradient")

    Args:
        model: A trained model.
        image: One picture, as `predict` takes it, and prepared in the same way.
        method: `"occlusion"` covers a square of a quarter of the side with the mean colour, at every second pixel, and
            shows how far the probability falls (Zeiler and Fergus 2014, "Visualizing and Understanding Convolutional
            Networks", § 4.2). `"gradient"` shows how steeply the logit changes with each pixel, in the channel where it
            is steepest (Simonyan et al. 2014, "Deep Inside Convolutional Networks", § 3).
        mean: The mean of each channel of images in 0..1, for a model that does not know it.
        std: The standard deviation of each channel, for a model that does not know it.
        classes: Names of the outputs, for a model that does not know them.
        device: Where to compute; `"auto"` takes the first of CUDA, MPS and CPU that is there.
        path: Where to save the figure too.

    Raises:
        InputError: As `predict`; or there are several pictures.
        OutputError: The file cannot be written.
        MissingExtraError: matplotlib is not installed.
    """
    preprocessing = Preprocessing.of(model, mean, std, classes)
    inputs, _ = preprocessing.prepare(image)
    if len(inputs) != 1:
        raise InputError(f"one picture is explained at a time, and these are {len(inputs)}.")
    target = resolve_device(device)
    with eval_mode(model, target) as session:
        inputs = inputs.to(target, session.dtype)
        probabilities = forward_logits(model, inputs).softmax(1)
        check_probabilities(probabilities)
        share, winner = (value.item() for value in probabilities[0].max(0))
        owed = (_occlusion if method == "occlusion" else _gradient)(model, inputs, int(winner)).float().cpu()
    name = name_outputs(preprocessing.classes, probabilities.shape[1])[int(winner)]

    column = torch.tensor([preprocessing.mean, preprocessing.std]).view(2, -1, 1, 1)
    picture = (inputs[0].float().cpu() * column[1] + column[0]).clamp(0, 1).permute(1, 2, 0)
    picture = picture if picture.shape[-1] == 3 else picture[..., 0]
    light = (owed.clamp_min(0) / owed.max().clamp_min(1e-12))[(...,) + (None,) * (picture.ndim - 2)]
    figure = new_figure(6, 2.3)
    panels = figure.subplots(1, 3)
    draw_picture(panels[0], picture, f"the model says:\n{name} {share:.2f}")
    low, high = min(float(owed.min()), 0.0), float(owed.max())
    panels[1].imshow(owed.numpy(), cmap=UNSIGNED, interpolation="nearest", vmin=low, vmax=high)
    title = "fall if covered" if method == "occlusion" else "slope of the logit"
    style_picture(panels[1], f"{title}:\ndark {low:.2f}, bright {high:.2f}")
    draw_picture(panels[2], picture * (0.15 + 0.85 * light), "the image\nin this light")
    return save_figure(figure, path)


def _occlusion(model: nn.Module, inputs: Tensor, winner: int) -> Tensor:
    """How far the probability falls if a square covers a pixel, as the mean over the squares that do: `[H, W]`."""
    height, width = inputs.shape[2:]
    side = max(min(height, width) // 4, 1)
    corners = [(row, column) for row in range(1 - side, height, 2) for column in range(1 - side, width, 2)]
    masks = torch.zeros(len(corners), 1, height, width, dtype=inputs.dtype, device=inputs.device)
    for mask, (row, column) in zip(masks, corners, strict=True):
        mask[:, max(row, 0) : row + side, max(column, 0) : column + side] = 1
    before = forward_logits(model, inputs).softmax(1)[0, winner]
    falls = torch.zeros_like(masks[0, 0])
    for part in torch.split(masks, BATCH_SIZE):
        after = forward_logits(model, inputs * (1 - part)).softmax(1)[:, winner]  # 0 is the mean colour
        falls += ((before - after).view(-1, 1, 1) * part[:, 0]).sum(0)
    return falls / masks[:, 0].sum(0)


def _gradient(model: nn.Module, inputs: Tensor, winner: int) -> Tensor:
    """The largest change of the logit over the channels of each pixel: `[H, W]`."""
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has switched on
        pixels = inputs.clone().requires_grad_()
        logit = forward_logits(model, pixels)[0, winner]
        slope = None
        if logit.requires_grad:  # nothing is left in the parameters' .grad
            (slope,) = torch.autograd.grad(logit, pixels, allow_unused=True)
    if slope is None:
        raise InputError('no gradient leads from the logits to the pixels: use method="occlusion" for this model.')
    return slope[0].abs().amax(0)
