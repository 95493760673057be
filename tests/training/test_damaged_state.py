"""A checkpoint is believed only after it has been checked whole: damage is an error of ours, and nothing is touched."""

import copy
import math
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.helpers import BatchNormNet, StopAt
from torch import Tensor, nn
from torch.utils.data import DataLoader

import cifarnets
from cifarnets import Trainer
from cifarnets.datasets import BatchLoader, ImageDataset
from cifarnets.errors import CifarNetsError, InputError, WeightsError
from cifarnets.training import EMA, Checkpoint, EarlyStopping
from cifarnets.training.checkpoint import CHECKPOINT_FILE
from cifarnets.weights.state import read_state, write_state

CASES = int(os.environ.get("CIFARNETS_FUZZ", "150"))
"""Mutations for each setup; the same ones in every run."""

Path_ = tuple[Any, ...]


def trainer_of(name: str, *more: Any) -> Trainer:
    torch.manual_seed(0)
    if name == "plain":
        model: nn.Module = cifarnets.models.create("convnet", num_classes=3, widths=(4, 4), hidden=8)
        options: dict[str, Any] = {"optimizer_options": {"momentum": 0.9}, "schedule": "one_cycle"}
        callbacks: list[Any] = []
    elif name == "rich":
        model, callbacks = BatchNormNet(), [EMA(0.8), EarlyStopping("loss", patience=9)]
        options = {"optimizer": "adam", "accumulate": 2, "schedule": "cosine"}
    else:
        model, callbacks = BatchNormNet(), []
        options = {
            "optimizer": "asgd",
            "schedule": lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
        }
    return Trainer(model, **options, callbacks=[*callbacks, *more], device="cpu", progress=False)


def loader_of(name: str, data: ImageDataset) -> Any:
    if name == "own":
        return DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(1))
    return BatchLoader(data, 16, shuffle=True, device="cpu", seed=3)


@pytest.fixture(scope="module")
def data(synthetic3: ImageDataset) -> ImageDataset:
    return synthetic3.select(range(80))


