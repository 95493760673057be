"""The loop: what a plain PyTorch loop does, to the bit; stopped, killed and resumed without a trace; clear refusals."""

import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR, OneCycleLR
from torch.utils.data import DataLoader, IterableDataset, RandomSampler
from torch.utils.data.distributed import DistributedSampler

import cifarnets
from cifarnets import Trainer, evaluate
from cifarnets.datasets import BatchLoader, CIFAR10Normalized, ImageDataset, cifar_subset
from cifarnets.errors import CallbackError, DivergedError, InputError, TrainingError
from cifarnets.training import EMA, Callback, Checkpoint, EarlyStopping, distributed
from cifarnets.training.checkpoint import CHECKPOINT_FILE
from cifarnets.weights.state import read_state

Net = Callable[..., nn.Module]
HOOKS = ("on_fit_start", "on_epoch_start", "on_batch_start", "on_batch_end", "on_epoch_end", "on_fit_end")


def assert_same_weights(one: nn.Module, other: nn.Module, tolerance: float = 0.0) -> None:
    ours, theirs = one.state_dict(), other.state_dict()
    assert ours.keys() == theirs.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=tolerance)


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if "second" not in key} for row in history]


def draw() -> tuple[float, float, float]:
    """A number from every global generator."""
    return random.random(), np.random.rand(), torch.rand(()).item()  # noqa: NPY002 (users draw from it)


