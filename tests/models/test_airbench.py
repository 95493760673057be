from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
from cifarnets.errors import InputError
from cifarnets.models import Airbench94, create, load, save


def test_size_is_that_of_the_paper() -> None:
    # The paper says 1.97 M; convolutions, biases and head counted by hand.
    blocks = 24 * 64 * 9 + 64 * 64 * 9 + 64 * 256 * 9 + 3 * 256 * 256 * 9 + 2 * (64 + 64 + 4 * 256)
    assert sum(p.numel() for p in Airbench94().parameters()) == (24 * 12 + 24) + blocks + 2560 == 1_972_792


@pytest.mark.parametrize(
    ("name", "widths", "depth", "parameters"),
    [("airbench95", (128, 384, 384), 2, 4_606_520), ("airbench96", (128, 384, 512), 3, 9_918_776)],
)
def test_larger_sizes_counted_by_hand(name: str, widths: tuple[int, ...], depth: int, parameters: int) -> None:
    blocks = sum(
        9 * a * b + (depth - 1) * 9 * b * b + depth * 2 * b for a, b in zip((24, *widths), widths, strict=False)
    )
    with torch.device("meta"):
        model = create(name)
    assert sum(p.numel() for p in model.parameters()) == (24 * 12 + 24) + blocks + 10 * widths[2] == parameters
    assert model.meta.config["widths"] == widths
    assert model.meta.config["depth"] == depth


@pytest.mark.parametrize("name", ["airbench94", "airbench95", "airbench96"])
def test_logits_start_as_large_as_a_ninth_of_torch_s_own(name: str) -> None:
    model = create(name)
    width = model.head.in_features
    ninth = nn.Linear(width, 10).weight.std() / 9
    torch.testing.assert_close(model.head.weight.std() * model.scale, ninth, rtol=0.05, atol=0)


def test_whitening_makes_patches_uncorrelated_with_both_signs() -> None:
    images, _ = next(iter(BatchLoader(SyntheticCIFAR10(size=500), 500, device="cpu")))
    model = Airbench94()
    model.init_from_images(images)
    patches = F.conv2d(images, model.whiten.weight).transpose(0, 1).flatten(1)
    assert torch.equal(patches[12:], -patches[:12])
    # Strong directions come out with unit variance; the weak ones are held down by the epsilon.
    covariance = (patches[:12] @ patches[:12].T) / patches.shape[1]
    torch.testing.assert_close(covariance[0, 0], torch.tensor(1.0), atol=0.01, rtol=0)
    assert (covariance - covariance.diag().diag()).abs().max() < 0.01
    assert not model.whiten.weight.requires_grad


def test_convolutions_start_as_the_identity() -> None:
    block = Airbench94().block1
    picture = torch.rand(1, 24, 8, 8)
    assert torch.equal(block.conv1(picture)[:, :24], picture)


def test_the_last_two_of_three_convolutions_have_a_shortcut() -> None:
    block, images = create("airbench96", widths=(8, 8, 8)).eval().block2, torch.randn(2, 8, 8, 8)
    nn.init.zeros_(block.conv3.weight)
    before = F.gelu(block.norm1(F.max_pool2d(block.conv1(images), 2)))
    assert torch.equal(block(images), F.gelu(before))


@pytest.mark.parametrize("name", ["airbench95", "airbench96"])
def test_a_file_a_graph_and_another_layout_give_the_same(name: str, tmp_path: Path) -> None:
    model, images = create(name, num_classes=3, in_channels=1, widths=(8, 16, 16)), torch.randn(6, 1, 32, 32)
    model.init_from_images(images)
    model(images).square().sum().backward()  # moves the statistics of BatchNorm, too
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert trained == {name for name, p in model.named_parameters() if p.requires_grad}

    expected = model.eval()(images)
    assert expected.shape == (6, 3)
    assert torch.equal(load(save(model, tmp_path / "model.safetensors"))(images), expected)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)
    last = torch.channels_last
    torch.testing.assert_close(model.to(memory_format=last)(images.to(memory_format=last)), expected)


def test_compiles_without_a_break() -> None:
    model, images = create("airbench96", widths=(8, 8, 8)).eval(), torch.randn(2, 3, 32, 32)
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))


def test_a_depth_that_there_is_not_is_refused() -> None:
    with pytest.raises(InputError, match="depth must be 2 or 3 convolutions a block, not 4"):
        create("airbench96", depth=4)


def test_trains_saves_and_loads(tmp_path: object) -> None:
    model = create("airbench94", num_classes=3, widths=(8, 16, 16))
    images = torch.rand(6, 3, 32, 32)
    loss = F.cross_entropy(model(images), torch.arange(6) % 3)
    loss.backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None}
    assert "whiten.weight" not in learning
    assert "block1.norm1.weight" not in learning
    assert {"whiten.bias", "block3.conv2.weight", "head.weight"} <= learning
    path = save(model, f"{tmp_path}/a.safetensors")
    again = load(path)
    assert torch.equal(again(images), model.eval()(images))


def test_wrong_number_of_widths() -> None:
    with pytest.raises(InputError, match="three numbers"):
        Airbench94(widths=(64, 256))
