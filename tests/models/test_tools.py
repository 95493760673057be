"""Tools of torch and of others on every family: scripts, exports, per-sample gradients, pruning, attributions."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import prune

from cifarnets import load
from cifarnets.models import DenseNet, ResNet8, WideResNet, create, list_models


class WideResNet10(WideResNet):
    """The family at its least depth."""

    depth, factor = 10, 1


class DenseNet10(DenseNet):
    """The family at its least depth."""

    depth = 10


# A small net of every family and way that it may be built.
NETS: dict[str, Callable[[], nn.Module]] = {
    "convnet": lambda: create("convnet", widths=(4, 6), hidden=5),
    "features": lambda: create("convnet", num_classes=0),
    "average": lambda: create("convnet", pool="avg", widths=(4, 6)),
    "functional": lambda: create("convnet_functional", widths=(4, 6)),
    "fcnet": lambda: create("fcnet", widths=(12, 7)),
    "resnet": lambda: ResNet8(widths=(2, 2, 4), se=True, shortcut="A"),
    "preact": lambda: ResNet8(widths=(2, 2, 4), preact=True, shortcut="A"),
    "learned shortcuts": lambda: ResNet8(widths=(2, 2, 4)),
    "mobilenet": lambda: create("mobilenet_v2", width=0.1),
    "quarternet": lambda: create("quarternet16", widths=(4, 8), depth=1),
    "quarternet with BatchNorm": lambda: create("quarternet16", widths=(4, 8), depth=1, norm="batch"),
    "densenet": lambda: DenseNet10(growth=2),
    "vgg": lambda: create("vgg11_bn", widths=(4, 4, 4, 4, 6)),
    "wide_resnet": WideResNet10,
    "airbench": lambda: create("airbench94", widths=(4, 4, 8)),
    "deep airbench": lambda: create("airbench96", widths=(4, 4, 8)),
}
every_net = pytest.mark.parametrize("net", list(NETS))


def build(net: str) -> nn.Module:
    """A net in eval mode."""
    return NETS[net]().eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32)


@every_net
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_scripts(net: str, images: Tensor) -> None:
    model = build(net)
    torch.testing.assert_close(torch.jit.script(model)(images), model(images))


@every_net
@pytest.mark.parametrize("strict", [True, False])
def test_exports(net: str, strict: bool, images: Tensor) -> None:
    model = build(net)
    exported = torch.export.export(model, (images,), strict=strict)
    torch.testing.assert_close(exported.module()(images), model(images))


def test_exported_poolings_are_torchs(images: Tensor) -> None:
    exported = torch.export.export(build("convnet"), (images,))
    targets = [str(node.target) for node in exported.graph.nodes]
    assert sum("max_pool2d" in target for target in targets) == 2


@pytest.mark.parametrize("net", ["convnet", "functional"])
def test_compiled_gradients_of_each_image(net: str, images: Tensor) -> None:
    model = build(net)
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    labels = torch.tensor([1, 2])

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    each = vmap(grad(loss), (None, 0, 0))
    found = torch.compile(each, backend="aot_eager")(parameters, images, labels)
    for k in range(2):
        model.zero_grad()
        F.cross_entropy(model(images[k : k + 1]), labels[k : k + 1]).backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(found[name][k], parameter.grad)


@pytest.mark.parametrize("name", list_models(pretrained=True))
def test_released_nets_are_pruned_as_fresh_ones(name: str) -> None:
    model = load(name)
    assert all(parameter.is_contiguous() for parameter in model.parameters())
    layer = next(module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
    prune.l1_unstructured(layer, "weight", 0.5)
    assert (layer.weight == 0).float().mean() == pytest.approx(0.5, abs=0.01)


class Plain(nn.Module):
    """`ConvNet` as anyone would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 8, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(512, 32), nn.Linear(32, 10)
        self.act1, self.act2, self.act3 = nn.Tanh(), nn.Tanh(), nn.Tanh()
        self.pool1, self.pool2 = nn.MaxPool2d(2), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.pool1(self.conv1(x)))
        x = self.act2(self.pool2(self.conv2(x)))
        return self.fc2(self.act3(self.fc1(x.flatten(1))))


@pytest.mark.filterwarnings("ignore::UserWarning:captum")
@pytest.mark.filterwarnings("ignore:Setting (forward, )?backward (and forward )?hooks:UserWarning")
@pytest.mark.parametrize("method", ["LRP", "DeepLift"])
def test_attributions_are_those_of_the_same_net_in_plain_torch(method: str, images: Tensor) -> None:
    attr = pytest.importorskip("captum.attr")
    ours, plain = load("convnet"), Plain().eval()
    plain.load_state_dict(ours.state_dict())
    found, expected = (
        getattr(attr, method)(model).attribute(images.clone().requires_grad_(), target=3) for model in (ours, plain)
    )
    assert torch.equal(found, expected)
    assert found.abs().sum() > 0