class Each(Callback):
    """Calls a function at every hook, with the hook's name."""

    def __init__(self, function: Callable[[str, Trainer], object]) -> None:
        self.function = function

    def on_fit_start(self, trainer: Trainer) -> None:
        self.function("on_fit_start", trainer)

    def on_fit_end(self, trainer: Trainer) -> None:
        self.function("on_fit_end", trainer)

    def on_epoch_start(self, trainer: Trainer) -> None:
        self.function("on_epoch_start", trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.function("on_epoch_end", trainer)

    def on_batch_start(self, trainer: Trainer) -> None:
        self.function("on_batch_start", trainer)

    def on_batch_end(self, trainer: Trainer) -> None:
        self.function("on_batch_end", trainer)


# Parity with a plain loop


@pytest.fixture(scope="module")
def real3() -> ImageDataset:
    """200 real images of the article's three classes."""
    from cifarnets.datasets import cifar10

    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    root = next(root for root in (cifar10.data_root(), beside) if cifar10.is_complete(root))
    return cifar_subset(CIFAR10Normalized(root, train=False), ["airplane", "automobile", "ship"]).select(range(200))


def kinds_of_loader(dataset: ImageDataset, batch_size: int) -> dict[str, Callable[[], Any]]:
    return {
        "BatchLoader": lambda: BatchLoader(dataset, batch_size, shuffle=True, device="cpu", seed=7),
        "DataLoader": lambda: DataLoader(dataset, batch_size, shuffle=True, generator=torch.Generator().manual_seed(7)),
        "list": lambda: list(BatchLoader(dataset, batch_size, device="cpu")),
    }


@pytest.mark.cifar10
@pytest.mark.parametrize(("kind", "epochs"), [("BatchLoader", 20), ("DataLoader", 5), ("list", 5)])
def test_it_is_the_plain_loop_of_the_article(real3: ImageDataset, kind: str, epochs: int) -> None:
    loader = kinds_of_loader(real3, 64)[kind]
    cifarnets.seed_everything(0)
    plain = cifarnets.models.create("convnet", num_classes=3)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-2)
    losses, batches = [], loader()
    for _ in range(epochs):
        total = 0.0
        for images, labels in batches:
            loss = F.cross_entropy(plain(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(batches))

    cifarnets.seed_everything(0)
    model = cifarnets.models.create("convnet", num_classes=3)
    history = Trainer(model, device="cpu").fit(loader(), epochs=epochs)
    assert history.column("loss") == pytest.approx(losses, abs=1e-6)
    assert losses[-1] < losses[0] - 0.001, "nothing was learnt, so nothing was compared"
    assert_same_weights(model, plain, 1e-6)


def test_a_batch_is_let_go_before_the_next_is_made(
    train: ImageDataset, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that two never need memory at once, and the next one finds that of the last in the cache."""
    monkeypatch.setattr("cifarnets.datasets.loader.BLOCK", 16)
    alive: list[weakref.ref[Tensor]] = []

    class Loader(BatchLoader):
        def shard(self, rank: int, size: int) -> Iterator[tuple[Tensor, Tensor, int]]:
            for batch in super().shard(rank, size):
                alive.append(weakref.ref(batch[0]))
                yield batch
                del batch

        def _convert(self, images: Tensor) -> Tensor:
            assert all(batch() is None for batch in alive)
            return super()._convert(images)

    loader = Loader(train, 16, device="cpu")
    Trainer(net(), device="cpu").fit(loader, epochs=1)
    assert len(alive) == len(loader) > 1


@pytest.mark.parametrize("kind", ["BatchLoader", "DataLoader", "list"])
def test_every_option_at_once_is_the_plain_loop_with_it(train: ImageDataset, net: Net, kind: str) -> None:
    loader = kinds_of_loader(train, 9)[kind]  # five batches, of which the fifth makes a step of its own
    plain, epochs = net(), 4
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = OneCycleLR(optimizer, max_lr=0.05, total_steps=epochs * 3)
    batches, norms = loader(), []
    for _ in range(epochs):
        for number, (images, labels) in enumerate(batches, start=1):
            (F.cross_entropy(plain(images), labels, label_smoothing=0.1) / 2).backward()
            if number % 2 == 0 or number == len(batches):
                norms.append(nn.utils.clip_grad_norm_(plain.parameters(), 0.4).item())
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()

    model = net()
    trainer = Trainer(
        model,
        lr=0.05,
        optimizer_options={"momentum": 0.9, "weight_decay": 5e-4},
        schedule="one_cycle",
        accumulate=2,
        clip_norm=0.4,
        label_smoothing=0.1,
        device="cpu",
    )
    trainer.fit(loader(), epochs=epochs)
    assert max(norms) > 0.4 > min(norms), "the limit must matter in some steps and not in others"
    assert trainer.global_step == 12
    assert_same_weights(model, plain, 1e-6)


def test_weight_decay_can_spare_biases(net: Net, loader: BatchLoader) -> None:
    plain, model = net(), net()
    groups = [
        {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": 0.5},
        {"params": [p for p in plain.parameters() if p.ndim == 1]},
    ]
    Trainer(plain, optimizer=torch.optim.SGD(groups, lr=0.1), device="cpu").fit(loader, epochs=1)
    loader.epoch = 0
    Trainer(model, lr=0.1, optimizer_options={"weight_decay": 0.5}, decay_biases=False, device="cpu").fit(
        loader, epochs=1
    )
    assert_same_weights(model, plain)


# What a fit gives


def test_the_history_tells_each_epoch(net: Net, loader: BatchLoader, val_loader: BatchLoader) -> None:
    model = net()
    trainer = Trainer(model, lr=0.0, device="cpu")  # weights that stay let the figures be computed again
    history = trainer.fit(loader, val_loader, epochs=2)
    assert history is trainer.history
    assert [row["epoch"] for row in history] == [1, 2]
    result = evaluate(model, val_loader, "cpu")
    loader.epoch = 0
    batches = list(loader)
    losses = [F.cross_entropy(model(images), labels).item() for images, labels in batches]
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    first = history[0]
    assert first["loss"] == pytest.approx(sum(losses) / 3, abs=1e-6)
    assert first["accuracy"] == right / 40
    assert (first["val_loss"], first["val_accuracy"]) == (pytest.approx(result.loss), result.accuracy)
    assert first["images_per_second"] == pytest.approx(40 / first["seconds"])
    assert first["lr"] == 0.0


def test_a_second_fit_goes_on(net: Net, train: ImageDataset) -> None:
    def loader() -> BatchLoader:
        return BatchLoader(train, 16, shuffle=True, device="cpu", seed=0)

    once, twice = (Trainer(net(), optimizer_options={"momentum": 0.9}, device="cpu") for _ in range(2))
    once.fit(loader(), epochs=3)
    both = loader()
    twice.fit(both, epochs=1)
    history = twice.fit(both, epochs=2)
    assert timeless(history) == timeless(once.history)
    assert (twice.epoch, twice.epochs, twice.step) == (3, 3, 9)
    assert_same_weights(twice.model, once.model)


def test_a_schedule_starts_anew_in_every_fit(net: Net, loader: BatchLoader) -> None:
    rates: list[float] = []
    note = Each(lambda hook, trainer: rates.append(trainer.lr) if hook == "on_batch_end" else None)
    trainer = Trainer(net(), lr=0.1, schedule="cosine", callbacks=[note], device="cpu")
    trainer.fit(loader, epochs=2)
    trainer.fit(loader, epochs=2)
    assert rates[:6] == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])
    assert rates[6:] == pytest.approx(rates[:6])


def test_a_seed_fixes_all_random_numbers(loader: BatchLoader) -> None:
    def fit(seed: int | None) -> list[Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 3))
        drawn: list[Any] = []
        note = Each(lambda *_: drawn.append(draw()))
        drawn.append(timeless(Trainer(model, seed=seed, callbacks=[note], device="cpu").fit([*loader], epochs=1)))
        return drawn

    loader.shuffle = False
    first = fit(5)
    torch.rand(3)
    random.random()
    assert fit(5) == first
    assert fit(6) != first
    random.seed(1)
    unseeded = fit(None)
    assert fit(None) != unseeded, "without a seed, Python's numbers must go on"


def test_the_model_learns_what_its_outputs_and_inputs_mean(net: Net, loader: BatchLoader) -> None:
    model = net()
    Trainer(model, device="cpu").fit(loader, epochs=1)
    assert model.meta.classes == loader.dataset.classes
    assert (model.meta.mean, model.meta.std) == loader.dataset.constants


def test_validation_leaves_training_mode_and_does_not_train(net: Net, loader: BatchLoader) -> None:
    def fit(*val: Any) -> nn.Module:
        loader.epoch = 0
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 3))
        seen: list[bool] = []
        note = Each(lambda hook, trainer: seen.append(trainer.model.training) if hook == "on_batch_end" else None)
        Trainer(model, callbacks=[note], device="cpu").fit(loader, *val, epochs=2)
        assert seen == [True] * 6
        return model

    assert_same_weights(fit([*loader]), fit())


class Stream(IterableDataset[Any]):
    """Images one after another; nobody knows how many."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset_of_stream = dataset

    def __iter__(self) -> Iterator[Any]:
        return iter([self.dataset_of_stream[index] for index in range(40)])


def test_any_iterable_of_batches_will_do(net: Net, train: ImageDataset) -> None:
    reference = Trainer(net(), device="cpu").fit(BatchLoader(train, 16, device="cpu"), epochs=2)
    batches = list(BatchLoader(train, 16, device="cpu"))

    class Own:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(batches)

    for loader in (batches, tuple(batches), Own(), DataLoader(train, 16), DataLoader(Stream(train), 16)):
        assert timeless(Trainer(net(), device="cpu").fit(loader, epochs=2)) == timeless(reference)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only, and spawned ones are slow")
def test_a_dataloader_with_workers(net: Net, train: ImageDataset) -> None:
    reference = Trainer(net(), device="cpu").fit(BatchLoader(train, 16, device="cpu"), epochs=1)
    history = Trainer(net(), device="cpu").fit(DataLoader(train, 16, num_workers=1), epochs=1)
    assert timeless(history) == timeless(reference)


def test_mixed_labels_count_for_their_largest_share(net: Net, loader: BatchLoader) -> None:
    hard = list(loader)
    soft = [(images, F.one_hot(labels, 3).float()) for images, labels in hard]
    histories = [timeless(Trainer(net(), device="cpu").fit(batches, epochs=2)) for batches in (hard, soft)]
    for mine, theirs in zip(*histories, strict=True):
        assert mine == pytest.approx(theirs)


def test_a_loss_of_ones_own(net: Net, loader: BatchLoader) -> None:
    def squared(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.softmax(1) - F.one_hot(labels, 3)).square().mean()

    history = Trainer(net(), loss=squared, lr=0.5, device="cpu").fit(loader, epochs=8)
    assert history[0]["loss"] == pytest.approx(2 / 9, abs=0.02)
    assert history[-1]["loss"] < history[0]["loss"]


def test_channels_last_computes_the_same(net: Net, train: ImageDataset) -> None:
    histories, layouts = [], []
    for channels_last in (False, True):
        model = net()
        loader = BatchLoader(train, 16, device="cpu")
        model.conv2.register_forward_pre_hook(
            lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
        histories.append(Trainer(model, channels_last=channels_last, device="cpu").fit(loader, epochs=2))
    assert set(layouts[:6]) == {False}
    assert set(layouts[6:]) == {True}
    assert histories[0].column("loss") == pytest.approx(histories[1].column("loss"), abs=1e-5)


@pytest.mark.parametrize("before", [False, True])
def test_deterministic_algorithms_are_asked_for_during_the_fit_alone(
    net: Net, loader: BatchLoader, before: bool
) -> None:
    seen: list[bool] = []
    note = Each(lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    torch.use_deterministic_algorithms(before)
    try:
        Trainer(net(), deterministic=True, callbacks=[note], device="cpu").fit(loader, epochs=1)
        assert set(seen) == {True}
        assert torch.are_deterministic_algorithms_enabled() is before
        with pytest.raises(CallbackError):
            Trainer(net(), deterministic=True, callbacks=[Each(lambda *_: 1 / 0)], device="cpu").fit(loader)
        assert torch.are_deterministic_algorithms_enabled() is before
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_compiled_model_leaves_no_trace(
    net: Net, loader: BatchLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Compiled(nn.Module):
        """What torch.compile gives, as far as names go, without the minute that it takes."""

        calls = 0

        def __init__(self, module: nn.Module, options: dict[str, Any]) -> None:
            super().__init__()
            assert options == {}  # in float32
            self._orig_mod = module

        def forward(self, images: Tensor) -> Tensor:
            Compiled.calls += 1
            return self._orig_mod(images)

    monkeypatch.setattr(torch, "compile", Compiled)
    model = net()
    trainer = Trainer(model, compile=True, callbacks=[EMA(0.5), Checkpoint(tmp_path)], device="cpu")
    trainer.fit(loader, epochs=1)
    assert Compiled.calls == 3
    assert trainer.model is model
    assert trainer.state_dict()["model"].keys() == net().state_dict().keys()
    assert cifarnets.load(tmp_path / "last.safetensors").state_dict().keys() == net().state_dict().keys()


# Stopping


@pytest.mark.parametrize(
    ("hook", "batches", "epochs"),
    [
        ("on_fit_start", 0, 0),
        ("on_epoch_start", 0, 0),
        ("on_batch_start", 1, 0),  # this batch is still done
        ("on_batch_end", 1, 0),
        ("on_epoch_end", 3, 1),
        ("on_fit_end", 6, 2),
    ],
)
def test_a_callback_may_stop_at_every_hook(net: Net, loader: BatchLoader, hook: str, batches: int, epochs: int) -> None:
    calls: list[str] = []

    def stop(at: str, trainer: Trainer) -> None:
        calls.append(at)
        if at == hook:
            trainer.stop()

    trainer = Trainer(net(), callbacks=[Each(stop)], device="cpu")
    history = trainer.fit(loader, epochs=2)
    assert calls.count("on_batch_end") == batches
    assert len(history) == trainer.epoch == epochs
    assert calls[0] == "on_fit_start"
    assert calls[-1] == "on_fit_end"
    assert not trainer.interrupted
    assert not trainer.failed
    trainer.callbacks.clear()
    assert len(trainer.fit(loader, epochs=1)) == epochs + 1, "a stopped trainer can go on"


def test_hooks_are_called_in_order(net: Net, loader: BatchLoader, tmp_path: Path) -> None:
    calls: list[tuple[str, str]] = []
    first, second = (Each(lambda hook, _, name=name: calls.append((name, hook))) for name in ("first", "second"))

    class Last(Checkpoint):
        def on_batch_end(self, trainer: Trainer) -> None:
            calls.append(("checkpoint", "on_batch_end"))

    Trainer(net(), callbacks=[Last(tmp_path), first, second], device="cpu").fit(loader, epochs=1)
    assert [hook for name, hook in calls if name == "first"] == [
        "on_fit_start",
        "on_epoch_start",
        *["on_batch_start", "on_batch_end"] * 3,
        "on_epoch_end",
        "on_fit_end",
    ]
    assert [name for name, hook in calls if hook == "on_batch_end"] == ["first", "second", "checkpoint"] * 3


@pytest.mark.parametrize("hook", HOOKS)
def test_a_callback_that_fails_is_named(net: Net, loader: BatchLoader, hook: str) -> None:
    ended: list[str] = []

    class Faulty(Each):
        pass

    def fail(at: str, _: Trainer) -> None:
        if at == hook:
            raise ZeroDivisionError("no such thing")

    after = Each(lambda at, _: ended.append(at))
    trainer = Trainer(net(), callbacks=[after, Faulty(fail)], device="cpu")
    with pytest.raises(CallbackError, match=f"^Faulty.{hook} failed: no such thing$") as caught:
        trainer.fit(loader, epochs=1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert ended[-1] == "on_fit_end", "the others can still close what they opened"
    assert trainer.failed or hook == "on_fit_end"


def test_ctrl_c_in_a_loader_ends_the_fit_with_the_history_so_far(net: Net, loader: BatchLoader) -> None:
    class Interrupted:
        passes = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.passes += 1
            for batch in loader:
                yield batch
                if self.passes == 3:
                    raise KeyboardInterrupt

    trainer = Trainer(net(), device="cpu")
    history = trainer.fit(Interrupted(), epochs=9)
    assert len(history) == 2
    assert trainer.interrupted


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send itself these signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_batch_finish(
    net: Net, loader: BatchLoader, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)

    def kill(hook: str, trainer: Trainer) -> None:
        if hook == "on_batch_start" and trainer.epoch == 1:
            os.kill(os.getpid(), number)

    trainer = Trainer(net(), callbacks=[Each(kill)], device="cpu")
    history = trainer.fit(loader, epochs=5)
    assert len(history) == 1
    assert trainer.global_step == 4
    assert trainer.interrupted
    assert not trainer.failed
    assert "stopping after this batch" in capsys.readouterr().err
    assert signal.getsignal(number) is before
    trainer.callbacks.clear()
    assert len(trainer.fit(loader, epochs=1)) == 2
    assert not trainer.interrupted


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send itself these signals")
def test_a_second_ctrl_c_stops_at_once(net: Net, loader: BatchLoader, tmp_path: Path) -> None:
    done: list[str] = []

    def kill(hook: str, trainer: Trainer) -> None:
        done.append(hook)
        if hook == "on_batch_start":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    trainer = Trainer(net(), callbacks=[Each(kill), Checkpoint(tmp_path)], device="cpu")
    assert trainer.fit(loader, epochs=5) == []
    assert done == ["on_fit_start", "on_epoch_start", "on_batch_start", "on_fit_end"]
    assert trainer.interrupted
    assert not (tmp_path / CHECKPOINT_FILE).exists(), "a step that was torn must not be kept"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send itself these signals")
def test_a_handler_of_ones_own_stays(net: Net, loader: BatchLoader) -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        kill = Each(lambda hook, _: os.kill(os.getpid(), signal.SIGTERM) if hook == "on_epoch_start" else None)
        assert len(Trainer(net(), callbacks=[kill], device="cpu").fit(loader, epochs=2)) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught == [signal.SIGTERM] * 2


def test_a_fit_in_another_thread_leaves_signals_alone(net: Net, loader: BatchLoader) -> None:
    trainer = Trainer(net(), device="cpu")
    thread = threading.Thread(target=trainer.fit, args=(loader,), kwargs={"epochs": 1})
    thread.start()
    thread.join()
    assert len(trainer.history) == 1


# Resuming


class Archive(Checkpoint):
    """Keeps every state that it writes, each in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, every_batches=1)
        self.kept: list[Path] = []

    def _write_state(self, trainer: Trainer) -> None:
        super()._write_state(trainer)
        self.kept.append(self.folder / f"{len(self.kept):03}")
        self.kept[-1].mkdir()
        shutil.copy(self.folder / CHECKPOINT_FILE, self.kept[-1] / CHECKPOINT_FILE)


class Noisy:
    """Batches with noise from every global generator, as augmentations of users may draw it."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.batches = list(BatchLoader(dataset, 16, device="cpu"))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.batches:
            yield images + torch.randn_like(images) + sum(draw()), labels


class Dropping(nn.Sequential):
    """A net with state beside its weights, and with random numbers in its forward pass."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(256, 3)
        )


# What a trainer is made with: model, loader, the Trainer's arguments, callbacks.
ADAM: dict[str, Any] = {"optimizer": "adam", "accumulate": 2, "clip_norm": 1.0, "schedule": "cosine"}
SETUPS: dict[str, Any] = {
    "BatchLoader": (
        "net",
        lambda data: BatchLoader(data, 16, shuffle=True, device="cpu", seed=3),
        {"lr": 0.05, "optimizer_options": {"momentum": 0.9}, "schedule": "one_cycle"},
        list,
    ),
    "DataLoader": ("net", lambda data: DataLoader(data, 16, shuffle=True), {"lr": 0.05}, list),
    "DataLoader with its own numbers": (
        "net",
        lambda data: DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(1)),
        {"lr": 0.05, "schedule": lambda optimizer: ExponentialLR(optimizer, 0.9)},
        list,
    ),
    "numbers from everywhere": ("dropping", Noisy, {"seed": 4, "accumulate": 3}, list),
    "all callbacks": (
        "dropping",
        lambda data: BatchLoader(data, 9, shuffle=True, device="cpu", seed=3),  # five batches, three steps
        {**ADAM, "lr": 0.03, "schedule_options": {"warmup": 0.2}},
        lambda: [EMA(0.8), EarlyStopping("val_loss", patience=1, min_delta=0.2)],
    ),
}


def set_up(name: str, net: Net, data: ImageDataset, folder: Path, *more: Callback) -> tuple[Trainer, Any]:
    model, loader, options, callbacks = SETUPS[name]
    cifarnets.seed_everything(1)
    torch.manual_seed(1)
    built = net() if model == "net" else Dropping()
    cifarnets.seed_everything(2)
    # The checkpoint is named first, as users may: what it holds must not depend on that.
    trainer = Trainer(built, **options, callbacks=[Archive(folder), *callbacks(), *more], device="cpu")
    return trainer, loader(data)


def assert_same_end(ours: Trainer, theirs: Trainer, numbers: tuple[float, float, float]) -> None:
    assert timeless(ours.history) == timeless(theirs.history)
    assert_same_weights(ours.model, theirs.model)
    assert_same_weights(ours.eval_model, theirs.eval_model)
    assert (ours.epoch, ours.step, ours.lr) == (theirs.epoch, theirs.step, theirs.lr)
    assert str(ours.optimizer.state_dict()) == str(theirs.optimizer.state_dict())
    assert draw() == numbers


@pytest.mark.parametrize("name", SETUPS)
def test_resumed_from_any_batch_it_ends_as_if_never_stopped(
    net: Net, train: ImageDataset, val_loader: BatchLoader, tmp_path: Path, name: str
) -> None:
    whole, loader = set_up(name, net, train, tmp_path / "whole")
    whole.fit(loader, val_loader, epochs=3)
    numbers = draw()
    stopped_early = name == "all callbacks"
    assert (len(whole.history) < 3) == stopped_early, "early stopping must have had its say"
    (archive,) = (callback for callback in whole.callbacks if isinstance(callback, Archive))
    assert len(archive.kept) == len(whole.history) * (len(loader) + 1)

    for number, folder in enumerate(archive.kept):
        resumed, loader = set_up(name, net, train, tmp_path / f"resumed{number}")
        cifarnets.seed_everything(number)  # which must not matter
        resumed.fit(loader, val_loader, epochs=3, resume=folder)
        if number == len(archive.kept) - 1:  # nothing was left to do
            assert timeless(resumed.history) == timeless(whole.history)
            assert_same_weights(resumed.eval_model, whole.eval_model)
        else:
            assert_same_end(resumed, whole, numbers)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send itself these signals")
@pytest.mark.parametrize("name", ["DataLoader", "all callbacks"])
def test_interrupted_at_any_moment_it_goes_on_from_the_very_batch(
    net: Net, train: ImageDataset, val_loader: BatchLoader, tmp_path: Path, name: str
) -> None:
    moments: list[str] = []
    whole, loader = set_up(name, net, train, tmp_path / "whole", Each(lambda hook, _: moments.append(hook)))
    whole.fit(loader, val_loader, epochs=2)
    numbers = draw()

    for moment in range(len(moments) - 1):  # the last is on_fit_end, after which there is nothing to stop
        folder = tmp_path / str(moment)
        passed = iter(range(len(moments)))

        def kill(_hook: str, _trainer: Trainer, moment: int = moment, passed: Iterator[int] = passed) -> None:
            if next(passed) == moment:
                os.kill(os.getpid(), signal.SIGTERM)

        killed, loader = set_up(name, net, train, folder, Each(kill))
        # What is saved when the signal has come must do, whatever was saved before.
        killed.callbacks[:] = [callback for callback in killed.callbacks if not isinstance(callback, Archive)]
        killed.callbacks.append(Checkpoint(folder))
        killed.fit(loader, val_loader, epochs=2)
        assert killed.interrupted
        draw()
        resumed, loader = set_up(name, net, train, tmp_path / f"resumed{moment}", Each(lambda *_: None))
        resumed.fit(loader, val_loader, epochs=2, resume=folder)
        assert resumed.global_step == whole.global_step
        if killed.epoch < whole.epoch:
            assert_same_end(resumed, whole, numbers)
        else:
            assert timeless(resumed.history) == timeless(whole.history)


def test_stop_in_mid_epoch_leaves_no_row_and_a_new_fit_starts_a_new_epoch(
    net: Net, train: ImageDataset, tmp_path: Path
) -> None:
    loader = BatchLoader(train, 16, shuffle=True, device="cpu", seed=0)
    stop = Each(lambda hook, trainer: trainer.stop() if hook == "on_batch_end" and trainer.batches_done == 2 else None)
    trainer = Trainer(net(), accumulate=3, callbacks=[stop], device="cpu")
    before = net()
    assert trainer.fit(loader, epochs=1) == []
    assert_same_weights(trainer.model, before)  # two batches of three: no step was due
    trainer.callbacks.clear()
    trainer.fit(loader, epochs=1)
    again = Trainer(before, accumulate=3, device="cpu")
    fresh = BatchLoader(train, 16, shuffle=True, device="cpu", seed=0)
    fresh.epoch = 1
    again.fit(fresh, epochs=1)
    assert timeless(trainer.history) == timeless(again.history)
    assert_same_weights(trainer.model, again.model)


def test_resume_without_a_checkpoint_starts_from_the_beginning(net: Net, loader: BatchLoader, tmp_path: Path) -> None:
    assert len(Trainer(net(), device="cpu").fit(loader, epochs=1, resume=tmp_path / "none")) == 1


def test_resume_counts_the_epochs_of_its_fit(net: Net, loader: BatchLoader, tmp_path: Path) -> None:
    first = Trainer(net(), callbacks=[Checkpoint(tmp_path)], device="cpu")
    first.fit(loader, epochs=1)
    first.fit(loader, epochs=2)
    done = Trainer(net(), device="cpu")
    assert timeless(done.fit(loader, epochs=2, resume=tmp_path)) == timeless(first.history)
    more = Trainer(net(), device="cpu")
    more.fit(loader, epochs=3, resume=tmp_path)
    assert [row["epoch"] for row in more.history] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_classes": 4}, "size mismatch for fc2.weight"),
        ({"decay_biases": False}, "different number of parameter groups"),
        ({"schedule": "step"}, "another schedule"),
        ({"schedule": "triangular"}, "another schedule"),
        ({"schedule": None}, "another schedule"),
        ({"epochs": 2}, "a fit of 1 epochs"),
        ({"batch_size": 8}, "another loader: 3 batches an epoch, not 5"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(
    net: Net, train: ImageDataset, tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {"schedule": "cosine", "optimizer_options": {"momentum": 0.9}, "device": "cpu"}
    loader = BatchLoader(train, 16, device="cpu", seed=0)
    Trainer(net(), **options, callbacks=[Checkpoint(tmp_path)]).fit(loader, epochs=1)
    options |= other
    loader = BatchLoader(train, options.pop("batch_size", 16), device="cpu", seed=0)
    epochs = options.pop("epochs", 1)
    model = cifarnets.models.create("convnet", num_classes=options.pop("num_classes", 3), widths=(4, 4), hidden=8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainer = Trainer(model, **options)
    with pytest.raises(InputError, match=f"the checkpoint is .*(?s:.*){message}"):
        trainer.fit(loader, epochs=epochs, resume=tmp_path)
    assert (trainer.epoch, trainer.history, trainer.optimizer.state_dict()["state"]) == (0, [], {})
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was loaded all the same"


def test_what_an_epoch_has_seen_is_resumed_on_the_device(net: Net, loader: BatchLoader, tmp_path: Path) -> None:
    stop = Each(lambda hook, trainer: trainer.stop() if hook == "on_batch_end" and trainer.batches_done == 2 else None)
    Trainer(net(), callbacks=[Checkpoint(tmp_path, every_batches=1), stop], device="cpu").fit(loader, epochs=1)
    trainer = Trainer(net(), device="cpu")
    trainer.loader, trainer.end_epoch = loader, 1
    trainer.device = torch.device("meta")  # one that is not the CPU, where the file is read
    trainer.load_state_dict(read_state(tmp_path / CHECKPOINT_FILE))
    assert [tensor.device.type for tensor in (*trainer.metrics.losses, trainer.metrics.correct)] == ["meta"] * 3


# Refusals


def batches_of(*images_and_labels: tuple[Any, Any]) -> list[tuple[Tensor, Tensor]]:
    good = (torch.zeros(2, 3, 32, 32), torch.tensor([0, 2]))
    return [
        (good[0] if images is None else images, good[1] if labels is None else torch.as_tensor(labels))
        for images, labels in images_and_labels
    ]


NAN = torch.full((2, 3, 32, 32), math.nan)
FAULTS: list[Any] = [
    ((torch.zeros(2, 3, 28, 28), None), r"cannot take images \[2, 3, 28, 28\]; those of CIFAR-10 are 32×32"),
    ((torch.zeros(2, 1, 32, 32), None), r"the model takes images of 3 channels, not \[2, 1, 32, 32\]"),
    ((torch.zeros(3, 32, 32), None), r"images must be float \[B, C, H, W\], not torch.float32 \[3, 32, 32\]"),
    ((torch.zeros(2, 3, 32, 32, dtype=torch.uint8), None), r"images must be float .*, not torch.uint8"),
    ((None, torch.tensor([0, 1], dtype=torch.int32)), r"2 images need int64 labels \[2\], not torch.int32 \[2\]"),
    ((None, [0, 1, 2]), r"2 images need int64 labels \[2\], not torch.int64 \[3\]"),
    ((None, [0, 3]), r"labels run from 0 to 3, but the model has 3 outputs .*create it with num_classes=4"),
    ((None, [-1, 2]), r"labels run from -1 to 2, but the model has 3 outputs"),
    ((torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.int64)), "the batch is empty"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[message for _, message in FAULTS])
@pytest.mark.parametrize("place", [1, 2])
def test_a_batch_that_does_not_fit_is_refused_by_number(
    net: Net, fault: tuple[Any, Any], message: str, place: int
) -> None:
    batches = batches_of(*[(None, None)] * (place - 1), fault)
    with pytest.raises(InputError, match=f"epoch 1, batch {place}: .*{message}"):
        Trainer(net(), device="cpu").fit(batches)


def test_images_that_hold_nan_are_named(net: Net) -> None:
    batches = batches_of((None, None), (NAN, None))
    trainer = Trainer(net(), device="cpu")
    with pytest.raises(
        DivergedError, match=r"^the loss is nan at epoch 1, batch 2: the images of that batch hold NaN or infinity.$"
    ):
        trainer.fit(batches)
    assert trainer.failed
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters()), "no step was taken with it"


def test_a_rate_that_is_too_high_is_named(net: Net, loader: BatchLoader) -> None:
    def blown_up(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.square().mean()

    trainer = Trainer(net(), lr=1e5, loss=blown_up, device="cpu")
    with pytest.raises(
        DivergedError,
        match=r"^the loss is (nan|inf) at epoch \d, batch \d: training has diverged; try a lower learning rate.$",
    ):
        trainer.fit(loader, epochs=9)


@pytest.mark.parametrize(("count", "bad", "found_in"), [(60, 3, "at batch 50"), (60, 55, "at the end of the epoch")])
def test_where_losses_are_not_read_at_once_nan_is_found_within_fifty_batches(
    net: Net, count: int, bad: int, found_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(math, "isfinite", lambda _: True)  # as on a GPU, where to look at each loss is to wait for it
    batches = batches_of(*[(None, None)] * (bad - 1), (NAN, None), *[(None, None)] * (count - bad))
    trainer = Trainer(net(), lr=0.0, device="cpu")
    # The weights are NaN from the bad batch on, so every later loss is: the first counts.
    with pytest.raises(DivergedError, match=f"^the loss is nan at epoch 1, batch {bad}: "):
        trainer.fit(batches, epochs=2)
    assert trainer.batches_done == (50 if found_in == "at batch 50" else 60)


def test_an_exhausted_generator_is_explained(net: Net, loader: BatchLoader) -> None:
    trainer = Trainer(net(), device="cpu")
    with pytest.raises(InputError, match="the loader gave no batch; a generator can be gone through only once"):
        trainer.fit((batch for batch in loader), epochs=2)
    assert len(trainer.history) == 1


@pytest.mark.parametrize("schedule", [None, "one_cycle"])
def test_an_empty_loader_is_refused(net: Net, schedule: str | None) -> None:
    with pytest.raises(InputError, match="the loader gave no batch"):
        Trainer(net(), schedule=schedule, device="cpu").fit([])


def test_classes_that_the_model_has_no_output_for_are_refused(synthetic3: ImageDataset, loader: BatchLoader) -> None:
    model = cifarnets.models.create("convnet", num_classes=2)
    with pytest.raises(InputError, match=r"3 classes \(disc, cross, stripes\) do not fit a model of 2 outputs"):
        Trainer(model, device="cpu").fit(loader)


@pytest.mark.parametrize("epochs", [0, -1])
def test_no_epochs_are_refused(net: Net, loader: BatchLoader, epochs: int) -> None:
    with pytest.raises(InputError, match=f"epochs must be at least 1, not {epochs}"):
        Trainer(net(), device="cpu").fit(loader, epochs=epochs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1 batch, not 0"),
        ({"loss": F.cross_entropy, "label_smoothing": 0.1}, "label_smoothing is of the cross-entropy"),
        ({"label_smoothing": 1.5}, "label_smoothing must be between 0 and 1, not 1.5"),
        ({"label_smoothing": -0.1}, "label_smoothing must be between 0 and 1, not -0.1"),
        ({"clip_norm": 0}, "clip_norm must be above 0, or None for no limit, not 0"),
        ({"clip_norm": math.nan}, "clip_norm must be above 0, or None for no limit, not nan"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"precision": "fp64"}, "precision must be 'auto', 'fp32', 'bf16' or 'fp16', not 'fp64'"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg'. Did you mean 'sgd'?"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(net: Net, options: dict[str, Any], message: str) -> None:
    with pytest.raises(cifarnets.CifarNetsError, match=re.escape(message)):
        Trainer(net(), **{"device": "cpu", **options})


def test_other_errors_of_torch_come_through(loader: BatchLoader) -> None:
    class Broken(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("a bug in the model")

    trainer = Trainer(Broken(3, 3), device="cpu")
    with pytest.raises(RuntimeError, match=r"^a bug in the model$"):
        trainer.fit(loader)

    def lookup(logits: Tensor, labels: Tensor) -> Tensor:
        raise IndexError("a bug in the loss")

    with pytest.raises(IndexError, match=r"^a bug in the loss$"):
        Trainer(cifarnets.models.create("convnet", num_classes=3), loss=lookup, device="cpu").fit(loader)


def test_where_other_processes_are_gone_the_error_says_so(net: Net, loader: BatchLoader) -> None:
    class Alone(distributed.World):
        def sum(self, values: Tensor) -> Tensor:
            raise RuntimeError("Connection reset by peer")

    trainer = Trainer(net(), device="cpu")
    trainer.world = Alone(rank=1, size=2)
    with pytest.raises(TrainingError, match=r"process 1 of 2 cannot go on; has another one ended.*Connection reset"):
        trainer.fit(loader)


# What goes wrong beside the loop

WORKERS = """
import sys, time, torch
from torch.utils.data import DataLoader, Dataset
import cifarnets
from cifarnets.training import Checkpoint

class Slow(Dataset):
    def __len__(self):
        return 200
    def __getitem__(self, index):
        time.sleep(0.02)
        return torch.rand(3, 32, 32), index % 3

if __name__ == "__main__":
    loader = DataLoader(Slow(), 10, num_workers=1, multiprocessing_context=sys.argv[2])
    model = cifarnets.models.create("convnet", num_classes=3)
    trainer = cifarnets.Trainer(model, device="cpu", callbacks=[Checkpoint(sys.argv[1], every_batches=1)])
    trainer.fit(loader, epochs=2)
    print("ended", trainer.interrupted, trainer.failed, trainer.batches_done, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups of this kind")
@pytest.mark.parametrize(("number", "start"), [(signal.SIGTERM, "fork"), (signal.SIGINT, "spawn")])
def test_a_signal_to_the_workers_too_saves_first(tmp_path: Path, number: signal.Signals, start: str) -> None:
    script, folder = tmp_path / "script.py", tmp_path / "kept"
    script.write_text(WORKERS)
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder), start],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while process.poll() is None and not (folder / CHECKPOINT_FILE).exists():
        time.sleep(0.01)
    os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert re.fullmatch(r"ended True False [1-9]\d*\n", output)
    assert errors.count("stopping after this batch") == 1
    assert read_state(folder / CHECKPOINT_FILE)["progress"]["batch"] == int(output.split()[-1])


def test_the_end_is_told_to_all_and_the_first_error_is_the_one_that_is_raised(
    net: Net, loader: BatchLoader, tmp_path: Path
) -> None:
    def fall(hook: str, _: Trainer) -> None:
        if hook == "on_fit_end":
            raise OSError("no room")

    def stop(hook: str, trainer: Trainer) -> None:
        if hook == "on_batch_end":
            trainer.interrupted = True
            trainer.stop()

    trainer = Trainer(net(), callbacks=[Each(fall), Each(stop), Checkpoint(tmp_path)], device="cpu")
    with pytest.raises(CallbackError, match=r"^Each\.on_fit_end failed: no room$"):
        trainer.fit(loader, epochs=1)
    assert (tmp_path / CHECKPOINT_FILE).is_file(), "the checkpoint was written all the same"
    with pytest.raises(InputError, match="EarlyStopping follows val_loss"):
        Trainer(net(), callbacks=[EarlyStopping(), Each(fall)], device="cpu").fit(loader, epochs=1)


def test_a_good_checkpoint_is_not_lost_to_nan(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math, "isfinite", lambda _: True)  # as on a GPU, where to look at each loss is to wait for it
    batches = batches_of(*[(None, None)] * 12, (NAN, None), *[(None, None)] * 20)
    trainer = Trainer(net(), callbacks=[Checkpoint(tmp_path, every_batches=10)], device="cpu")
    with pytest.raises(DivergedError, match="the loss is nan at epoch 1, batch 13"):
        trainer.fit(batches, epochs=1)
    state = read_state(tmp_path / CHECKPOINT_FILE)
    assert state["progress"]["batch"] == 10
    assert all(value.isfinite().all() for value in state["model"].values())


def test_a_last_step_that_breaks_the_weights_is_named(net: Net, val_loader: BatchLoader) -> None:
    def break_it(hook: str, trainer: Trainer) -> None:
        if hook == "on_batch_end":
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(math.inf)

    trainer = Trainer(net(), callbacks=[Each(break_it)], device="cpu")
    with pytest.raises(DivergedError, match="the weights are NaN or infinite at the end of epoch 1"):
        trainer.fit(batches_of((None, None)), val_loader, epochs=1)


def test_a_step_that_is_left_out_moves_no_schedule(net: Net) -> None:
    trainer = Trainer(net(), schedule="cosine", device="cpu")

    class Overflowing:
        """What a GradScaler does where fp16 gradients have overflowed."""

        scale_now = 8.0

        def get_scale(self) -> float:
            return self.scale_now

        def scale(self, loss: Tensor) -> Tensor:
            return loss

        def step(self, _: object) -> None:
            pass

        def update(self) -> None:
            self.scale_now /= 2

        def state_dict(self) -> dict[str, Any]:
            return {}

    trainer._scaler = Overflowing()  # type: ignore[assignment]
    trainer.fit(batches_of((None, None), (None, None)), epochs=1)
    assert trainer.global_step == 0
    assert trainer.schedule is not None
    assert trainer.schedule.last_epoch == 0


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ("dataset", r"batch 1: a loader must give .* two tensors, not tuple of Tensor, int; put a dataset into"),
        ([(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]), 5)], "two tensors, not tuple of Tensor, Tensor, int"),
        ([np.zeros((2, 3, 32, 32))], "two tensors, not ndarray; put"),
        ([(torch.zeros(3, 32, 32), torch.tensor([0, 1, 2]))], r"images must be float \[B, C, H, W\]"),
    ],
)
def test_what_is_no_loader_is_refused(net: Net, train: ImageDataset, loader: Any, message: str) -> None:
    batches = train if loader == "dataset" else loader
    with pytest.raises(InputError, match=message):
        Trainer(net(), channels_last=True, device="cpu").fit(batches, epochs=1)
    with pytest.raises(InputError, match=message):
        evaluate(net(), batches, "cpu")


def test_double_precision_images_are_trained_on(net: Net) -> None:
    batches = batches_of((torch.zeros(2, 3, 32, 32, dtype=torch.float64), None))
    assert len(Trainer(net(), device="cpu").fit(batches, epochs=1)) == 1


def test_a_distributed_sampler_has_a_new_order_each_epoch(net: Net, train: ImageDataset) -> None:
    seen: list[int] = []
    sampler = DistributedSampler(train, num_replicas=1, rank=0, shuffle=True)
    orders = Each(lambda hook, _: seen.append(tuple(sampler)) if hook == "on_epoch_start" else None)  # type: ignore[arg-type]
    Trainer(net(), callbacks=[orders], device="cpu").fit(DataLoader(train, 8, sampler=sampler), epochs=2)
    assert seen[0] != seen[1]


def test_a_samplers_own_generator_is_resumed(net: Net, train: ImageDataset, tmp_path: Path) -> None:
    def setup(*more: Callback) -> tuple[Trainer, Any]:
        sampler = RandomSampler(train, generator=torch.Generator().manual_seed(5))
        return Trainer(net(), callbacks=more, device="cpu"), DataLoader(train, 8, sampler=sampler)

    whole, loader = setup()
    whole.fit(loader, epochs=2)
    first, loader = setup(
        Checkpoint(tmp_path), Each(lambda hook, trainer: trainer.stop() if hook == "on_epoch_end" else None)
    )
    first.fit(loader, epochs=2)
    resumed, loader = setup()
    resumed.fit(loader, epochs=2, resume=tmp_path)
    assert timeless(resumed.history) == timeless(whole.history)


def test_a_checkpoint_of_another_plan_is_refused(
    net: Net, train: ImageDataset, loader: BatchLoader, tmp_path: Path
) -> None:
    Trainer(net(), schedule="one_cycle", callbacks=[Checkpoint(tmp_path)], device="cpu").fit(loader, epochs=1)
    again = Trainer(net(), schedule="one_cycle", device="cpu")
    with pytest.raises(InputError, match=r"is of a fit of 1 epochs with a schedule made for these; .* for 3"):
        again.fit(loader, epochs=3, resume=tmp_path)
    for other in (DataLoader(train, 16, shuffle=True), BatchLoader(train, 8, True, device="cpu")):
        with pytest.raises(InputError, match="is of a fit on another loader: 3 batches an epoch, not"):
            Trainer(net(), schedule="one_cycle", device="cpu").fit(other, epochs=1, resume=tmp_path)


@pytest.fixture
def _exact_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 as the CPU has it: TensorFloat-32 rounds inputs to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.gpu
@pytest.mark.usefixtures("_exact_cuda")
@pytest.mark.parametrize("channels_last", [False, True])
def test_on_cuda_a_short_fit_is_that_of_the_cpu(net: Net, train: ImageDataset, channels_last: bool) -> None:
    histories = []
    for device in ("cpu", "cuda"):
        loader = BatchLoader(train, 16, True, device=device, seed=0, channels_last=channels_last)
        trainer = Trainer(net(), lr=0.05, device=device, channels_last=channels_last, progress=False)
        histories.append(trainer.fit(loader, epochs=2))
    on_cpu, on_cuda = histories
    assert on_cuda.column("loss") == pytest.approx(on_cpu.column("loss"), rel=1e-4)
    assert on_cuda.column("accuracy") == pytest.approx(on_cpu.column("accuracy"), abs=0.02)


@pytest.mark.gpu
def test_on_cuda_a_resumed_fit_ends_as_if_never_stopped(net: Net, train: ImageDataset, tmp_path: Path) -> None:
    class StopAt(Callback):
        def on_batch_end(self, trainer: Trainer) -> None:
            if trainer.epoch == 1 and trainer.batches_done == 2:  # of three
                trainer.stop()

    def fit(*callbacks: Callback, resume: Path | None = None) -> Trainer:
        loader = BatchLoader(train, 16, True, device="cuda", seed=0)
        trainer = Trainer(
            net(), lr=0.05, device="cuda", deterministic=True, seed=0, callbacks=callbacks, progress=False
        )
        trainer.fit(loader, epochs=3, resume=resume)
        return trainer

    whole = fit()
    fit(Checkpoint(tmp_path, every_batches=1), StopAt())
    resumed = fit(Checkpoint(tmp_path), resume=tmp_path)
    assert resumed.history.column("loss") == whole.history.column("loss")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


@pytest.mark.gpu
@pytest.mark.usefixtures("_exact_cuda")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "convmuon"])
def test_on_cuda_every_option_at_once_is_that_of_the_cpu(net: Net, train: ImageDataset, optimizer: str) -> None:
    options: dict[str, Any] = {"optimizer": optimizer, "accumulate": 2, "clip_norm": 0.5, "label_smoothing": 0.1}
    if optimizer == "convmuon":
        options["optimizer_options"] = {"bias_lr": 0.05, "head_lr": 0.05}
    else:
        options["optimizer_options"] = {"fused": True, **({"momentum": 0.9} if optimizer == "sgd" else {})}
    weights = []
    for device in ("cpu", "cuda"):
        loader = BatchLoader(train, 9, True, device=device, seed=0)
        average = EMA(0.5)
        Trainer(net(), lr=0.01, device=device, callbacks=[average], progress=False, **options).fit(loader, epochs=2)
        assert average.average is not None
        weights.append({name: tensor.cpu() for name, tensor in average.average.module.state_dict().items()})
    tolerance = 0.05 if optimizer == "convmuon" else 1e-3  # its iteration is in bfloat16 there
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=tolerance)


@pytest.mark.gpu
def test_on_cuda_a_label_that_no_output_means_is_named_in_any_batch(net: Net) -> None:
    images = torch.randn(4, 3, 32, 32)
    batches = [(images, torch.zeros(4, dtype=torch.int64)), (images, torch.full((4,), 7))]
    with pytest.raises(InputError, match=r"batch 2: labels run from 7 to 7, but the model has 3 outputs"):
        Trainer(net(), device="cuda", progress=False).fit(batches, epochs=1)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # which are off on purpose
@pytest.mark.usefixtures("_exact_cuda")
def test_on_cuda_a_compiled_fit_learns_the_same(net: Net, train: ImageDataset) -> None:
    losses = []
    for compiled in (False, True):
        loader = BatchLoader(train, 16, True, device="cuda", seed=0)
        losses.append(Trainer(net(), lr=0.05, device="cuda", compile=compiled, progress=False).fit(loader, epochs=2))
    assert losses[1].column("loss") == pytest.approx(losses[0].column("loss"), rel=1e-3)
