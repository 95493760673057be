"""A run, or several side by side, as one page that opens in any browser without a network."""

import base64
import functools
import io
import json
import math
import os
import shlex
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets._files import as_path, open_regular, write_atomic
from cifarnets._html import COLORS, Line, bar, confusion_table, line_chart, reliability_chart
from cifarnets._runtime import describe_machine
from cifarnets.datasets import ImageDataset, train_val_split
from cifarnets.errors import CifarNetsError, InputError, brief
from cifarnets.evaluation import Evaluation
from cifarnets.inference import eval_mode
from cifarnets.models import load, summary
from cifarnets.models.metadata import get_meta
from cifarnets.models.profile import Summary
from cifarnets.prediction import Prediction, features, predict
from cifarnets.recipes import Recipe, Run
from cifarnets.recipes.recipe import command_of
from cifarnets.recipes.run import read_run
from cifarnets.training import History
from cifarnets.version import __version__

if TYPE_CHECKING:
    from jinja2 import Environment

MOST_RUNS = len(COLORS)
MISTAKES, KERNELS, LAYERS, MAPS = 12, 32, 3, 16
"""Pictures of one run: mistakes, kernels, and the maps of so many layers."""
ROWS = 200
"""Epochs of the table of a history."""
SECONDS, REPEATS = 0.05, 3
"""How long one speed is measured, and how often at least; the shortest time counts, as in timeit."""
LARGEST_FILE = 10_000_000
"""Bytes of an evaluation.json."""
SECTIONS = {
    "differences": "Differences of the recipes",
    "results": "Results",
    "run": "What was run",
    "curves": "Curves",
    "confusion": "Confusion",
    "classes": "Accuracy of each class",
    "calibration": "Calibration",
    "mistakes": "Most confident mistakes",
    "kernels": "First layer",
    "maps": "Feature maps",
    "speed": "Speed",
    "environment": "Environment",
    "repeat": "Repeat it",
}
"""The sections of the page, in their order, by the names of their anchors."""


class Picture(NamedTuple):
    """A picture of the page.

    Attributes:
        source: The PNG file as a data URI.
        alt: What it shows, for those who cannot see it.
        text: What stands below it.
    """

    source: str
    alt: str
    text: str = ""


@dataclass(frozen=True)
class Gallery:
    """Pictures under one heading, or the reason why there are none."""

    title: str = ""
    pictures: Sequence[Picture] = ()
    note: str = ""


@dataclass(frozen=True)
class RunReport:
    """What the page shows of one run.

    Attributes:
        name: Of its folder, with a letter where there are several runs.
        color: The number of its colour.
        recipe: What was run.
        starts: When, on what machine, and by which command it was started.
        history: One row an epoch.
        evaluations: By the part of the data.
        part: The part that the page is about: `test`, or else `val`, or else `train`.
        layers: The layers of the model; None without its file.
        mistakes: The most confident ones.
        kernels: Of the first layer.
        maps: Of several layers, for one image; the first gallery is the image.
        speeds: Measured speeds by what they are of.
        commit: Of the source that trained it.
        missing: What the folder lacks.
    """

    name: str
    color: int
    recipe: Recipe
    starts: Sequence[Mapping[str, Any]]
    history: History
    evaluations: Mapping[str, Evaluation]
    part: str
    layers: Summary | None
    mistakes: Gallery
    kernels: Gallery
    maps: Sequence[Gallery]
    speeds: Mapping[str, str]
    commit: str | None
    missing: Sequence[str]

    @property
    def result(self) -> Evaluation | None:
        """The evaluation that the page is about."""
        return self.evaluations.get(self.part)

    @property
    def seconds(self) -> float:
        """How long all epochs took."""
        return float(sum(row.get("seconds", 0) for row in self.history))

    @property
    def command(self) -> str:
        """The command that trains as this run did."""
        words = command_of(self.recipe)
        return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)

    @property
    def install(self) -> str:
        """The command that installs the versions of this run."""
        versions = self.starts[-1].get("versions", {}) if self.starts else {}
        pins = [
            f"{name}=={str(versions[name]).partition('+')[0]}" for name in ("cifarnets", "torch") if name in versions
        ]
        return f"pip install {' '.join(pins)}"

    @property
    def data(self) -> str:
        """What it was trained on, in words."""
        recipe, counted = self.recipe, self.evaluations.get("train")
        what = "drawn pictures" if recipe.synthetic else "CIFAR-10" if recipe.images is None else "your pictures"
        named = f" ({', '.join(recipe.classes)})" if recipe.classes else ""
        return f"{counted.n:,} images of {what}{named}" if counted else f"{what}{named}"


@checked
def write_report(
    runs: str | os.PathLike[str] | Run | Sequence[str | os.PathLike[str] | Run],
    path: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str] | None = None,
) -> Path:
    """Write what there is to know about a run as one HTML file, or about several runs side by side.

    The page needs no network and no other file. It shows what was run, curves in which one can read every value, the
    confusion matrix, the classes, the calibration, the most confident mistakes, the kernels of the first layer, the
    feature maps of one image, speeds, the environment, and the command that repeats the run. What the folder or the
    data does not give is left out, and the page says so. It holds a few pictures of the data.

    Examples:
        >>> import tempfile
        >>> from cifarnets.recipes import Recipe, run_recipe
        >>> from cifarnets.report import write_report
        >>> recipe = Recipe("convnet", epochs=1, batch_size=500, synthetic=True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = run_recipe(recipe, f"{folder}/run", progress=False)
        ...     page = write_report(run, f"{folder}/report.html")
        ...     page.name, page.stat().st_size < 2_000_000
        ('report.html', True)

    Args:
        runs: The folder of a run, what `run_recipe` returned, or a list of up to eight of these.
        path: The file to write; one that is there is replaced.
        root: Where CIFAR-10 lies; see `CIFAR10Normalized`.

    Raises:
        InputError: There is no run in a folder, or it is damaged; or there are too many runs.
        OutputError: The file cannot be written.
    """
    listed = list(runs) if isinstance(runs, Sequence) and not isinstance(runs, str) else [runs]
    if not 1 <= len(listed) <= MOST_RUNS:
        raise InputError(f"a report shows 1 to {MOST_RUNS} runs, not {len(listed)}.")
    folders = [run.folder if isinstance(run, Run) else as_path(run) for run in listed]
    read = [_read(folder, number if len(folders) > 1 else None, root) for number, folder in enumerate(folders)]
    # The name of a folder may hold bytes that are no text.
    return write_atomic(path, _render(read).encode(errors="replace"))


