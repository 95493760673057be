from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifarnets import Trainer
from cifarnets.datasets import BatchLoader, ImageDataset
from cifarnets.errors import InputError
from cifarnets.models import create
from cifarnets.training import ConvMuon, make_optimizer, make_schedule
from cifarnets.training.muon import move_each, move_together, orthogonalise
from cifarnets.training.schedules import SCHEDULES


def test_orthogonalise_brings_singular_values_near_one() -> None:
    for shape in ((16, 72), (72, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), 6))
        assert values.min() > 0.5
        assert values.max() < 1.4


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("muon", [True, False])
def test_parameters_moved_together_end_where_each_alone_does(muon: bool, weight_decay: float) -> None:
    shapes = ((8, 3, 3, 3), (4, 8, 3, 3), (8, 3, 3, 3), (30, 2, 1, 1)) if muon else ((8,), (3, 8), (1, 2, 2), ())
    group: dict[str, Any] = {"lr": 0.1, "momentum": 0.6, "steps": 3, "muon": muon, "weight_decay": weight_decay}
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in shapes]
    each, together = ([tensor.clone() for tensor in start] for _ in range(2))
    if muon:
        each[0], together[0] = (own[0].to(memory_format=torch.channels_last) for own in (each, together))
    buffers = [[torch.zeros_like(tensor) for tensor in start] for _ in range(2)]
    for _ in range(4):
        for parameter, other in zip(each, together, strict=True):
            parameter.grad = torch.randn_like(parameter)
            other.grad = parameter.grad.clone()
        with torch.no_grad():
            move_each(each, buffers[0], group)
            move_together(together, buffers[1], group)
    for parameter, other, before in zip(each, together, start, strict=True):
        torch.testing.assert_close(other, parameter, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(other, before)


def test_all_but_filters_take_the_steps_of_nesterov_sgd() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Sequential(nn.Linear(6, 4)), nn.Sequential(nn.Linear(6, 4))
    theirs.load_state_dict(ours.state_dict())
    muon = ConvMuon(ours.parameters(), bias_lr=0.1, head_lr=0.2, weight_decay=0.01)
    usual = {"momentum": 0.85, "nesterov": True}
    sgd = torch.optim.SGD(
        [
            {"params": [theirs[0].bias], "lr": 0.1, "weight_decay": 0.1, **usual},
            {"params": [theirs[0].weight], "lr": 0.2, "weight_decay": 0.05, **usual},
        ]
    )
    for _ in range(5):
        batch = torch.randn(8, 6)
        for model, optimizer in ((ours, muon), (theirs, sgd)):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_filters_keep_their_norm_and_move_by_the_rate() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten())
    optimizer = ConvMuon(model.parameters(), lr=0.1, steps=6)
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    before = model[0].weight.detach().clone()
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    scaled = before * (8**0.5 / before.norm())
    moved = torch.linalg.svdvals((model[0].weight.detach() - scaled).reshape(8, -1))
    assert moved.max() < 0.1 * 1.4
    assert moved.min() > 0.1 * 0.5


def test_the_whitening_bias_stops_first_and_closures_work() -> None:
    model = create("airbench94", num_classes=3, widths=(8, 8, 8))
    optimizer = make_optimizer(model, "convmuon", lr=0.1)
    schedule = make_schedule(optimizer, "triangular", 8, {"peak": 0.0, "start": 1.0})
    rates = []
    for _ in range(8):
        rates.append([group["lr"] for group in optimizer.param_groups])
        loss = optimizer.step(lambda: F.cross_entropy(model(torch.rand(2, 3, 32, 32)), torch.tensor([0, 1])))  # type: ignore[arg-type, return-value]
        assert loss is not None
        schedule.step()
    filters, _, _, whiten = zip(*rates, strict=True)
    assert filters[0] == 0.1
    assert filters[-1] > 0
    assert [rate > 0 for rate in whiten] == [True] * 3 + [False] * 5


def test_the_trainer_learns_with_it(synthetic3: ImageDataset) -> None:
    torch.manual_seed(0)
    model = create("airbench94", num_classes=3, widths=(8, 16, 16))
    model.init_from_images(next(iter(BatchLoader(synthetic3, 200, device="cpu")))[0])  # type: ignore[operator]
    trainer = Trainer(
        model,
        optimizer="convmuon",
        lr=0.2,
        optimizer_options={"bias_lr": 2.0, "head_lr": 30.0},  # the defaults are for batches of 2,000
        schedule="triangular",
        schedule_options={"peak": 0.0, "start": 1.0},
        device="cpu",
        progress=False,
    )
    history = trainer.fit(BatchLoader(synthetic3, 50, shuffle=True, device="cpu", seed=0), epochs=5)
    assert history[-1]["accuracy"] > 0.9


@pytest.mark.parametrize("options", [{"bias_lr": 0.0}, {"head_lr": 0.0}, {"bias_lr": -1.0}])
def test_rates_that_decay_could_not_be_divided_by(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match="bias_lr and head_lr must be above 0"):
        make_optimizer(create("convnet"), "convmuon", options=options)


