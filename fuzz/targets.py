"""What reads files: for each target, sound files to start from, the changes, and the call that must hold."""

import io
import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import safetensors.torch
import torch

import cifarnets
from cifarnets.datasets import BatchLoader, ImageDataset
from cifarnets.errors import DataNotFoundError
from cifarnets.report import write_report
from cifarnets.training import Checkpoint
from cifarnets.weights import index
from fuzz import mutations


class AcceptedError(Exception):
    """A file that must be refused was read."""


@dataclass
class Target:
    """One public call that reads a file.

    Attributes:
        sound: Files that the call accepts, by name; the changes start from them.
        mutate: Changes the bytes of one.
        call: Reads the file at a path.
        flips: Whether a single flipped bit must be refused.
        refused: Names of sound files that are refused all the same.
        setup: Run once in each worker.
    """

    sound: Callable[[Path], dict[str, bytes]]
    mutate: mutations.Mutation
    call: Callable[[Path], object]
    flips: bool = False
    refused: tuple[str, ...] = ()
    setup: Callable[[], None] = field(default=lambda: None)


def case(target: Target, files: dict[str, bytes], random: Random) -> tuple[str, bytes, bool]:
    """The name and the bytes of a case, and whether it must be refused."""
    names = sorted(files)
    (name,) = random.choices(names, [1 / len(files[name]) for name in names])  # the small ones are quick
    if target.flips and random.random() < 0.15 and name != "old.safetensors":
        return name, mutations.flip_bit(random, files[name]), True
    return name, target.mutate(random, files[name]), False


# --- weight files


def weight_files(folder: Path) -> dict[str, bytes]:
    """Small models of several families, one of them in a file from before there were digests."""
    torch.manual_seed(0)
    files = {}
    configs: dict[str, dict[str, Any]] = {
        "fcnet": {"widths": (2,)},
        "convnet": {"widths": (2, 2), "hidden": 2, "num_classes": 3},
        "resnet20": {"widths": (2, 2, 2), "se": True},
    }
    for name, config in configs.items():
        model: Any = cifarnets.models.create(name, **config)
        classes = [f"class {i}" for i in range(model.meta.config["num_classes"])]
        cifarnets.models.annotate(model, classes=classes, mean=[0.5] * 3, std=[0.25] * 3, training={"epochs": 1})
        path = cifarnets.save(model, folder / f"{name}.safetensors", half=name == "convnet")
        files[path.name] = path.read_bytes()
    files["old.safetensors"] = (index.FOLDER / "convnet.cifar3.safetensors").read_bytes()
    return files


def mutate_weights(random: Random, content: bytes) -> bytes:
    """Change a weight file: mostly its header."""
    if random.random() < 0.2:
        return mutations.any_bytes(random, content)
    entries = ("config", "architecture", "classes", "mean", "std", "training", "halved", "channels_last")
    return mutations.safetensors(random, content, entries)


def load_and_predict(path: Path) -> None:
    """Load a model, and let it compute."""
    model: Any = cifarnets.load(path)
    meta = model.meta
    channels = len(meta.mean) if meta.mean else meta.config.get("in_channels", 3)
    cifarnets.predict(model, torch.zeros(channels, 32, 32), mean=[0.5] * channels, std=[1.0] * channels, device="cpu")


# --- checkpoints


def tiny_loader() -> BatchLoader:
    """Eight pictures of two classes."""
    images = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1).expand(8, 3, 32, 32).contiguous()
    data = ImageDataset(images, torch.arange(8) % 2, ["even", "odd"], mean=[0.5] * 3, std=[0.25] * 3)
    return BatchLoader(data, 4, shuffle=True, seed=0, device="cpu")


def tiny_trainer(**options: Any) -> cifarnets.Trainer:
    """A trainer of a net of a few hundred numbers."""
    torch.manual_seed(0)
    model = cifarnets.models.create("convnet", num_classes=2, widths=(1, 1), hidden=1)
    return cifarnets.Trainer(
        model, optimizer="adamw", schedule="one_cycle", progress=False, device="cpu", seed=0, **options
    )


