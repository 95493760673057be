"""Turn runs of a recipe into released weights, and keep index, golden logits and tables in step with the files.

    python -m zoo.release convnet runs/convnet-seed0 runs/convnet-seed1 --held-out runs/convnet-held-out
    python -m zoo.release convnet runs/… --held-out runs/… --write
    python -m zoo.release --speed     measure the speed of all released weights again, side by side
    python -m zoo.release             only make index, golden logits and tables again

The runs must be whole ones of the recipe of that name, with the seeds that it names. The first seed's weights are
what the name stands for, whatever they reach; with `--all-seeds` the others become files too. The run with `--held-
out` is one more of the same recipe, trained with `val`: the temperature that calibrates all files is found on the
images that it held out.

Without `--write` you only see the new row beside the present one. A file once released never changes: a better run is
a new version. Rename the recipe and the logs of the present one to `NAME.v1` (or v2 …), write the new recipe as
`NAME`, and raise `version` in its table `release`. Needs CIFAR-10.
"""

import argparse
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cifarnets import evaluate, load, save
from cifarnets._files import write_atomic
from cifarnets._runtime import describe_machine
from cifarnets.calibration import divide_logits, fit_temperature
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10, normalize, train_val_split
from cifarnets.datasets.cifar10 import DATA_LICENSE
from cifarnets.errors import CifarNetsError, InputError
from cifarnets.evaluation import Evaluation
from cifarnets.inference import collect_logits
from cifarnets.models import Release, annotate, summary
from cifarnets.models.metadata import ModelMeta, get_meta
from cifarnets.models.registry import paper_of
from cifarnets.recipes import Recipe, list_recipes, load_recipe
from cifarnets.recipes.recipe import RELEASE, read_recipe
from cifarnets.recipes.run import read_run_recipe, write_json
from cifarnets.version import __version__
from cifarnets.weights.files import read_weights, write_weights
from cifarnets.weights.index import GOLDEN_FILE, INDEX_FILE, mean_and_std, recipe_of, releases, sha256, stem_of

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "src" / "cifarnets" / "weights"
LOGS = ROOT / "zoo" / "logs"
SPEED_FILE = LOGS / "speed.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "zoo.md")
MARKS = ("<!-- released weights: python -m zoo.release -->", "<!-- end of released weights -->")
CPU = torch.device("cpu")


def release(name: str, folders: Sequence[Path], held_out: Path, all_seeds: bool = False, write: bool = False) -> None:
    """Show what a recipe's runs would be as released weights, and release them if asked to.

    Raises:
        InputError: A run is of another recipe, or not whole, or the seeds are not those of the recipe; or float16 or
            the temperature change what the weights do; or there is a released file of that name already.
    """
    recipe = load_recipe(name)
    runs = dict(sorted(_seed_of(folder, recipe) for folder in folders))
    seeds = tuple(read_recipe(name).get(RELEASE, {}).get("seeds", ()))
    if tuple(runs) != seeds or len(runs) != len(folders):
        raise InputError(f"the recipe {name!r} names the seeds {seeds}, and the runs have {tuple(runs)}.")
    logs = {seed: json.loads((folder / "evaluation.json").read_text()) for seed, folder in runs.items()}
    temperature, held_out_log = find_temperature(held_out, recipe)
    facts = {"seeds": list(runs), **spread(list(logs.values()), recipe.tta), "temperature": temperature}
    released = [Released(name, recipe, runs[seed], seed, facts) for seed in (runs if all_seeds else seeds[:1])]
    print(beside([*_present(name), *(file.row for file in released)]))
    for file in released:
        if file.path.exists() and file.path.read_bytes() != file.content:
            raise InputError(
                f"{file.path.name} has been released, and a released file never changes: raise the version."
            )
    if not write:
        print("Nothing is written yet: add --write to release.")
        return
    for file in released:
        write_atomic(file.path, file.content)
    for seed, folder in runs.items():
        write_atomic(LOGS / name / f"seed{seed}.csv", (folder / "history.csv").read_text())
        write_atomic(LOGS / name / f"seed{seed}.json", json.dumps(logs[seed]) + "\n")
    write_atomic(LOGS / name / "held_out.json", json.dumps(held_out_log) + "\n")
    rebuild({file.name: file.predictions for file in released})


