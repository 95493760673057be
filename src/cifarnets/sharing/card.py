"""The card of a model: the page that the Hub shows, with metadata that machines read.

All of it comes from `model.meta`, which is the header of the weight file. What the header does not say is left out.
"""

import inspect
import json
import textwrap
from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torch import nn

from cifarnets._checked import checked
from cifarnets._terminal import printable
from cifarnets.datasets.cifar10 import CLASSES, DATA_LICENSE
from cifarnets.errors import InputError
from cifarnets.models.metadata import ModelMeta, get_meta, unwrap
from cifarnets.recipes.recipe import Recipe, list_recipes
from cifarnets.recipes.run import read_run_recipe
from cifarnets.weights.hub import DEFAULT_FILE
from cifarnets.weights.index import mean_and_std

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCard

PIPELINE = "image-classification"
DATASET = "uoft-cs/cifar10"
"""CIFAR-10 on the Hub."""
EVAL_FILE = ".eval_results/cifar10.yaml"
PLACEHOLDER = "owner/repo"
SITE = "https://cifarnets.github.io/cifarnets/"
SOURCE = "https://github.com/cifarnets/cifarnets"

UNSURE = 0.05
"""The calibration error from which on a card warns of the probabilities."""


@checked
def model_card(
    model: nn.Module,
    repo: str = PLACEHOLDER,
    *,
    license: str | None = None,  # noqa: A002 (the Hub's word)
    sha256: str | None = None,
) -> "ModelCard":
    """Write the card of a model: a page in Markdown, with the metadata of the Hub on top.

    Examples:
        >>> from cifarnets import load
        >>> from cifarnets.sharing import model_card
        >>> card = model_card(load("resnet20"), "me/nets")
        >>> card.data.license, card.data.library_name, card.data.pipeline_tag
        ('mit', 'cifarnets', 'image-classification')
        >>> print(card.text.strip().splitlines()[0])
        # resnet20

    Args:
        model: A registered model. The card says what its `meta` says.
        repo: The repository on the Hub that the snippets load from.
        license: The licence of the weights, as the Hub abbreviates it: `"mit"`, `"cc-by-4.0"` … None takes the one in
            `meta`. Where there is none either, the card says `unknown`.
        sha256: The SHA-256 of the weight file, which the first snippet then asks for.

    Returns:
        A `huggingface_hub.ModelCard`. `str()` gives the text; `validate()` asks the Hub whether it is valid.

    Raises:
        InputError: The class of the model is not registered.
    """
    from huggingface_hub import ModelCard, ModelCardData

    meta = get_meta(model)
    if meta is None:
        raise InputError(f"{type(unwrap(model)).__name__} has no meta to write a card from: register its class.")
    name, results = name_of(meta), _eval_results(meta)
    licence = _plain(license or _text(meta.provenance, "license") or "unknown")
    data = ModelCardData(
        license=licence,
        library_name="cifarnets",
        pipeline_tag=PIPELINE,
        tags=["cifar10", "pytorch", "safetensors"],
        datasets=[DATASET] if _is_cifar10(meta) else None,
        metrics=["accuracy"] if results else None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    parts = [
        f"# {name}",
        _introduction(model, meta),
        _usage(meta, repo, sha256),
        _measured(meta),
        _training(meta),
        _preprocessing(meta),
        _limits(meta),
        _licences(meta, licence),
        _citation(meta),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(part for part in parts if part) + "\n")


def eval_file(meta: ModelMeta) -> bytes | None:
    """The content of `.eval_results/cifar10.yaml`: the accuracy on CIFAR-10, for the tables of the Hub.

    None for a model that was not measured on all ten classes, and where huggingface_hub is too old to know the format.
    """
    try:
        from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml
    except ImportError:
        return None
    import yaml  # huggingface_hub brings it

    accuracy = _number(meta.results, "file_accuracy")
    if accuracy is None or not _is_cifar10(meta) or meta.classes != CLASSES:
        return None
    entries = [
        EvalResultEntry(
            dataset_id=DATASET,
            task_id="default",
            value=round(accuracy, 4),
            notes="top-1 accuracy on the 10,000 test images, as a fraction; one view of each image",
        )
    ]
    text: str = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
    return text.encode()


def name_of(meta: ModelMeta) -> str:
    """What a model is called: the recipe of the library that trained it, or its architecture."""
    return _text(meta.provenance, "recipe") or meta.architecture


def _introduction(model: nn.Module, meta: ModelMeta) -> str:
    description = (inspect.getdoc(type(unwrap(model))) or "").partition("\n")[0]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    classes = f"{len(meta.classes)} classes: {_listed(meta.classes)}." if meta.classes else "classes without names."
    height, width = meta.size or (32, 32)
    data = _data(meta)
    return (
        description
        + (f" It was trained on {data}, and" if data else " It")
        + f" sorts pictures of {height}×{width} pixels into {classes}"
        + ("" if "parameters" in description else f" It has {parameters:,} parameters.")
        + "\n\n"
        f"The weights come from [cifarnets]({SITE}). They are a safetensors file, so loading them runs no code."
    )


def _usage(meta: ModelMeta, repo: str, sha256: str | None) -> str:
    pin = f', expected_sha256="{sha256}"' if sha256 else ""
    height, width = meta.size or (32, 32)
    return f"""## Use

With cifarnets (`pip install cifarnets`), which prepares the picture as in the training:

```python
import cifarnets

model = cifarnets.load("hf://{repo}"{pin})
print(cifarnets.predict(model, "picture.png", topk={min(3, len(meta.classes or "abc"))}))
```

With safetensors and torch alone, for a module of your own with the same layers:

```python
import json

import torch
from huggingface_hub import hf_hub_download
from safetensors import safe_open

with safe_open(hf_hub_download("{repo}", "{DEFAULT_FILE}"), framework="pt") as file:
    texts = {{"format", "cifarnets", "sha256"}}
    header = {{key: text if key in texts else json.loads(text) for key, text in file.metadata().items()}}
    tensors = {{name: file.get_tensor(name) for name in file.keys()}}
for name in header["halved"]:
    tensors[name] = tensors[name].float()  # float16 in the file, float32 in the model
# your_module.load_state_dict(tensors); it takes (images - mean) / std of images in 0..1.
print(header["architecture"], header["config"], header["classes"], header["mean"], header["std"])
```

With onnxruntime, without torch:

```shell
pip install 'cifarnets[onnx]' && cifarnets export hf://{repo} model.onnx --preprocess
```

```python
import numpy
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession("model.onnx")
picture = numpy.asarray(Image.open("picture.png").convert("RGB").resize(({width}, {height})))
print(session.run(None, {{session.get_inputs()[0].name: picture[None]}}))
```"""


def _measured(meta: ModelMeta) -> str:
    """The table of the measurements."""
    results = meta.results
    accuracy, tta = _number(results, "accuracy"), _number(results, "tta_accuracy")
    if accuracy is None:
        return ""
    seeds = results.get("seeds")
    seeds = seeds if isinstance(seeds, list) else []
    count = max(1, len(seeds))
    over = f"mean ± standard deviation of {count} seeds" if count > 1 else "one seed"
    rows = [(f"accuracy, {over}", mean_and_std(accuracy, _number(results, "accuracy_std")))]
    if tta is not None:
        way = _text(results, "tta")
        rows.append(
            (f"the same, mean over several views (`{way}`)", mean_and_std(tta, _number(results, "tta_accuracy_std")))
        )
    for key, words in {
        "file_accuracy": "accuracy of this file",
        "file_tta_accuracy": "the same, mean over several views",
        "file_ece": "expected calibration error of this file (15 bins)",
    }.items():
        value = _number(results, key)
        if value is not None and (count > 1 or key == "file_ece" or value not in (accuracy, tta)):
            rows.append((words, f"{value:.4f}"))
    images = f"the test images of {_data(meta)}" if _data(meta) else "the test images"
    if meta.classes and _is_cifar10(meta) and meta.classes != CLASSES:
        images += f" of these {len(meta.classes)} classes"
    table = "\n".join(f"| {words} | {figure} |" for words, figure in rows)
    which = (
        f" Seeds: {', '.join(map(_plain, seeds))}; this file is seed {_plain(results.get('seed'))}."
        if count > 1
        else ""
    )
    heading = f"## Results\n\nTop-1, on {images}, after the last epoch.{which}"
    return f"{heading}\n\n| measured | figure |\n|---|--:|\n{table}"


def _training(meta: ModelMeta) -> str:
    """The recipe with its command, and where it was run."""
    known, provenance = _text(meta.provenance, "recipe"), meta.provenance
    try:
        recipe = read_run_recipe(meta.training)
    except InputError:  # somebody's own notes, or nothing
        recipe = None
    if known in list_recipes():
        seed = f" --seed {recipe.seed}" if recipe else ""
        how = f"The recipe is `{known}` of cifarnets:\n\n```shell\ncifarnets train --recipe {known}{seed}\n```"
    elif recipe is not None:
        how = f"The recipe, for `cifarnets train --recipe recipe.toml`:\n\n```toml\n{_toml(recipe)}\n```"
    elif meta.training:
        how = f"```json\n{json.dumps(dict(meta.training), indent=2)}\n```"
    else:
        how = ""
    facts = {
        "weights version": _text(provenance, "version"),
        "source": _text(provenance, "commit") and f"commit `{_text(provenance, 'commit')}` of {SOURCE}",
        "versions": _pairs(provenance.get("versions")),
        "machine": _pairs(provenance.get("machine")),
        "data": _data(meta),
    }
    lines = "\n".join(f"- {key}: {value}" for key, value in facts.items() if value)
    return "\n\n".join(["## Training", *(part for part in (how, lines) if part)]) if how or lines else ""


def _toml(recipe: Recipe) -> str:
    """The fields of a recipe that are not the defaults, as TOML; a flat JSON value is one of TOML too."""
    usual = {field.name: field.default for field in fields(Recipe)}
    lines = []
    for key, value in recipe.to_dict().items():
        if isinstance(value, dict):
            pairs = ", ".join(f"{json.dumps(name)} = {json.dumps(item)}" for name, item in value.items())
            if value:
                lines.append(f"{key} = {{{pairs}}}")
        elif value is not None and value != usual[key] and value != []:
            lines.append(f"{key} = {json.dumps(value)}")
    return "\n".join(lines)


def _preprocessing(meta: ModelMeta) -> str:
    height, width = meta.size or (32, 32)
    channels = {1: "grey ", 3: "RGB "}.get(meta.config.get("in_channels", 3), "")
    lines = [f"Images are {channels}of {height}×{width} pixels, as float32 `[N, C, {height}, {width}]` in 0..1."]
    if meta.mean and meta.std:
        rows = {"mean": meta.mean, "std": meta.std}
        lines.append("The model takes `(images - mean) / std`, channel by channel:")
        lines.append("\n".join(f"- {key}: {', '.join(f'{x:.6g}' for x in value)}" for key, value in rows.items()))
    else:
        lines.append("The file does not say how they were normalised.")
    return "## Preprocessing\n\n" + "\n\n".join(lines)


def _limits(meta: ModelMeta) -> str:
    count, (height, width) = len(meta.classes or ()), meta.size or (32, 32)
    lines = [
        f"It knows {f'these {count}' if count else 'its'} classes only, and gives one of them to every picture, "
        "whatever the picture shows.",
        f"It sees {height}×{width} pixels. Details of larger pictures are lost before it looks.",
    ]
    ece = _number(meta.results, "file_ece")
    if ece is not None and ece >= UNSURE:
        lines.append(
            f"Its probabilities are no frequencies: the calibration error is {ece:.3f}. Calibrate it before you "
            "compare them with a threshold."
        )
    if _data(meta) == "CIFAR-10":
        lines.append(
            "CIFAR-10 is for teaching and research. Photographs from elsewhere are harder than its test images."
        )
    else:
        lines.append("It is for teaching and research.")
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)


