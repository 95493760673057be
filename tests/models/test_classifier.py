"""The head of every model: features, logits, a fresh head, and the weights that models start from."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cifarnets import load, save
from cifarnets.errors import InputError
from cifarnets.models import annotate, create, head

# One small net of each family, with the length of its features and the shape of its last maps.
FAMILIES: dict[str, tuple[dict[str, Any], int, tuple[int, ...]]] = {
    "convnet": ({"widths": (4, 6), "hidden": 5}, 5, (6, 8, 8)),
    "convnet_functional": ({"widths": (4, 6), "hidden": 5, "pool": "avg"}, 5, (6, 8, 8)),
    "fcnet": ({"widths": (12, 7)}, 7, (7,)),
    "resnet20": ({"widths": (4, 4, 8)}, 8, (8, 8, 8)),
    "vgg11_bn": ({"widths": (4, 4, 4, 4, 6)}, 6, (6, 1, 1)),
    "wide_resnet16_4": ({}, 256, (256, 8, 8)),
    "airbench94": ({"widths": (4, 4, 8)}, 8, (8, 3, 3)),
    "airbench96": ({"widths": (4, 4, 8)}, 8, (8, 3, 3)),
}
every_family = pytest.mark.parametrize("name", list(FAMILIES))


def small(name: str, **config: Any) -> Any:
    """A net of a family, in eval mode."""
    return create(name, **FAMILIES[name][0], **config).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


@every_family
def test_features_and_logits_are_two_halves_of_a_model(name: str, images: Tensor) -> None:
    _, length, shape = FAMILIES[name]
    model = small(name, num_classes=3)
    assert (model.num_classes, model.num_features) == (3, length)
    maps = model.forward_features(images)
    assert maps.shape == (2, *shape)
    assert torch.equal(model.forward_head(maps), model(images))
    assert model.forward_head(maps, pre_logits=True).shape == (2, length)


@every_family
def test_a_model_of_no_classes_gives_features(name: str, images: Tensor, tmp_path: Path) -> None:
    model, whole = small(name, num_classes=0), small(name)
    assert isinstance(model.get_classifier(), nn.Identity)
    model.load_state_dict(whole.state_dict(), strict=False)
    features = model(images)
    assert torch.equal(features, whole.forward_head(whole.forward_features(images), pre_logits=True))
    assert torch.equal(features, model.forward_head(model.forward_features(images), pre_logits=True))
    again = load(save(model, tmp_path / "features.safetensors"))
    assert torch.equal(again(images), features)


@every_family
def test_the_head_is_what_tools_are_given(name: str) -> None:
    model = small(name, num_classes=3)
    found = model.get_classifier()
    assert isinstance(found, nn.Linear)
    assert (found.in_features, found.out_features) == (model.num_features, 3)
    assert found is head(model) is model.get_submodule(model.head_name)
    assert head(nn.DataParallel(model)) is found


@every_family
def test_a_fresh_head_changes_nothing_else(name: str, images: Tensor, tmp_path: Path) -> None:
    model = small(name).double()
    annotate(model, classes=list("abcdefghij"), mean=(0.5,) * 3, std=(0.2,) * 3, training={"epochs": 3})
    trunk = model.forward_features(images.double())
    model.reset_classifier(4)
    assert torch.equal(model.forward_features(images.double()), trunk)
    assert model(images.double()).shape == (2, 4)  # in the dtype of the trunk
    assert (model.num_classes, model.meta.config["num_classes"]) == (4, 4)
    assert (model.meta.classes, model.meta.training, model.meta.mean) == (None, {}, (0.5,) * 3)
    again = load(save(model, tmp_path / "four.safetensors"))
    assert torch.equal(again(images.double()), model(images.double()))
    model.reset_classifier(0)
    assert model(images.double()).shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model(images.double()).shape == (2, 3)


@every_family
def test_a_fresh_head_starts_as_in_a_fresh_model(name: str) -> None:
    model = small(name)
    torch.manual_seed(1)
    model.reset_classifier(100)
    found = model.get_classifier().weight
    if name.startswith("airbench"):
        assert found.std().item() == pytest.approx(1)
        assert model.get_classifier().bias is None
    else:
        assert found.abs().max() <= model.num_features**-0.5
    assert not model.get_classifier().training


@pytest.mark.parametrize("count", [-1, 2.0, True, "3", None])
def test_a_number_of_classes_is_a_whole_number(count: Any) -> None:
    model = small("convnet")
    with pytest.raises(InputError, match="num_classes must be a whole number of at least 0"):
        model.reset_classifier(count)
    assert model.num_classes == 10


def test_the_head_of_any_other_model() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(3072, 5), nn.Tanh(), nn.Linear(5, 2), nn.Tanh())
    assert head(plain) is plain[3]
    with pytest.raises(InputError, match="ReLU has no get_classifier\\(\\) and no linear layer"):
        head(nn.ReLU())


def test_pretrained_features(images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    model, whole = create("resnet20", pretrained=True, num_classes=0), load("resnet20")
    assert caplog.messages == []  # nothing is untrained
    assert torch.equal(whole.get_classifier()(model(images)), whole(images))  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "config", "expected"),
    [
        ("airbench94", {}, "6641b555b15075ad"),
        ("airbench95", {}, "394e972ef6a87cba"),
        ("airbench96", {"widths": (8, 8, 8)}, "7f4b8d18c5594d3c"),
        ("convnet", {}, "174047d956f95ba5"),
        ("convnet", {"num_classes": 3}, "015afc6e3bcf795f"),
        ("convnet", {"pool": "avg", "kernel_size": 5}, "b7a44e03bdeefc04"),
        ("convnet_functional", {}, "174047d956f95ba5"),
        ("fcnet", {"num_classes": 3}, "9037a416d955f48e"),
        ("fcnet", {"widths": (5,)}, "b3c0edccd3794b81"),
        ("resnet20", {}, "03753ae4e14ef0d5"),
        ("resnet20", {"se": True, "preact": True}, "4c8f9179338495d6"),
        ("vgg11_bn", {"num_classes": 3}, "6f09289156795eac"),
        ("wide_resnet16_4", {}, "6cf3d4b7eb811b5b"),
    ],
)
def test_a_seed_gives_the_weights_that_it_always_gave(name: str, config: dict[str, Any], expected: str) -> None:
    """Published runs start from them; the hashes are of the version that made those runs."""
    torch.manual_seed(0)
    content = hashlib.sha256()
    for key, value in create(name, **config).state_dict().items():
        content.update(key.encode())
        content.update(value.numpy().tobytes())
    assert content.hexdigest()[:16] == expected


def test_numpys_whole_numbers_are_counts() -> None:
    model: Any = create("convnet")
    model.reset_classifier(np.int64(3))
    assert type(model.meta.config["num_classes"]) is int
