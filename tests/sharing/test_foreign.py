"""Checkpoints of other programs: every prefix, wrapper and layout gives the logits of the net that was saved."""

import argparse
import contextlib
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cifarnets import create, load, save
from cifarnets.cli import main
from cifarnets.errors import InputError, UnknownNameError, WeightsError
from cifarnets.models.metadata import get_meta
from cifarnets.sharing import LoadReport, import_model, load_state

WIDTHS = (4, 8, 16)
CONSTANTS: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}


def convnet(**config: Any) -> nn.Module:
    return create("convnet", **{"widths": (4, 4), "hidden": 8, **config}).eval()


def resnet(**config: Any) -> nn.Module:
    return create("resnet20", **{"widths": WIDTHS, **config}).eval()


def images() -> Tensor:
    return torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def stir(model: nn.Module) -> nn.Module:
    """Give a net statistics and scales of its own, as a training does, so that no mistake stays hidden."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(0, 0.1)
            assert module.num_batches_tracked is not None
            module.num_batches_tracked.fill_(7)
    return model.eval()


@torch.no_grad()
def assert_same_logits(ours: nn.Module, theirs: nn.Module) -> None:
    logits = theirs(images())
    assert logits.std() > 1e-3, "logits that are all alike would prove nothing"
    assert torch.allclose(ours(images()), logits, rtol=1e-5, atol=1e-5)


def put(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


# --- prefixes and wrappers


class Holder(nn.Module):
    """A module that holds another one under a name, as scripts and Lightning do."""

    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)


PREFIXES = [
    "",
    "module.",
    "_orig_mod.",
    "model.",
    "net.",
    "module.module.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "model.model.",
    "model.net.",
    "net.model.",
    "model._orig_mod.",
    "_orig_mod.model.",
    "module.model.net._orig_mod.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_every_prefix_gives_equal_logits(prefix: str, ending: str, tmp_path: Path) -> None:
    theirs, ours = convnet(), convnet()
    state = {prefix + name: tensor for name, tensor in theirs.state_dict().items()}
    path = tmp_path / f"theirs{ending}"
    if ending == ".pth":
        torch.save(state, path)
    else:
        safetensors.torch.save_file(state, path)
    report = load_state(ours, path)
    assert torch.equal(ours(images()), theirs(images()))
    assert report.matched == report.total == len(state)
    assert set(report.prefix.split(".")) == set(prefix.split("."))


def test_what_torch_itself_wraps_around_a_model_is_removed(tmp_path: Path) -> None:
    theirs = stir(resnet())
    wrapped: dict[str, nn.Module] = {
        "data parallel": nn.DataParallel(theirs),
        "compiled": torch.compile(theirs),  # type: ignore[dict-item]
        "compiled inside": Holder("net", torch.compile(theirs)),  # type: ignore[arg-type]
        "averaged": AveragedModel(theirs),
    }
    for name, module in wrapped.items():
        ours = resnet()
        load_state(ours, put(tmp_path / f"{name}.pth", module.state_dict()))
        assert torch.equal(ours(images()), theirs(images())), name


def test_a_compiled_layer_in_the_middle_is_found(tmp_path: Path) -> None:
    theirs, ours = convnet(), convnet()
    state = theirs.state_dict()
    state = {name.replace("fc1.", "fc1._orig_mod."): tensor for name, tensor in state.items()}
    assert load_state(ours, put(tmp_path / "x.pth", state)).prefix == "_orig_mod."
    assert torch.equal(ours(images()), theirs(images()))


def test_a_model_with_such_names_of_its_own_keeps_them(tmp_path: Path) -> None:
    theirs, ours = (
        Holder("model", Holder("module", nn.Linear(3, 2))),
        Holder("model", Holder("module", nn.Linear(3, 2))),
    )
    report = load_state(ours, put(tmp_path / "x.pth", theirs.state_dict()))
    assert (report.prefix, report.matched) == ("", 2)


Wrap = Callable[[dict[str, Tensor]], Any]
WRAPPERS: dict[str, Wrap] = {
    "state_dict": lambda state: {"state_dict": state, "best_prec1": torch.tensor(91.2), "epoch": 3},
    "model_state_dict": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {0: {}}}},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1, data=["a"]), "scaler": {}},
    "net": lambda state: {"net": state, "acc": 93.1, "epoch": 199},
    "ema": lambda state: {"ema": state},
    "model_ema": lambda state: {"model_ema": state},
    "state_dict_ema": lambda state: {"state_dict_ema": state},
    "ema.module": lambda state: {"ema": {"decay": 0.999, "module": state}},
    "model.state_dict": lambda state: {"model": {"state_dict": state}},
    "checkpoint.weights": lambda state: {"checkpoint": {"weights": state}},
}


@pytest.mark.parametrize("entry", WRAPPERS)
def test_every_wrapper_gives_equal_logits(entry: str, tmp_path: Path) -> None:
    theirs, ours = convnet(), convnet()
    state = {f"module.{name}": tensor for name, tensor in theirs.state_dict().items()}
    path = put(tmp_path / "x.pth", WRAPPERS[entry](state))
    named = entry if entry.startswith("checkpoint") else None  # an entry that nobody knows has to be named
    report = load_state(ours, path, entry=named)
    assert (report.entry, report.prefix) == (entry, "module.")
    assert torch.equal(ours(images()), theirs(images()))


def test_averaged_weights_come_first_and_the_report_says_so(tmp_path: Path) -> None:
    last, averaged, ours = convnet(), convnet(), convnet()
    path = put(tmp_path / "x.pth", {"state_dict": last.state_dict(), "state_dict_ema": averaged.state_dict()})
    report = load_state(ours, path)
    assert torch.equal(ours(images()), averaged(images()))
    assert report.entry == "state_dict_ema"
    assert "the file has also: state_dict" in str(report)
    load_state(ours, path, entry="state_dict")
    assert torch.equal(ours(images()), last(images()))


def test_an_entry_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    path = put(tmp_path / "x.pth", {"net": convnet().state_dict()})
    with pytest.raises(WeightsError, match=r"no state dict at entry='ema'; there is: 'net'\."):
        load_state(convnet(), path, entry="ema")


@pytest.mark.parametrize(
    "content", [{"epoch": 3, "acc": 0.5}, {}, [1, 2], torch.zeros(3), {"fancy": {"a": torch.ones(1)}}]
)
def test_a_file_without_a_state_dict_says_what_it_has(content: Any, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"holds (no state dict that is known|a \w+, and no state dict)"):
        load_state(convnet(), put(tmp_path / "x.pth", content))


# --- what is left over, missing, or of another shape


def spoilt(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    state: dict[str, Any] = dict(convnet().state_dict())
    change(state)
    return put(tmp_path / "x.pth", {"state_dict": {f"module.{name}": value for name, value in state.items()}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("fc1.bias"), r"1 tensors of the model are missing: fc1\.bias"),
        (
            lambda state: state.update(extra=torch.ones(2)),
            r"1 names in the file are not part of the model: module\.extra",
        ),
        (lambda state: state.update({"fc1.bias": torch.ones(9)}), r"module\.fc1\.bias is \[9\] instead of \[8\]"),
        (lambda state: state.update({"fc1.bias": 3}), r"module\.fc1\.bias is no tensor but a int"),
        (lambda state: state.update({"fc1.bias": torch.ones(8).int()}), r"torch\.int32 instead of torch\.float32"),
        (lambda state: state.update({"fc1.bias": torch.ones(8) * 1j}), r"torch\.complex64 instead of torch\.float32"),
        (lambda state: state.update({"fc1.bias": torch.ones(8).to_sparse()}), "sparse"),
        (lambda state: state.update({"fc1.bias": torch.nested.nested_tensor([torch.ones(8)])}), "nested"),
    ],
    ids=["missing", "left over", "shape", "number", "integers", "complex", "sparse", "nested"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_what_does_not_fit_is_an_error_and_changes_nothing(change: Any, message: str, tmp_path: Path) -> None:
    ours = convnet()
    before = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_state(ours, spoilt(tmp_path, change))
    assert all(torch.equal(tensor, before[name]) for name, tensor in ours.state_dict().items())


def test_what_the_caller_names_may_be_missing_left_over_or_of_another_shape(tmp_path: Path) -> None:
    def change(state: dict[str, Any]) -> None:
        del state["fc1.bias"]
        state.update({"fc2.weight": torch.ones(100, 8), "fc2.bias": torch.ones(100), "layer.total_ops": torch.ones(1)})

    ours = convnet()
    kept = ours.fc2.weight.clone()  # type: ignore[operator]
    path = spoilt(tmp_path, change)
    report = load_state(ours, path, allow_missing=["fc1.bias", "fc2.*"], allow_unexpected=["*.total_ops"])
    assert set(report.missing) == {"fc1.bias", "fc2.weight", "fc2.bias"}
    assert set(report.unexpected) == {"module.fc2.weight", "module.fc2.bias", "module.layer.total_ops"}
    assert torch.equal(ours.fc2.weight, kept)  # type: ignore[arg-type]
    assert "missing" in str(report)
    assert "left out" in str(report)


def test_other_parts_of_a_lightning_module_must_be_named(tmp_path: Path) -> None:
    theirs, ours = convnet(), convnet()
    state = {f"model.{name}": tensor for name, tensor in theirs.state_dict().items()}
    path = put(
        tmp_path / "x.ckpt", {"state_dict": {**state, "loss.weight": torch.ones(10), "fc2.bias": torch.ones(10)}}
    )
    with pytest.raises(WeightsError, match=r"not part of the model: loss\.weight, fc2\.bias\."):
        load_state(ours, path)
    load_state(ours, path, allow_unexpected=["loss.*", "fc2.bias"])
    assert torch.equal(ours(images()), theirs(images()))


def test_a_layer_beside_a_copy_of_it_is_not_confused_with_it(tmp_path: Path) -> None:
    theirs, ours = convnet(), convnet()
    other = {f"module.{name}": torch.zeros_like(tensor) for name, tensor in convnet().state_dict().items()}
    path = put(tmp_path / "x.pth", {**other, **theirs.state_dict()})
    with pytest.raises(WeightsError, match="8 names in the file are not part of the model"):
        load_state(ours, path)
    load_state(ours, path, allow_unexpected=["module.*"])
    assert torch.equal(ours(images()), theirs(images()))


def test_a_model_of_another_kind_gets_nothing(tmp_path: Path) -> None:
    path = put(tmp_path / "x.pth", create("fcnet").state_dict())
    with pytest.raises(WeightsError, match="does not fit ConvNet: 8 tensors of the model are missing"):
        load_state(convnet(), path)


def test_other_dtypes_are_converted_and_reported(tmp_path: Path) -> None:
    theirs, ours = convnet(), convnet()
    report = load_state(ours, put(tmp_path / "x.pth", convnet().half().state_dict()))
    assert "float16 in the file became float32" in report.notes
    load_state(ours.half(), put(tmp_path / "y.pth", theirs.state_dict()))
    assert torch.equal(ours.fc1.weight, theirs.fc1.weight.half())  # type: ignore[arg-type]


def test_counters_that_old_files_lack_are_noted(tmp_path: Path) -> None:
    theirs, ours = stir(resnet()), resnet()
    state = {name: value for name, value in theirs.state_dict().items() if "num_batches" not in name}
    report = load_state(ours, put(tmp_path / "x.pth", state))
    assert report.notes == ("19 num_batches_tracked are not in the file, and stay as they are",)
    assert torch.equal(ours(images()), theirs(images()))


def test_a_wrapped_model_is_loaded_into_and_keeps_its_mode(tmp_path: Path) -> None:
    theirs, ours = convnet(), convnet().train()
    load_state(nn.DataParallel(ours), put(tmp_path / "x.pth", theirs.state_dict()))
    assert ours.training
    assert torch.equal(ours.fc1.weight, theirs.fc1.weight)  # type: ignore[arg-type]


def test_a_model_without_memory_is_refused(tmp_path: Path) -> None:
    with torch.device("meta"):
        model = convnet()
    with pytest.raises(InputError, match="meta"):
        load_state(model, put(tmp_path / "x.pth", convnet().state_dict()))


# --- layouts of other libraries, each written out small


def bn(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels)


def conv3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)


class Pad(nn.Module):
    """akamaster's option A."""

    def __init__(self, planes: int) -> None:
        super().__init__()
        self.planes = planes

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4), "constant", 0)


