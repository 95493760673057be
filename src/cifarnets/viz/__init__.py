"""Pictures of images, nets and results, each a function that returns a figure. They need the extra `plots`.

None of them opens a window: a notebook draws a figure that ends a cell, and `path=` saves it. The colours can be told
apart by the colour-blind, and every figure reads on a light page and on a dark one. `explorer` writes a page for the
browser instead.
"""

from cifarnets.viz.attribution import show_attribution
from cifarnets.viz.convolution import KERNELS, show_convolution, show_pooling
from cifarnets.viz.losses import plot_losses, plot_softmax
from cifarnets.viz.pages import explorer
from cifarnets.viz.pictures import show, show_kernels, show_maps, show_normalized, show_predictions
from cifarnets.viz.results import (
    plot_confusion,
    plot_history,
    plot_per_class,
    plot_projection,
    plot_reliability,
    show_mistakes,
)
from cifarnets.viz.zoo import plot_zoo

__all__ = [
    "KERNELS",
    "explorer",
    "plot_confusion",
    "plot_history",
    "plot_losses",
    "plot_per_class",
    "plot_projection",
    "plot_reliability",
    "plot_softmax",
    "plot_zoo",
    "show",
    "show_attribution",
    "show_convolution",
    "show_kernels",
    "show_maps",
    "show_mistakes",
    "show_normalized",
    "show_pooling",
    "show_predictions",
]
