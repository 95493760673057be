"""Exported models: what onnxruntime and torch.export make of a file, what is in it, and what is refused."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import cifarnets
from cifarnets import create, evaluate, info, load, models, predict, save
from cifarnets.cli import main
from cifarnets.datasets import BatchLoader, ImageDataset, SyntheticCIFAR10, dataset_for, normalize
from cifarnets.errors import DataNotFoundError, InputError, MissingExtraError, OutputError, WeightsError
from cifarnets.models.metadata import ModelMeta, get_meta
from cifarnets.sharing import evaluate_exported, export

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)
CLASSES = tuple("abcdefghij")
FAMILIES: dict[str, dict[str, Any]] = {
    "fcnet": {"widths": (64, 32)},
    "convnet": {},
    "convnet_functional": {"pool": "avg"},
    "resnet18": {"widths": (4, 8, 16, 16)},
    "resnet20": {},
    "mobilenet_v2": {"width": 0.1},
    "densenet40_bc": {"growth": 2},
    "quarternet16": {"widths": (4, 8)},
    "quarternet32": {"widths": (4, 8), "norm": "batch"},
    "resnet32": {"se": True, "preact": True, "widths": (4, 8, 16)},
    "wide_resnet16_4": {},
    "vgg11_bn": {"widths": (8, 16, 16, 32, 32)},
    "airbench94": {"widths": (16, 32, 32)},
    "airbench96": {"widths": (16, 32, 32)},
}
# The layout is a matter of the axes before the net: two families are enough for the other one.
PAIRS = [(name, layout) for name in FAMILIES for layout in (None, "nhwc")] + [("fcnet", "nchw"), ("resnet20", "nchw")]


def net(name: str = "convnet", **config: Any) -> nn.Module:
    """A model whose BatchNorm has seen images, and which knows its constants and classes."""
    model = create(name, **config)
    with torch.no_grad():
        for _ in range(3):
            model.train()(torch.randn(16, 3, 32, 32))
    models.annotate(model, classes=CLASSES, mean=MEAN, std=STD)
    return model.eval()


def meta_of(model: nn.Module) -> ModelMeta:
    meta = get_meta(model)
    assert meta is not None
    return meta


def pictures(count: int) -> Tensor:
    return SyntheticCIFAR10(size=max(count, 10)).images[:count]


def answer(model: nn.Module, images: Tensor) -> Tensor:
    meta = meta_of(model)
    assert meta.mean is not None
    assert meta.std is not None
    with torch.no_grad():
        return model(normalize(images, meta.mean, meta.std))


def run(path: Path, inputs: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": inputs.numpy()})[0])


@pytest.fixture
def _no_cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFARNETS_DATA", str(tmp_path / "none"))


@pytest.mark.parametrize(("name", "layout"), PAIRS)
def test_onnxruntime_gives_what_the_model_gives(name: str, layout: Any, tmp_path: Path) -> None:
    model = net(name, **FAMILIES[name])
    written = export(model, tmp_path / "net.onnx", preprocess=layout is not None, layout=layout)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]  # no data beside it
    assert written.gap < 1e-4
    for count in (1, 7):  # batches of any size
        images = pictures(count)
        logits = answer(model, images)
        if layout is None:
            torch.testing.assert_close(run(written.path, normalize(images, MEAN, STD)), logits, atol=1e-4, rtol=0)
        else:
            inputs = images.permute(0, 2, 3, 1).contiguous() if layout == "nhwc" else images
            torch.testing.assert_close(run(written.path, inputs), logits.softmax(1), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["convnet.cifar3", "airbench94"])
def test_released_weights_give_the_logits_of_their_release(name: str, tmp_path: Path) -> None:
    assert export(load(name), tmp_path / "net.onnx").facts["weights"] == name
    tuned = load(name)
    next(p for p in tuned.parameters() if p.requires_grad).data[0] += 1e-3
    assert "weights" not in export(tuned, tmp_path / "tuned.onnx").facts


def test_a_program_that_differs_from_the_release_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["cifarnets.sharing.export"]
    real = module.read_golden
    monkeypatch.setattr(module, "read_golden", lambda release: [part + 1 for part in real(release)])
    with pytest.raises(WeightsError, match=r"other logits than those of the release: they differ by"):
        export(load("convnet.cifar3"), tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_file_says_what_it_needs_and_gives(tmp_path: Path) -> None:
    path = export(load("convnet.cifar3"), tmp_path / "net.onnx", preprocess=True).path
    session = onnxruntime.InferenceSession(path)
    images, probabilities = session.get_inputs()[0], session.get_outputs()[0]
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", 32, 32, 3])
    assert (probabilities.name, probabilities.type) == ("probabilities", "tensor(float)")
    assert probabilities.shape == ["batch", 3]
    facts = session.get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == ["airplane", "automobile", "ship"]
    assert json.loads(facts["mean"]) == list(meta_of(load("convnet.cifar3")).mean or ())
    assert (facts["input"], facts["layout"], facts["output"]) == ("uint8", "nhwc", "probabilities")
    assert (facts["architecture"], facts["weights"]) == ("convnet", "convnet.cifar3")
    onnx.checker.check_model(str(path), full_check=True)


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_the_file_tells_nothing_of_the_machine(ending: str, tmp_path: Path) -> None:
    content = export(net(), tmp_path / f"net{ending}").path.read_bytes()
    for place in (Path(cifarnets.__file__).parent, Path(torch.__file__).parent, tmp_path):
        assert str(place).encode() not in content


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    model = net()
    first, second = (export(model, tmp_path / name).path for name in ("a.onnx", "b.onnx"))
    assert first.read_bytes() == second.read_bytes()


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = net().half().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    written = export(torch.nn.DataParallel(model), tmp_path / "net.onnx")
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    images = pictures(3)
    wanted = answer(model.float().eval(), images)
    torch.testing.assert_close(run(written.path, normalize(images, MEAN, STD)), wanted, atol=1e-4, rtol=0)


def test_models_of_another_size_number_of_channels_or_kind(tmp_path: Path) -> None:
    grey = create("resnet20", in_channels=1, widths=(2, 2, 2)).eval()
    models.annotate(grey, mean=(0.5,), std=(0.25,), size=(40, 24))
    path = export(grey, tmp_path / "grey.onnx", preprocess=True).path
    assert run(path, torch.zeros(2, 40, 24, 1, dtype=torch.uint8)).shape == (2, 10)
    trunk = create("convnet", num_classes=0).eval()
    models.annotate(trunk, mean=MEAN, std=STD)
    written = export(trunk, tmp_path / "trunk.onnx", preprocess=True, layout="nchw")
    assert written.facts["output"] == "features"
    torch.testing.assert_close(run(written.path, pictures(2)), answer(trunk, pictures(2)), atol=1e-4, rtol=0)
    foreign = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))
    written = export(foreign, tmp_path / "foreign.onnx")
    assert run(written.path, torch.zeros(3, 3, 32, 32)).shape == (3, 4)
    assert "classes" not in written.facts


class Drifting(nn.Module):
    """A model that gives other logits at every call, and so others than its export."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3072, 4)
        self.calls: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(0)
        return self.linear(x.flatten(1)) + len(self.calls)


