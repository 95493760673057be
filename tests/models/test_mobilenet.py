from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from cifarnets.errors import InputError
from cifarnets.models import create, load, save, summary


def test_size_and_work_are_those_of_others() -> None:
    # torchvision's net for ten classes; chenyaofo's README for CIFAR-10: 2.24 million, 87.98 million multiply-adds.
    theirs = torchvision.models.mobilenet_v2(num_classes=10)
    found = summary(create("mobilenet_v2"))
    assert found.parameters == sum(p.numel() for p in theirs.parameters()) == 2_236_682
    assert found.macs == pytest.approx(87.98e6, rel=0.001)


def test_features_have_the_names_and_shapes_of_torchvision_s() -> None:
    with torch.device("meta"):
        ours, theirs = create("mobilenet_v2").features, torchvision.models.mobilenet_v2().features
    assert [(k, v.shape) for k, v in ours.state_dict().items()] == [
        (k, v.shape) for k, v in theirs.state_dict().items()
    ]


def test_with_torchvision_s_weights_and_strides_it_gives_their_logits() -> None:
    ours, theirs = create("mobilenet_v2", width=0.25), torchvision.models.mobilenet_v2(num_classes=10, width_mult=0.25)
    # The only difference is that of the strides.
    theirs.features[0][0].stride = theirs.features[2].conv[1][0].stride = (1, 1)
    theirs.train()(torch.rand(8, 3, 32, 32))  # moves the statistics of BatchNorm
    state = {name.replace("classifier.1", "head"): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(state)
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images))


def test_every_parameter_learns() -> None:
    model = create("mobilenet_v2", width=0.25)
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_file_a_graph_and_another_layout_give_the_same(tmp_path: Path) -> None:
    model, images = create("mobilenet_v2", num_classes=3, in_channels=1, width=0.25), torch.randn(4, 1, 32, 32)
    model(images)
    expected = model.eval()(images)
    assert expected.shape == (4, 3)
    assert torch.equal(load(save(model, tmp_path / "model.safetensors"))(images), expected)
    torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)
    compiled: Callable[[Tensor], Tensor] = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), expected)
    last = torch.channels_last
    torch.testing.assert_close(model.to(memory_format=last)(images.to(memory_format=last)), expected)


def test_takes_images_of_other_sizes_and_gives_features() -> None:
    model: nn.Module = create("mobilenet_v2", num_classes=0, width=0.25).eval()
    assert model(torch.randn(2, 3, 40, 24)).shape == (2, 1280)


@pytest.mark.parametrize("width", [0, -1, 11, float("nan")])
def test_a_width_that_gives_no_net_is_refused(width: float) -> None:
    with pytest.raises(InputError, match="width must be a multiplier above 0"):
        create("mobilenet_v2", width=width)
