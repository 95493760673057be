"""Models for other programs: ONNX files, in float and in int8, and programs of torch.export."""

import contextlib
import copy
import functools
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets._files import as_path, open_regular, write_atomic
from cifarnets.datasets import ImageDataset, SyntheticCIFAR10, dataset_for, normalize
from cifarnets.errors import (
    CifarNetsError,
    DataNotFoundError,
    InputError,
    MissingExtraError,
    UnknownNameError,
    WeightsError,
    brief,
)
from cifarnets.evaluation import Evaluation
from cifarnets.inference import check_model, forward_logits, name_outputs
from cifarnets.models import NormalizedModel, with_normalization
from cifarnets.models.metadata import ModelMeta, get_meta, in_channels, unwrap
from cifarnets.models.storage import load_release
from cifarnets.verification import LOGIT_TOLERANCE, read_golden
from cifarnets.version import __version__
from cifarnets.weights.index import Release, releases

Layout = Literal["nhwc", "nchw"]
"""The order of the axes of uint8 pictures: `[N, H, W, C]` as in image files and browsers, or `[N, C, H, W]`."""

TOLERANCE = 1e-4
"""How far a float export may be from the model; relative to the largest output where that is above 1."""

AGREEMENT = 0.9
"""The share of the calibration images for which int8 must choose the class that float chooses."""

CALIBRATION_IMAGES = 1000

_to_json = functools.partial(json.dumps, default=str)

QUANTIZED = ["Conv", "Gemm", "MatMul", "Add", "Relu", "MaxPool"]
"""What int8 computes. Other layers, such as tanh, softmax and the preprocessing, stay in float."""


@dataclass(frozen=True)
class Exported:
    """What `export` wrote, and how well it agrees with the model.

    Examples:
        >>> from cifarnets import load
        >>> from cifarnets.sharing import export
        >>> written = export(load("convnet.cifar3"), "convnet.onnx")
        >>> written.path.name, written.gap < 1e-4, written.facts["output"]
        ('convnet.onnx', True, 'logits')

    Attributes:
        path: The file.
        gap: The largest difference between an output of the float program and of the model.
        agreement: The share of the calibration images for which int8 and float choose the same class; None for float.
        facts: The metadata in the file, text to text: `classes`, `mean`, `std` … as JSON.
    """

    path: Path
    gap: float
    agreement: float | None
    facts: Mapping[str, str]


@checked
def export(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    preprocess: bool = False,
    layout: Layout | None = None,
    int8: bool = False,
    calibration: ImageDataset | None = None,
    root: str | os.PathLike[str] | None = None,
) -> Exported:
    """Write a model as a program that runs without this library: ONNX (`.onnx`) or torch.export (`.pt2`).

    The file takes batches of any size, holds its weights, and knows its classes and constants. It is run and compared
    with the model before it is written. Released weights must give the logits of their release, too. Where
    something differs, or fails, a former file stays as it was.

    Examples:
        >>> import numpy as np
        >>> import onnxruntime
        >>> from cifarnets import load
        >>> from cifarnets.sharing import export
        >>> written = export(load("convnet.cifar3"), "convnet.onnx", preprocess=True)
        >>> session = onnxruntime.InferenceSession(written.path)
        >>> session.run(None, {"images": np.zeros((2, 32, 32, 3), np.uint8)})[0].shape
        (2, 3)

    Args:
        model: Any model; it stays as it is. The file computes in float32.
        path: The file; its ending chooses the format.
        preprocess: Put the preprocessing inside: the file then takes uint8 pictures of the model's size and gives
            probabilities. Without it, it takes normalised float32 images `[N, C, H, W]` and gives logits.
        layout: The axes of the uint8 pictures: `"nhwc"` (the default) or `"nchw"`.
        int8: Compute the convolutions and linear layers in 8 bits, by static quantisation (ONNX only).
        calibration: Images that show int8 how large the numbers inside the net are. By default 1,000 training images of
            the model's classes, and where CIFAR-10 is not here, drawn pictures.
        root: Where CIFAR-10 lies; see `CIFAR10Normalized`.

    Raises:
        MissingExtraError: onnx, onnxruntime or onnxscript is not installed.
        InputError: The ending is unknown, arguments do not go together, the model does not know its constants, or its
            layers have no form in ONNX.
        WeightsError: The program does not agree with the model.
        DataNotFoundError: `root` is given, and CIFAR-10 is not there.
        OutputError: The file cannot be written.
    """
    check_model(model)
    target = as_path(path)
    kind = target.suffix.lower()
    _check_arguments(target, preprocess, layout, int8, calibration)
    form = _Form(model, (layout or "nhwc") if preprocess else None)
    release = _release_of(form)
    facts = form.facts(release)
    if int8:
        pictures, facts["calibration"] = _calibration_pictures(form, calibration, root)
    with _exporting(form):
        content = _to_onnx(form, facts) if kind == ".onnx" else _to_pt2(form, facts)
    gap = _check_outputs(_open(content, kind), form, release)
    agreement = None
    if int8:
        content, agreement = _quantize(content, form, pictures, facts)
    return Exported(write_atomic(target, content), gap, agreement, facts)


@checked
def evaluate_exported(path: str | os.PathLike[str], dataset: ImageDataset) -> Evaluation:
    """Measure an exported file on labelled images, as `evaluate` measures a model.

    Examples:
        >>> from cifarnets import create
        >>> from cifarnets.datasets import SyntheticCIFAR10
        >>> from cifarnets.sharing import evaluate_exported, export
        >>> written = export(create("convnet"), "convnet.onnx")
        >>> evaluate_exported(written.path, SyntheticCIFAR10(size=20)).n
        20

    Args:
        path: What `export` wrote. A `.pt2` file may run code when it is opened: take it from those whom you trust.
        dataset: Images of the model's classes, and of the size that it takes; they are normalised with the constants
            of the file.

    Raises:
        WeightsError: The file is missing, or was not written by `export`.
        InputError: The images or their classes are not those of the file.
        MissingExtraError: onnxruntime is not installed.
    """
    path = as_path(path)
    try:
        with open_regular(path) as file:
            content = file.read()
    except OSError as error:
        raise WeightsError(f"cannot read {brief(str(path))}: {error.strerror or error}.") from error
    try:
        program = _open(content, path.suffix.lower())
        facts = program.facts
        mean, std = (json.loads(facts.get(key, "null")) for key in ("mean", "std"))
        input_, output, layout = facts["input"], facts["output"], facts["layout"]
        classes = json.loads(facts.get("classes", "null"))
    except CifarNetsError:
        raise
    except Exception as error:  # each reader has its own ways to fail on a damaged file
        raise WeightsError(f"{brief(str(path))} is no file of cifarnets.sharing.export, or is damaged.") from error
    if classes is not None and tuple(classes) != dataset.classes:
        raise InputError(
            f"the dataset's classes ({', '.join(dataset.classes)}) are not those of {brief(str(path))} "
            f"({', '.join(map(str, classes))}): choose them with cifar_subset, in that order."
        )
    parts = []
    try:
        for images in _batches(dataset.images):
            if input_ == "uint8":
                inputs = images.permute(0, 2, 3, 1) if layout == "nhwc" else images
            else:
                inputs = normalize(images, mean or dataset.mean, std or dataset.std)
            parts.append(program(inputs.contiguous()))
    except CifarNetsError:
        raise
    except Exception as error:
        shape = list(dataset.images.shape)
        raise InputError(f"{brief(str(path))} cannot take the images {shape}: {_first_line(error)}") from error
    if not parts:
        raise InputError("the dataset has no image, so there is nothing to measure.")
    outputs = torch.cat(parts).double()
    # The logarithms of probabilities are logits, too.
    logits = outputs.clamp_min(1e-300).log() if output == "probabilities" else outputs
    return Evaluation.from_logits(logits, dataset.labels, name_outputs(classes or dataset.classes, logits.shape[1]))


