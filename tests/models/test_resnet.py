from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models import ResNet, create, load, registry, save, summary

OPTIONS: list[dict[str, Any]] = [{}, {"se": True}, {"preact": True}, {"se": True, "preact": True}]


def small(**config: Any) -> nn.Module:
    return create("resnet20", **{"num_classes": 3, "widths": (4, 6, 9), **config})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet110", 1_727_962),
    ],
)
def test_sizes_are_those_of_the_paper(name: str, parameters: int) -> None:
    # The paper's table 6 has 0.27, 0.46, 0.66, 0.85 and 1.7 million.
    with torch.device("meta"):
        assert sum(p.numel() for p in create(name).parameters()) == parameters
        assert sum(p.numel() for p in create(name, preact=True).parameters()) == parameters


@pytest.mark.parametrize(("name", "parameters"), [("resnet8", 78_042), ("resnet18", 11_173_962)])
def test_sizes_of_nets_with_learned_shortcuts_are_those_of_others(name: str, parameters: int) -> None:
    # kuangliu's ResNet-18 has 11,173,962. MLPerf Tiny's ResNet-8 has 78,666 numbers, of which 336 are biases of
    # convolutions and 480 statistics of BatchNorm; ours has a BatchNorm after each of its two shortcuts besides.
    assert 78_666 - 336 - 480 + 2 * (32 + 64) == 78_042
    with torch.device("meta"):
        assert sum(p.numel() for p in create(name).parameters()) == parameters


def test_work_of_resnet18_is_that_of_others() -> None:
    # kuangliu's README gives none; pytorch's flop counters give 555.4 million multiply-adds at 32×32.
    stages = 32 * 32 * 9 * (3 * 64 + 4 * 64 * 64)
    for side, width in ((16, 128), (8, 256), (4, 512)):
        stages += side * side * (9 * (width // 2 * width + 3 * width * width) + width // 2 * width)
    assert summary(create("resnet18")).macs == stages + 5_120 == 555_422_720


def test_size_and_work_of_the_options_counted_by_hand() -> None:
    convolutions = 32 * 32 * 9 * (3 * 16 + 6 * 16 * 16) + 16 * 16 * 9 * (16 * 32 + 5 * 32 * 32)
    convolutions += 8 * 8 * 9 * (32 * 64 + 5 * 64 * 64)
    assert summary(create("resnet20")).macs == convolutions + 640 == 40_551_040
    gates = 3 * sum(2 * width * (width // 16) + width // 16 + width for width in (16, 32, 64))
    assert summary(create("resnet20", se=True)).parameters == 269_722 + gates


def test_convolutions_start_as_he_says() -> None:
    model = create("resnet20")
    assert model.blocks[-1].conv2.weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)


@pytest.fixture
def block() -> Callable[..., nn.Module]:
    """The first block of the second stage, 4 channels to 7, whose branch adds nothing."""

    def make(**config: Any) -> nn.Module:
        found: nn.Module = small(widths=(4, 7, 7), **config).eval().blocks[3]
        nn.init.zeros_(found.conv2.weight)
        return found

    return make


def test_a_shortcut_takes_every_other_pixel_and_pads_with_zeros_on_both_sides(block: Callable[..., nn.Module]) -> None:
    images = torch.rand(2, 4, 8, 8)
    found = block()(images)
    assert found.shape == (2, 7, 4, 4)
    assert torch.equal(found[:, 1:5], images[:, :, ::2, ::2])
    assert not found[:, [0, 5, 6]].any()


def test_preactivated_shortcuts_are_identities_where_others_are_rectified(block: Callable[..., nn.Module]) -> None:
    images = torch.randn(2, 4, 8, 8)
    assert torch.equal(block(preact=True)(images)[:, 1:5], images[:, :, ::2, ::2])
    assert torch.equal(block()(images)[:, 1:5], images[:, :, ::2, ::2].relu())


def test_a_gate_weights_each_channel_by_its_share() -> None:
    gate = small(se=True).blocks[0].gate
    images = torch.randn(2, 4, 8, 8)
    shares = gate(images) / images
    torch.testing.assert_close(shares, shares[:, :, :1, :1].expand_as(shares))
    assert 0 < shares.min() < shares.max() < 1
    nn.init.zeros_(gate.excite.weight)
    nn.init.zeros_(gate.excite.bias)
    assert torch.equal(gate(images), images / 2)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_parameter_learns(options: dict[str, Any]) -> None:
    model = small(widths=(64, 64, 128), **options)  # with fewer units, all of a gate may be silent for four images
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_file_a_graph_and_another_layout_give_the_same(options: dict[str, Any], tmp_path: Path) -> None:
    model, images = small(in_channels=1, **options), torch.randn(2, 1, 32, 32)
    model(images)  # moves the statistics of BatchNorm
    expected = model.eval()(images)
    assert expected.shape == (2, 3)
    assert torch.equal(load(save(model, tmp_path / "model.safetensors"))(images), expected)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)
    last = torch.channels_last
    torch.testing.assert_close(model.to(memory_format=last)(images.to(memory_format=last)), expected)


def test_compiles_without_a_break() -> None:
    model, images = small(se=True).eval(), torch.randn(2, 3, 32, 32)
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


def test_takes_images_of_other_sizes() -> None:
    assert small()(torch.randn(2, 3, 40, 24)).shape == (2, 3)


@pytest.mark.parametrize(
    ("widths", "message"),
    [
        ((16, 32), r"depth of ResNet56 must be 4n \+ 2 for 2 widths, not 56"),
        ((16, 32, 64, 128), r"depth of ResNet56 must be 8n \+ 2 for 4 widths, not 56"),
        ((16, 8, 32), r"one number a stage, and they must not fall, not \(16, 8, 32\)"),
        ((), "one number a stage"),
    ],
    ids=str,
)
def test_widths_that_do_not_fit_are_refused(widths: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create("resnet56", widths=widths)


def test_a_net_has_as_many_stages_as_widths() -> None:
    model = create("resnet20", widths=(4, 8, 8, 16, 16, 16, 16, 16, 16)).eval()
    assert len(model.blocks) == 9
    assert model.forward_features(torch.zeros(1, 3, 256, 256)).shape == (1, 16, 1, 1)


def test_a_subclass_of_another_depth(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))

    @registry.register("resnet14")
    class ResNet14(ResNet):
        depth = 14

    assert len(ResNet14().blocks) == 6
    assert type(load(save(ResNet14(widths=(2, 2, 2)), tmp_path / "model.safetensors"))) is ResNet14
    ResNet14.depth = 18
    with pytest.raises(InputError, match=r"depth of ResNet14 must be 6n \+ 2 .*, not 18"):
        ResNet14()


def test_shortcuts_of_option_b_are_convolutions_where_the_size_changes() -> None:
    model = create("resnet20", shortcut="B")
    # The paper's table 6 counts option A; each of the two new shortcuts has a 1×1 convolution and a BatchNorm.
    assert sum(p.numel() for p in model.parameters()) == 269_722 + 16 * 32 + 32 * 64 + 2 * (32 + 64)
    learned = [index for index, block in enumerate(model.blocks) if block.shortcut is not None]
    assert learned == [3, 6]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_a_model_with_shortcuts_of_option_b_comes_back(tmp_path: Path) -> None:
    model = small(shortcut="B").eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(load(save(model, tmp_path / "b.safetensors"))(images), model(images))


@pytest.mark.parametrize("config", [{"shortcut": "C"}, {"shortcut": "B", "preact": True}])
def test_shortcuts_that_do_not_exist_are_refused(config: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="shortcut"):
        small(**config)