def find_temperature(folder: Path, recipe: Recipe) -> tuple[float, dict[str, Any]]:
    """The temperature that suits the images which a run of the recipe held out, and what was measured on these.

    Raises:
        InputError: The run is of another recipe, or not whole, or held nothing out.
    """
    own = read_run_recipe(json.loads((folder / "run.json").read_text())["recipe"])
    if not own.val:
        raise InputError(f"{str(folder)!r} held no images out: train it with --val 5000.")
    seed, _ = _seed_of(folder, replace(recipe, val=own.val, tta=own.tta))  # tta is not of the training
    _, held_out = train_val_split(recipe.dataset(train=True), own.val, own.seed)
    loader = BatchLoader(held_out, 1000, device=CPU, channels_last=True)
    logits, labels = collect_logits(load(folder / "model.safetensors"), loader, CPU)
    temperature = fit_temperature(logits, labels)
    before, after = (Evaluation.from_logits(logits / divisor, labels) for divisor in (1.0, temperature))
    facts = {
        "seed": seed,
        "images": own.val,
        "accuracy": before.accuracy,
        "ece": before.ece,
        "calibrated_ece": after.ece,
    }
    return temperature, {**facts, "temperature": temperature}


class Released:
    """A weight file as it is released: float16 but for the head, whose weights take the temperature.

    Attributes:
        name: Of its row in the index.
        path: Where the file belongs.
        content: Its bytes.
        predictions: On the test images.
        row: What `beside` shows of it.
    """

    def __init__(self, name: str, recipe: Recipe, folder: Path, seed: int, facts: Mapping[str, Any]) -> None:
        first = facts["seeds"][0]
        self.name = name if seed == first else f"{name}.seed{seed}"
        self.path = WEIGHTS / file_of(self.name)
        whole = load(folder / "model.safetensors")
        loader = BatchLoader(recipe.dataset(train=False), 1000, device=CPU, channels_last=True)
        logits, labels = collect_logits(whole, loader, CPU)
        exact = Evaluation.from_logits(logits, labels)
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / "half.safetensors"
            rounded, _ = collect_logits(load(save(whole, path, half=True)), loader, CPU)
            divide_logits(whole, facts["temperature"])
            model = load(save(whole, path, half=True))
            logits, _ = collect_logits(model, loader, CPU)
            plain, uncalibrated = Evaluation.from_logits(logits, labels), Evaluation.from_logits(rounded, labels)
            if abs(uncalibrated.accuracy - exact.accuracy) > 5e-4:
                raise InputError(f"float16 loses something in {self.name}: {exact.accuracy} → {uncalibrated.accuracy}.")
            if not torch.equal(logits.argmax(1), rounded.argmax(1)):
                raise InputError(f"the temperature changes predictions of {self.name}.")
            self.predictions = logits.argmax(1).byte()
            results = {
                "seed": seed,
                **facts,
                "file_accuracy": plain.accuracy,
                "file_tta_accuracy": evaluate(model, loader, device=CPU, tta=recipe.tta).accuracy
                if recipe.tta
                else None,
                "file_ece": plain.ece,
                "uncalibrated_ece": uncalibrated.ece,
                "predictions_sha256": sha256(self.predictions.numpy().tobytes()),
            }
            annotate(model, results=results, provenance=provenance_of(name, get_meta(model)))
            self.content = save(model, path, half=True).read_bytes()
        self.row = {
            "name": f"{self.name} (new)",
            "parameters": summary(model).parameters,
            "size": len(self.content),
            **results,
        }


def _present(name: str) -> list[dict[str, Any]]:
    """The row of the index that has the name now."""
    release = releases().get(name)
    return [] if release is None else [{**asdict(release), "name": f"{name} (now, version {release.version})"}]


