"""Every figure at its own size: no text over text, none cut off, none tiny, whatever the user's style is."""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import pytest
import torch
from tests.viz.reading import assert_readable, written
from torch import Tensor, nn

from cifarnets import Evaluation, features, load, predict, viz
from cifarnets.datasets import ImageDataset, SyntheticCIFAR10
from cifarnets.datasets.cifar10 import CLASSES
from cifarnets.training import History, LRSearch

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@cache
def data() -> ImageDataset:
    drawn = SyntheticCIFAR10(size=200)
    return ImageDataset(drawn.images, drawn.labels, CLASSES)  # names as long as those of CIFAR-10


@cache
def net() -> nn.Module:
    return load("convnet")


def image() -> Tensor:
    return data().images[0]


@cache
def evaluation() -> Evaluation:
    logits = 3 * torch.randn(200, 10, generator=torch.Generator().manual_seed(0))
    return Evaluation.from_logits(logits + 4 * torch.eye(10)[data().labels], data().labels, CLASSES)


def history(epochs: int) -> History:
    return History(
        {"epoch": e, "loss": 1 / e, "accuracy": 1 - 1 / (e + 1), "val_loss": 1.2 / e, "val_accuracy": 1 - 1.1 / (e + 1)}
        for e in range(1, epochs + 1)
    )


def prediction(topk: int) -> "Figure":
    images, labels = data().images[:8], data().labels[:8]
    return viz.show_predictions(images, predict(net(), images, topk), labels, classes=CLASSES)


FIGURES: dict[str, Callable[[], "Figure"]] = {
    "show": lambda: viz.show(data().images[:16], [CLASSES[label] for label in data().labels[:16]]),
    "show, long titles": lambda: viz.show(data().images[:3], ["the automobile at the left of the shed"] * 3),
    "show_maps": lambda: viz.show_maps(features(net(), image(), "conv1")),
    "show_kernels": lambda: viz.show_kernels(net().conv1.weight),
    "show_kernels, a table": lambda: viz.show_kernels(net().conv2.weight[:3]),
    "show_predictions": lambda: prediction(1),
    "show_predictions, three classes": lambda: prediction(3),
    "show_predictions, one image": lambda: viz.show_predictions(image(), predict(net(), image(), 3), ["automobile"]),
    "show_normalized": lambda: viz.show_normalized(image()),
    "show_normalized, grey": lambda: viz.show_normalized(image()[:1], mean=(0.5,), std=(0.2,)),
    "show_convolution": lambda: viz.show_convolution(image()),
    "show_convolution, grey": lambda: viz.show_convolution(image()[0], "emboss"),
    "show_convolution, large kernel": lambda: viz.show_convolution(image()[0], -10 * torch.ones(7, 7) - 0.25),
    "show_pooling": lambda: viz.show_pooling(image()),
    "show_pooling, windows of 4": lambda: viz.show_pooling(image()[0] / -25, size=4),
    "show_mistakes": lambda: viz.show_mistakes(evaluation(), data()),
    "show_attribution": lambda: viz.show_attribution(net(), image()),
    "show_attribution, gradient": lambda: viz.show_attribution(net(), image(), method="gradient"),
    "plot_softmax": lambda: viz.plot_softmax(),
    "plot_softmax, ten scores": lambda: viz.plot_softmax(range(10)),
    "plot_losses": lambda: viz.plot_losses(),
    "plot_history": lambda: viz.plot_history(history(8)),
    "plot_history, one epoch": lambda: viz.plot_history(history(1)),
    "plot_history, 1,000 epochs": lambda: viz.plot_history(history(1000)),
    "plot_confusion": lambda: viz.plot_confusion(evaluation()),
    "plot_confusion, two classes": lambda: viz.plot_confusion(
        Evaluation.from_logits(torch.eye(2), torch.tensor([0, 1]), ("automobile", "ship"))
    ),
    "plot_reliability": lambda: viz.plot_reliability(evaluation()),
    "plot_per_class": lambda: viz.plot_per_class(evaluation()),
    "plot_projection": lambda: viz.plot_projection(
        features(net(), data().images), data().labels, classes=data().classes
    ),
    "plot_zoo": lambda: viz.plot_zoo(),
    "plot_zoo, multiply-adds": lambda: viz.plot_zoo("macs"),
    "LRSearch.plot": lambda: LRSearch((1e-5, 1e-3, 0.1), (3.0, 2.0, 2.5), 0.001).plot(),
}


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_lies_over_another_or_leaves_the_figure(name: str) -> None:
    figure = FIGURES[name]()
    assert_readable(figure)
    assert figure.get_figwidth() <= 13  # fits a screen


def test_every_function_is_looked_at() -> None:
    drawn = {name for name in viz.__all__ if name.startswith(("show", "plot"))}
    assert drawn == {name.partition(",")[0] for name in FIGURES} - {"LRSearch.plot"}


def test_text_over_text_would_be_seen() -> None:
    figure = viz.plot_losses()
    for place in (0.5, 0.52):
        figure.axes[0].text(place, 2, "two notes in one place")
    with pytest.raises(AssertionError, match="overlap"):
        assert_readable(figure)
    figure.axes[0].texts[-1].remove()
    figure.text(0.9, 0.5, "a note at the edge of the figure")
    with pytest.raises(AssertionError, match="leaves the figure"):
        assert_readable(figure)


@pytest.mark.parametrize("name", ["show_predictions", "show_pooling", "plot_history", "plot_per_class", "plot_zoo"])
def test_a_dark_style_of_the_user_does_not_make_dark_text_on_dark(name: str) -> None:
    with mpl.rc_context({"text.color": "w", "axes.facecolor": "k", "figure.facecolor": "k", "xtick.color": "w",
                         "axes.labelcolor": "w", "ytick.color": "w", "savefig.facecolor": "k"}):  # fmt: skip
        figure = FIGURES[name]()
        texts = [text for text, _ in written(figure)]
        figure.canvas.draw()  # type: ignore[no-untyped-call]
        corner = np.asarray(figure.canvas.buffer_rgba())[0, 0]  # type: ignore[attr-defined]
    assert corner.tolist() == [255] * 4
    on_pictures = {id(text) for axes in figure.axes if axes.images for text in axes.texts}
    for text in texts:
        if id(text) not in on_pictures:
            red, green, blue = mpl.colors.to_rgb(text.get_color())
            light = sum(w * v**2.2 for w, v in ((0.2126, red), (0.7152, green), (0.0722, blue)))
            assert 1.05 / (light + 0.05) >= 4.5, f"{text.get_text()!r} is {text.get_color()} on white"