def _licences(meta: ModelMeta, weights: str) -> str:
    data = _text(meta.provenance, "data_license") or (DATA_LICENSE if _is_cifar10(meta) else "")
    lines = [
        f"Weights: {weights}" if weights != "unknown" else "Weights: their author states no licence",
        "Code (cifarnets): MIT",
        *([f"Data ({_data(meta)}): {data}"] if data else []),
    ]
    return "## Licences\n\n" + "\n".join(f"- {line}" for line in lines)


def _citation(meta: ModelMeta) -> str:
    entries = [
        f"""@software{{cifarnets,
  title = {{cifarnets: CIFAR-10 nets that one can trust}},
  author = {{{{The cifarnets maintainers}}}},
  url = {{{SOURCE}}}
}}"""
    ]
    if _is_cifar10(meta):
        entries.append("""@techreport{krizhevsky2009learning,
  title = {Learning Multiple Layers of Features from Tiny Images},
  author = {Krizhevsky, Alex},
  institution = {University of Toronto},
  year = {2009}
}""")
    paper = _text(meta.provenance, "paper")
    source = f"The architecture is from <{paper}>.\n\n" if paper.startswith("https://") else ""
    return f"## Citation\n\n{source}```bibtex\n" + "\n\n".join(entries) + "\n```"


