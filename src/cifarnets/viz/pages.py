"""Pages that open in a browser."""

import os
from pathlib import Path

from torch import nn

from cifarnets._checked import checked


@checked
def explorer(model: nn.Module, path: str | os.PathLike[str]) -> Path:
    """Write a page in which this model runs in a browser: draw a picture, and look into every layer.

    `cifarnets.report.write_explorer` does the work, and takes classes and constants of a model that does not know them.

    Examples:
        >>> from cifarnets import load, viz
        >>> viz.explorer(load("convnet"), "convnet.html").name
        'convnet.html'

    Args:
        model: A trained model, whose layers are of kinds that the page knows.
        path: The file to write, one HTML page that needs no network.

    Raises:
        InputError: The page does not know a layer of the model, or the model does not know its constants.
        OutputError: The file cannot be written.
    """
    from cifarnets.report import write_explorer  # which needs Jinja2

    return write_explorer(model, path)
