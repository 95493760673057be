from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models import WideResNet, create, load, registry, save


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> type[WideResNet]:
    """The smallest of the family, of which every layer is still there."""
    monkeypatch.setattr(registry, "_MODELS", dict(registry._MODELS))

    @registry.register("wide_resnet10_2")
    class WideResNet10x2(WideResNet):
        depth = 10
        factor = 2

    return WideResNet10x2


@pytest.mark.parametrize(("name", "parameters"), [("wide_resnet16_4", 2_748_890), ("wide_resnet28_10", 36_479_194)])
def test_sizes_are_those_of_the_paper(name: str, parameters: int) -> None:
    # The paper's tables have 2.7 and 36.5 million.
    with torch.device("meta"):
        assert sum(p.numel() for p in create(name).parameters()) == parameters


def test_convolutions_start_as_he_says() -> None:
    model = create("wide_resnet16_4")
    assert model.blocks[-1].conv2.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)


def test_shortcuts_are_identities_but_where_the_width_changes() -> None:
    blocks = create("wide_resnet16_4").eval().blocks
    for index, block in enumerate(blocks):
        nn.init.zeros_(block.conv2.weight)
        images = torch.randn(2, block.conv1.in_channels, 8, 8)
        if index % 2:
            assert torch.equal(block(images), images)
        else:
            activated = block.norm1(images).relu()
            assert torch.equal(block(images), block.shortcut(activated))


def test_every_parameter_learns(narrow: type[WideResNet]) -> None:
    model = narrow(num_classes=3)
    model(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_dropout_is_for_training_alone(narrow: type[WideResNet]) -> None:
    model, images = narrow(dropout=0.5), torch.randn(2, 3, 16, 16)
    assert not torch.equal(model(images), model(images))
    assert torch.equal(model.eval()(images), model(images))
    without = narrow()
    assert torch.equal(without(images), without(images))


def test_a_file_a_graph_and_another_layout_give_the_same(narrow: type[WideResNet], tmp_path: Path) -> None:
    model, images = narrow(num_classes=3, in_channels=1, dropout=0.3), torch.randn(2, 1, 32, 32)
    model(images)  # moves the statistics of BatchNorm
    expected = model.eval()(images)
    assert expected.shape == (2, 3)
    assert torch.equal(load(save(model, tmp_path / "model.safetensors"))(images), expected)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)
    last = torch.channels_last
    torch.testing.assert_close(model.to(memory_format=last)(images.to(memory_format=last)), expected)


def test_compiles_without_a_break(narrow: type[WideResNet]) -> None:
    model, images = narrow().eval(), torch.randn(2, 3, 32, 32)
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


@pytest.mark.parametrize("dropout", [-0.1, 1.0, 30])
def test_a_dropout_that_is_no_share_is_refused(dropout: float) -> None:
    with pytest.raises(InputError, match=f"dropout must be a share, at least 0 and below 1, not {dropout}"):
        create("wide_resnet16_4", dropout=dropout)


def test_a_depth_that_does_not_fit_is_refused(narrow: type[WideResNet]) -> None:
    narrow.depth = 20
    with pytest.raises(InputError, match=r"depth of WideResNet10x2 must be 6n \+ 4 .*, not 20"):
        narrow()