@functools.cache
def _templates() -> "Environment":
    """The templates, which are compiled at their first use."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("cifarnets.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(percent=_percent, duration=_duration, plain=_plain)
    return found


def _render(runs: Sequence[RunReport]) -> str:
    return (
        _templates()
        .get_template("report.html")
        .render(
            runs=runs,
            several=len(runs) > 1,
            title="Run report" if len(runs) == 1 else f"{len(runs)} runs, side by side",
            differences=_differences([run.recipe for run in runs]),
            usual=Recipe("").to_dict(),
            charts=_charts(runs),
            classes=list(dict.fromkeys(name for run in runs if run.result for name in run.result.per_class)),
            figures=_figures(runs),
            bar=bar,
            confusion_table=confusion_table,
            reliability_chart=reliability_chart,
            machine=describe_machine(),
            version=__version__,
            rows=ROWS,
            colors=COLORS,
            sections={name: text for name, text in SECTIONS.items() if name != "differences" or len(runs) > 1},
        )
    )


def _read(folder: Path, number: int | None, root: str | os.PathLike[str] | None) -> RunReport:
    recipe, starts = read_run(folder)
    missing = []
    try:
        history = History.from_csv(folder / "history.csv")
    except InputError:
        history = History()
        missing.append("history.csv")
    evaluations = {}
    try:
        with open_regular(folder / "evaluation.json") as file:
            content = json.loads(file.read(LARGEST_FILE))
        evaluations = {name: Evaluation.from_dict(entry) for name, entry in content.items()}
    except (OSError, ValueError, AttributeError, RecursionError):  # of which InputError is one
        missing.append("evaluation.json")
    model, why = None, "model.safetensors is not in the folder of the run."
    if (folder / "model.safetensors").is_file():
        try:
            model = load(folder / "model.safetensors")
        except CifarNetsError as error:  # such as a model of the user's own, which is not registered here
            why = str(error)
    if model is None:
        missing.append("model.safetensors")
    part = next((name for name in ("test", "val", "train") if name in evaluations), "test")
    images: ImageDataset | None = None
    no_images = ""
    try:
        images = _images(recipe, part, root)
    except CifarNetsError as error:
        no_images = f"The images are not at hand: {error}"
    meta = get_meta(model) if model is not None else None
    letter = "" if number is None else f"{chr(ord('A') + number)}: "
    return RunReport(
        name=f"{letter}{folder.resolve().name}",
        color=number or 0,
        recipe=recipe,
        starts=[start for start in starts if isinstance(start, dict) and _has_tables(start)],
        history=history,
        evaluations=evaluations,
        part=part,
        layers=None if model is None else summary(model, meta.size[0] if meta and meta.size else 32),
        mistakes=_mistakes(evaluations.get(part), images, no_images),
        kernels=Gallery(note=why) if model is None else _kernels(model),
        maps=[Gallery(note=why)] if model is None else _maps(model, images, no_images),
        speeds={} if model is None else _speeds(model),
        commit=str(meta.provenance.get("commit") or "") if meta else None,
        missing=missing,
    )


def _has_tables(start: Mapping[str, Any]) -> bool:
    """Whether the start of a run is noted as this library does it; run.json is a file that anybody can edit."""
    return all(isinstance(start.get(name, {}), dict) for name in ("versions", "machine"))


def _images(recipe: Recipe, part: str, root: str | os.PathLike[str] | None) -> ImageDataset:
    """The images of an evaluation, in its order."""
    if part == "val" and recipe.val:
        return train_val_split(recipe.dataset(True, root), recipe.val, recipe.seed)[1]
    return recipe.dataset(part == "train", root)


def _mistakes(result: Evaluation | None, images: ImageDataset | None, no_images: str) -> Gallery:
    if result is None:
        return Gallery(note="The model has not been evaluated yet.")
    if not result.mistakes:
        right = result.accuracy == 1
        return Gallery(
            note="There is none: the model is right about every image."
            if right
            else "An earlier version of cifarnets made this run and kept no mistakes: resume the run to evaluate again."
        )
    if images is None:
        return Gallery(note=no_images)
    known = range(len(images)), range(len(result.classes))
    if len(images) != result.n or not all(
        found.image in known[0] and found.predicted in known[1] and images.targets[found.image] == found.label
        for found in result.mistakes
    ):
        return Gallery(note="The images are not those of the evaluation: they have changed since.")
    pictures = []
    for found in result.mistakes[:MISTAKES]:
        true, taken = result.classes[found.label], result.classes[found.predicted]
        pictures.append(
            Picture(
                _png(images.images[found.image]),
                f"Image {found.image}, {true}, taken for {taken}",
                f"{true}, taken for {taken} with {_percent(found.confidence)}",
            )
        )
    return Gallery("Most confident mistakes", pictures)


def _kernels(model: nn.Module) -> Gallery:
    """The weights of the first layer as pictures, each stretched from its lowest to its highest weight."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.shape[1] in (1, 3):
            weight = module.weight.detach()
            kind, what = "kernels", "×".join(map(str, weight.shape[2:]))
        elif isinstance(module, nn.Linear) and module.in_features == 3 * 32 * 32:
            weight = module.weight.detach().view(-1, 3, 32, 32)
            kind, what = "neurons", "a weight for each pixel"
        else:
            continue
        count = len(weight)
        shown = f"the first {KERNELS} of {count}" if count > KERNELS else f"all {count}"
        title = f"{name}: {shown} {kind}, {what}"
        singular = kind[:-1]
        return Gallery(
            title,
            [Picture(_png(_stretched(part)), f"{singular} {i} of {name}") for i, part in enumerate(weight[:KERNELS])],
        )
    return Gallery(note="The model has no layer on the colours of an image that could be shown as pictures.")