class BasicBlock(nn.Module):
    """The block of akamaster, chenyaofo and kuangliu; they differ in the shortcut and in its name."""

    def __init__(self, inputs: int, planes: int, stride: int, shortcut: str, option: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3(inputs, planes, stride), bn(planes)
        self.conv2, self.bn2 = conv3(planes, planes), bn(planes)
        self.name = shortcut
        way: nn.Module | None = nn.Sequential() if shortcut == "shortcut" else None
        if stride != 1 or inputs != planes:
            learned = nn.Sequential(nn.Conv2d(inputs, planes, 1, stride, bias=False), bn(planes))
            way = Pad(planes) if option == "A" else learned
        self.add_module(shortcut, way)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        way = getattr(self, self.name)
        return F.relu(out + (x if way is None else way(x)))


class HeStyle(nn.Module):
    def __init__(
        self, n: int, widths: tuple[int, ...], head: str, shortcut: str, option: str, classes: int = 10
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv3(3, widths[0]), bn(widths[0])
        inputs = widths[0]
        for stage, planes in enumerate(widths, 1):
            strides = [1 if stage == 1 else 2] + [1] * (n - 1)
            layers = []
            for stride in strides:
                layers.append(BasicBlock(inputs, planes, stride, shortcut, option))
                inputs = planes
            self.add_module(f"layer{stage}", nn.Sequential(*layers))
        self.stages, self.head = len(widths), head
        self.add_module(head, nn.Linear(inputs, classes))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            out = getattr(self, f"layer{stage}")(out)
        out = F.avg_pool2d(out, out.size()[3]).flatten(1)
        logits: Tensor = getattr(self, self.head)(out)
        return logits


def akamaster(n: int = 3, classes: int = 10, option: str = "A") -> nn.Module:
    return stir(HeStyle(n, WIDTHS, "linear", "shortcut", option, classes))


def chenyaofo(n: int = 3, classes: int = 10) -> nn.Module:
    return stir(HeStyle(n, WIDTHS, "fc", "downsample", "B", classes))


def kuangliu_resnet18() -> nn.Module:
    return stir(HeStyle(2, (4, 8, 16, 32), "linear", "shortcut", "B"))


def torchvision_resnet18() -> nn.Module:
    from torchvision.models import resnet18

    return resnet18(num_classes=10)


def chenyaofo_mobilenet() -> nn.Module:
    """torchvision's, with stride 1 in the first convolution and the second stage."""
    from torchvision.models import mobilenet_v2

    net = mobilenet_v2(num_classes=10, width_mult=0.25)
    net.features[0][0].stride = net.features[2].conv[1][0].stride = (1, 1)
    return stir(net)


class ConvBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, side: int, stride: int, activate: bool) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)
        self.bn = bn(outputs)
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return F.relu(x) if self.activate else x


