"""Turn runs of a recipe into released weights, and keep index, golden logits and tables in step with the files.

    python -m zoo.release convnet.cifar3 runs/convnet.cifar3-seed0 runs/convnet.cifar3-seed1 …
    python -m zoo.release --speed     measure the speed of all released weights again, side by side
    python -m zoo.release             only make index, golden logits and tables again

The runs must be whole ones of the recipe of that name, with the seeds that it names. The first seed's weights are the
ones that are released, whatever they reach; the logs of all of them go into zoo/logs. Needs CIFAR-10.
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
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10, normalize
from cifarnets.datasets.cifar10 import DATA_LICENSE
from cifarnets.errors import CifarNetsError, InputError
from cifarnets.evaluation import Evaluation
from cifarnets.inference import collect_logits
from cifarnets.models import Release, annotate, summary
from cifarnets.models.metadata import ModelMeta, get_meta
from cifarnets.models.registry import paper_of
from cifarnets.recipes import Recipe, load_recipe
from cifarnets.recipes.recipe import RELEASE, read_recipe
from cifarnets.recipes.run import read_run_recipe, write_json
from cifarnets.version import __version__
from cifarnets.weights.files import read_weights, write_weights
from cifarnets.weights.index import GOLDEN_FILE, INDEX_FILE, mean_and_std, sha256

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "src" / "cifarnets" / "weights"
LOGS = ROOT / "zoo" / "logs"
SPEED_FILE = LOGS / "speed.json"
PAGES = (ROOT / "README.md", ROOT / "docs" / "zoo.md")
MARKS = ("<!-- released weights: python -m zoo.release -->", "<!-- end of released weights -->")
CPU = torch.device("cpu")


def release(name: str, folders: Sequence[Path]) -> None:
    """Keep the logs of a recipe's runs, and release the weights of the first seed.

    Raises:
        InputError: A run is of another recipe, or not whole, or the seeds are not those of the recipe.
    """
    recipe = load_recipe(name)
    runs = dict(sorted(_seed_of(folder, recipe) for folder in folders))
    seeds = tuple(read_recipe(name).get(RELEASE, {}).get("seeds", ()))
    if tuple(runs) != seeds or len(runs) != len(folders):
        raise InputError(f"the recipe {name!r} names the seeds {seeds}, and the runs have {tuple(runs)}.")
    logs = {seed: json.loads((folder / "evaluation.json").read_text()) for seed, folder in runs.items()}
    seed, folder = next(iter(runs.items()))
    whole = load(folder / "model.safetensors")
    with tempfile.TemporaryDirectory() as scratch:
        model = load(save(whole, Path(scratch) / "half.safetensors", half=True))
    loader = BatchLoader(recipe.dataset(train=False), 1000, device=CPU, channels_last=True)
    expected, labels = collect_logits(whole, loader, CPU)
    logits, _ = collect_logits(model, loader, CPU)
    changed, gap = int((logits.argmax(1) != expected.argmax(1)).sum()), (logits - expected).abs().max().item()
    plain = Evaluation.from_logits(logits, labels)
    loss = abs(plain.accuracy - Evaluation.from_logits(expected, labels).accuracy)
    print(f"float16: {changed} of {len(labels)} predictions changed, accuracy by {loss:.4f}, logits by up to {gap:.1e}")
    if loss > 5e-4:
        raise InputError("float16 loses something here: keep the weights as they are.")
    predictions = logits.argmax(1).byte()
    results = {
        "seed": seed,
        "seeds": list(runs),
        **spread(list(logs.values()), recipe.tta),
        "file_accuracy": plain.accuracy,
        "file_tta_accuracy": evaluate(model, loader, device=CPU, tta=recipe.tta).accuracy if recipe.tta else None,
        "file_ece": plain.ece,
        "predictions_sha256": sha256(predictions.numpy().tobytes()),
    }
    annotate(model, results=results, provenance=provenance_of(name, get_meta(model)))
    save(model, WEIGHTS / f"{name}.safetensors", half=True)
    for seed, folder in runs.items():
        write_atomic(LOGS / name / f"seed{seed}.csv", (folder / "history.csv").read_text())
        write_atomic(LOGS / name / f"seed{seed}.json", json.dumps(logs[seed]) + "\n")
    rebuild({name: predictions})


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
    """All released weight files by name."""
    return {path.stem: path for path in sorted(WEIGHTS.glob("*.safetensors")) if path.name != GOLDEN_FILE}


def golden(predictions: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A dozen drawn pictures, uint8 `[12, 3, 32, 32]`; the logits of all weights for them; test predictions."""
    before = read_weights(WEIGHTS / GOLDEN_FILE)[0] if (WEIGHTS / GOLDEN_FILE).is_file() else {}
    tensors = {"images": before.get("images", SyntheticCIFAR10(train=False, size=12, seed=1).images)}
    for name, path in weight_files().items():
        model, meta = _load(path)
        assert meta.mean is not None
        assert meta.std is not None
        inputs = normalize(tensors["images"], meta.mean, meta.std)
        tensors[f"{name}.logits"] = collect_logits(model, [(inputs, torch.zeros(12, dtype=torch.long))], CPU)[0]
        key = f"{name}.predictions"
        tensors[key] = predictions[name] if name in predictions else before[key]
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
            provenance=provenance_of(name, meta),
            **meta.results,
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
        "version": known["version"],
        "recipe": name,
        "commit": known["commit"],  # of the release, for files from before runs noted theirs
        "paper": paper_of(meta.architecture),
        "machine": known.get("machine"),
        "data": "CIFAR-10",
        "data_license": DATA_LICENSE,
        **meta.provenance,
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
    for name, row in sorted(index.items(), key=lambda item: (len(item[1]["classes"]), item[1]["accuracy"])):
        tta = f"{mean_and_std(row['tta_accuracy'], row['tta_accuracy_std'])} ({row['tta']})" if row["tta"] else ""
        seeds = str(len(row["seeds"])) if len(row["seeds"]) > 1 else "one seed"
        accuracy = mean_and_std(row["accuracy"], row["accuracy_std"])
        quality.append((f"`{name}`", accuracy, tta, seeds, f"{row['file_ece']:.3f}"))
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
    parser.add_argument("--speed", action="store_true", help="measure the speed of all released weights again")
    options = parser.parse_args()
    try:
        if options.speed:
            measure_speed()
        if options.name:
            release(options.name, options.runs)
        else:
            rebuild()
    except (CifarNetsError, OSError) as error:
        print(f"zoo.release: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