def checkpoints(folder: Path) -> dict[str, bytes]:
    """The state at the end of an epoch, and within one."""
    files = {}
    for name, every in (("epoch", None), ("batch", 1)):

        class Stop(cifarnets.training.Callback):
            def on_epoch_end(self, trainer: cifarnets.Trainer) -> None:
                trainer.stop()

        trainer = tiny_trainer(callbacks=[Checkpoint(folder / name, every_batches=every), Stop()])
        trainer.fit(tiny_loader(), epochs=2)
        files[f"{name}.safetensors"] = (folder / name / "checkpoint.safetensors").read_bytes()
    return files


def mutate_checkpoint(random: Random, content: bytes) -> bytes:
    """Change a checkpoint: mostly the values of its state."""
    return (
        mutations.any_bytes(random, content)
        if random.random() < 0.1
        else mutations.safetensors(random, content, ("state",))
    )


def resume(path: Path) -> None:
    """Continue the fit."""
    tiny_trainer().fit(tiny_loader(), epochs=2, resume=path)


# --- checkpoints of other programs


def foreign_net() -> torch.nn.Module:
    """A net of a few hundred numbers."""
    return cifarnets.models.create("convnet", num_classes=2, widths=(1, 1), hidden=1)


def foreign(_: Path) -> dict[str, bytes]:
    """A checkpoint of a training script, in each of torch's formats, and a plain safetensors file."""
    state = foreign_net().state_dict()
    content = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}
    files = {"plain.safetensors": safetensors.torch.save(state)}
    for name, zipped in (("new.pth", True), ("old.pth", False)):
        file = io.BytesIO()
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        files[name] = file.getvalue()
    return files


def mutate_foreign(random: Random, content: bytes) -> bytes:
    """Change the bytes, half of the time near the beginning, where the pickle, or the header, lies."""
    if random.random() < 0.5:
        return mutations.any_bytes(random, content)
    return mutations.any_bytes(random, content[:1500]) + content[1500:]


def load_foreign(path: Path) -> None:
    """Load the checkpoint into a model."""
    cifarnets.sharing.load_state(foreign_net(), path)


# --- recipes and runs

RECIPE = b"""model = "convnet"
classes = ["airplane", "automobile", "ship"]
epochs = 3
batch_size = 64
optimizer = "adamw"
lr = 0.01
optimizer_options = {weight_decay = 0.01}
schedule = "one_cycle"
schedule_options = {warmup = 0.1}
label_smoothing = 0.1
augment = {flip = "random", translate = 2}
distill = {teacher = "resnet20", temperature = 2}
tta = "mirror"
ema = 0.9
seed = 0
"""


def recipes(_: Path) -> dict[str, bytes]:
    """A recipe with a value of each kind."""
    return {"recipe.toml": RECIPE}


def runs(folder: Path) -> dict[str, bytes]:
    """The record of a run of that recipe."""
    path = folder / "recipe.toml"
    path.write_bytes(RECIPE)
    content = {"recipe": cifarnets.recipes.load_recipe(path).to_dict(), "starts": [{"time": "2026-01-01"}]}
    return {"run.json": json.dumps(content).encode()}


def no_pictures(*_: object, **__: object) -> ImageDataset:
    """Stands for drawn pictures: no run of the fuzzer trains."""
    raise DataNotFoundError("the fuzzer has no data")


def resume_run(path: Path) -> None:
    """Resume the run, as far as the data that is not there."""
    empty = path.parent / "empty"
    empty.mkdir(exist_ok=True)
    cifarnets.recipes.run_recipe(None, path.parent, resume=True, root=empty, device="cpu", progress=False)


def without_data() -> None:
    """Let no run draw pictures."""
    from cifarnets.recipes import recipe

    vars(recipe)["SyntheticCIFAR10"] = no_pictures


# --- reports


