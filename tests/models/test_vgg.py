from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models import create, load, save


def small(**config: Any) -> nn.Module:
    return create("vgg11_bn", **{"num_classes": 3, "widths": (4, 5, 6, 7, 8), **config})


@pytest.mark.parametrize(
    ("name", "widths", "parameters"),
    [
        ("vgg11_bn", [64, 128, 256, 256, 512, 512, 512, 512], 9_231_114),
        ("vgg16_bn", [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512], 14_728_266),
    ],
)
def test_sizes_counted_by_hand(name: str, widths: list[int], parameters: int) -> None:
    # A convolution, its bias and BatchNorm; at the end a linear layer.
    by_hand = sum(9 * a * b + 3 * b for a, b in zip([3, *widths], widths, strict=False)) + 512 * 10 + 10
    with torch.device("meta"):
        assert sum(p.numel() for p in create(name).parameters()) == by_hand == parameters


@pytest.mark.parametrize("name", ["vgg11_bn", "vgg16_bn"])
def test_convolutions_have_the_names_and_shapes_of_torchvision_s(name: str) -> None:
    with torch.device("meta"):
        ours, theirs = create(name).features, torchvision.models.get_model(name).features
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]


def test_convolutions_start_as_he_says() -> None:
    conv = create("vgg11_bn").features[-4]
    assert conv.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    assert not conv.bias.any()


def test_every_parameter_learns() -> None:
    # Not in training mode, where BatchNorm takes away what a bias adds.
    model = small(widths=(16, 16, 16, 16, 16)).eval()
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_file_a_graph_and_another_layout_give_the_same(tmp_path: Path) -> None:
    model, images = small(in_channels=1), torch.randn(2, 1, 32, 32)
    model(images)  # moves the statistics of BatchNorm
    expected = model.eval()(images)
    assert expected.shape == (2, 3)
    assert torch.equal(load(save(model, tmp_path / "model.safetensors"))(images), expected)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)
    last = torch.channels_last
    torch.testing.assert_close(model.to(memory_format=last)(images.to(memory_format=last)), expected)


def test_compiles_without_a_break() -> None:
    model, images = small().eval(), torch.randn(2, 3, 32, 32)
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize("widths", [(64, 128, 256, 512), (64,) * 6])
def test_wrong_number_of_widths(widths: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"widths must be 5 numbers, one a stage, not \(64, "):
        create("vgg16_bn", widths=widths)
