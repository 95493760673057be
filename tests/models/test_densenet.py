from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models import DenseNet, create, load, save, summary


def small(**config: Any) -> nn.Module:
    return create("densenet40_bc", **{"num_classes": 3, "growth": 4, **config})


def test_size_is_that_of_others_and_work_is_counted_by_hand() -> None:
    found = summary(create("densenet40_bc"))
    assert found.parameters == 176_122  # as pytorchcv's densenet40_k12_bc_cifar10
    macs, channels = 32 * 32 * 9 * 3 * 24, 24
    for side in (32, 16, 8):
        if side < 32:
            macs += (2 * side) ** 2 * channels * channels // 2
            channels //= 2
        for _ in range(6):
            macs += side**2 * 48 * (channels + 9 * 12)
            channels += 12
    assert channels == 132
    assert found.macs == macs + 1_320 == 72_365_352


def test_the_depth_of_the_paper_s_larger_net() -> None:
    # The paper's table 2: DenseNet-BC with 100 layers and k = 12 has 0.8 million parameters.
    class DenseNet100(DenseNet):
        depth = 100

    assert sum(p.numel() for p in DenseNet100().parameters()) == pytest.approx(0.8e6, rel=0.05)


def test_a_layer_keeps_what_it_is_given_and_adds_its_own_maps() -> None:
    layer, maps = small().eval().layers[0], torch.rand(2, 8, 6, 6)
    found = layer(maps)
    assert found.shape == (2, 12, 6, 6)
    assert torch.equal(found[:, :8], maps)


def test_sides_and_channels_halve_between_the_stages() -> None:
    shapes: list[list[int]] = []
    model = create("densenet40_bc")
    for layer in model.layers:
        layer.register_forward_hook(lambda _module, _given, found: shapes.append(list(found.shape[1:])))
    assert model.forward_features(torch.zeros(2, 3, 32, 32)).shape == (2, 132, 8, 8)
    assert shapes[5:8] == [[96, 32, 32], [48, 16, 16], [60, 16, 16]]


def test_every_parameter_learns() -> None:
    model = small()
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_file_a_graph_and_another_layout_give_the_same(tmp_path: Path) -> None:
    model, images = small(in_channels=1), torch.randn(4, 1, 32, 32)
    model(images)  # moves the statistics of BatchNorm
    expected = model.eval()(images)
    assert expected.shape == (4, 3)
    assert torch.equal(load(save(model, tmp_path / "model.safetensors"))(images), expected)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)
    last = torch.channels_last
    torch.testing.assert_close(model.to(memory_format=last)(images.to(memory_format=last)), expected)


def test_takes_images_of_other_sizes_and_gives_features() -> None:
    assert small(num_classes=0).eval()(torch.randn(2, 3, 40, 24)).shape == (2, 44)


def test_what_gives_no_net_is_refused() -> None:
    with pytest.raises(InputError, match="growth must be at least 1, not 0"):
        small(growth=0)

    class DenseNet41(DenseNet):
        depth = 41

    with pytest.raises(InputError, match=r"depth of DenseNet41 must be 6n \+ 4 .*, not 41"):
        DenseNet41()