def run_files(_: Path) -> dict[str, bytes]:
    """What a report is made of, but for the model."""
    recipe = cifarnets.recipes.Recipe("convnet", classes=("cat", "dog"), augment={"flip": "random"}, synthetic=True)
    start = {"time": "2026-01-01T00:00:00+00:00", "versions": {"torch": "2.6.0"}, "machine": {"threads": 2}}
    labels = torch.arange(40) % 2
    logits = torch.nn.functional.one_hot(labels, 2) * 2.0 + torch.randn(
        40, 2, generator=torch.Generator().manual_seed(0)
    )
    result = cifarnets.Evaluation.from_logits(logits, labels, ("cat", "dog"))
    return {
        "run.json": json.dumps({"recipe": recipe.to_dict(), "starts": [start]}).encode(),
        "evaluation.json": json.dumps({"train": result.to_dict(), "test": result.to_dict()}).encode(),
        "history.csv": b"epoch,loss,accuracy,lr,seconds\n1,0.7,0.5,0.01,2\n2,0.6,0.75,0.01,2\n",
    }


def mutate_run(random: Random, content: bytes) -> bytes:
    """Change JSON as JSON, and the history byte by byte."""
    return (mutations.json_text if content.startswith(b"{") else mutations.any_bytes)(random, content)


def report(path: Path) -> None:
    """Write the report of a run that has this file beside sound ones."""
    folder = path.parent / "run"
    folder.mkdir(exist_ok=True)
    for name, content in run_files(folder).items():
        (folder / name).write_bytes(path.read_bytes() if name == path.name else content)
    write_report(folder, path.parent / "report.html")


# --- the index


def indexes(_: Path) -> dict[str, bytes]:
    """Three rows of the index of released weights."""
    rows = json.loads((index.FOLDER / index.INDEX_FILE).read_text(encoding="utf-8"))
    few = {name: rows[name] for name in ("convnet", "convnet.cifar3", "fcnet")}
    return {"index.json": json.dumps(few).encode()}


RELEASED = index.FOLDER


def read_index(path: Path) -> None:
    """List the released weights, tell of each, and load the smallest."""
    smallest = path.parent / "convnet.cifar3.safetensors"
    if not smallest.exists():
        shutil.copy(str(RELEASED / smallest.name), smallest)
    index.FOLDER = path.parent
    index.releases.cache_clear()
    for name in cifarnets.models.list_models(pretrained=True, sort="accuracy"):
        cifarnets.models.info(name)
    cifarnets.load("convnet.cifar3")


# --- pictures


def pictures(folder: Path) -> dict[str, bytes]:
    """A small picture in each format, some with EXIF data."""
    from PIL import Image

    picture = Image.effect_noise((48, 40), 80).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x0132] = 6, 72.0, "2026:01:01 00:00:00"
    files = {}
    for suffix, image, options in (
        ("png", picture, {"exif": exif}),
        ("palette.png", picture.quantize(16), {"transparency": 3}),
        ("bits.png", picture.convert("1"), {}),
        ("jpg", picture, {"exif": exif}),
        ("gif", picture, {}),
        ("bmp", picture, {}),
        ("tif", picture, {"compression": "tiff_lzw"}),
        ("webp", picture, {"exif": exif}),
        ("eps", picture, {}),
        ("ppm", picture, {}),
    ):
        path = folder / f"picture.{suffix}"
        image.save(path, **options)
        files[path.name] = path.read_bytes()
    return files


MODELS: list[torch.nn.Module] = []


def look(path: Path) -> None:
    """Classify the picture."""
    if not MODELS:
        MODELS.append(cifarnets.load("convnet.cifar3"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow tells of damaged EXIF data
        cifarnets.predict(MODELS[0], path, device="cpu")


TARGETS = {
    "load": Target(weight_files, mutate_weights, load_and_predict, flips=True),
    "resume": Target(checkpoints, mutate_checkpoint, resume, flips=True),
    "foreign": Target(foreign, mutate_foreign, load_foreign),
    "recipe": Target(recipes, mutations.toml_text, cifarnets.recipes.load_recipe),
    "run.json": Target(runs, mutations.json_text, resume_run, refused=("run.json",), setup=without_data),
    "report": Target(run_files, mutate_run, report, setup=without_data),
    "index.json": Target(indexes, mutations.json_text, read_index),
    "picture": Target(pictures, mutations.picture, look, refused=("picture.eps",)),
}