def _eval_results(meta: ModelMeta) -> "list[EvalResult]":
    """The measurements of the file, for `model-index`."""
    from huggingface_hub import EvalResult

    if not _data(meta):
        return []
    partly = meta.classes if _is_cifar10(meta) and meta.classes != CLASSES else None
    about: dict[str, Any] = {
        "task_type": PIPELINE,
        "task_name": "Image classification",
        "dataset_type": DATASET if _is_cifar10(meta) else "synthetic",
        "dataset_name": _data(meta) + (f" ({', '.join(map(_plain, partly))} only)" if partly else ""),
        "dataset_split": "test",
        "dataset_args": {"classes": list(partly)} if partly else None,
    }
    way = _text(meta.results, "tta")
    metrics = {
        "file_accuracy": ("accuracy", "Accuracy"),
        "file_tta_accuracy": ("accuracy", f"Accuracy, mean over several views ({way})"),
        "file_ece": ("expected_calibration_error", "Expected calibration error (15 bins)"),
    }
    return [
        EvalResult(metric_type=kind, metric_name=name, metric_value=round(value, 4), **about)
        for key, (kind, name) in metrics.items()
        if (value := _number(meta.results, key)) is not None
    ]


def _data(meta: ModelMeta) -> str:
    """The images of the training; empty where nobody knows."""
    if known := _text(meta.provenance, "data"):
        return known
    # A recipe trained it, before files said on what.
    trained = "model" in meta.training and not (meta.training.get("synthetic") or meta.training.get("images"))
    return "CIFAR-10" if trained and meta.classes and set(meta.classes) <= set(CLASSES) else ""


def _is_cifar10(meta: ModelMeta) -> bool:
    return _data(meta) == "CIFAR-10"


def _listed(classes: tuple[str, ...]) -> str:
    return textwrap.shorten(", ".join(map(_plain, classes)), 1000, placeholder=" …")


def _pairs(value: object) -> str:
    """A text, or a table as `key value, key value`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_plain(key)} {_plain(item)}" for key, item in value.items())
    return _plain(value) if isinstance(value, str) else ""


def _text(table: Mapping[str, Any], key: str) -> str:
    value = table.get(key)
    return _plain(value) if isinstance(value, str) else ""


def _number(table: Mapping[str, Any], key: str) -> float | None:
    """A fraction; None for anything else, since a header may claim what it likes."""
    value = table.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1 else None


def _plain(text: object) -> str:
    """A text of a header on one line, without what Markdown would obey."""
    return printable("".join(" " if c in "`|<>[]\\\r\n" else c for c in str(text)))[:500]
