"""The convolutional net of the article: steps 9 to 17, on the very image that it shows."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cifarnets import models
from cifarnets.datasets import CIFAR10Normalized
from cifarnets.errors import InputError

CONFIGS = st.fixed_dictionaries(
    {
        "num_classes": st.integers(1, 12),
        "in_channels": st.integers(1, 4),
        "widths": st.tuples(st.integers(1, 20), st.integers(1, 20)),
        "hidden": st.integers(1, 40),
        "kernel_size": st.sampled_from([1, 3, 5, 7]),
        "pool": st.sampled_from(["max", "avg"]),
    }
)


@functools.cache
def raw_image_79(root: Path) -> tuple[Tensor, int]:
    """The article's picture, uint8 `[3, 32, 32]`, and its label; read once for all tests."""
    dataset = CIFAR10Normalized(root, train=True)
    assert dataset.classes[dataset.targets[79]] == "automobile"
    return dataset.images[79].clone(), dataset.targets[79]


@pytest.fixture
def image_79(real_root: Path) -> Tensor:
    """The article's picture as its convolutions see it: float32 `[1, 3, 32, 32]` in 0..1."""
    pixels, label = raw_image_79(real_root)
    assert label == 1
    return pixels[None].float() / 255


def article_layers(pool: str = "max") -> list[nn.Module]:
    """The layers of step 16 in the order in which the article writes them, up to the reshape."""
    pooling = nn.MaxPool2d if pool == "max" else nn.AvgPool2d
    return [
        nn.Conv2d(3, 16, kernel_size=3, padding=1), nn.Tanh(), pooling(2),
        nn.Conv2d(16, 8, kernel_size=3, padding=1), nn.Tanh(), pooling(2),
    ]  # fmt: skip


