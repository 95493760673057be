"""The fully connected net of the article, step 8."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from cifarnets import models
from cifarnets.datasets import CIFAR10Normalized


def test_the_parameters_are_those_that_the_article_prints() -> None:
    counts = [p.numel() for p in models.create("fcnet").parameters()]
    assert counts == [3145728, 1024, 524288, 512, 65536, 128, 1280, 10]
    assert sum(counts) == 3_738_506


def test_it_computes_what_the_article_s_sequential_computes_on_a_flattened_image() -> None:
    model = models.FCNet()
    written_out = nn.Sequential(
        nn.Linear(3072, 1024), nn.Tanh(), nn.Linear(1024, 512), nn.Tanh(), nn.Linear(512, 128), nn.Tanh(),
        nn.Linear(128, 10),
    )  # fmt: skip
    written_out.load_state_dict(dict(zip(written_out.state_dict(), model.state_dict().values(), strict=True)))
    image = torch.randn(3, 32, 32)
    assert torch.equal(model(image[None]), written_out(image.view(-1)[None]))


@pytest.mark.cifar10
def test_it_answers_a_real_image_with_ten_numbers(real_root: object) -> None:
    image, label = CIFAR10Normalized(train=False)[0]
    assert label == 3  # a cat
    output = models.create("fcnet")(image[None])
    assert output.shape == (1, 10)
    assert output.isfinite().all()


@settings(derandomize=True, deadline=None, max_examples=25)
@given(
    num_classes=st.integers(1, 12),
    in_channels=st.integers(1, 4),
    widths=st.lists(st.integers(1, 9), max_size=4),
)
def test_any_number_of_hidden_layers_of_any_width(num_classes: int, in_channels: int, widths: list[int]) -> None:
    model = models.create("fcnet", num_classes=num_classes, in_channels=in_channels, widths=widths)
    sizes = [in_channels * 1024, *widths, num_classes]
    shapes = [list(layer.weight.shape) for layer in model if isinstance(layer, nn.Linear)]
    assert shapes == [[out, size] for size, out in itertools.pairwise(sizes)]
    assert sum(isinstance(layer, nn.Tanh) for layer in model) == len(widths)
    assert isinstance(model[-1], nn.Linear)  # logits, not squeezed by a tanh
    assert model(torch.rand(2, in_channels, 32, 32)).shape == (2, num_classes)
    assert model.meta.config == {"num_classes": num_classes, "in_channels": in_channels, "widths": tuple(widths)}
