"""The learning-rate finder: a sensible answer, and no trace of the search."""

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.training.helpers import BatchNormNet, MakeNet, random_numbers
from torch import Tensor, nn
from torch.utils.data import DataLoader

import cifarnets
from cifarnets import Trainer
from cifarnets.datasets import BatchLoader, ImageDataset
from cifarnets.errors import InputError
from cifarnets.training import EMA, EarlyStopping, LRSearch, find_lr


def dropping() -> nn.Module:
    torch.manual_seed(0)
    return BatchNormNet()


def state_but_gradients(trainer: Trainer) -> str:
    """The state, but for gradients, of which every fit starts without any."""
    return str({**trainer.state_dict(), "gradients": None})


LOADERS: dict[str, Callable[[ImageDataset], Any]] = {
    "BatchLoader": lambda train: BatchLoader(train, 16, shuffle=True, device="cpu", seed=3),
    "DataLoader": lambda train: DataLoader(train, 16, shuffle=True),
    "DataLoader with its own numbers": lambda train: DataLoader(
        train, 16, shuffle=True, generator=torch.Generator().manual_seed(1)
    ),
    "list": lambda train: list(BatchLoader(train, 16, device="cpu")),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("when", ["first", "between fits", "after a stop in mid-epoch"])
@pytest.mark.parametrize("seed", [None, 5])
def test_nothing_of_the_search_is_left(train: ImageDataset, kind: str, when: str, seed: int | None) -> None:
    def story(search: bool) -> tuple[Trainer, tuple[float, float, float]]:
        cifarnets.seed_everything(1)
        trainer = Trainer(
            dropping(),
            optimizer="adam",
            schedule="one_cycle",
            accumulate=2,
            callbacks=[EMA(0.9), EarlyStopping("loss", patience=9)],
            seed=seed,
            device="cpu",
        )
        loader, other = LOADERS[kind](train), LOADERS["BatchLoader"](train)
        if when == "between fits":
            trainer.fit(other, epochs=2)
        elif when != "first":
            trainer.model[0].register_forward_hook(lambda *_: trainer.stop())
            trainer.fit(other, epochs=2)
            trainer.model[0]._forward_hooks.clear()
        trainer.model.eval()
        before = state_but_gradients(trainer)
        weights = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        if search:
            find_lr(trainer, loader, high=0.1, steps=30)
        assert state_but_gradients(trainer) == before
        assert all(torch.equal(value, weights[name]) for name, value in trainer.model.state_dict().items())
        assert all(not module.training for module in trainer.model.modules())
        trainer.fit(loader, epochs=2)
        return trainer, random_numbers()

    (searched, numbers), (plain, expected) = story(True), story(False)
    assert [row["loss"] for row in searched.history] == [row["loss"] for row in plain.history]
    assert searched.lr == plain.lr
    ours, theirs = searched.eval_model.state_dict(), plain.eval_model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert numbers == expected


def test_what_the_user_seeds_afterwards_counts(train: ImageDataset) -> None:
    def loss(search: bool) -> float:
        trainer = Trainer(dropping(), device="cpu")
        loader = DataLoader(train, 16, shuffle=True)
        if search:
            find_lr(trainer, loader, high=0.1, steps=30)
        cifarnets.seed_everything(9)
        return float(trainer.fit(loader, epochs=1)[0]["loss"])

    assert loss(True) == loss(False)


def test_a_search_that_fails_leaves_no_trace_either(net: MakeNet, loader: BatchLoader) -> None:
    trainer = Trainer(net(), optimizer_options={"momentum": 0.9}, device="cpu")
    before = str(trainer.state_dict())
    good = list(loader)
    state = loader.state_dict()
    with pytest.raises(InputError, match="batch 4: images must be float"):
        find_lr(trainer, [*good, (good[0][0].byte(), good[0][1])])
    loader.load_state_dict(state)
    assert str(trainer.state_dict()) == before


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_suggestion_is_a_rate_that_trains(net: MakeNet, synthetic3: ImageDataset, seed: int) -> None:
    loader = BatchLoader(synthetic3, 32, shuffle=True, device="cpu", seed=seed)
    search = find_lr(Trainer(net(seed), device="cpu"), loader, low=1e-4, high=10.0)
    assert isinstance(search, LRSearch)
    assert search.rates[0] == pytest.approx(1e-4)
    assert list(search.rates) == sorted(search.rates)
    assert len(search.rates) == len(search.losses) <= 100
    ratios = [b / a for a, b in zip(search.rates, search.rates[1:], strict=False)]
    assert ratios == pytest.approx([1e5 ** (1 / 99)] * len(ratios)), "equal steps on a logarithmic scale"
    assert 0.05 < search.suggestion < 1

    def learnt(lr: float) -> float:
        loader.epoch = 0
        return float(Trainer(net(seed), lr=lr, device="cpu").fit(loader, epochs=2)[-1]["loss"])

    assert learnt(search.suggestion) < learnt(1e-4) - 0.01


def test_the_search_ends_where_the_loss_explodes(net: MakeNet, loader: BatchLoader) -> None:
    def squared(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits - labels[:, None]).square().mean()

    search = find_lr(Trainer(net(), loss=squared, device="cpu"), loader, 1e-3, 1e4, steps=100)
    assert len(search.rates) < 100
    assert search.suggestion < search.rates[-1] < 1e4


def test_groups_keep_the_ratio_of_their_rates(net: MakeNet, loader: BatchLoader) -> None:
    model: Any = net()
    slow = [parameter for name, parameter in model.named_parameters() if not name.startswith("fc2")]
    groups = [{"params": slow, "lr": 1e-3}, {"params": model.fc2.parameters(), "lr": 1e-2}]
    trainer = Trainer(model, optimizer=torch.optim.SGD(groups, lr=1.0), device="cpu")
    seen = set()
    step = trainer.optimizer.step

    def note(*arguments: Any) -> Any:
        first, second = (group["lr"] for group in trainer.optimizer.param_groups)
        seen.add(round(second / first, 6))
        return step(*arguments)

    trainer.optimizer.step = note  # type: ignore[method-assign, assignment]
    find_lr(trainer, loader, 1e-3, 1.0, steps=20)
    assert seen == {10.0}


@pytest.mark.parametrize("looks", [True, False])
def test_the_search_ends_where_the_loss_is_no_number(
    net: MakeNet, loader: BatchLoader, looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def breaks(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.nn.functional.cross_entropy(logits, labels) / calls + (torch.nan if calls > 20 else 0)

    if not looks:  # as on a GPU, where nobody looks at each loss
        monkeypatch.setattr(
            "cifarnets.training.trainer.math", SimpleNamespace(isfinite=lambda _: True, nan=0.0, ceil=math.ceil)
        )
    search = find_lr(Trainer(net(), loss=breaks, device="cpu"), loader, steps=50)
    assert len(search.rates) == 20
    assert search.suggestion in search.rates
    assert all(loss == loss for loss in search.losses)


@pytest.mark.parametrize(
    ("low", "high", "steps"), [(0, 1, 100), (-1, 1, 100), (1, 1, 100), (1, 0.1, 100), (1e-5, 1, 9), (1e-5, 1, 0)]
)
def test_a_search_that_makes_no_sense(net: MakeNet, loader: BatchLoader, low: float, high: float, steps: int) -> None:
    with pytest.raises(InputError, match=f"needs 0 < low < high and at least 10 steps, not {low}, {high} and {steps}"):
        find_lr(Trainer(net(), device="cpu"), loader, low, high, steps)


def test_a_loss_that_never_falls(net: MakeNet, loader: BatchLoader) -> None:
    calls = 0

    def rising(logits: Tensor, labels: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return logits.sum() * 0 + calls

    with pytest.raises(InputError, match=r"the loss never falls between 1e-05 and .*; try lower rates"):
        find_lr(Trainer(net(), loss=rising, device="cpu"), loader)

    def nan(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.sum() * torch.nan

    with pytest.raises(InputError, match=r"the loss never falls between 1e-05 and 1\.0; try lower rates"):
        find_lr(Trainer(net(), loss=nan, device="cpu"), loader)


@pytest.mark.parametrize(("batches", "when"), [(0, ""), (3, " a second time")])
def test_a_loader_that_runs_dry(net: MakeNet, loader: BatchLoader, batches: int, when: str) -> None:
    dry = iter(list(loader)[:batches])
    with pytest.raises(InputError, match=f"the loader gave no batch{when}; a generator can be gone through only once"):
        find_lr(Trainer(net(), device="cpu"), dry)


def test_the_picture_marks_the_suggestion(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    search = LRSearch((0.001, 0.01, 0.1), (3.0, 2.0, 2.5), 0.001)
    figure = search.plot(tmp_path / "lr.png")
    assert (tmp_path / "lr.png").read_bytes().startswith(b"\x89PNG")
    (axes,) = figure.axes
    curve, mark = axes.get_lines()
    assert curve.get_xydata().tolist() == [[0.001, 3.0], [0.01, 2.0], [0.1, 2.5]]
    assert list(mark.get_xdata()) == [0.001, 0.001]  # type: ignore[arg-type]
    assert axes.get_xscale() == "log"
    assert axes.get_legend().get_texts()[0].get_text() == "suggestion 0.001"