@pytest.fixture(scope="module", params=["plain", "rich", "own"])
def saved(request: pytest.FixtureRequest, data: ImageDataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The name of a fit, and its state in the middle of an epoch."""
    folder = tmp_path_factory.mktemp("kept")
    trainer = trainer_of(request.param, Checkpoint(folder, every_batches=1), StopAt(3, epoch=1))
    trainer.fit(loader_of(request.param, data), epochs=2)
    return request.param, read_state(folder / CHECKPOINT_FILE)


def planned(name: str, data: ImageDataset) -> Trainer:
    """A trainer that is about to resume."""
    trainer = trainer_of(name)
    trainer.plan(loader_of(name, data), epochs=2)
    return trainer


def places(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """Every place in a nested value."""
    yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, (list, tuple)) and len(value) <= 30:  # not the 625 numbers of Python's generator
        for index, item in enumerate(value):
            yield from places(item, (*path, index))


def replaced(value: Any, path: Path_, change: Callable[[Any], Any]) -> Any:
    """A copy of a nested value with another one at a place."""
    if not path:
        return change(value)
    key, *rest = path
    if isinstance(value, dict):
        return {k: replaced(v, tuple(rest), change) if k == key else v for k, v in value.items()}
    items = [replaced(v, tuple(rest), change) if i == key else v for i, v in enumerate(value)]
    return tuple(items) if isinstance(value, tuple) else items


def deep() -> Any:
    value: Any = []
    for _ in range(30):
        value = [value]
    return value


WRONG: list[Any] = [
    *(None, True, -1, 0, 1, 5, 10**9, 2**63, 10**400, -0.5, 1e308, math.nan, math.inf, "", "text"),
    *([], {}, (), [None], {"a": 1}, {5: 5}, deep()),
    *(torch.zeros(0), torch.tensor(3), torch.tensor(math.nan), torch.ones(2, 3), torch.ones(4, dtype=torch.int64)),
]


def damage(state: Any, chance: random.Random) -> tuple[Any, str]:
    """One structured mutation: another value, a missing entry, one too many, or a tensor of another kind."""
    path = chance.choice(list(places(state)))
    kind = chance.choice(["other", "other", "missing", "more", "tensor", "number"])

    def change(value: Any) -> Any:
        if kind == "missing" and isinstance(value, (dict, list, tuple)) and value:
            gone = chance.randrange(len(value))
            if isinstance(value, dict):
                return {key: item for number, (key, item) in enumerate(value.items()) if number != gone}
            return type(value)(item for number, item in enumerate(value) if number != gone)
        if kind == "more" and isinstance(value, dict):
            return {**value, chance.choice(["more", 5, -1]): chance.choice(WRONG)}
        if kind == "more" and isinstance(value, (list, tuple)):
            return type(value)([*value, chance.choice(WRONG)])
        if kind == "tensor" and isinstance(value, Tensor):
            return chance.choice([value.double(), value.long(), value[None], value.reshape(-1)[:1], value.new_zeros(0)])
        if kind == "number" and isinstance(value, (int, float)) and not isinstance(value, bool):
            return chance.choice([-value - 1, value + 1, value * 1000, float(value), value + 0.5, 10**12])
        return copy.deepcopy(chance.choice(WRONG))

    return replaced(state, path, change), f"{kind} at {path}"


def snapshot(trainer: Trainer) -> str:
    """All that a refused state must leave as it was."""
    meta = getattr(trainer.model, "meta", None)
    counters = (trainer.epoch, trainer.end_epoch, trainer.batches_done, trainer.global_step, trainer.lr)
    callbacks = [{**vars(c), "_best": None, "state": c.state_dict()} for c in trainer.callbacks]
    gradients = [parameter.grad for parameter in trainer.model.parameters()]
    state = {key: value for key, value in trainer.state_dict().items() if key != "rng"}
    return str((state, meta, counters, callbacks, gradients, torch.get_rng_state().sum(), random.getstate()))


def test_damage_is_an_error_of_ours_and_nothing_is_touched(saved: Any, data: ImageDataset, tmp_path: Path) -> None:
    name, state = saved
    trainer, refused = planned(name, data), 0
    before = snapshot(trainer)
    for seed in range(CASES):
        damaged, what = damage(state, random.Random(seed))
        try:
            trainer.load_state_dict(damaged)
        except CifarNetsError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"seed {seed}: {what} escaped as {error!r}") from error
        else:
            message = ""
        if message:
            refused += 1
            assert snapshot(trainer) == before, f"seed {seed}: {what}: {message}"
            assert len(message) < 2000
            continue
        # Nobody can tell it from a sound one, so the fit must come to its end with it, or say why it cannot.
        write_state(tmp_path / CHECKPOINT_FILE, damaged)
        try:
            trainer_of(name).fit(loader_of(name, data), epochs=2, resume=tmp_path)
        except CifarNetsError:
            pass
        except Exception as error:
            raise AssertionError(f"seed {seed}: {what} was taken, and then raised {error!r}") from error
        trainer = planned(name, data)
        before = snapshot(trainer)
    assert refused > CASES / 2


@pytest.mark.parametrize("state", [[], None, 5, "state", {}, deep()])
def test_a_file_that_holds_no_state_of_a_fit(state: Any, data: ImageDataset, tmp_path: Path) -> None:
    write_state(tmp_path / CHECKPOINT_FILE, state)
    trainer = trainer_of("plain")
    with pytest.raises((InputError, WeightsError)):
        trainer.fit(loader_of("plain", data), epochs=2, resume=tmp_path)
    assert (trainer.epoch, trainer.end_epoch, trainer.history) == (0, 0, [])


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("progress", "epoch"), 10**9, "epoch is 1000000000 of a fit of 2"),
        (("progress", "epoch"), -5, "epoch is -5"),
        (("progress", "batch"), 99, "batch is 99"),
        (("progress", "lr"), math.nan, "lr is nan"),
        (("optimizer",), None, "optimizer is incomplete"),
        (("progress",), None, "progress is not a dict"),
        (("rng",), [], "rng is not a list"),
        (("tally",), None, "tally is not a dict"),
        (("tally", "sizes"), [16, 0, 16], "tally does not have the sizes of 3 batches"),
        (("tally", "correct"), torch.tensor(10**6), "correct of tally is not a count"),
        (("history",), None, "history is not a list"),
        (("callbacks",), None, "callbacks is not a list"),
        (("schedule", "last_epoch"), 10**6, "last_epoch of the schedule is 1000000"),
        (("optimizer", "param_groups", 0, "momentum"), "x", "momentum of parameter group 0 is 'x'"),
        (("optimizer", "param_groups", 0, "nesterov"), True, "nesterov of parameter group 0 is True, not False"),
        (
            ("optimizer", "state", 0, "momentum_buffer"),
            torch.zeros(5),
            r"momentum_buffer is not a tensor \[4, 3, 3, 3\]",
        ),
        (("model", "fc2.bias"), torch.zeros(4), r"size mismatch for fc2.bias, torch.float32 \[4\], not .*\[3\]"),
        (("model", "fc2.bias"), None, "fc2.bias of the model is not a tensor"),
        (("epoch_start", "loader", "seed"), "x", "seed of the loader is 'x'"),
        (("epoch_start", "rng", "numpy", 2), 10**6, "numpy of rng is no state of MT19937"),
        (("rng", 0, "torch"), torch.zeros(5, dtype=torch.uint8), "the loader cannot go back"),
    ],
    ids=str,
)
def test_the_message_names_what_is_damaged(
    path: Path_, value: Any, message: str, data: ImageDataset, saved: Any
) -> None:
    name, state = saved
    if name != "plain":
        pytest.skip("one kind of fit is enough")
    trainer = planned("plain", data)
    before = snapshot(trainer)
    with pytest.raises(InputError, match=message):
        trainer.load_state_dict(replaced(state, path, lambda _: value))
    assert snapshot(trainer) == before


def test_a_callback_that_cannot_take_its_state_leaves_the_others_as_they_were(saved: Any, data: ImageDataset) -> None:
    name, state = saved
    if name != "rich":
        pytest.skip("needs callbacks")

    class Fails(EMA):
        def load_state_dict(self, state: dict[str, Any]) -> None:
            raise KeyError("nothing")

    trainer = planned(name, data)
    trainer.callbacks.append(Fails(0.8))
    before = snapshot(trainer)
    twice = {**state, "callbacks": [*state["callbacks"], ("Fails", {})]}
    with pytest.raises(InputError, match=r"the checkpoint is of another fit, or damaged \(KeyError: 'nothing'\)"):
        trainer.load_state_dict(twice)
    assert snapshot(trainer) == before
