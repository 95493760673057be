"""What a model is made of: shapes, parameters and multiply-adds, counted by hand."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets import models
from cifarnets.errors import InputError


def by_hand(layer: nn.Module, output: tuple[int, ...]) -> int:
    """Each number of the output takes one multiply-add for each weight that it is made with."""
    if isinstance(layer, nn.Conv2d):
        channels, height, width = output
        return channels * height * width * layer.in_channels // layer.groups * layer.weight[0, 0].numel()
    return layer.in_features * layer.out_features if isinstance(layer, nn.Linear) else 0


def test_the_article_s_net_row_by_row() -> None:
    result = models.summary(models.create("convnet"))
    rows = [(layer.name, layer.kind, layer.output, layer.parameters, layer.macs) for layer in result.layers]
    assert rows == [
        ("conv1", "Conv2d", (16, 32, 32), 448, 442_368),
        ("pool1", "MaxPool2d", (16, 16, 16), 0, 0),
        ("act1", "Tanh", (16, 16, 16), 0, 0),
        ("conv2", "Conv2d", (8, 16, 16), 1160, 294_912),
        ("pool2", "MaxPool2d", (8, 8, 8), 0, 0),
        ("act2", "Tanh", (8, 8, 8), 0, 0),
        ("fc1", "Linear", (32,), 16_416, 16_384),
        ("act3", "Tanh", (32,), 0, 0),
        ("fc2", "Linear", (10,), 330, 320),
    ]
    assert (result.parameters, result.macs) == (18_354, 753_984)


def test_it_prints_as_a_table() -> None:
    lines = str(models.summary(models.create("convnet_functional", num_classes=3))).splitlines()
    assert lines == [
        "layer  kind    output    parameters  multiply-adds",
        "conv1  Conv2d  16×32×32         448        442,368",
        "conv2  Conv2d  8×16×16        1,160        294,912",
        "fc1    Linear  32            16,416         16,384",
        "fc2    Linear  3                 99             96",
        "total                        18,123        753,760",
    ]


@pytest.mark.parametrize(
    ("name", "config"),
    [
        *((name, {}) for name in models.list_models()),
        ("convnet", {"widths": (5, 7), "kernel_size": 5, "in_channels": 1, "pool": "avg"}),
        ("fcnet", {"widths": ()}),
    ],
    ids=str,
)
def test_every_row_is_what_is_counted_by_hand(name: str, config: dict[str, object]) -> None:
    model = models.create(name, **config)
    result = models.summary(model)
    layers = dict(model.named_modules())
    assert {layer.name for layer in result.layers} == {n for n, m in layers.items() if n and not list(m.children())}
    for row in result.layers:
        layer = layers[row.name]
        assert row.macs == by_hand(layer, row.output), row
        assert row.parameters == sum(p.numel() for p in layer.parameters())
    assert result.macs == sum(row.macs for row in result.layers)
    assert result.parameters == sum(p.numel() for p in model.parameters()) == models.info(name).parameters or config


class Branched(nn.Module):
    """Grouped, strided and repeated layers, a parameter of its own, and work between the layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2, groups=3)
        self.mix = nn.Parameter(torch.randn(225, 225))
        self.norm = nn.BatchNorm1d(6)
        self.fc = nn.Linear(225, 225)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.conv(x).flatten(2) @ self.mix
        maps = self.fc(self.fc(self.norm(maps)))
        return F.linear(maps, self.mix)


def test_work_between_the_layers_counts_in_the_total_alone() -> None:
    result = models.summary(Branched())
    matrix = 6 * 225 * 225
    assert [(row.name, row.macs) for row in result.layers] == [
        ("conv", 6 * 225 * 9),
        ("norm", 0),
        ("fc", matrix),
        ("fc", matrix),  # a layer that runs twice has two rows
    ]
    assert result.macs == 6 * 225 * 9 + 4 * matrix
    assert result.parameters == 60 + 225 * 225 + 12 + 225 * 226


def test_the_model_is_left_as_it_was() -> None:
    model = Branched().train()
    model.norm.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.random.get_rng_state()
    models.summary(model)
    assert model.training
    assert not model.norm.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_size_that_the_model_cannot_take_leaves_it_as_it_was() -> None:
    model = models.create("convnet").train()
    with pytest.raises(InputError, match=r"an image of 28×28 .*shapes cannot be multiplied"):
        models.summary(model, size=28)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_other_sizes_dtypes_and_wrappers() -> None:
    conv = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert models.summary(conv, size=8).layers[0].output == (4, 8, 8)
    assert models.summary(conv.bfloat16(), size=8).macs == 4 * 64 * 3
    assert models.summary(nn.DataParallel(models.create("convnet"))) == models.summary(models.create("convnet"))
    without = models.summary(nn.Sequential(nn.Flatten()))
    assert (without.parameters, without.macs, without.layers[0].output) == (0, 0, (3072,))


def test_a_layer_that_gives_several_tensors() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(96, 8, batch_first=True)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.lstm(x.flatten(2).view(len(x), 32, 96))[0][:, -1])

    first = models.summary(Recurrent()).layers[0]
    assert (first.name, first.output) == ("lstm", (32, 8))


def test_a_summary_leaves_a_model_alone_that_others_use() -> None:
    model = models.create("resnet20").train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    right = str(models.summary(models.create("resnet20")))
    with ThreadPoolExecutor(4) as pool:
        tables = set(pool.map(lambda _: str(models.summary(model)), range(8)))
    assert tables == {right}
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