class _Form:
    """A model as a program: what goes in, and what comes out."""

    def __init__(self, model: nn.Module, layout: Layout | None) -> None:
        self.name = type(unwrap(model)).__name__
        self.meta = meta = get_meta(model)
        self.layout = layout
        self.model = _plain(model)
        self.program = self.model
        self.channels = in_channels(model) or 3
        self.size = meta.size if meta is not None and meta.size is not None else (32, 32)
        self.output = "features" if meta is not None and meta.config.get("num_classes") == 0 else "logits"
        # Of a model that does not know its constants, any images will do for the comparison.
        self.mean, self.std = (
            (meta and meta.mean) or (0.5,) * self.channels,
            (meta and meta.std) or (0.5,) * self.channels,
        )
        if layout is None:
            return
        if meta is None or meta.mean is None or meta.std is None:
            raise InputError(
                f"{self.name} does not know how its images were normalised, so the preprocessing cannot go into the "
                "file: note it in the model first, with cifarnets.models.annotate."
            )
        self.output = "probabilities" if self.output == "logits" else self.output
        normalized = with_normalization(self.model)
        self.program = _Preprocessed(normalized, layout == "nhwc", self.output == "probabilities").eval()

    def facts(self, release: Release | None) -> dict[str, str]:
        """The metadata of the file."""
        about: dict[str, Any] = {} if self.meta is None else vars(self.meta)
        return {
            "cifarnets": __version__,
            **({"architecture": about["architecture"]} if about else {}),
            **({"weights": release.name} if release is not None else {}),
            "input": "uint8" if self.layout else "normalized",
            "layout": self.layout or "nchw",
            "output": self.output,
            "size": json.dumps(self.size),
            **{key: _to_json(about[key]) for key in ("config", "classes", "mean", "std") if about.get(key) is not None},
        }

    def inputs(self, pictures: Tensor) -> Tensor:
        """What the program takes, of pictures uint8 `[N, C, H, W]`."""
        if self.layout is None:
            return self.normalized(pictures)
        return (pictures.permute(0, 2, 3, 1) if self.layout == "nhwc" else pictures).contiguous()

    def normalized(self, pictures: Tensor) -> Tensor:
        """What the model takes."""
        return normalize(pictures, self.mean, self.std)

    def outputs(self, logits: Tensor) -> Tensor:
        """What the program should give, where the model gives these."""
        return logits.softmax(1) if self.output == "probabilities" else logits

    def noise(self, count: int) -> Tensor:
        """Pictures uint8 `[count, C, H, W]`, always the same."""
        random = torch.Generator().manual_seed(count)
        return torch.randint(0, 256, (count, self.channels, *self.size), dtype=torch.uint8, generator=random)


class _Preprocessed(nn.Module):
    """uint8 pictures in, probabilities or features out."""

    def __init__(self, model: NormalizedModel, channels_last: bool, softmax: bool) -> None:
        super().__init__()
        self.model, self.channels_last, self.softmax = model, channels_last, softmax

    def forward(self, images: Tensor) -> Tensor:
        if self.channels_last:
            images = images.permute(0, 3, 1, 2)
        outputs: Tensor = self.model(images.to(torch.float32) / 255)
        return outputs.softmax(1) if self.softmax else outputs


def _check_arguments(
    target: Path, preprocess: bool, layout: Layout | None, int8: bool, calibration: ImageDataset | None
) -> None:
    kind = target.suffix.lower()
    if kind not in (".onnx", ".pt2"):
        raise InputError(f"the path must end in .onnx or .pt2 (torch.export), which {brief(str(target))} does not.")
    if layout is not None and not preprocess:
        raise InputError("layout= is of pictures, for preprocess=True: a net itself takes [N, C, H, W].")
    if int8 and kind != ".onnx":
        raise InputError(f"int8=True makes ONNX files only: let the path end in .onnx, not {kind}.")
    if calibration is not None and not int8:
        raise InputError("calibration= is for int8=True.")
    if calibration is not None and calibration.split == "test":
        raise InputError("calibration= must not be the test set, which is for measuring: pass training images.")


def _plain(model: nn.Module) -> nn.Module:
    """A copy of the model, without wrappers: float32, on the CPU, in eval mode."""
    try:
        with torch.no_grad():
            return copy.deepcopy(unwrap(model)).to("cpu", torch.float32).eval()
    except Exception as error:  # such as a layer without weights yet
        raise InputError(f"{type(model).__name__} cannot be exported: {_first_line(error)}") from error


def _release_of(form: _Form) -> Release | None:
    """The release whose weights the model has, to the bit."""
    keys = ("architecture", "config", "classes", "mean", "std")
    state, about = form.model.state_dict(), _to_json([getattr(form.meta, key, None) for key in keys])
    for release in releases().values():
        if _to_json([getattr(release, key) for key in keys]) == about:
            theirs = load_release(release).state_dict()
            if theirs.keys() == state.keys() and all(torch.equal(state[key], theirs[key]) for key in theirs):
                return release
    return None


