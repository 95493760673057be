"""Exported models: accuracy, size and speed of torch, ONNX in float and in int8, and how int8 was chosen."""

import argparse
import contextlib
import io
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

from benchmarks._side_by_side import take_turns
from cifarnets import evaluate, export, load
from cifarnets._runtime import describe_machine
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10, dataset_for, normalize
from cifarnets.models.metadata import get_meta
from cifarnets.sharing import evaluate_exported
from cifarnets.sharing.export import QUANTIZED

METHODS: dict[str, dict[str, Any]] = {
    "8 bits, a scale for each tensor": {},
    "8 bits, a scale for each channel": {"per_channel": True},
    "7 bits, a scale for each tensor": {"reduce_range": True},
    "7 bits, a scale for each channel (chosen)": {"reduce_range": True, "per_channel": True},
    "… percentile calibration": {
        "reduce_range": True,
        "per_channel": True,
        "calibrate_method": CalibrationMethod.Percentile,
    },
    "… entropy calibration": {"reduce_range": True, "per_channel": True, "calibrate_method": CalibrationMethod.Entropy},
}
"""Of the weights; activations have 8 bits and one scale."""

Array = np.ndarray[Any, Any]


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Images in batches of 50, for the quantiser."""

    def __init__(self, images: Array) -> None:
        self.batches = iter(np.split(images, range(50, len(images), 50)))

    def get_next(self) -> dict[str, Array] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}


def runner(path: Path) -> Callable[[Array], Array]:
    """A function from normalised images to logits, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Array) -> Array:
        return np.concatenate(
            [session.run(None, {"images": part})[0] for part in np.split(images, range(250, len(images), 250))]
        )

    return run


def print_comparison(name: str, folder: Path, rounds: int) -> None:
    model = load(name)
    meta = get_meta(model)
    assert meta is not None
    test = dataset_for(meta)
    drawn = SyntheticCIFAR10(size=1000)
    files = {
        "ONNX, float": export(model, folder / "float.onnx").path,
        "ONNX, int8": export(model, folder / "int8.onnx", int8=True).path,
        "ONNX, int8 calibrated with drawn pictures": export(
            model, folder / "drawn.onnx", int8=True, calibration=drawn
        ).path,
    }
    loader = BatchLoader(test, 250, device="cpu")
    accuracy = {"torch": evaluate(model, loader, device="cpu").accuracy}
    accuracy |= {what: evaluate_exported(path, test).accuracy for what, path in files.items()}
    images = normalize(test.images[:500], test.mean, test.std)
    arrays, runners = images.numpy(), {what: runner(path) for what, path in files.items()}

    def in_torch() -> None:
        with torch.no_grad():
            for part in (images[:250], images[250:]):
                model(part)

    def one_by_one() -> None:
        with torch.no_grad():
            for image in images[:100]:
                model(image[None])

    many: dict[str, Callable[[], object]] = {"torch": in_torch}
    single: dict[str, Callable[[], object]] = {"torch": one_by_one}
    for what, run in runners.items():
        many[what] = lambda run=run: run(arrays)  # type: ignore[misc]
        single[what] = lambda run=run: [run(arrays[i : i + 1]) for i in range(100)]  # type: ignore[misc]
    speed, latency = take_turns(many, rounds), take_turns(single, rounds)
    for what in many:
        size = f"{files[what].stat().st_size:,}" if what in files else "–"
        rate, wait = 500 / statistics.median(speed[what]), statistics.median(latency[what]) * 10
        print(f"| {name} | {what} | {accuracy[what]:.4f} | {size} | {rate:,.0f} | {wait:.2f} |", flush=True)


def print_methods(name: str, folder: Path) -> None:
    """Compare ways to quantise on training images that took no part in the calibration, never on test images."""
    model = load(name)
    meta = get_meta(model)
    assert meta is not None
    train = dataset_for(meta, train=True)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))[:6000]
    images = normalize(train.images[order], train.mean, train.std).numpy()
    labels = train.labels[order[1000:]].numpy()
    whole = export(model, folder / "float.onnx").path
    wanted = runner(whole)(images[1000:]).argmax(1)
    print(f"| {name} | float | {(wanted == labels).mean():.4f} | |", flush=True)
    for what, settings in METHODS.items():
        path = folder / "method.onnx"
        few = 200 if "calibrate_method" in settings else 1000  # these keep every activation in memory
        with contextlib.redirect_stdout(io.StringIO()):  # some methods print their progress
            quantize_static(
                whole,
                path,
                Reader(images[:few]),
                op_types_to_quantize=QUANTIZED,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                **settings,
            )
        found = runner(path)(images[1000:]).argmax(1)
        right, same = (found == labels).mean(), (found == wanted).mean()
        print(f"| {name} | {what} | {right:.4f} | {same:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=["convnet", "resnet20"])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{describe_machine()}; onnxruntime {onnxruntime.__version__}; one thread; {options.rounds} rounds, medians\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        print("| model | program | accuracy, 10,000 test images | bytes | images/s, batches of 250 | one image, ms |")
        print("|---|---|---|---|---|---|")
        for name in options.models:
            print_comparison(name, Path(folder), options.rounds)
        print("\n| model | weights in int8 | accuracy, 5,000 training images | same class as float |")
        print("|---|---|---|---|")
        for name in options.models:
            print_methods(name, Path(folder))


if __name__ == "__main__":
    main()
