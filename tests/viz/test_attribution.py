"""What an answer is owed to: nets of which one knows where they look."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.viz.reading import titles
from torch import Tensor, nn

from cifarnets import models
from cifarnets.errors import InputError
from cifarnets.viz import show_attribution

CONSTANTS = {"mean": (0.5,) * 3, "std": (0.25,) * 3}


class Corner(nn.Module):
    """Looks at the red of the upper left quarter, and at nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.02))
        self.drop = nn.Dropout(0.9)

    def forward(self, images: Tensor) -> Tensor:
        seen = self.scale * self.drop(images[:, 0, :16, :16]).sum((1, 2))
        return torch.stack([-seen, seen], 1)


@pytest.fixture
def image() -> Tensor:
    return torch.full((3, 32, 32), 0.75)


@pytest.mark.parametrize("method", ["occlusion", "gradient"])
def test_only_what_the_net_looks_at_lights_up(method: str, image: Tensor) -> None:
    model = Corner().train()
    figure = show_attribution(model, image, method=method, classes=["dark", "red"], **CONSTANTS)  # type: ignore[arg-type]
    owed = np.asarray(figure.axes[1].images[0].get_array())
    assert owed.shape == (32, 32)
    assert owed[:16, :16].min() > 0
    assert owed[24:, 24:].max() == 0  # no square of 8 pixels covers both
    if method == "gradient":
        assert owed[16:].max() == owed[:, 16:].max() == 0
        np.testing.assert_allclose(owed[:16, :16], 0.02, rtol=1e-5)
    assert titles(figure)[0] == "the model says:\nred 1.00"
    lit = np.asarray(figure.axes[2].images[0].get_array())
    assert lit[2, 2, 0] > 2 * lit[30, 30, 0]
    # The model is as it was: its mode, and no gradient left behind.
    assert model.training
    assert model.scale.grad is None


def test_a_model_with_its_own_constants_and_classes_needs_no_more(image: Tensor) -> None:
    model = models.create("convnet", num_classes=2, in_channels=1)
    models.annotate(model, classes=("cat", "dog"), mean=(0.5,), std=(0.2,))
    figure = show_attribution(model, image[:1])
    assert titles(figure)[0].partition("\n")[2].split()[0] in ("cat", "dog")
    assert len(figure.axes) == 3
    np.testing.assert_allclose(np.asarray(figure.axes[0].images[0].get_array()), 0.75, rtol=1e-5)


def test_one_picture_at_a_time(image: Tensor) -> None:
    with pytest.raises(InputError, match="one picture is explained at a time, and these are 2"):
        show_attribution(Corner(), torch.stack([image, image]), **CONSTANTS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="method of show_attribution must be"):
        show_attribution(Corner(), image, method="magic", **CONSTANTS)  # type: ignore[arg-type]


def test_a_gradient_needs_no_grad_mode_of_the_caller(image: Tensor) -> None:
    model = Corner()

    def slopes() -> "np.ndarray[Any, Any]":
        figure = show_attribution(model, image, method="gradient", **CONSTANTS)  # type: ignore[arg-type]
        return np.asarray(figure.axes[1].images[0].get_array())

    expected = slopes()
    assert expected.max() > 0
    with torch.inference_mode():
        np.testing.assert_array_equal(slopes(), expected)


def test_a_model_without_a_gradient_says_so(image: Tensor) -> None:
    class Detached(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.detach().mean((2, 3))

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = nn.Parameter(torch.ones(3))

        def forward(self, images: Tensor) -> Tensor:
            return self.logits.expand(len(images), 3)

    for model in (Detached(), Fixed()):
        with pytest.raises(InputError, match="no gradient leads from the logits to the pixels"):
            show_attribution(model, image, method="gradient", **CONSTANTS)  # type: ignore[arg-type]