class Branching(nn.Module):
    """A model whose way depends on the numbers, which no export can follow."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] if float(x.mean()) > 0 else x.flatten(1)[:, 4:8]


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :4] / 0 * 0


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (Drifting, WeightsError, "gives other logits than the model's.*Nothing was written"),
        (Broken, WeightsError, "differ by nan"),
        (Branching, InputError, "Branching cannot be exported: "),
    ],
)
def test_a_failed_check_keeps_the_former_file(
    make: Callable[[], nn.Module], error: type[Exception], words: str, ending: str, tmp_path: Path
) -> None:
    path = tmp_path / f"net{ending}"
    path.write_bytes(b"former")
    with pytest.raises(error, match=words):
        export(make(), path)
    assert path.read_bytes() == b"former"
    assert [other.name for other in tmp_path.iterdir()] == [path.name]


def test_what_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        export(net(), tmp_path / "file" / "net.onnx")


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("net.safetensors", {}, r"must end in \.onnx or \.pt2"),
    ("net", {}, r"must end in \.onnx or \.pt2"),
    ("net.onnx", {"layout": "nhwc"}, "layout= is of pictures, for preprocess=True"),
    ("net.onnx", {"layout": "hwc", "preprocess": True}, "layout of export must be"),
    ("net.pt2", {"int8": True}, "int8=True makes ONNX files only"),
    ("net.onnx", {"calibration": SyntheticCIFAR10(size=10)}, "calibration= is for int8=True"),
    ("net.onnx", {"calibration": SyntheticCIFAR10(False, size=10), "int8": True}, "must not be the test set"),
    (
        "net.onnx",
        {"calibration": ImageDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), [0] * 4, ["a"]), "int8": True},
        r"pictures \[N, 3, 32, 32\], not \[4, 3, 8, 8\]",
    ),
]


@pytest.mark.parametrize(("name", "arguments", "words"), BAD)
def test_arguments_that_make_no_sense_are_refused(
    name: str, arguments: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        export(net(), tmp_path / name, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_preprocessing_needs_the_constants(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ConvNet does not know how its images were normalised.*annotate"):
        export(create("convnet"), tmp_path / "net.onnx", preprocess=True)


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_the_command(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'cifarnets[onnx]'")):
        export(net(), tmp_path / "net.onnx")
    assert export(net(), tmp_path / "net.pt2").path.is_file()  # needs none of them


# int8


@pytest.mark.cifar10
@pytest.mark.parametrize(("name", "images"), [("convnet", 10_000), ("resnet20", 2_000)])
def test_int8_loses_less_than_a_point(name: str, images: int, tmp_path: Path, real_root: Path) -> None:
    model = load(name)
    test = dataset_for(meta_of(model), real_root).select(range(images))
    written = export(model, tmp_path / "int8.onnx", int8=True, preprocess=True)
    assert written.facts["calibration"] == "1,000 training images of CIFAR-10"
    assert written.agreement is not None
    assert written.agreement > 0.97
    lost = evaluate(model, BatchLoader(test, 1000)).accuracy - evaluate_exported(written.path, test).accuracy
    assert abs(lost) < 0.01


@pytest.mark.usefixtures("_no_cifar10")
def test_int8_without_data_is_calibrated_with_drawn_pictures(tmp_path: Path) -> None:
    model = load("convnet")
    whole, written = export(model, tmp_path / "a.onnx"), export(model, tmp_path / "b.onnx", int8=True)
    assert written.facts["calibration"] == "1,000 drawn pictures"
    assert written.path.stat().st_size < whole.path.stat().st_size / 2
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.onnx", "b.onnx"]
    graph = onnx.load(written.path).graph
    weights = [part for part in graph.initializer if part.data_type == onnx.TensorProto.INT8 and len(part.dims) > 1]
    assert len(weights) == 4  # two convolutions, two linear layers
    # 7 bits, so that no processor overflows where it adds up products in 16 bits
    assert max(int(np.abs(onnx.numpy_helper.to_array(part)).max()) for part in weights) <= 64
    with pytest.raises(DataNotFoundError):
        export(model, tmp_path / "c.onnx", int8=True, root=tmp_path)


def test_int8_is_calibrated_with_the_images_that_are_passed(tmp_path: Path) -> None:
    drawn = SyntheticCIFAR10(size=60)
    written = export(load("convnet"), tmp_path / "net.onnx", int8=True, calibration=drawn)
    assert written.facts["calibration"] == "60 images of your dataset"
    assert onnxruntime.InferenceSession(written.path).get_modelmeta().custom_metadata_map == written.facts


def test_int8_that_chooses_other_classes_is_not_kept(tmp_path: Path) -> None:
    linear = nn.Linear(3072, 10)
    model = nn.Sequential(nn.Flatten(), linear)
    linear.weight.data[:, 0] = 1e4  # so large that nothing else counts in 8 bits
    with pytest.raises(WeightsError, match=r"int8 chooses another class than float for \d+\.\d% .*Nothing was written"):
        export(model, tmp_path / "net.onnx", int8=True, calibration=SyntheticCIFAR10(size=100))
    assert list(tmp_path.iterdir()) == []


# torch.export


@pytest.mark.parametrize("name", FAMILIES)
def test_a_program_of_torch_export_gives_what_the_model_gives(name: str, tmp_path: Path) -> None:
    model = net(name, **FAMILIES[name])
    path = export(model, tmp_path / "net.pt2", preprocess=True).path
    extra = {"cifarnets.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(json.loads(extra["cifarnets.json"])["classes"]) == list(CLASSES)
    for count in (1, 7):
        images = pictures(count)
        with torch.no_grad():
            found = program(images.permute(0, 2, 3, 1).contiguous())
        torch.testing.assert_close(found, answer(model, images).softmax(1), atol=1e-4, rtol=0)


# evaluate_exported


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
@pytest.mark.parametrize("layout", [None, "nhwc", "nchw"])
def test_an_exported_file_is_evaluated_as_the_model(layout: Any, ending: str, tmp_path: Path) -> None:
    model = load("convnet")
    release = info("convnet").release
    assert release is not None
    data = SyntheticCIFAR10(size=60, mean=release.mean, std=release.std)
    named = ImageDataset(data.images, data.labels, release.classes, mean=data.mean, std=data.std)
    path = export(model, tmp_path / f"net{ending}", preprocess=layout is not None, layout=layout).path
    found, wanted = evaluate_exported(path, named), evaluate(model, BatchLoader(named, 60))
    assert found.confusion == wanted.confusion
    assert found.loss == pytest.approx(wanted.loss, abs=1e-4)
    assert list(found.per_class) == list(release.classes)
    with pytest.raises(InputError, match=r"classes \(disc, cross, .* are not those of .* \(airplane, automobile, "):
        evaluate_exported(path, data)


@pytest.mark.parametrize("ending", [".onnx", ".pt2"])
def test_files_that_cannot_be_evaluated_are_refused(ending: str, tmp_path: Path) -> None:
    data = SyntheticCIFAR10(size=20)
    path = tmp_path / f"net{ending}"
    with pytest.raises(WeightsError, match="cannot read"):
        evaluate_exported(path, data)
    path.write_bytes(b"no program")
    with pytest.raises(WeightsError, match=r"is no file of cifarnets\.sharing\.export, or is damaged"):
        evaluate_exported(path, data)
    export(create("convnet"), path)
    small = ImageDataset(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), [0, 0], ["a"])
    with pytest.raises(InputError, match=r"cannot take the images \[2, 3, 8, 8\]"):
        evaluate_exported(path, small)
    with pytest.raises(InputError, match="no image"):
        evaluate_exported(path, data.select([]))


# The command


CLIENT = """
import sys

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "cifarnets"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Forbidden())
import json
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
(probabilities,) = session.run(None, {"images": np.load(sys.argv[2])})
assert not {"torch", "cifarnets"} & {name.partition(".")[0] for name in sys.modules}
for row in probabilities:
    print(classes[row.argmax()], float(row.max()))
