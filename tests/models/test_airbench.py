import pytest
import torch
import torch.nn.functional as F

from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
from cifarnets.errors import InputError
from cifarnets.models import Airbench94, create, load, save


def test_size_is_that_of_the_paper() -> None:
    # The paper says 1.97 M; convolutions, biases and head counted by hand.
    blocks = 24 * 64 * 9 + 64 * 64 * 9 + 64 * 256 * 9 + 3 * 256 * 256 * 9 + 2 * (64 + 64 + 4 * 256)
    assert sum(p.numel() for p in Airbench94().parameters()) == (24 * 12 + 24) + blocks + 2560 == 1_972_792


def test_whitening_makes_patches_uncorrelated_with_both_signs() -> None:
    images, _ = next(iter(BatchLoader(SyntheticCIFAR10(size=500), 500, device="cpu")))
    model = Airbench94()
    model.prepare(images)
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


def test_trains_saves_and_loads(tmp_path: object) -> None:
    model = create("airbench94", num_classes=3, widths=(8, 16, 16))
    images = torch.rand(6, 3, 32, 32)
    loss = F.cross_entropy(model(images), torch.arange(6) % 3)
    loss.backward()  # type: ignore[no-untyped-call]
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
