"""2×2 max-pooling: the written-out way chooses as torch's does, and only a CPU's compiler takes it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from cifarnets.models import create
from cifarnets.models.pooling import MaxPool2d, _WrittenOut, max_pool2d


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
    for pool in (_WrittenOut.apply, lambda x: F.max_pool2d(x, 2)):
        leaf = images.clone().requires_grad_()
        pooled = pool(leaf)
        (pooled * weights).sum().backward()
        results.append((pooled.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_nan_is_the_largest() -> None:
    images = torch.tensor([[1.0, torch.nan], [2.0, 3.0]]).expand(1, 1, 2, 2)
    assert _WrittenOut.apply(images).isnan().all()


def seen(function: Callable[[Tensor], Tensor], images: Tensor) -> set[str]:
    """The names of the operations that a compiler is given."""
    names: set[str] = set()

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        for module in graph.modules():
            if isinstance(module, torch.fx.GraphModule):
                names.update(str(getattr(node.target, "__name__", node.target)) for node in module.graph.nodes)
        return graph.forward

    torch.compile(function, backend=backend, fullgraph=True)(images)
    return names


def test_only_compiled_is_it_written_out() -> None:
    even, odd = torch.randn(1, 2, 4, 6), torch.randn(1, 2, 5, 6)
    for images in (even, odd, even[0]):
        assert torch.equal(max_pool2d(images), F.max_pool2d(images, 2))
    assert "maximum" in seen(max_pool2d, even)
    assert "max_pool2d" not in seen(max_pool2d, even)
    assert "maximum" not in seen(max_pool2d, odd)
    assert "maximum" not in seen(max_pool2d, even[0])
    assert "maximum" not in seen(max_pool2d, even.to("meta"))


def test_exported_nets_keep_torchs_own() -> None:
    exported = torch.export.export(create("convnet").eval(), (torch.randn(1, 3, 32, 32),), strict=False)
    names = [str(node.target) for node in exported.graph.nodes]
    assert sum("max_pool2d" in name for name in names) == 2
    assert not any("maximum" in name for name in names)


@pytest.mark.parametrize("name", ["convnet", "convnet_functional"])
def test_a_compiled_net_computes_the_same(name: str) -> None:
    model = create(name)
    images = torch.randn(2, 3, 32, 32)
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, backend="aot_eager", fullgraph=True)
    gradients = []
    for net in (model, compiled):
        model.zero_grad()
        net(images).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(compiled(images), model(images))


def test_it_stands_for_torchs_module() -> None:
    assert isinstance(MaxPool2d(), nn.MaxPool2d)
    assert MaxPool2d().kernel_size == 2
    images = torch.randn(1, 2, 4, 4)
    assert torch.equal(MaxPool2d()(images), nn.MaxPool2d(2)(images))