"""


def test_onnxruntime_alone_runs_an_exported_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of torch or of this library can be imported there."""
    assert main(["export", "convnet", str(tmp_path / "convnet.onnx"), "--preprocess"]) == 0
    capsys.readouterr()
    images = pictures(8)
    np.save(tmp_path / "images.npy", images.permute(0, 2, 3, 1).numpy())
    done = subprocess.run(
        [sys.executable, "-I", "-c", CLIENT, tmp_path / "convnet.onnx", tmp_path / "images.npy"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = [(name, float(value)) for name, value in (line.split() for line in done.stdout.splitlines())]
    wanted: Any = predict(load("convnet"), images)
    assert [name for name, _ in found] == [prediction[0][0] for prediction in wanted]
    assert [value for _, value in found] == pytest.approx([prediction[0][1] for prediction in wanted], abs=1e-4)


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(net(), tmp_path / "mine.safetensors")
    target = tmp_path / "mine.onnx"
    assert main(["export", str(tmp_path / "mine.safetensors"), str(target), "--preprocess", "--layout", "nchw"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == (f"{target} ({target.stat().st_size:,} bytes) takes uint8 pictures (nchw) and gives probabilities.")
    assert re.fullmatch(r"Run and compared with the model: the outputs agree within \d\.\de-\d\d\.", second)


@pytest.mark.cifar10
def test_the_command_shows_the_accuracy_of_float_and_int8(
    tmp_path: Path, real_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", "convnet.cifar3", str(tmp_path / "net.onnx"), "--int8"]
    assert main(words) == 0
    third, fourth = capsys.readouterr().out.splitlines()[2:]
    assert re.fullmatch(r"int8 chooses the class of float for 9\d\.\d% of 1,000 training images of CIFAR-10\.", third)
    found = re.fullmatch(r"Accuracy on the test images: float (0\.\d+)   int8 (0\.\d+)", fourth)
    assert found
    assert abs(float(found[1]) - float(found[2])) < 0.01
    assert main([*words, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["accuracy"] == pytest.approx({"float": float(found[1]), "int8": float(found[2])}, abs=1e-4)
    assert json.loads(record["facts"]["classes"]) == ["airplane", "automobile", "ship"]


@pytest.mark.usefixtures("_no_cifar10")
def test_the_command_says_where_it_could_not_measure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "convnet", str(tmp_path / "net.onnx"), "--int8"]) == 0
    third, fourth = capsys.readouterr().out.splitlines()[2:]
    assert third.endswith("of 1,000 drawn pictures.")
    assert fourth == "Accuracy on the test images: not measured, for CIFAR-10 is not here."


def test_the_command_speaks_of_its_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "convnet", str(tmp_path / "net.onnx"), "--layout", "nchw"]) == 1
    assert "--layout is of pictures, for --preprocess" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    assert "cifarnets export convnet convnet.onnx --preprocess" in capsys.readouterr().out
