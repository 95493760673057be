"""A page in which one model runs in the browser, and can be looked into."""

import base64
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from cifarnets._checked import checked
from cifarnets._files import as_path, write_atomic
from cifarnets.errors import InputError, brief
from cifarnets.inference import name_outputs
from cifarnets.models.metadata import get_meta, unwrap
from cifarnets.prediction import Preprocessing
from cifarnets.report.drawings import drawings
from cifarnets.report.graph import graph_of
from cifarnets.version import __version__

TEMPLATES = Path(__file__).parent / "templates"


@checked
def write_explorer(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Path:
    """Write a page in which this model runs: one HTML file that opens anywhere, without a server or a network.

    The page takes a picture (a file, a drawing, the webcam, or one that it brings along) and shows the maps of every
    layer. It takes each number apart: the patch, the kernel, and their sum. Kernels can be compared, and changed by
    hand. The weights are in the file, float32 in base64.

    Examples:
        >>> import cifarnets
        >>> from cifarnets.report import write_explorer
        >>> path = write_explorer(cifarnets.load("convnet.cifar3"), "convnet.html")
        >>> path.stat().st_size < 1_000_000
        True

    Args:
        model: A trained model, whose layers are of kinds that the page knows.
        path: The file to write.
        title: What the page is called; the architecture by default.
        classes: Names of the outputs, for a model that does not know them.
        mean: The mean of each channel of images in 0..1, for a model that does not know it.
        std: The standard deviation of each channel, for a model that does not know it.

    Returns:
        The path of the page.

    Raises:
        InputError: The model has a layer that the page does not know, the message names it; or it does not know its
            constants and none are passed; or it takes images of neither one nor three channels.
        OutputError: The file cannot be written.
    """
    import jinja2

    path = as_path(path)
    preprocessing = Preprocessing.of(model, mean, std, classes)
    channels = len(preprocessing.mean)
    if not all(map(math.isfinite, (*preprocessing.mean, *preprocessing.std))) or min(preprocessing.std, default=0) <= 0:
        raise InputError(
            f"mean must be finite and std above 0, not {brief(preprocessing.mean)} and {brief(preprocessing.std)}."
        )
    if channels not in (1, 3):
        raise InputError(f"the explorer shows pictures of 1 or 3 channels, and the model takes {channels}.")
    graph = graph_of(model, (channels, *preprocessing.size))
    meta, parameters = get_meta(model), sum(tensor.numel() for tensor in unwrap(model).parameters())
    title = title or (meta.architecture if meta else type(unwrap(model)).__name__)
    accuracy = (meta.results.get("file_accuracy") or meta.results.get("accuracy")) if meta else None
    outputs = name_outputs(preprocessing.classes, graph.layers[-1]["shape"][0])
    content = {
        "title": title,
        "classes": outputs,
        "channels": ["red", "green", "blue"] if channels == 3 else ["grey"],
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "size": preprocessing.size,
        "layers": graph.layers,
        "pictures": [
            {"name": name, "bytes": _base64(picture.numpy())}
            for name, picture in drawings(preprocessing.size, channels).items()
        ],
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("explorer.html.j2").render(
        title=title,
        parameters=parameters,
        layers=len(graph.layers) - 1,
        outputs=len(outputs),
        accuracy=accuracy if isinstance(accuracy, float) else None,
        version=__version__,
        content=_script(content),
        weights=_base64(graph.weights.astype("<f4", copy=False)),
    )
    return write_atomic(path, page.encode(errors="replace"))  # a name may hold half a surrogate pair


def _base64(array: Any) -> str:
    return base64.b64encode(array.tobytes()).decode()


def _script(content: Any) -> str:
    """JSON that can stand between the tags of a script, whatever the names in it are."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
