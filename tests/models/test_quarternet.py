"""The nets of quarters: sizes, the forms that layers have in training, and what can be built."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models import create, info, load, save
from cifarnets.models.quarternet import FarConv2d, GroupedConv2d, dilated


def small(**config: Any) -> nn.Module:
    return create("quarternet16", **{"widths": (4, 8), "depth": 1, **config})


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("quarternet16", 17_762), ("quarternet32", 59_578), ("quarternet48", 97_530), ("quarternet64", 215_402)],
)
@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_sizes(name: str, parameters: int, norm: str) -> None:
    """97,530 is what cifar10-tiniest publishes; the three others are the same design at other widths."""
    with torch.device("meta"):
        model = create(name, norm=norm)
    assert sum(p.numel() for p in model.parameters()) == info(name).parameters == parameters
    assert f"{parameters:,} parameters" in info(name).description


def test_a_block_is_what_the_design_says() -> None:
    """Every step in plain torch, from the weights alone."""
    model = small(widths=(8,)).eval()
    _, norm, block = model.stages[0]
    w, x = dict(block.named_parameters()), torch.randn(2, 8, 11, 11)

    def conv(name: str, x: Tensor, side: int, step: int = 1) -> Tensor:
        weight, reach = w[f"{name}.weight"], side // 2 * step
        return F.conv2d(
            x, weight, w[f"{name}.bias"], padding=reach, dilation=step, groups=x.shape[1] // weight.shape[1]
        )

    mean = F.unfold(x[:, 6:], 3, padding=1).view(2, 2, 9, 11, 11).mean(2)
    y = torch.cat([x[:, :2], conv("near", x[:, 2:4], 3), conv("wide", x[:, 4:6], 7), conv("far", mean, 7, 3)], 1)
    spread, centre = torch.var_mean(y, 1, keepdim=True, correction=0)
    y = (y - centre) / (spread + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]
    gate = conv("gate", y, 1)
    y = conv("mix", gate * torch.tanh(torch.exp(gate)) * conv("value", y, 1), 1) + x * w["scale"]
    torch.testing.assert_close(block(x), y)


@given(st.integers(1, 40), st.integers(1, 40), st.booleans(), st.booleans())
def test_products_of_matrices_are_the_dilated_convolution(height: int, width: int, last: bool, bias: bool) -> None:
    chance = torch.Generator().manual_seed(height * 41 + width)
    shapes = ((2, 3, height, width), (3, 1, 7, 7), (3,))
    x, weight, shift = (torch.randn(*shape, generator=chance, dtype=torch.float64) for shape in shapes)
    x = x.to(memory_format=torch.channels_last) if last else x
    inputs = [tensor.requires_grad_() for tensor in ((x, weight, shift) if bias else (x, weight))]
    offset = shift if bias else None
    plain, found = F.conv2d(x, weight, offset, padding=9, dilation=3, groups=3), dilated(x, weight, offset)
    torch.testing.assert_close(found, plain)
    direction = torch.randn(plain.shape, generator=chance, dtype=torch.float64)
    expected = torch.autograd.grad(plain, inputs, direction)
    torch.testing.assert_close(torch.autograd.grad(found, inputs, direction), expected)


@pytest.mark.parametrize(
    "layer",
    [
        lambda: FarConv2d(4, 4, 7, padding=9, dilation=3, groups=4),
        lambda: GroupedConv2d(12, 20, 4, stride=2, padding=1, groups=4),
        lambda: GroupedConv2d(4, 8, 4, stride=2, padding=1, groups=1),
    ],
    ids=["far", "grouped", "one group"],
)
def test_a_layer_computes_the_same_in_training(layer: Any) -> None:
    layer, found = layer().double(), []
    images = torch.randn(2, layer.in_channels, 16, 16, dtype=torch.float64, requires_grad=True)
    for training in (True, False):
        y = layer.train(training)(images)
        found.append((y, *torch.autograd.grad(y.square().sum(), [images, *layer.parameters()])))
    torch.testing.assert_close(found[0], found[1])


def test_every_parameter_learns() -> None:
    model = create("quarternet16", norm="batch")
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("norm", ["layer", "batch"])
def test_a_file_and_another_layout_give_the_same(norm: str, tmp_path: Path) -> None:
    model, images = small(num_classes=3, in_channels=1, norm=norm), torch.randn(4, 1, 32, 32)
    model(images)
    expected = model.eval()(images)
    assert expected.shape == (4, 3)
    assert torch.equal(load(save(model, tmp_path / "model.safetensors"))(images), expected)
    last = torch.channels_last
    torch.testing.assert_close(model.to(memory_format=last)(images.to(memory_format=last)), expected)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_it_can_be_compiled_and_traced(training: bool) -> None:
    model, images = small().train(training), torch.randn(4, 3, 32, 32)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))
    traced: Any = torch.jit.trace(model, images[:2], check_trace=False)
    torch.testing.assert_close(traced(images), model(images))
    if not training:
        torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), model(images))


@pytest.mark.parametrize("training", [True, False])
def test_takes_images_of_other_sizes_and_gives_features(training: bool) -> None:
    model = small(num_classes=0).train(training)
    for size in ((24, 24), (40, 23), (2, 2)):
        assert model(torch.randn(2, 3, *size)).shape == (2, 8)


def test_half_precision_trains() -> None:
    model = small()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(2, 3, 32, 32)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert math.isfinite(small().bfloat16()(torch.randn(2, 3, 32, 32, dtype=torch.bfloat16)).sum().item())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"widths": ()}, "widths must be one multiple of 4 a stage"),
        ({"widths": (16, 30)}, "widths must be one multiple of 4 a stage"),
        ({"widths": (0, 16)}, "widths must be one multiple of 4 a stage"),
        ({"depth": 0}, "there must be 1 to 100 blocks a stage, and stages, not 0 and 2"),
        ({"depth": 10**9}, "there must be 1 to 100 blocks a stage"),
        ({"norm": "group"}, "norm of QuarterNet must be one of 'layer', 'batch'"),
    ],
    ids=str,
)
def test_what_gives_no_net_is_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create("quarternet16", **config)