def _to_onnx(form: _Form, facts: Mapping[str, str]) -> bytes:
    onnx = _import_onnx()
    file: Any = io.BytesIO()
    inputs: Any = (form.inputs(form.noise(2)),)
    names: dict[str, Any] = {"input_names": ["images"], "output_names": [form.output]}
    if torch.__version__ >= "2.9":  # compared as versions
        program: Any = torch.onnx.export(
            form.program,
            inputs,
            dynamo=True,
            external_data=False,
            optimize=True,
            verbose=False,
            dynamic_shapes=_any_batch(),
            **names,
        )
        proto = program.model_proto
    else:  # the newer exporter of these versions fails at BatchNorm
        axes = {name: {0: "batch"} for name in ("images", form.output)}
        torch.onnx.export(form.program, inputs, file, dynamo=False, opset_version=18, dynamic_axes=axes, **names)
        proto = onnx.load_from_string(file.getvalue())
    # Every node carries the stack of the code that made it, with the paths of this machine.
    for part in (proto, proto.graph, *proto.graph.node, *proto.graph.value_info):
        del part.metadata_props[:]
        part.ClearField("doc_string")
    proto.graph.name = form.name
    return _with_facts(proto, facts)


def _with_facts(proto: Any, facts: Mapping[str, str]) -> bytes:
    proto.producer_name, proto.producer_version = "cifarnets", __version__
    del proto.metadata_props[:]
    for key, value in facts.items():
        proto.metadata_props.add(key=key, value=value)
    content: bytes = proto.SerializeToString(deterministic=True)
    return content


def _to_pt2(form: _Form, facts: Mapping[str, str]) -> bytes:
    inputs = (form.inputs(form.noise(2)),)
    program = torch.export.export(form.program, inputs, dynamic_shapes=_any_batch(), strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # has the paths of this machine
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={FACTS: json.dumps(dict(facts))})
    return file.getvalue()


def _any_batch() -> Any:
    # torch 2.6 wants a limit, which a slice cannot reach by accident.
    return ({0: torch.export.Dim("batch", max=2**31 - 1)},)


FACTS = "cifarnets.json"
"""The name of the metadata in a file of torch.export."""


@contextlib.contextmanager
def _exporting(form: _Form) -> Iterator[None]:
    """Make an error of ours of whatever torch's exporters raise."""
    try:
        with warnings.catch_warnings(), torch.no_grad(), torch.device("cpu"):
            warnings.simplefilter("ignore")  # of one part of torch about another, which no user can mend
            yield
    except CifarNetsError:
        raise
    except Exception as error:
        raise InputError(f"{form.name} cannot be exported: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {brief(lines[0], 300, quotes=False)}"


class _Program:
    """An exported file that is run here: inputs as a tensor to float32 outputs `[N, K]`."""

    def __init__(self, run: Callable[[Tensor], Tensor], facts: Mapping[str, str]) -> None:
        self._run, self.facts = run, facts

    def __call__(self, inputs: Tensor) -> Tensor:
        return self._run(inputs)


def _open(content: bytes, kind: str) -> _Program:
    if kind == ".pt2":
        extra = {FACTS: ""}
        module = torch.export.load(io.BytesIO(content), extra_files=extra).module()

        def run_torch(inputs: Tensor) -> Tensor:
            with torch.no_grad():
                outputs: Tensor = module(inputs)
            return outputs

        return _Program(run_torch, json.loads(extra[FACTS]))
    runtime = _import_runtime()
    options = runtime.SessionOptions()
    options.log_severity_level = 3  # errors
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run_onnx(inputs: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {"images": inputs.numpy()})[0])

    return _Program(run_onnx, session.get_modelmeta().custom_metadata_map)


def _check_outputs(program: _Program, form: _Form, release: Release | None) -> float:
    """Compare the outputs of a float program with those of the model; return the largest difference.

    Raises:
        WeightsError: They differ.
    """
    gap = 0.0
    for count in (1, 5):
        images = form.noise(count)
        with torch.no_grad():
            wanted = form.outputs(forward_logits(form.model, form.normalized(images)))
        gap = max(gap, _gap(program, form, images, wanted, TOLERANCE, "the model's"))
    if release is not None:
        images, logits, _ = read_golden(release)
        # Machines round differently, so the tolerance is that of `verify`.
        _gap(program, form, images, form.outputs(logits), LOGIT_TOLERANCE, "those of the release")
    return gap


