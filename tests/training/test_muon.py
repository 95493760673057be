import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifarnets import Trainer
from cifarnets.datasets import BatchLoader, ImageDataset
from cifarnets.errors import InputError
from cifarnets.models import create
from cifarnets.training import ConvMuon, make_optimizer, make_schedule
from cifarnets.training.muon import orthogonalise
from cifarnets.training.schedules import SCHEDULES


def test_orthogonalise_brings_singular_values_near_one() -> None:
    for shape in ((16, 72), (72, 16)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape), 6))
        assert values.min() > 0.5
        assert values.max() < 1.4


def test_all_but_filters_take_the_steps_of_nesterov_sgd() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Sequential(nn.Linear(6, 4)), nn.Sequential(nn.Linear(6, 4))
    theirs.load_state_dict(ours.state_dict())
    muon = ConvMuon(ours, bias_lr=0.1, head_lr=0.2, weight_decay=0.01)
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
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.Flatten())
    optimizer = ConvMuon(model, lr=0.1, steps=6)
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
        loss = optimizer.step(lambda: F.cross_entropy(model(torch.rand(2, 3, 32, 32)), torch.tensor([0, 1])))  # type: ignore[arg-type]
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


def test_decay_that_it_does_not_part() -> None:
    with pytest.raises(InputError, match="convmuon decays biases; leave out decay_biases=False"):
        make_optimizer(create("convnet"), "convmuon", decay_biases=False)


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
    optimizer = ConvMuon(model, bias_lr=0.1)
    model(torch.rand(4, 2, 2)).square().mean().backward()
    optimizer.step()
    assert (model.place != 1).all()
    assert model.gain != 1
