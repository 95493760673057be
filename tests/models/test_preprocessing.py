"""A model's own normalisation and transform."""

from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from cifarnets import load, predict
from cifarnets.errors import InputError
from cifarnets.models import annotate, create, transform_for, with_normalization


def test_the_view_takes_images_in_0_to_1() -> None:
    model = load("convnet.cifar3")
    images = torch.rand(4, 3, 32, 32)
    view = with_normalization(model)
    assert not view.training
    found = [names[0][1] for names in predict(model, images)]
    torch.testing.assert_close(view(images).softmax(1).max(1).values.tolist(), found)


def test_the_view_has_gradients_for_its_images_and_shares_the_parameters() -> None:
    model = create("convnet")
    view = with_normalization(model, mean=(0.5,) * 3, std=(0.25,) * 3)
    images = torch.rand(2, 3, 32, 32, requires_grad=True)
    view(images).square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert view.model is model
    assert set(view.state_dict()) == {f"model.{key}" for key in model.state_dict()}
    with torch.no_grad():
        assert torch.equal(view(images), model((images - 0.5) / 0.25))


def test_the_view_moves_with_its_constants() -> None:
    view = with_normalization(create("convnet").bfloat16(), mean=(0.5,) * 3, std=(0.25,) * 3)
    assert view(torch.rand(2, 3, 32, 32).bfloat16()).dtype == torch.bfloat16
    assert view.double()(torch.rand(2, 3, 32, 32).double()).dtype == torch.float64
    assert view.to("meta")(torch.rand(2, 3, 32, 32, device="meta").double()).device.type == "meta"


def test_a_model_that_does_not_know_its_constants() -> None:
    for call in (with_normalization, transform_for):
        with pytest.raises(InputError, match="ConvNet does not know how its images were normalised: pass mean="):
            call(create("convnet"))
        with pytest.raises(InputError, match="ConvNet does not know"):
            call(create("convnet"), mean=(0.5,) * 3)
        with pytest.raises(InputError, match=r"one number for each channel, and the model takes 1\."):
            call(create("convnet", in_channels=1), mean=(0.5,) * 3, std=(1.0,) * 3)
        with pytest.raises(InputError, match="one number for each channel"):
            call(nn.Flatten(), mean=(0.5,), std=(1.0,) * 3)
        with pytest.raises(InputError, match="every std must be above 0"):
            call(nn.Flatten(), mean=(0.5,), std=(0.0,))


@pytest.mark.parametrize("size", [(32, 32), (48, 20)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_transform_does_what_predict_does(size: tuple[int, int], mode: str) -> None:
    model = load("resnet20")
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    picture = PIL.Image.fromarray(pixels).convert(mode)
    transform = transform_for(model)
    loader: Any = DataLoader([transform(picture)] * 2, batch_size=2)  # type: ignore[arg-type]
    (batch,) = loader
    assert type(batch) is torch.Tensor
    assert batch.dtype == torch.float32
    with torch.no_grad():
        probabilities = model(batch).softmax(1)[0]
    ((_, expected),) = predict(model, picture)
    assert probabilities.max().item() == pytest.approx(expected, abs=1e-4)


def test_the_transform_of_a_grey_model_makes_pictures_grey() -> None:
    transform = transform_for(create("convnet", in_channels=1), mean=(0.0,), std=(1.0,))
    white = transform(torch.full((3, 32, 32), 255, dtype=torch.uint8))
    torch.testing.assert_close(white, torch.ones(1, 32, 32), atol=1e-3, rtol=0)


def test_the_transform_has_the_size_of_the_training_images() -> None:
    model = create("resnet20")
    annotate(model, mean=[0.5] * 3, std=[0.25] * 3, size=(48, 64))
    picture = PIL.Image.new("RGB", (100, 100))
    assert transform_for(model)(picture).shape == (3, 48, 64)
    assert transform_for(model, size=40)(picture).shape == (3, 40, 40)