def _maps(model: nn.Module, images: ImageDataset | None, no_images: str) -> list[Gallery]:
    """What the first, a middle and the last convolution make of one image."""
    if images is None:
        return [Gallery(note=no_images)]
    names = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not names:
        return [Gallery(note="The model has no convolution, so it makes no maps.")]
    chosen = sorted({0, len(names) // 2, len(names) - 1})[:LAYERS]
    image, label = images.images[0], images.classes[images.targets[0]]
    try:
        found = features(model, image, [names[i] for i in chosen], device="cpu")
        answer: Any = predict(model, image, device="cpu")
    except InputError as error:  # such as a model that gives NaN
        return [Gallery(note=str(error))]
    assert isinstance(answer, Prediction)
    guess, share = answer[0]
    text = f"{label}; the model says {guess} ({_percent(share)})"
    galleries = [Gallery(f"Image 0 of the evaluation: {text}", [Picture(_png(image), f"Image 0, {label}")])]
    for name, maps in found.items():
        size = "×".join(map(str, maps.shape[1:]))
        shown = f"the first {MAPS} of {len(maps)}" if len(maps) > MAPS else f"all {len(maps)}"
        pictures = [Picture(_png(_stretched(part[None])), f"map {i} of {name}") for i, part in enumerate(maps[:MAPS])]
        galleries.append(Gallery(f"{name}: {shown} maps, {size}", pictures))
    return galleries


def _speeds(model: nn.Module) -> dict[str, str]:
    """How long the model takes on this machine's CPU, for one image and in batches of 100."""
    meta = get_meta(model)
    shape = (len(meta.mean) if meta and meta.mean else 3, *((meta.size if meta else None) or (32, 32)))
    found = {}
    with eval_mode(model, torch.device("cpu")) as session:
        for count, what in ((1, "one image"), (100, "an image, in batches of 100")):
            batch = torch.zeros(count, *shape, dtype=session.dtype)
            model(batch)
            times: list[float] = []
            until = time.perf_counter() + SECONDS
            while len(times) < REPEATS or time.perf_counter() < until:
                start = time.perf_counter()
                model(batch)
                times.append(time.perf_counter() - start)
            found[what] = f"{1000 * min(times) / count:.3g} ms"
    return found


def _charts(runs: Sequence[RunReport]) -> list[Any]:
    """Loss, accuracy and learning rate over the epochs; of several runs in one chart."""
    several = len(runs) > 1
    epochs = sorted({row["epoch"] for run in runs for row in run.history})
    charts = []
    for title in ("loss", "accuracy", "lr"):
        kinds = {title: "training", f"val_{title}": "validation"} if title != "lr" else {title: "learning rate"}
        lines = []
        for run in runs:
            for number, (key, kind) in enumerate(kinds.items()):
                known = {row["epoch"]: row.get(key) for row in run.history}
                values = [known.get(epoch) for epoch in epochs]
                if title == "lr" and len(set(values)) == 1:
                    continue
                if several:
                    lines.append(Line(f"{run.name}, {kind}", values, run.color, dashed=number == 0 and title != "lr"))
                else:
                    lines.append(Line(kind, values, number))
        chart = line_chart({"lr": "learning rate"}.get(title, title), epochs, lines)
        if chart:
            charts.append(chart)
    return charts


def _differences(recipes: Sequence[Recipe]) -> dict[str, list[Any]]:
    """The fields in which recipes differ, each with the value of every recipe."""
    plain = [recipe.to_dict() for recipe in recipes]
    return {key: [fields[key] for fields in plain] for key in plain[0] if len({json.dumps(f[key]) for f in plain}) > 1}


def _figures(runs: Sequence[RunReport]) -> dict[str, list[str]]:
    """The results of each run, by their names."""
    rows: dict[str, list[str]] = {}
    for run in runs:
        result = run.result
        cells = {"images": "–", "accuracy": "–", "95 % interval": "–", "top-5": "–", "loss": "–", "ECE": "–"}
        if result is not None:
            low, high = result.confidence_interval()
            cells |= {
                "images": f"{result.n:,} ({run.part})",
                "accuracy": f"{result.accuracy:.4f}",
                "95 % interval": f"{low:.4f} to {high:.4f}",
                "top-5": "–" if result.top5 is None else f"{result.top5:.4f}",
                "loss": f"{result.loss:.4f}",
                "ECE": f"{result.ece:.4f}",
            }
        train = run.evaluations.get("train")
        cells["accuracy on the training images"] = f"{train.accuracy:.4f}" if train else "–"
        for name, other in run.evaluations.items():
            if name not in ("train", run.part):
                cells[f"accuracy, {name}"] = f"{other.accuracy:.4f}"
        cells["parameters"] = f"{run.layers.parameters:,}" if run.layers else "–"
        cells["multiply-adds an image"] = f"{run.layers.macs:,}" if run.layers else "–"
        cells["epochs"] = f"{len(run.history):,} of {run.recipe.epochs:,}"
        cells["time of all epochs"] = _duration(run.seconds)
        for key, value in cells.items():
            rows.setdefault(key, ["–"] * runs.index(run)).append(value)
        for row in rows.values():
            row += ["–"] * (runs.index(run) + 1 - len(row))
    return {key: row for key, row in rows.items() if set(row) != {"–"}}


def _png(image: Tensor) -> str:
    """A uint8 image `[C, H, W]` as a PNG file in a data URI."""
    from PIL import Image

    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _stretched(values: Tensor) -> Tensor:
    """Any numbers as uint8, from the lowest to the highest."""
    values = values.float()
    low, high = values.min(), values.max()
    return ((values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny) * 255).round().to(torch.uint8)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{seconds:.1f} s"


def _plain(value: object) -> str:
    """A value of a recipe in words."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_plain(item)}" for key, item in value.items()) or "–"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_plain, value)) or "–"
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return brief(value, 500, quotes=False)