def test_decay_can_spare_biases() -> None:
    optimizer = make_optimizer(create("convnet"), "convmuon", decay_biases=False)
    decays = {group["param_names"][0]: group["weight_decay"] for group in optimizer.param_groups}
    assert decays == {"conv1.weight": 0.0, "fc1.weight": 4e-3 / 1340, "conv1.bias": 0.0}


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_every_schedule_takes_it(schedule: str) -> None:
    optimizer = make_optimizer(create("convnet"), "convmuon")
    made = make_schedule(optimizer, schedule, 10)
    optimizer.step()
    made.step()
    assert [group["momentum"] for group in optimizer.param_groups] == [0.6, 0.85, 0.85]


def test_every_parameter_is_trained_whatever_its_shape() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.ones(1, 2, 2))
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x * self.place).sum((1, 2)) * self.gain

    model = Odd()
    optimizer = ConvMuon(model.parameters(), bias_lr=0.1)
    model(torch.rand(4, 2, 2)).square().mean().backward()
    optimizer.step()
    assert (model.place != 1).all()
    assert model.gain != 1


class Reference(torch.optim.Optimizer):
    """The first version, with which the released runs were trained: it takes a model and knows its names."""

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.24,
        momentum: float = 0.6,
        steps: int = 3,
        bias_lr: float = 106.0,
        head_lr: float = 1340.0,
        sgd_momentum: float = 0.85,
        weight_decay: float = 4e-3,
    ) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        whiten = [p for name, p in named if name.startswith("whiten.")]
        filters = [p for name, p in named if p.ndim == 4 and not name.startswith("whiten.")]
        heads = [p for name, p in named if p.ndim == 2 and not name.startswith("whiten.")]
        taken = {id(p) for p in [*whiten, *filters, *heads]}
        biases = [p for _, p in named if id(p) not in taken]
        plain: dict[str, Any] = {"momentum": sgd_momentum, "muon": False, "until": 1.0}
        groups: list[dict[str, Any]] = [
            {"params": filters, "lr": lr, "momentum": momentum, "muon": True, "until": 1.0, "weight_decay": 0.0},
            {"params": biases, "lr": bias_lr, **plain, "weight_decay": weight_decay / bias_lr},
            {"params": heads, "lr": head_lr, **plain, "weight_decay": weight_decay / head_lr},
            {"params": whiten, "lr": bias_lr, **plain, "until": 3 / 8, "weight_decay": weight_decay / bias_lr},
        ]
        super().__init__([group for group in groups if group["params"]], {"steps": steps})

    step: Any = ConvMuon.step


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("airbench94", {"widths": (8, 16, 16)}),
        ("airbench96", {"widths": (8, 8, 16)}),
        ("resnet20", {"widths": (4, 4, 8), "se": True}),
    ],
)
def test_the_trajectory_is_that_of_the_released_runs(name: str, config: dict[str, Any]) -> None:
    options: dict[str, Any] = {"bias_lr": 2.0, "head_lr": 30.0}
    models, optimizers, schedules = [], [], []
    for kind in ("old", "new"):
        torch.manual_seed(0)
        model = create(name, num_classes=3, **config)
        if kind == "old":
            optimizer: torch.optim.Optimizer = Reference(model, lr=0.2, **options)
        else:
            optimizer = make_optimizer(model, "convmuon", lr=0.2, options=options)
        models.append(model)
        optimizers.append(optimizer)
        schedules.append(make_schedule(optimizer, "triangular", 8, {"peak": 0.1, "start": 0.2}))
    old, new = ([len(group["params"]) for group in each.param_groups] for each in optimizers)
    assert old == new
    for _ in range(8):
        images, labels = torch.randn(8, 3, 32, 32), torch.randint(3, (8,))
        for model, optimizer, schedule in zip(models, optimizers, schedules, strict=True):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            schedule.step()
    for a, b in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_state_of_the_first_version_still_loads() -> None:
    model = create("airbench94", widths=(8, 8, 8))
    old, new = Reference(model), make_optimizer(model, "convmuon")
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    old.step()
    new.load_state_dict(old.state_dict())
    for group in old.param_groups:
        for parameter in group["params"]:
            assert torch.equal(new.state[parameter]["momentum_buffer"], old.state[parameter]["momentum_buffer"])


def test_parameters_names_and_groups_are_taken_as_torchs_optimizers_take_them() -> None:
    model: Any = create("convnet")
    plain, named = ConvMuon(model.parameters()), ConvMuon(model.named_parameters())
    assert [[id(p) for p in group["params"]] for group in plain.param_groups] == [
        [id(p) for p in group["params"]] for group in named.param_groups
    ]
    assert [group["param_names"] for group in named.param_groups] == [
        ["conv1.weight", "conv2.weight"],
        ["conv1.bias", "conv2.bias", "fc1.bias", "fc2.bias"],
        ["fc1.weight", "fc2.weight"],
    ]
    trunk, head = ConvMuon(
        [{"params": model.conv1.weight}, {"params": model.fc2.parameters(), "lr": 7.0, "weight_decay": 0.7}], lr=0.1
    ).param_groups[::2]
    assert (trunk["lr"], head["lr"], head["weight_decay"]) == (0.1, 7.0, 0.7 / 7.0)
    with pytest.raises(ValueError, match="empty parameter list"):
        ConvMuon([])


def test_a_fresh_head_is_trained() -> None:
    model: Any = create("airbench94", pretrained=True, num_classes=3)
    optimizer = make_optimizer(model, "convmuon", options={"head_lr": 1.0, "bias_lr": 1.0})
    before = model.head.weight.clone()
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    assert not torch.equal(model.head.weight, before)