def article_head() -> list[nn.Module]:
    return [nn.Linear(8 * 8 * 8, 32), nn.Tanh(), nn.Linear(32, 10)]


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Whatever the parameters are called, in the order of the layers."""
    target.load_state_dict(dict(zip(target.state_dict(), source.state_dict().values(), strict=True)))


@pytest.mark.cifar10
def test_step_9_a_convolution_on_one_image(image_79: Tensor) -> None:
    conv = nn.Conv2d(3, 16, kernel_size=3)
    assert conv.weight.shape == (16, 3, 3, 3)
    assert conv.bias is not None
    assert conv.bias.shape == (16,)
    assert conv(image_79).shape == (1, 16, 30, 30)


@pytest.mark.cifar10
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_steps_10_and_12_the_padding_keeps_the_size(image_79: Tensor, kernel_size: int) -> None:
    model = models.create("convnet", kernel_size=kernel_size)
    assert model.conv1(image_79).shape == (1, 16, 32, 32)
    assert model(image_79).shape == (1, 10)


@pytest.mark.cifar10
def test_step_11_the_edge_kernel_finds_vertical_edges(image_79: Tensor) -> None:
    conv = nn.Conv2d(3, 1, kernel_size=3, padding=1)
    with torch.no_grad():
        conv.weight[:] = torch.tensor([-1.0, 0.0, 1.0])  # each row, for each of the three channels
        conv.bias.zero_()
        found = conv(image_79)
    assert found.shape == (1, 1, 32, 32)

    # What it must be: the column to the right minus the column to the left, over three rows and all channels.
    grey = np.pad(image_79[0].double().numpy(), ((0, 0), (1, 1), (1, 1))).sum(0)
    rows = grey[:-2] + grey[1:-1] + grey[2:]
    expected = rows[:, 2:] - rows[:, :-2]
    np.testing.assert_allclose(found[0, 0].numpy(), expected, atol=1e-5)
    assert expected.std() > 0.5  # the picture does have edges

    with torch.no_grad():
        assert conv(torch.full((1, 3, 32, 32), 0.7))[..., 1:-1].abs().max() < 1e-6


@pytest.mark.cifar10
@pytest.mark.parametrize("pool", ["max", "avg"])
def test_steps_13_and_14_pooling_halves_the_maps(image_79: Tensor, pool: str) -> None:
    model = models.create("convnet", pool=pool)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in model.named_children():
        layer.register_forward_hook(lambda _m, _x, y, name=name: shapes.update({name: tuple(y.shape)}))
    model(image_79)
    assert shapes["conv1"] == (1, 16, 32, 32)
    assert shapes["pool1"] == (1, 16, 16, 16)
    assert shapes["pool2"] == (1, 8, 8, 8)

    blocks = image_79.view(1, 3, 16, 2, 16, 2)
    expected = blocks.amax((3, 5)) if pool == "max" else blocks.mean((3, 5))
    torch.testing.assert_close(model.pool1(image_79), expected)


def test_step_15_the_parameters_are_those_that_the_article_prints() -> None:
    for name in ("convnet", "convnet_functional"):
        counts = [p.numel() for p in models.create(name, num_classes=10).parameters()]
        assert counts == [432, 16, 1152, 8, 16384, 32, 320, 10]
        assert sum(counts) == 18_354


@pytest.mark.cifar10
def test_step_16_a_sequential_without_a_reshape_fails_where_ours_works(image_79: Tensor) -> None:
    sequential = nn.Sequential(*article_layers(), *article_head())
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sequential(image_79)

    model = models.create("convnet")
    copy_weights(sequential, model)
    assert model(image_79).shape == (1, 10)
    with_reshape = nn.Sequential(*article_layers(), nn.Flatten(), *article_head())
    copy_weights(sequential, with_reshape)
    assert torch.equal(model(image_79), with_reshape(image_79))


def test_step_16_the_modules_have_the_article_s_names_and_kinds() -> None:
    layers = dict(models.ConvNet().named_children())
    kinds = {
        "conv1": nn.Conv2d, "act1": nn.Tanh, "pool1": nn.MaxPool2d,
        "conv2": nn.Conv2d, "act2": nn.Tanh, "pool2": nn.MaxPool2d,
        "fc1": nn.Linear, "act3": nn.Tanh, "fc2": nn.Linear,
    }  # fmt: skip
    assert list(layers) == list(kinds)
    assert all(isinstance(layers[name], kind) for name, kind in kinds.items())


@pytest.mark.cifar10
def test_step_17_the_functional_net_registers_four_layers_and_gives_one_row(image_79: Tensor) -> None:
    model = models.create("convnet_functional")
    assert [name for name, _ in model.named_children()] == ["conv1", "conv2", "fc1", "fc2"]
    assert model(image_79).shape == (1, 10)


@pytest.mark.parametrize("pool", ["max", "avg"])
@pytest.mark.parametrize("name", ["convnet", "convnet_functional"])
def test_outputs_and_gradients_are_those_of_the_article_s_order(name: str, pool: str) -> None:
    """Pooling first is no approximation: the same bits come out, and the same gradients go back."""
    article = nn.Sequential(*article_layers(pool), nn.Flatten(), *article_head())
    model = models.create(name, pool=pool)
    copy_weights(article, model)
    images, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % 10
    outputs = [net(images) for net in (article, model)]
    assert torch.equal(*outputs)
    for output in outputs:
        F.cross_entropy(output, labels).backward()
    for expected, found in zip(article.parameters(), model.parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad)


def test_the_order_does_matter_for_an_average() -> None:
    """So it is not by chance that pool="avg" keeps the tanh first."""
    x = torch.randn(1, 4, 8, 8)
    assert not torch.allclose(F.avg_pool2d(x.tanh(), 2), F.avg_pool2d(x, 2).tanh())


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    seed=st.integers(0, 2**31),
    scale=st.floats(-30, 12).map(lambda exponent: 2.0**exponent),
    offset=st.sampled_from([0.0, -3.0, 1.0]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9).map(lambda n: 2 * n), st.just(6)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)
def test_tanh_after_pooling_is_tanh_before_it(
    seed: int, scale: float, offset: float, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    x = (drawn * scale + offset * scale).to(dtype)
    before, after = x.clone().requires_grad_(), x.clone().requires_grad_()
    outputs = F.max_pool2d(before.tanh(), 2), F.max_pool2d(after, 2).tanh()
    assert torch.equal(*outputs)

    for output in outputs:
        output.backward(torch.ones_like(output))
    assert before.grad is not None
    assert after.grad is not None
    # Where tanh rounds two values of a window to one, either may be handed the gradient; there is one a window.
    windows = [grad.unfold(2, 2, 2).unfold(3, 2, 2).sum((-1, -2)) for grad in (before.grad, after.grad)]
    assert torch.equal(*windows)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0])
def test_gradients_through_either_order_are_equal_element_by_element(scale: float) -> None:
    x = torch.randn(8, 16, 32, 32) * scale
    before, after = x.clone().requires_grad_(), x.clone().requires_grad_()
    F.max_pool2d(before.tanh(), 2).square().sum().backward()
    F.max_pool2d(after, 2).tanh().square().sum().backward()
    assert torch.equal(before.grad, after.grad)  # type: ignore[arg-type]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(config=CONFIGS, seed=st.integers(0, 2**31))
def test_both_nets_exchange_weights_and_agree_bit_for_bit(config: dict[str, Any], seed: int) -> None:
    torch.manual_seed(seed)
    modules, functional = models.create("convnet", **config), models.create("convnet_functional", **config)
    assert modules.meta.config == functional.meta.config == config
    images = torch.randn(3, config["in_channels"], 32, 32)

    for source, target in ((modules, functional), (functional, modules)):
        with torch.no_grad():
            for parameter in source.parameters():
                parameter.add_(0.01)
        target.load_state_dict(source.state_dict(), strict=True)
        outputs = source(images), target(images)
        assert outputs[0].shape == (3, config["num_classes"])
        assert torch.equal(*outputs)
        for net, output in zip((source, target), outputs, strict=True):
            net.zero_grad()
            output.square().sum().backward()
        for one, other in zip(source.parameters(), target.parameters(), strict=True):
            assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("name", ["convnet", "convnet_functional"])
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kernel_size": 4}, r"kernel_size must be odd .* not 4\."),
        ({"kernel_size": 0}, r"not 0\."),
        ({"kernel_size": -1}, r"not -1\."),
        ({"pool": "min"}, r"pool of ConvNet\w* must be one of 'max', 'avg', not 'min'\."),
        ({"widths": (16,)}, r"widths must be two numbers, one a convolution, not \(16,\)\."),
        ({"widths": (16, 8, 4)}, r"not \(16, 8, 4\)\."),
    ],
)
def test_unusable_arguments_are_refused(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        models.create(name, **config)