def _gap(program: _Program, form: _Form, images: Tensor, wanted: Tensor, allowed: float, whose: str) -> float:
    found = program(form.inputs(images))
    gap = (found - wanted).abs().max().item() if found.shape == wanted.shape else float("nan")
    allowed *= max(1.0, wanted.abs().max().item())
    if not gap <= allowed:  # NaN is not
        raise WeightsError(
            f"the exported program gives other {form.output} than {whose}: they differ by {gap:.1e}, and "
            f"{allowed:.0e} is allowed. Nothing was written."
        )
    return gap


def _calibration_pictures(
    form: _Form, given: ImageDataset | None, root: str | os.PathLike[str] | None
) -> tuple[Tensor, str]:
    """Pictures uint8 `[N, C, H, W]`, and what they are in words."""
    if given is not None:
        dataset, words = given, "images of your dataset"
    else:
        about = form.meta or ModelMeta("", {})
        try:
            dataset = dataset_for(about, root, train=True)
            words = "training images of CIFAR-10"
        except (DataNotFoundError, UnknownNameError):
            if root is not None:
                raise
            dataset = SyntheticCIFAR10()
        if isinstance(dataset, SyntheticCIFAR10) or about.training.get("synthetic"):
            words = "drawn pictures"
    if not len(dataset) or dataset.images.shape[1:] != (form.channels, *form.size):
        raise InputError(
            f"int8 is calibrated with pictures [N, {form.channels}, {form.size[0]}, {form.size[1]}], not "
            f"{list(dataset.images.shape)}: pass some of the model's training images as calibration=."
        )
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(0))[:CALIBRATION_IMAGES]
    return dataset.images[order], f"{len(order):,} {words}"


def _quantize(content: bytes, form: _Form, pictures: Tensor, facts: Mapping[str, str]) -> tuple[bytes, float]:
    """The program in int8, and the share of the images for which it chooses the class that float chooses.

    Raises:
        WeightsError: That share is too small.
    """
    onnx = _import_onnx()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.quant_utils import add_pre_process_metadata

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = iter(_batches(pictures, 50))

        def get_next(self) -> dict[str, np.ndarray[Any, Any]] | None:
            batch = next(self._batches, None)
            return None if batch is None else {"images": form.inputs(batch).numpy()}

    proto = onnx.load_from_string(content)
    add_pre_process_metadata(proto)  # torch's exporter has fused the layers and knows all shapes
    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(proto.SerializeToString())
        # Weights of 7 bits: processors without VNNI add up products of 8 bits in 16, which overflows. A scale for each
        # channel makes up for the lost bit. docs/export.md has the comparison, on training images.
        quantize_static(
            source,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=QUANTIZED,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=True,
        )
        quantized = _with_facts(onnx.load(path), facts)
    before, after = _open(content, ".onnx"), _open(quantized, ".onnx")
    batches = [form.inputs(part) for part in _batches(pictures)]
    same = torch.cat([before(batch).argmax(1) == after(batch).argmax(1) for batch in batches])
    agreement = same.double().mean().item()
    if not agreement >= AGREEMENT:
        raise WeightsError(
            f"int8 chooses another class than float for {1 - agreement:.1%} of the calibration images "
            f"({facts['calibration']}), and {1 - AGREEMENT:.0%} are allowed. Nothing was written: export it in float, "
            "or pass more of the model's training images as calibration=."
        )
    return quantized, agreement


def _batches(images: Tensor, size: int = 500) -> list[Tensor]:
    return [images[start : start + size] for start in range(0, len(images), size)]


def _import_onnx() -> Any:
    try:
        import onnx
        import onnxscript  # noqa: F401 (torch's exporter needs it)
    except ImportError as error:
        raise _missing() from error
    _import_runtime()
    return onnx


def _import_runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing() from error
    return onnxruntime


def _missing() -> MissingExtraError:
    return MissingExtraError("ONNX files need onnx, onnxruntime and onnxscript: pip install 'cifarnets[onnx]'.")
