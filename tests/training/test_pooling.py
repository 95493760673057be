"""2×2 max-pooling written out: it chooses as torch's does, and a compiled model on a CPU takes it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cifarnets.models import create
from cifarnets.training import pooling
from cifarnets.training.pooling import compiled, max_pool2d, write_out_pooling


@given(
    st.integers(1, 3),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(1, 4),
    st.booleans(),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.integers(0, 1000),
)
def test_written_out_it_is_torchs(n: int, c: int, h: int, w: int, last: bool, dtype: torch.dtype, seed: int) -> None:
    """With few different numbers, so that many are equal and the first of them must be chosen."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(-2, 3, (n, c, 2 * h, 2 * w), generator=generator).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last) if last else images
    weights = torch.randn(n, c, h, w, generator=generator).to(dtype)
    results = []
    for pool in (max_pool2d, lambda x: F.max_pool2d(x, 2)):
        leaf = images.clone().requires_grad_()
        pooled = pool(leaf)
        (pooled * weights).sum().backward()
        assert leaf.grad is not None
        results.append((pooled.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_nan_is_the_largest() -> None:
    images = torch.tensor([[1.0, torch.nan], [2.0, 3.0]]).expand(1, 1, 2, 2)
    assert max_pool2d(images).isnan().all()


def replaced(function: Callable[[Tensor], Tensor], images: Tensor) -> int:
    """How many poolings of a function are written out, after a check that this changes no number."""
    counts: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        counts.append(write_out_pooling(graph))
        return graph.forward

    found = torch.compile(function, backend=backend, fullgraph=True)(images)
    assert torch.equal(found, function(images))
    return sum(counts)


EVEN = torch.randn(1, 2, 4, 6)


@pytest.mark.parametrize(
    ("function", "count"),
    [
        (nn.MaxPool2d(2), 1),
        (nn.MaxPool2d((2, 2), stride=(2, 2)), 1),
        (lambda x: F.max_pool2d(x, 2), 1),
        (lambda x: F.max_pool2d(x, kernel_size=[2, 2], stride=2), 1),
        (lambda x: torch.max_pool2d(x, 2), 1),
        (lambda x: F.max_pool2d(F.max_pool2d(x, (2, 3)), 2), 1),
        (lambda x: F.max_pool2d(x, 2, 1), 0),
        (lambda x: F.max_pool2d(x, 2, padding=1), 0),
        (lambda x: F.max_pool2d(x, 2, dilation=2), 0),
        (lambda x: F.max_pool2d(x, 2, return_indices=True)[0], 0),
        (lambda x: F.max_pool2d(x, (2, 3)), 0),
        (lambda x: F.max_pool2d(x, 3), 0),
        (lambda x: F.avg_pool2d(x, 2), 0),
        (lambda x: x.relu(), 0),
    ],
)
def test_only_2x2_poolings_are_written_out(function: Callable[[Tensor], Tensor], count: int) -> None:
    assert replaced(function, EVEN) == count


@pytest.mark.parametrize("images", [torch.randn(1, 2, 5, 6), torch.randn(1, 2, 4, 5), EVEN[0]])
def test_only_whole_windows_are_written_out(images: Tensor) -> None:
    assert replaced(nn.MaxPool2d(2), images) == 0


def test_other_devices_keep_torchs_own() -> None:
    counts: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        counts.append(write_out_pooling(graph))
        return graph.forward

    torch.compile(nn.MaxPool2d(2), backend=backend)(EVEN.to("meta"))
    assert counts == [0]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("convnet", {}),
        ("convnet_functional", {}),
        ("vgg11_bn", {"widths": (4, 4, 4, 4, 6)}),
        ("airbench94", {"widths": (4, 4, 8)}),
    ],
)
def test_the_poolings_of_a_model_are_written_out(
    name: str, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all of the compiler but the C++ code, which takes long to make."""
    calls: list[dict[str, Any]] = []

    def traced(graph: torch.fx.GraphModule, inputs: list[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
        calls.append(options)
        return aot_eager(graph, inputs)

    aot_eager: Any = torch._dynamo.lookup_backend("aot_eager")
    monkeypatch.setattr(pooling, "inductor", traced)
    counts: list[int] = []
    count = pooling.write_out_pooling
    monkeypatch.setattr(pooling, "write_out_pooling", lambda graph: counts.append(count(graph)))
    model = create(name, **config)
    images = torch.randn(2, 3, 32, 32)
    count_of = {"convnet": 2, "convnet_functional": 2, "vgg11_bn": 5, "airbench94": 0}  # whose maps have odd sides
    gradients = []
    for net in (compiled(model, {"max_autotune": False}), model):
        model.zero_grad()
        net(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    assert (calls, counts) == ([{"max_autotune": False}], [count_of[name]])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_models_of_one_kind_share_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend of its own for each would compile each anew."""
    calls: list[int] = []

    def traced(graph: torch.fx.GraphModule, inputs: list[Tensor], options: dict[str, Any]) -> Callable[..., Any]:
        calls.append(len(inputs))
        return graph.forward

    monkeypatch.setattr(pooling, "inductor", traced)
    for _ in range(3):
        compiled(create("convnet", widths=(3, 5)))(torch.randn(2, 3, 32, 32))
    assert len(calls) == 1


def test_each_size_of_images_is_compiled_for_itself_and_any_number_of_them_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With sides that are not known, no pooling would be written out."""
    shapes: list[tuple[Any, ...]] = []
    counts: list[int] = []

    def traced(graph: torch.fx.GraphModule, inputs: list[Any], options: dict[str, Any]) -> Callable[..., Any]:
        (images,) = (value for value in inputs if isinstance(value, Tensor) and value.ndim == 4 and value.shape[2] > 3)
        shapes.append(tuple(images.shape[1:]))
        return graph.forward

    count = pooling.write_out_pooling
    monkeypatch.setattr(pooling, "inductor", traced)
    monkeypatch.setattr(pooling, "write_out_pooling", lambda graph: counts.append(count(graph)))
    model = create("airbench94", widths=(2, 3, 5))
    program = compiled(model)
    for size, side in ((8, 24), (7, 24), (8, 28), (7, 28), (8, 32), (7, 32), (6, 24), (5, 32)):
        images = torch.randn(size, 3, side, side)
        torch.testing.assert_close(program(images), model(images))
    assert all(isinstance(side, int) for shape in shapes for side in shape)
    assert sorted(set(shapes)) == [(3, 24, 24), (3, 28, 28), (3, 32, 32)]
    assert len(shapes) <= 6, "for one number of images, and for any other"
    assert {shape[1]: number for shape, number in zip(shapes, counts, strict=True)} == {24: 1, 28: 1, 32: 0}
