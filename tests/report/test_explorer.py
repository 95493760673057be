"""The explorer as a file: what is in it, and which models it refuses. tests/browser looks at it in a browser."""

import json
import math
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import cifarnets
from cifarnets.cli import main
from cifarnets.errors import InputError, OutputError
from cifarnets.models import annotate, create
from cifarnets.report import write_explorer
from cifarnets.report.drawings import drawings
from cifarnets.report.graph import graph_of

CONSTANTS: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


def content_of(path: Path) -> dict[str, Any]:
    """The facts that a page's script reads."""
    (text,) = re.findall(r'<script type="application/json" id="content">(.*?)</script>', path.read_text("utf-8"), re.S)
    content: dict[str, Any] = json.loads(text)
    return content


def net(layer: nn.Module) -> nn.Module:
    """A net with one layer of a kind before its head."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def test_the_page_of_convnet_is_small_and_asks_for_nothing(tmp_path: Path) -> None:
    path = write_explorer(cifarnets.load("convnet"), tmp_path / "page.html")
    text = path.read_text(encoding="utf-8")
    assert len(text) < 300_000  # the limit that was set is 1 MB
    # The only address is the name of SVG, which nobody fetches.
    assert set(re.findall(r"(?:https?:)?//[\w.]+\.\w+[^\s\"']*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(?:link|script|img|iframe)[^>]*(?:src|href)=\"(?!data:)", text)
    assert "default-src 'none'" in text


def test_the_same_model_makes_the_same_page(tmp_path: Path) -> None:
    first, second = (write_explorer(cifarnets.load("convnet.cifar3"), tmp_path / name) for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()


def test_the_page_has_what_the_model_knows(tmp_path: Path) -> None:
    model: Any = cifarnets.load("convnet.cifar3")
    content = content_of(write_explorer(model, tmp_path / "page.html", title="lesson"))
    assert content["title"] == "lesson"
    assert content["classes"] == ["airplane", "automobile", "ship"]
    assert content["mean"] == list(model.meta.mean)
    names = [layer["name"] for layer in content["layers"]]
    assert names == ["picture", "conv1", "pool1", "act1", "conv2", "pool2", "act2", "flatten", "fc1", "act3", "fc2"]
    assert content["layers"][1]["words"] == "Convolution 3×3, 3 → 16 maps, padding 1"


def test_classes_that_nobody_named_are_numbers(tmp_path: Path) -> None:
    path = write_explorer(net(nn.ReLU()), tmp_path / "page.html", classes=["cat"], **CONSTANTS)
    assert content_of(path)["classes"] == ["cat", "1"]


def test_the_model_stays_as_it_is(tmp_path: Path) -> None:
    model = create("resnet20", widths=(2, 2, 2)).half().train()
    annotate(model, **CONSTANTS)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    write_explorer(model, tmp_path / "page.html")
    assert model.training
    assert all(module.training for module in model.modules())
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.mean((2, 3)), x.mean((2, 3))


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (net(nn.GroupNorm(2, 4)), r"does not know the layer '1' of Sequential \(aten.group_norm"),
        (net(nn.ConvTranspose2d(4, 4, 2, 2)), "layer '1' of Sequential .*transpose"),
        (net(nn.MaxPool2d(3, dilation=2)), "layer '1' of Sequential .*it is dilated"),
        (net(nn.AvgPool2d(3, padding=1, count_include_pad=False)), "leaves padding out of its mean"),
        (net(nn.AdaptiveAvgPool2d(3)), "its windows differ in size"),
        (net(nn.BatchNorm2d(4, track_running_stats=False)), "layer '1' of Sequential"),
        (net(nn.Conv2d(4, 4, 2, padding="same")), "pads one side more than the other"),
        (net(nn.ReflectionPad2d(1)), "layer '1' of Sequential .*it pads by reflect"),
        (net(Scaled()), "layer '1.mul' of Sequential .*takes weights where a page expects maps"),
        (Branching(), r"cannot follow an image \[3, 32, 32\] through Branching"),
        (Pair(), "must give logits .*Pair gives something else"),
        (nn.Conv2d(3, 3, 1), "must give logits"),
        (nn.Flatten(0), "the first dimension must stay the batch"),
    ],
)
def test_a_layer_that_pages_do_not_know_is_named(tmp_path: Path, model: nn.Module, words: str) -> None:
    with pytest.raises(InputError, match=words):
        write_explorer(model, tmp_path / "page.html", **CONSTANTS)
    assert not list(tmp_path.iterdir())


def test_a_model_must_say_how_its_images_were_normalised(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="how its images were normalised"):
        write_explorer(create("convnet"), tmp_path / "page.html")
    with pytest.raises(InputError, match="pictures of 1 or 3 channels, and the model takes 2"):
        write_explorer(create("convnet", in_channels=2), tmp_path / "page.html", mean=(0.5, 0.5), std=(0.2, 0.2))


def test_a_folder_that_cannot_be_written_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file, not a folder"):
        write_explorer(cifarnets.load("convnet"), tmp_path / "file" / "page.html")


def test_layers_that_no_logit_needs_are_left_out() -> None:
    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(12, 2), nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            self.unused(x.flatten(1))
            return self.used(x.flatten(1))

    names = [layer["name"] for layer in graph_of(Wasteful(), (3, 2, 2)).layers]
    assert "unused" not in names
    assert names[-1] == "used"


@pytest.mark.parametrize("name", ["convnet.cifar3", "convnet", "fcnet", "resnet20", "airbench94"])
def test_the_released_nets_know_what_is_drawn(name: str) -> None:
    model = cifarnets.load(name)
    for drawn in ("airplane", "automobile", "ship"):
        assert cifarnets.predict(model, drawings()[drawn])[0][0] == drawn


def test_drawings_come_in_every_size_and_in_grey() -> None:
    assert {tuple(picture.shape) for picture in drawings((20, 48)).values()} == {(3, 20, 48)}
    grey = drawings(channels=1)["automobile"]
    from PIL import Image

    whole = Image.fromarray(drawings()["automobile"].permute(1, 2, 0).numpy())
    assert grey.flatten().tolist() == list(whole.convert("L").tobytes())


class TestCommand:
    def test_it_names_the_page_after_the_model(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["explore", "convnet.cifar3"]) == 0
        assert capsys.readouterr().out.startswith("convnet.cifar3.html (")
        assert content_of(tmp_path / "convnet.cifar3.html")["title"] == "convnet.cifar3"

    def test_a_file_of_ones_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        cifarnets.save(create("convnet", num_classes=2, widths=(2, 2)), tmp_path / "mine.safetensors")
        words = ["explore", "mine.safetensors", "-o", "pages/lesson.html", "--json"]
        assert main(words) == 1  # the file does not say how its images were normalised
        assert "pass --mean and --std" in capsys.readouterr().err
        assert main([*words, "--mean", ".5,.5,.5", "--std", ".2,.2,.2", "--classes", "cat,dog"]) == 0
        written = json.loads(capsys.readouterr().out)
        path = tmp_path / "pages" / "lesson.html"
        assert (tmp_path / written["path"], written["size"]) == (path, path.stat().st_size)
        assert content_of(path)["title"] == "mine"
        assert content_of(path)["classes"] == ["cat", "dog"]


@pytest.mark.parametrize(
    "pool", [nn.AdaptiveMaxPool2d(3), nn.AdaptiveMaxPool2d(1), nn.MaxPool2d(2, return_indices=False)]
)
def test_every_maximum_is_known(pool: nn.Module) -> None:
    layers = graph_of(nn.Sequential(nn.Conv2d(3, 4, 3), pool, nn.Flatten()), (3, 32, 32)).layers
    assert [layer["op"] for layer in layers] == ["input", "conv", "maxpool", "reshape"]
    assert layers[2]["shape"] == list(pool(torch.zeros(1, 4, 30, 30)).shape[1:])


class Infinite(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x).mean((2, 3))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Infinite(lambda x: x * math.inf), "it computes with inf"),
        (Infinite(lambda x: x / 0), "it computes with 0"),
        (Infinite(lambda x: nn.functional.pad(x, (1, 1), value=-math.inf)), "it pads with -inf"),
        (create("convnet").to("meta"), "cannot follow an image .* through ConvNet: Cannot copy out of meta tensor"),
    ],
)
def test_what_a_page_cannot_hold_is_refused(tmp_path: Path, model: nn.Module, words: str) -> None:
    with pytest.raises(InputError, match=words):
        write_explorer(model, tmp_path / "page.html", **CONSTANTS)


def test_a_model_that_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    model = create("convnet")
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(InputError, match="cannot follow an image"):
        write_explorer(model, tmp_path / "page.html", **CONSTANTS)


def test_constants_are_finite_and_names_may_be_broken(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    for wrong in ({"mean": (math.nan,) * 3}, {"std": (0.0,) * 3}):
        with pytest.raises(InputError, match="mean must be finite and std above 0"):
            write_explorer(create("convnet"), path, **{**CONSTANTS, **wrong})
    write_explorer(create("convnet"), path, title="\ud800", classes=("\udc80",) * 10, **CONSTANTS)
    assert "<h1>?</h1>" in path.read_text(encoding="utf-8")


def test_defaults_of_the_user_have_no_say(tmp_path: Path) -> None:
    model = cifarnets.load("convnet")
    expected = write_explorer(model, tmp_path / "one.html").read_bytes()
    with torch.device("meta"):
        assert write_explorer(model, tmp_path / "two.html").read_bytes() == expected
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        assert write_explorer(model, tmp_path / "three.html").read_bytes() == expected
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(("norm", "layer"), [("layer", r"stages\.0\.1\.permute"), ("batch", r"stages\.0\.2\.chunk")])
def test_a_family_that_pages_do_not_know_is_refused_by_its_layer(norm: str, layer: str, tmp_path: Path) -> None:
    model = create("quarternet16", widths=(4,), depth=1, norm=norm)
    annotate(model, **CONSTANTS)
    with pytest.raises(InputError, match=rf"the explorer does not know the layer '{layer}' of QuarterNet16"):
        write_explorer(model, tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []
