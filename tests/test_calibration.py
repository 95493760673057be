"""Temperature scaling: the temperature, what it changes in a model, and what it leaves."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cifarnets
from cifarnets import calibrate, evaluate
from cifarnets.calibration import fit_temperature
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10, dataset_for
from cifarnets.errors import InputError
from cifarnets.models import list_models


def right_three_times_of_four(confidence: float) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[confidence, 0.0]] * 4), torch.tensor([0, 0, 0, 1])


@pytest.mark.parametrize("confidence", [0.02, 1.0, 4.0, 50.0])
def test_two_classes_have_a_temperature_in_closed_form(confidence: float) -> None:
    # Right in 3 of 4 cases: softmax gives 0.75 where the logits differ by log 3.
    found = fit_temperature(*right_three_times_of_four(confidence))
    assert found == pytest.approx(confidence / math.log(3), rel=1e-7)


def test_no_other_temperature_has_a_smaller_loss() -> None:
    torch.manual_seed(0)
    logits = torch.randn(500, 10) * 7
    labels = torch.where(torch.rand(500) < 0.6, logits.argmax(1), torch.randint(0, 10, (500,)))
    best = fit_temperature(logits, labels)
    losses = {factor: F.cross_entropy(logits.double() / (best * factor), labels) for factor in (0.99, 1.0, 1.01)}
    assert losses[1.0] < min(losses[0.99], losses[1.01])


def test_the_temperature_scales_back_what_scaled_the_logits() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(300, 5), torch.randint(0, 5, (300,))
    logits[range(300), labels] += 1
    assert fit_temperature(logits * 3, labels) == pytest.approx(3 * fit_temperature(logits, labels), rel=1e-5)


def test_only_the_head_changes_and_a_file_keeps_it(tmp_path: Path) -> None:
    cifarnets.seed_everything(0)
    model, loader = cifarnets.create("resnet20", widths=(4, 4, 8)), BatchLoader(SyntheticCIFAR10(size=300), 50)
    cifarnets.Trainer(model, lr=0.1, progress=False).fit(loader, epochs=2)
    before, weights = evaluate(model, loader), {k: v.clone() for k, v in model.state_dict().items()}
    temperature = calibrate(model, loader)
    after = evaluate(model, loader)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])]
    assert changed == ["head.weight", "head.bias"]
    torch.testing.assert_close(model.get_parameter("head.weight") * temperature, weights["head.weight"])
    assert after.confusion == before.confusion
    assert after.loss < before.loss
    assert calibrate(model, loader) == pytest.approx(1, abs=1e-4)
    again = cifarnets.load(cifarnets.save(model, tmp_path / "mine.safetensors"))
    assert evaluate(again, loader) == evaluate(model, loader)


def test_what_no_temperature_fits() -> None:
    logits, labels = torch.eye(3), torch.arange(3)
    with pytest.raises(InputError, match="right about all 3 images"):
        fit_temperature(logits, labels)
    with pytest.raises(InputError, match="no better than chance"):
        fit_temperature(logits, labels.roll(1))
    with pytest.raises(InputError, match=r"must be \[N, K\]"):
        fit_temperature(logits[0], labels)
    with pytest.raises(InputError, match="NaN"):
        fit_temperature(torch.full((3, 3), math.nan), labels)


def test_a_head_that_is_not_linear_is_refused() -> None:
    model = cifarnets.create("convnet", num_classes=0)
    with pytest.raises(InputError, match="the head must be a linear layer to take a temperature, not Identity"):
        calibrate(model, BatchLoader(SyntheticCIFAR10(size=20), 10))
    with pytest.raises(InputError, match="no linear layer"):
        calibrate(nn.Flatten(), BatchLoader(SyntheticCIFAR10(size=20), 10))


def test_the_test_set_is_refused() -> None:
    loader = BatchLoader(SyntheticCIFAR10(train=False, size=100), 50)
    with pytest.raises(InputError, match="calibrate would choose on the test set"):
        calibrate(cifarnets.create("convnet"), loader)


@pytest.mark.cifar10
@pytest.mark.parametrize("name", [name for name in list_models(pretrained=True) if name != "fcnet"])
def test_released_weights_keep_their_accuracy_and_lose_their_overconfidence(name: str, real_root: Path) -> None:
    """The temperature of one half of some test images is right for the other half; no released figure is made so."""
    model = cifarnets.load(name)
    images = dataset_for(model.meta, real_root)  # type: ignore[arg-type]
    fitted, held_out = (BatchLoader(images.select(range(i, 2000, 2)), 500) for i in range(2))
    before = evaluate(model, held_out)
    calibrate(model, fitted, allow_test=True)
    after = evaluate(model, held_out)
    assert after.confusion == before.confusion
    assert after.ece < min(before.ece + 0.01, 0.05)