def beside(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the index as a table, a column each.

    Examples:
        >>> print(beside([{"name": "now", "accuracy": 0.7198}, {"name": "new", "accuracy": 0.7425}]))
                     now     new
        accuracy  0.7198  0.7425
    """
    keys = [key for key in ("parameters", "size", *_FIGURES) if any(key in row for row in rows)]
    lines = [["", *(str(row["name"]) for row in rows)]]
    for key in keys:
        values = (row.get(key) for row in rows)
        lines.append([key, *(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))]
        )
        for line in lines
    )


_FIGURES = (
    *("seeds", "accuracy", "accuracy_std", "tta", "tta_accuracy", "tta_accuracy_std"),
    *("file_accuracy", "file_tta_accuracy", "temperature", "uncalibrated_ece", "file_ece"),
)


def _seed_of(folder: Path, recipe: Recipe) -> tuple[int, Path]:
    """The seed of a whole run of the recipe."""
    own = read_run_recipe(json.loads((folder / "run.json").read_text())["recipe"])
    seed = own.seed
    if different := replace(recipe, seed=seed).differences(own):
        raise InputError(f"{str(folder)!r} is a run of another recipe: {'; '.join(different)}.")
    epochs = len((folder / "history.csv").read_text().splitlines()) - 1
    if epochs != recipe.epochs or not (folder / "evaluation.json").is_file():
        raise InputError(f"{str(folder)!r} is not whole: {epochs} of {recipe.epochs} epochs.")
    return seed, folder


def spread(logs: Sequence[Mapping[str, Any]], tta: str | None) -> dict[str, Any]:
    """Mean and standard deviation of the accuracy over the evaluations of several runs."""
    plain = [log["test"]["accuracy"] for log in logs]
    augmented = [log[f"test ({tta})"]["accuracy"] for log in logs] if tta else []
    return {
        "accuracy": statistics.mean(plain),
        "accuracy_std": _std(plain),
        "tta": tta,
        "tta_accuracy": statistics.mean(augmented) if augmented else None,
        "tta_accuracy_std": _std(augmented),
    }


def _std(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def rebuild(predictions: Mapping[str, Tensor] | None = None) -> None:
    """Golden logits, index and tables, from the weight files.

    Args:
        predictions: On the test images, of weights that are new; others have theirs already.
    """
    write_weights(WEIGHTS / GOLDEN_FILE, golden(predictions or {}), {}, __version__)
    missing = weight_files().keys() - speeds()["milliseconds"].keys()
    if missing:
        measure_speed()
    index = build_index()
    write_json(WEIGHTS / INDEX_FILE, index)
    for page in PAGES:
        write_atomic(page, with_table(page.read_text(encoding="utf-8"), index))


def weight_files() -> dict[str, Path]:
    """All released weight files by the name of their row."""
    found = {}
    for recipe in list_recipes():
        facts = read_recipe(recipe).get(RELEASE, {})
        for seed in facts.get("seeds", ()):
            name = recipe if seed == facts["seeds"][0] else f"{recipe}.seed{seed}"
            if (WEIGHTS / file_of(name)).is_file():
                found[name] = WEIGHTS / file_of(name)
    return dict(sorted(found.items()))


def file_of(name: str) -> str:
    """The name of the file of a row, which stays the same when the row becomes an older version.

    Examples:
        >>> file_of("convnet"), file_of("convnet.seed1")
        ('convnet.v2.safetensors', 'convnet.v2.seed1.safetensors')
    """
    recipe = recipe_of(name)
    version = read_recipe(recipe)[RELEASE]["version"].partition(".")[0]
    return f"{stem_of(name)}{f'.v{version}' if version != '1' else ''}{name.removeprefix(recipe)}.safetensors"


def golden(predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A dozen drawn pictures, uint8 `[12, 3, 32, 32]`; the logits of all weights for them; test predictions."""
    before = read_weights(WEIGHTS / GOLDEN_FILE)[0] if (WEIGHTS / GOLDEN_FILE).is_file() else {}
    names = {release.file: release.name for release in releases().values()}  # which change when a file is superseded
    tensors = {"images": before.get("images", SyntheticCIFAR10(train=False, size=12, seed=1).images)}
    for name, path in weight_files().items():
        model, meta = _load(path)
        assert meta.mean is not None
        assert meta.std is not None
        inputs = normalize(tensors["images"], meta.mean, meta.std)
        tensors[f"{name}.logits"] = collect_logits(model, [(inputs, torch.zeros(12, dtype=torch.long))], CPU)[0]
        known = predictions[name] if name in predictions else before[f"{names[path.name]}.predictions"]
        tensors[f"{name}.predictions"] = known
    return tensors


def speeds() -> dict[str, Any]:
    """What `measure_speed` left."""
    if not SPEED_FILE.is_file():
        return {"measured": "", "milliseconds": {}, "milliseconds_batch": {}}
    content: dict[str, Any] = json.loads(SPEED_FILE.read_text())
    return content


def measure_speed(rounds: int = 15) -> None:
    """Milliseconds an image of all released weights on one thread: in turns, the median of the rounds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    models = {name: _load(path)[0] for name, path in weight_files().items()}
    images = torch.randn(1000, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    seconds: dict[tuple[str, int], list[float]] = {(name, size): [] for name in models for size in (1, 1000)}
    with torch.no_grad():
        for turn in range(rounds + 1):
            for (name, size), taken in seconds.items():
                if size > 1 and turn > 4:
                    continue
                started = time.perf_counter()
                models[name](images[:size])
                if turn:
                    taken.append((time.perf_counter() - started) / size)
    measured = f"{describe_machine()}; medians of 15 and 4, in turns"
    torch.set_num_threads(threads)
    found = {key: round(statistics.median(taken) * 1000, 4) for key, taken in seconds.items()}
    content = {
        "measured": measured,
        "milliseconds": {name: found[name, 1] for name in models},
        "milliseconds_batch": {name: found[name, 1000] for name in models},
    }
    write_json(SPEED_FILE, content)


def build_index() -> dict[str, Any]:
    """The index, from the weight files and their measured speed."""
    speed = speeds()
    rows = {}
    for name, path in weight_files().items():
        content = path.read_bytes()
        model, meta = _load(path)
        assert meta.classes is not None
        assert meta.mean is not None
        assert meta.std is not None
        counted = summary(model)
        row = Release(
            name=name,
            file=path.name,
            size=len(content),
            sha256=sha256(content),
            architecture=meta.architecture,
            config=meta.config,
            parameters=counted.parameters,
            macs=counted.macs,
            classes=meta.classes,
            mean=meta.mean,
            std=meta.std,
            milliseconds=speed["milliseconds"][name],
            milliseconds_batch=speed["milliseconds_batch"][name],
            measured=speed["measured"],
            provenance=provenance_of(recipe_of(name), meta),
            **{"temperature": None, "uncalibrated_ece": None, **meta.results},  # the first files have neither
        )
        rows[name] = {key: value for key, value in asdict(row).items() if key != "name"}
    found: dict[str, Any] = json.loads(json.dumps(rows))
    return found


def provenance_of(name: str, meta: ModelMeta | None) -> dict[str, Any]:
    """Where released weights come from: what the recipe says of the published runs, and what the file knows itself."""
    assert meta is not None
    known = read_recipe(name)[RELEASE]
    facts = {
        "license": "mit",
        "commit": known["commit"],  # of the release, for files from before runs noted theirs
        "paper": paper_of(meta.architecture),
        "machine": known.get("machine"),
        "data": "CIFAR-10",
        "data_license": DATA_LICENSE,
        **meta.provenance,
        "version": known["version"],
        "recipe": name,  # which changes when there is a newer version
    }
    return {key: value for key, value in facts.items() if value is not None}


def _load(path: Path) -> tuple[nn.Module, ModelMeta]:
    model = load(path)
    meta = get_meta(model)
    assert meta is not None
    return model, meta


def table(index: Mapping[str, Any]) -> str:
    """The released weights as two tables in Markdown, the best last: how good they are, and what they cost.

    Two narrow tables stay readable on a phone; one with all columns does not.
    """
    quality = [("weights", "test accuracy", "with TTA", "seeds", "ECE")]
    cost = [("weights", "parameters", "multiply-adds", "file", "CPU ms")]
    shown = {name: row for name, row in index.items() if name == stem_of(name)}
    for name, row in sorted(shown.items(), key=lambda item: (len(item[1]["classes"]), item[1]["accuracy"])):
        tta = f"{mean_and_std(row['tta_accuracy'], row['tta_accuracy_std'])} ({row['tta']})" if row["tta"] else ""
        seeds = str(len(row["seeds"])) if len(row["seeds"]) > 1 else "one seed"
        accuracy = mean_and_std(row["accuracy"], row["accuracy_std"])
        before = row["uncalibrated_ece"]
        ece = f"{row['file_ece']:.3f}" if before is None else f"{before:.3f} → {row['file_ece']:.3f}"
        quality.append((f"`{name}`", accuracy, tta, seeds, ece))
        size = f"{row['size'] / 1e6:.2f} MB"
        macs = f"{row['macs'] / 1e6:,.1f} M"
        cost.append((f"`{name}`", f"{row['parameters']:,}", macs, size, f"{row['milliseconds']:.2f}"))
    return "\n\n".join(_markdown(rows) for rows in (quality, cost))


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the heading: the first column to the left, the others to the right."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, f"|---|{'--:|' * (len(rows[0]) - 1)}", *body])


def with_table(page: str, index: Mapping[str, Any]) -> str:
    """Put the tables of the index between the two marks of a page.

    Raises:
        InputError: The page does not have both marks, once each.
    """
    start, end = map(re.escape, MARKS)
    parts = re.split(f"({start}).*?({end})", page, flags=re.DOTALL)
    if len(parts) != 4:
        raise InputError(f"the page must have {MARKS[0]} and {MARKS[1]} once each.")
    return f"{parts[0]}{parts[1]}\n\n{table(index)}\n\n{parts[2]}{parts[3]}"


def main() -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m zoo.release", description=__doc__, formatter_class=style)
    parser.add_argument("name", nargs="?", help="of the recipe, and of the weights")
    parser.add_argument("runs", nargs="*", type=Path, help="run folders, one a seed")
    parser.add_argument("--held-out", type=Path, help="folder of a run of the recipe with val: calibrates the weights")
    parser.add_argument("--all-seeds", action="store_true", help="make a file of every seed")
    parser.add_argument("--write", action="store_true", help="release; without it you only see the figures")
    parser.add_argument("--speed", action="store_true", help="measure the speed of all released weights again")
    options = parser.parse_args()
    try:
        if options.speed:
            measure_speed()
        if options.name:
            if options.held_out is None:
                raise InputError("name a run of the recipe with --held-out: its held-out images calibrate the weights.")
            release(options.name, options.runs, options.held_out, options.all_seeds, options.write)
        else:
            rebuild()
    except (CifarNetsError, OSError) as error:
        print(f"zoo.release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