class ResUnit(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential()
        self.body.add_module("conv1", ConvBlock(inputs, outputs, 3, stride, True))
        self.body.add_module("conv2", ConvBlock(outputs, outputs, 3, 1, False))
        self.resize = inputs != outputs or stride != 1
        if self.resize:
            self.identity_conv = ConvBlock(inputs, outputs, 1, stride, False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + (self.identity_conv(x) if self.resize else x))


class PyTorchCV(nn.Module):
    """pytorchcv's CIFARResNet."""

    def __init__(self, n: int = 3, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential()
        self.features.add_module("init_block", ConvBlock(3, WIDTHS[0], 3, 1, True))
        inputs = WIDTHS[0]
        for i, channels in enumerate(WIDTHS):
            stage = nn.Sequential()
            for j in range(n):
                stage.add_module(f"unit{j + 1}", ResUnit(inputs, channels, 2 if (j == 0 and i != 0) else 1))
                inputs = channels
            self.features.add_module(f"stage{i + 1}", stage)
        self.features.add_module("final_pool", nn.AvgPool2d(8, 1))
        self.output = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        logits: Tensor = self.output(x.view(x.size(0), -1))
        return logits


VGG_WIDTHS = (4, 4, 8, 8, 8)


class KuangliuVGG(nn.Module):
    def __init__(self, depths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for depth, width in zip(depths, VGG_WIDTHS, strict=True):
            for _ in range(depth):
                layers += [nn.Conv2d(inputs, width, 3, padding=1), bn(width), nn.ReLU(inplace=True)]
                inputs = width
            layers += [nn.MaxPool2d(2, 2)]
        layers += [nn.AvgPool2d(1, 1)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


LAYOUTS: dict[str, tuple[Callable[[], nn.Module], str, dict[str, Any]]] = {
    "akamaster's or kuangliu's ResNet": (akamaster, "resnet20", {"widths": WIDTHS}),
    "chenyaofo's ResNet": (chenyaofo, "resnet20", {"widths": WIDTHS, "shortcut": "B"}),
    "pytorchcv's CIFAR ResNet": (lambda: stir(PyTorchCV()), "resnet20", {"widths": WIDTHS, "shortcut": "B"}),
    "kuangliu's ResNet-18": (kuangliu_resnet18, "resnet18", {"widths": (4, 8, 16, 32)}),
    "chenyaofo's MobileNetV2": (chenyaofo_mobilenet, "mobilenet_v2", {"width": 0.25}),
    "kuangliu's VGG": (lambda: stir(KuangliuVGG((1, 1, 2, 2, 2))), "vgg11_bn", {"widths": VGG_WIDTHS}),
}


NAMED = {"kuangliu's ResNet-18": "akamaster's or kuangliu's ResNet"}
"""What a report calls a layout."""


@pytest.mark.parametrize("prefix", ["", "module.", "model._orig_mod."])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_equal_logits(layout: str, prefix: str, tmp_path: Path) -> None:
    make, name, config = LAYOUTS[layout]
    theirs, ours = make(), create(name, **config).eval()
    state = {prefix + key: value for key, value in theirs.state_dict().items()}
    report = load_state(ours, put(tmp_path / "x.pth", {"net": state}))
    assert_same_logits(ours, theirs)
    assert report.layout == NAMED.get(layout, layout)
    assert report.matched == report.total == len(state)


@pytest.mark.parametrize("depth", [20, 32, 56])
def test_blocks_beyond_the_ninth_keep_their_order(depth: int, tmp_path: Path) -> None:
    theirs = akamaster((depth - 2) // 6)
    ours = create(f"resnet{depth}", widths=WIDTHS).eval()
    load_state(ours, put(tmp_path / "x.pth", theirs.state_dict()))
    assert_same_logits(ours, theirs)


def test_a_block_that_is_missing_moves_no_other(tmp_path: Path) -> None:
    theirs, ours = akamaster(), resnet()
    state = {name: value for name, value in theirs.state_dict().items() if not name.startswith("layer1.1.")}
    path = put(tmp_path / "x.pth", state)
    with pytest.raises(WeightsError, match=r"missing: blocks\.1\.conv1\.weight"):
        load_state(ours, path)
    load_state(ours, path, allow_missing=["blocks.1.*"])
    assert torch.equal(ours.blocks[2].conv1.weight, theirs.layer1[2].conv1.weight)


def test_a_tensor_under_both_names_is_left_over_once(tmp_path: Path) -> None:
    theirs, ours = akamaster(), resnet()
    state = {**theirs.state_dict(), "head.bias": torch.zeros(10)}
    with pytest.raises(WeightsError, match=r"1 names in the file are not part of the model: linear\.bias"):
        load_state(ours, put(tmp_path / "x.pth", state))


def test_a_deeper_vgg_gives_equal_logits(tmp_path: Path) -> None:
    theirs, ours = stir(KuangliuVGG((2, 2, 3, 3, 3))), create("vgg16_bn", widths=VGG_WIDTHS).eval()
    load_state(ours, put(tmp_path / "x.pth", theirs.state_dict()))
    assert_same_logits(ours, theirs)


def test_akamasters_option_b_gives_equal_logits(tmp_path: Path) -> None:
    theirs, ours = akamaster(option="B"), resnet(shortcut="B")
    assert load_state(ours, put(tmp_path / "x.pth", theirs.state_dict())).layout == "akamaster's or kuangliu's ResNet"
    assert_same_logits(ours, theirs)


@pytest.mark.parametrize(
    ("theirs", "ours", "message"),
    [
        (lambda: chenyaofo(), lambda: resnet(), r"option B\): create the model with shortcut='B'"),
        (
            lambda: akamaster(),
            lambda: resnet(shortcut="B"),
            r"without weights \(A\): create the model with shortcut='A'",
        ),
        (
            lambda: akamaster(n=5),
            lambda: resnet(),
            "31 convolutions of 3×3 and ResNet20 has 19: is it the net of another",
        ),
        (lambda: akamaster(classes=100), lambda: resnet(), "100 outputs: create the model with num_classes=100"),
        (kuangliu_resnet18, lambda: resnet(), "four stages: kuangliu's ResNet-18 is resnet18 here"),
        (torchvision_resnet18, lambda: create("resnet18"), "7×7 convolution: it is a net for large images"),
        (
            lambda: stir(KuangliuVGG((2, 2, 2, 2, 2))),  # VGG-13
            lambda: create("vgg11_bn", widths=VGG_WIDTHS),
            "10 convolutions of 3×3 and VGG11BN has 8",
        ),
    ],
    ids=["option B", "option A", "depth", "classes", "ResNet-18", "torchvision", "VGG-13"],
)
def test_a_net_that_cannot_be_equal_is_refused_with_a_reason(
    theirs: Callable[[], nn.Module], ours: Callable[[], nn.Module], message: str, tmp_path: Path
) -> None:
    with pytest.raises(WeightsError, match=message):
        load_state(ours(), put(tmp_path / "x.pth", theirs().state_dict()))


# --- import_model


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_imported_model_is_saved_and_comes_back_equal(layout: str, tmp_path: Path) -> None:
    make, name, config = LAYOUTS[layout]
    theirs = make()
    config = {key: value for key, value in config.items() if key != "shortcut"}  # which the file gives away
    path = put(tmp_path / "theirs.th", {"state_dict": nn.DataParallel(theirs).state_dict()})
    model, report = import_model(path, name, classes=[f"class {i}" for i in range(10)], **CONSTANTS, **config)
    again = load(save(model, tmp_path / "ours.safetensors"))
    assert_same_logits(again, theirs)
    meta = get_meta(again)
    assert meta is not None
    assert (meta.mean, meta.std, meta.classes and meta.classes[9]) == ((0.5,) * 3, (0.25,) * 3, "class 9")
    imported = meta.training["imported"]
    assert (imported["file"], imported["entry"]) == ("theirs.th", "state_dict")
    assert imported["layout"] == NAMED.get(layout, layout)
    assert len(imported["sha256"]) == 64
    assert isinstance(report, LoadReport)


def test_the_number_of_outputs_is_the_files(tmp_path: Path) -> None:
    path = put(tmp_path / "x.pth", akamaster(classes=100).state_dict())
    model, _ = import_model(path, "resnet20", **CONSTANTS, widths=WIDTHS)
    assert model(images()).shape == (4, 100)
    with pytest.raises(InputError, match="101 classes"):
        import_model(path, "resnet20", **CONSTANTS, widths=WIDTHS, classes=["x"] * 101)


def test_an_import_leaves_the_users_random_numbers_alone(tmp_path: Path) -> None:
    path = put(tmp_path / "x.pth", akamaster().state_dict())
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    import_model(path, "resnet20", **CONSTANTS, widths=WIDTHS)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    "constants",
    [
        {"mean": (0.5,), "std": (0.5, 0.5, 0.5)},
        {"mean": (), "std": ()},
        {"mean": (0.5,) * 3, "std": (0.0,) * 3},
        {"mean": (float("nan"),) * 3, "std": (1.0,) * 3},
    ],
)
def test_constants_that_no_image_can_be_normalised_with_are_refused(constants: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mean .* and std .*"):
        import_model(put(tmp_path / "x.pth", akamaster().state_dict()), "resnet20", **constants)


def test_a_model_that_this_version_has_not_is_named(tmp_path: Path) -> None:
    path = put(tmp_path / "x.pth", kuangliu_resnet18().state_dict())
    with pytest.raises(UnknownNameError, match=r"unknown model 'resnet34'\. Of this family there are resnet8"):
        import_model(path, "resnet34", **CONSTANTS)


# --- hostile and damaged files


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.marker),))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_would_run_code_is_refused_unrun(zipped: bool, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    path = tmp_path / "evil.pth"
    torch.save({"state_dict": Evil(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"would run code of (posix|nt)\.mkdir .* not opened\. Where you trust it"):
        load_state(convnet(), path)
    assert not marker.exists()


def test_a_plain_pickle_and_a_whole_module_are_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps(Evil(marker), protocol=2))
    with pytest.raises(WeightsError):
        load_state(convnet(), tmp_path / "plain.pkl")
    assert not marker.exists()
    with pytest.raises(WeightsError, match=r"would run code of .*test_foreign\.Holder"):
        load_state(convnet(), put(tmp_path / "module.pth", Holder("net", nn.Linear(1, 1))))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_torchscript_archive_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    with pytest.raises(WeightsError, match="script"):
        load_state(convnet(), path)


def torch_file() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": convnet().state_dict()}, file)
    return file.getvalue()


def old_torch_file() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": convnet().state_dict()}, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def safetensors_file() -> bytes:
    return safetensors.torch.save(convnet().state_dict())


MAKERS = {"torch": torch_file, "old torch": old_torch_file, "safetensors": safetensors_file}


@pytest.mark.parametrize("kind", MAKERS)
def test_each_kind_of_file_is_read_whole(kind: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(MAKERS[kind]())
    assert load_state(convnet(), tmp_path / "x").matched == 8


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_refused(kind: str, share: float, tmp_path: Path) -> None:
    content = MAKERS[kind]()
    (tmp_path / "cut").write_bytes(content[: int(len(content) * share)])
    ours = convnet()
    before = ours.fc1.weight.clone()  # type: ignore[operator]
    with pytest.raises(WeightsError, match="cut"):
        load_state(ours, tmp_path / "cut")
    assert torch.equal(ours.fc1.weight, before)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", MAKERS)
def test_a_file_with_changed_bytes_is_refused_or_read_but_never_breaks(kind: str, tmp_path: Path) -> None:
    content = MAKERS[kind]()
    generator = torch.Generator().manual_seed(0)
    for _ in range(60):
        damaged = bytearray(content)
        for place in torch.randint(min(len(content), 3000), (4,), generator=generator).tolist():
            damaged[place] = int(torch.randint(256, (1,), generator=generator))
        (tmp_path / "x").write_bytes(damaged)
        with contextlib.suppress(WeightsError):  # and nothing else
            assert load_state(convnet(), tmp_path / "x").matched == 8


def test_an_archive_that_grows_when_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x/data.pkl", bytes(10_000_000))
    with pytest.raises(WeightsError, match=r"has [\d,]+ bytes and would become larger"):
        load_state(convnet(), path)


def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path) -> None:
    for length in (0, 7, 10**8, 2**63, 2**64 - 1):
        (tmp_path / "x").write_bytes(struct.pack("<Q", length) + b"{}" + bytes(20))
        with pytest.raises(WeightsError, match=r"neither a whole safetensors file nor one of torch\.save"):
            load_state(convnet(), tmp_path / "x")


def test_a_tensor_that_claims_to_be_huge_costs_nothing(tmp_path: Path) -> None:
    state = {**convnet().state_dict(), "fc1.bias": torch.ones(1).expand(2**40)}
    with pytest.raises(WeightsError, match=rf"fc1\.bias is \[{2**40}\] instead of \[8\]"):
        load_state(convnet(), put(tmp_path / "x.pth", state))


def test_names_cannot_steer_the_terminal_or_fill_it(tmp_path: Path) -> None:
    state: Mapping[str, Tensor] = {f"\x1b[2J{'x' * 1000}{i}": torch.ones(1) for i in range(500)}
    with pytest.raises(WeightsError) as info:
        load_state(convnet(), put(tmp_path / "x.pth", state))
    assert "\x1b" not in str(info.value)
    assert len(str(info.value)) < 3000


def test_a_file_of_ours_is_checked_by_its_digest(tmp_path: Path) -> None:
    theirs, ours = convnet(), convnet()
    path = save(theirs, tmp_path / "ours.safetensors")
    load_state(ours, path)
    assert torch.equal(ours(images()), theirs(images()))
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="is damaged"):
        load_state(ours, path)


def test_what_is_no_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot read the checkpoint '.*none\.pth': No such file"):
        load_state(convnet(), tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="cannot read the checkpoint"):
        load_state(convnet(), tmp_path)
    (tmp_path / "page.pth").write_text("<html>please log in</html>")
    with pytest.raises(WeightsError, match=r"neither a whole safetensors file nor one of torch\.save"):
        load_state(convnet(), tmp_path / "page.pth")


# --- the command


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main(list(map(str, words)))
    return status, *capsys.readouterr()


NORMALISED = ("--mean", "0.5,0.5,0.5", "--std", "0.25,0.25,0.25")


def test_the_command_writes_a_weight_file_and_prints_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = stir(HeStyle(3, (16, 32, 64), "fc", "downsample", "B", classes=3))
    path = put(tmp_path / "theirs.pt", {"state_dict": nn.DataParallel(theirs).state_dict(), "epoch": 9})
    out = tmp_path / "new" / "ours.safetensors"
    words = ("import", path, out, "--as", "resnet20", *NORMALISED, "--classes", "cat,dog,frog")
    status, printed, complaints = run(capsys, *words)
    assert (status, complaints) == (0, "")
    assert "theirs.pt: 128 of 128 tensors of the model\n  entry   state_dict\n  prefix  module. (removed)\n" in printed
    assert "layout  chenyaofo's ResNet" in printed
    assert f"Saved in {out}" in printed
    ours = load(out)
    assert_same_logits(ours, theirs)
    meta = get_meta(ours)
    assert meta is not None
    assert meta.classes == ("cat", "dog", "frog")


def test_arguments_of_the_model_and_names_to_leave_out_are_options(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = convnet()
    state = {**theirs.state_dict(), "loss.weight": torch.ones(3)}
    path, out = put(tmp_path / "x.pt", {"a": {"b": state}}), tmp_path / "ours.safetensors"
    words = ["import", path, out, "--as", "convnet", *NORMALISED, "--config", "widths=[4,4]", "--config", "hidden=8"]
    words += ["--entry", "a.b"]
    status, _, complaints = run(capsys, *words)
    assert status == 1
    assert "not part of the model: loss.weight. If that is meant" in complaints
    assert "--allow-unexpected" in complaints, "in the words of the command line"
    assert not out.exists()
    status, printed, _ = run(capsys, *words, "--allow-unexpected", "loss.*", "--json")
    assert status == 0
    report = json.loads(printed)
    assert (report["entry"], report["matched"], report["unexpected"]) == ("a.b", 8, ["loss.weight"])
    assert report["path"] == str(out)
    assert torch.equal(load(out)(images()), theirs(images()))


def test_a_checkpoint_is_not_written_over_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = put(tmp_path / "x.pt", convnet().state_dict())
    before = path.read_bytes()
    status, _, complaints = run(capsys, "import", path, path, "--as", "convnet", *NORMALISED)
    assert status == 2
    assert "OUT is FILE itself" in complaints
    assert path.read_bytes() == before


def test_the_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["import", "--help"])
    shown = capsys.readouterr().out
    assert "cifarnets import best.pt mine.safetensors --as convnet" in shown
    assert "No checkpoint says how its images were normalised" in shown
