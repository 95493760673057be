"""What the callbacks show, keep and decide."""

import csv
import inspect
import io
import json
import re
import signal
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.helpers import BatchNormNet, MakeNet
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

import cifarnets
from cifarnets import Trainer, evaluate
from cifarnets.datasets import BatchLoader, ImageDataset
from cifarnets.errors import InputError, MissingExtraError, OutputError
from cifarnets.training import (
    EMA,
    ArticleLog,
    Callback,
    Checkpoint,
    CSVLog,
    EarlyStopping,
    History,
    JSONLinesLog,
    ProgressBar,
    TensorBoardLog,
    callbacks,
    checkpoint,
    logs,
)
from cifarnets.training.checkpoint import CHECKPOINT_FILE
from cifarnets.weights.state import read_state

HOOKS = {name for name in vars(Callback) if name.startswith("on_")}
SHIPPED = [
    cls
    for module in (callbacks, checkpoint, logs)
    for _, cls in inspect.getmembers(module, inspect.isclass)
    if issubclass(cls, Callback) and cls.__module__ == module.__name__
    if cls is not Callback and not cls.__name__.startswith("_")
]


# All of them


def test_every_shipped_callback_is_public() -> None:
    assert len(HOOKS) == 6
    assert {cls.__name__ for cls in SHIPPED} == {
        name
        for name in cifarnets.training.__all__
        if inspect.isclass(cls := getattr(cifarnets.training, name))
        and issubclass(cls, Callback)
        and cls is not Callback
    }


@pytest.mark.parametrize("cls", SHIPPED)
def test_hooks_are_those_of_the_base(cls: type[Callback]) -> None:
    classes = cls.__mro__[: cls.__mro__.index(Callback)]
    own = {name: member for one in classes for name, member in vars(one).items() if inspect.isfunction(member)}
    assert {name for name in own if name.startswith("on")} <= HOOKS, "a misspelt hook is never called"
    assert HOOKS & own.keys(), "a callback without a hook does nothing"
    overridden = (HOOKS | {"state_dict", "load_state_dict", "check_state"}) & own.keys()
    for name in overridden:
        assert inspect.signature(own[name]) == inspect.signature(getattr(Callback, name))
    assert ("state_dict" in own) == ("load_state_dict" in own), "what is kept must be taken back"
    assert ("state_dict" in own) == ("check_state" in own), "what is taken back must be checked first"


class Row(Callback):
    """Puts figures of one's own choice into the history before the other callbacks see it, and notes the weights."""

    def __init__(self, **figures: list[float]) -> None:
        self.figures = figures
        self.weights: list[dict[str, Tensor]] = []

    def on_epoch_end(self, trainer: Trainer) -> None:
        for key, values in self.figures.items():
            trainer.history[-1][key] = values[trainer.epoch - 1]
        self.weights.append({name: value.clone() for name, value in trainer.eval_model.state_dict().items()})


def fit(net: MakeNet, loader: Any, *more: Callback, val_loader: Any = None, epochs: int = 2, **options: Any) -> Trainer:
    trainer = Trainer(net(), callbacks=more, device="cpu", **options)
    trainer.fit(loader, val_loader, epochs=epochs)
    return trainer


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


# What is shown


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Slow(Callback):
    """Makes a fit last longer than the tenth of a second between two drawings of the bar."""

    def on_batch_start(self, trainer: Trainer) -> None:
        time.sleep(0.05)


@pytest.mark.parametrize("validated", [False, True])
def test_the_bar_shows_how_far_it_is_and_how_well_it_goes(
    net: MakeNet, loader: BatchLoader, val_loader: BatchLoader, validated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    bar = ProgressBar(every=0)
    trainer = fit(net, loader, Slow(), bar, val_loader=val_loader if validated else None, epochs=3)
    shown = screen.getvalue()
    last = shown.split("\r")[-1]
    assert "epoch 3/3: 100%|" in last
    assert "9/9" in last
    figures = f"loss {trainer.last_loss.item():.4f}, accuracy {trainer.history[-1]['accuracy']:.4f}"
    assert figures + (f", val_accuracy {trainer.history[-2]['val_accuracy']:.4f}" if validated else "") in last
    assert re.search(r"epoch 1/3: .* accuracy 0\.\d{4}", shown), "from the first epoch on"
    assert re.search(r"[\d,]+ images/s", last)
    assert re.search(r"\[\d\d:\d\d<\d\d:\d\d", last), "the time left"


def test_the_bar_looks_at_the_loss_now_and_then_only(
    net: MakeNet, loader: BatchLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    fit(net, loader, ProgressBar(every=5), epochs=2)
    assert "epoch 1/2: " in screen.getvalue()
    assert "epoch 2/2" not in screen.getvalue()


def test_the_bar_of_a_stream_counts_without_an_end(
    net: MakeNet, loader: BatchLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless:
        def __iter__(self) -> Any:
            return iter(list(loader))

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    fit(net, Endless(), epochs=1)  # the trainer adds the bar by itself
    assert "3batch" in screen.getvalue()
    assert "images/s" not in screen.getvalue(), "nobody knows how many a batch has"


@pytest.mark.parametrize("options", [{"progress": False}, {"callbacks": [ProgressBar(show=False)]}])
def test_no_bar_when_told_so(
    net: MakeNet, loader: BatchLoader, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    Trainer(net(), device="cpu", **options).fit(loader, epochs=1)
    assert screen.getvalue() == ""


def test_a_bar_is_added_once(net: MakeNet) -> None:
    bars = Trainer(net(), callbacks=[ProgressBar()], device="cpu").callbacks
    assert [type(bar) for bar in bars] == [ProgressBar]


@pytest.mark.parametrize(("log", "epochs"), [(ArticleLog(), [1, 10]), (ArticleLog(every=4), [1, 4, 8, 12])])
def test_the_log_of_the_article(
    net: MakeNet, train: ImageDataset, log: ArticleLog, epochs: list[int], capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = fit(net, BatchLoader(train, 40, device="cpu"), log, epochs=12)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(epochs)
    for line, epoch in zip(lines, epochs, strict=True):
        stamp, rest = line.split(" Epoch ")
        assert abs((datetime.now() - datetime.fromisoformat(stamp)).total_seconds()) < 60
        assert rest == f"{epoch}, Training loss {trainer.history[epoch - 1]['loss']:.4f}"


# What is written


class Reads(Callback):
    """Reads a file after every epoch, as a user would who looks at a running fit."""

    def __init__(self, read: Callable[[], object]) -> None:
        self.read = read
        self.seen: list[Any] = []

    def on_epoch_end(self, trainer: Trainer) -> None:
        self.seen.append(self.read())


def test_the_csv_is_whole_after_every_epoch(
    net: MakeNet, loader: BatchLoader, val_loader: BatchLoader, tmp_path: Path
) -> None:
    path = tmp_path / "deep" / "history.csv"

    def read() -> list[dict[str, Any]]:
        with path.open(newline="") as file:
            return [{key: json.loads(value) for key, value in row.items()} for row in csv.DictReader(file)]

    reads = Reads(read)
    history = fit(net, loader, CSVLog(path), reads, val_loader=val_loader).history
    assert reads.seen == [history[:1], history[:2]]
    assert list(reads.seen[0][0]) == [
        *["epoch", "loss", "accuracy", "lr", "seconds", "images_per_second", "val_loss", "val_accuracy"]
    ]


@pytest.mark.parametrize(("make", "name"), [(CSVLog, "to_csv"), (JSONLinesLog, "to_jsonl")])
def test_a_log_that_cannot_be_written_ends_no_fit(
    make: Any,
    name: str,
    net: MakeNet,
    loader: BatchLoader,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As on Windows, where another program has it open."""
    write, tries = getattr(History, name), []

    def sometimes(history: History, path: Path) -> Path:
        tries.append(len(history))
        if len(tries) in (1, 3):
            raise OutputError("cannot write 'log': it is open elsewhere.")
        written: Path = write(history, path)
        return written

    monkeypatch.setattr(History, name, sometimes)
    fit(net, loader, make(tmp_path / "log"), epochs=3)
    assert tries == [1, 2, 3, 3]
    assert caplog.messages == ["cannot write 'log': it is open elsewhere. The fit goes on, and it is tried again."] * 2
    assert len((tmp_path / "log").read_text().splitlines()) == 3 + (make is CSVLog)


def test_a_reader_that_has_gone_ends_no_fit(net: MakeNet, loader: BatchLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Gone())
    assert len(fit(net, loader, ArticleLog()).history) == 2


def test_the_json_lines_are_whole_after_every_epoch(net: MakeNet, loader: BatchLoader, tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    reads = Reads(lambda: [json.loads(line) for line in path.read_text().splitlines()])
    history = fit(net, loader, JSONLinesLog(path), reads).history
    assert reads.seen == [history[:1], history[:2]]


def test_tensorboard_finds_every_figure(
    net: MakeNet, loader: BatchLoader, val_loader: BatchLoader, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def scalars() -> dict[str, list[tuple[int, float]]]:
        events = EventAccumulator(str(tmp_path))
        events.Reload()
        return {key: [(event.step, event.value) for event in events.Scalars(key)] for key in events.Tags()["scalars"]}

    reads = Reads(scalars)
    history = fit(net, loader, TensorBoardLog(tmp_path), reads, val_loader=val_loader).history
    assert [len(seen["loss"]) for seen in reads.seen] == [1, 2], "flushed after every epoch"
    assert scalars() == {
        key: [(row["epoch"], pytest.approx(row[key])) for row in history] for key in history[0] if key != "epoch"
    }


def test_tensorboard_hides_what_a_killed_run_wrote_too_much(net: MakeNet, loader: BatchLoader, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Saves(Callback):
        def on_epoch_end(self, trainer: Trainer) -> None:
            if trainer.epoch == 1:
                Checkpoint(tmp_path / "state").on_epoch_end(trainer)

    fit(net, loader, TensorBoardLog(tmp_path / "board"), Saves(), epochs=3)
    loader.epoch = 0
    resumed = Trainer(net(), callbacks=[TensorBoardLog(tmp_path / "board")], device="cpu")
    resumed.fit(loader, epochs=2, resume=tmp_path / "state")
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_without_tensorboard_it_says_what_to_install(
    net: MakeNet, loader: BatchLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"TensorBoardLog needs tensorboard: pip install 'cifarnets\[tens"):
        fit(net, loader, TensorBoardLog(tmp_path))


# Averages of the weights


class Steps(Callback):
    """Notes the weights after every optimizer step."""

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.epochs: list[int] = []

    def on_fit_start(self, trainer: Trainer) -> None:
        def note(*_: Any) -> None:
            self.weights.append({name: value.clone() for name, value in trainer.model.state_dict().items()})
            self.epochs.append(trainer.epoch)

        trainer.optimizer.register_step_post_hook(note)


def with_norm() -> nn.Module:
    torch.manual_seed(0)
    return BatchNormNet(dropout=0)


@pytest.mark.parametrize("decay", [0.6, 0.0, None])
@pytest.mark.parametrize("start_epoch", [0, 1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_is_the_one_computed_by_hand(
    loader: BatchLoader, decay: float | None, start_epoch: int, accumulate: int
) -> None:
    steps, average = Steps(), EMA(decay, start_epoch)
    trainer = fit(with_norm, loader, average, steps, epochs=2, lr=0.1, accumulate=accumulate)
    assert len(steps.weights) == (6 if accumulate == 1 else 4)
    counted = [weights for weights, epoch in zip(steps.weights, steps.epochs, strict=True) if epoch >= start_epoch]
    ours = trainer.eval_model.state_dict()
    for name in ("0.weight", "1.running_var", "5.bias"):
        values = [weights[name] for weights in counted]
        if not values:
            expected = steps.weights[-1][name]  # the averaging has not begun
        elif decay is None:
            expected = torch.stack(values).mean(0)
        else:
            expected = values[0]
            for value in values[1:]:
                expected = decay * expected + (1 - decay) * value
        torch.testing.assert_close(ours[name], expected)


def test_the_average_is_that_of_torch_bit_for_bit(loader: BatchLoader) -> None:
    def rule(averages: Any, current: Any, _: Any) -> None:
        for average, value in zip(averages, current, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - 0.6)
            else:
                average.copy_(value * (1 - 0.6) + average * 0.6)

    steps, average = Steps(), EMA(0.6)
    trainer = fit(with_norm, loader, average, steps, epochs=2, lr=0.1)
    model = with_norm()
    reference = AveragedModel(model, multi_avg_fn=rule, use_buffers=True)
    for weights in steps.weights:
        model.load_state_dict(weights)
        reference.update_parameters(model)
    assert average.average is not None
    for name, value in reference.state_dict().items():
        assert torch.equal(average.average.state_dict()[name], value), name
    assert trainer.eval_model.state_dict()["1.num_batches_tracked"] > 0


def test_the_average_is_what_is_evaluated_and_saved(
    net: MakeNet, loader: BatchLoader, val_loader: BatchLoader, tmp_path: Path
) -> None:
    trainer = fit(net, loader, EMA(0.9), Checkpoint(tmp_path), val_loader=val_loader, lr=0.5)
    average, model = trainer.eval_model, trainer.model
    result = evaluate(average, val_loader, device="cpu")
    assert trainer.history[-1]["val_loss"] == pytest.approx(result.loss)
    assert result.loss != pytest.approx(evaluate(model, val_loader, device="cpu").loss, abs=1e-4)
    saved = cifarnets.load(tmp_path / "last.safetensors")
    assert_same(saved.state_dict(), average.state_dict())
    assert saved.meta == model.meta


def test_averaging_does_not_change_what_is_learnt(net: MakeNet, train: ImageDataset) -> None:
    def loader() -> BatchLoader:
        return BatchLoader(train, 16, shuffle=True, device="cpu", seed=0)

    assert_same(fit(net, loader(), EMA()).model.state_dict(), fit(net, loader()).model.state_dict())


def test_a_second_fit_goes_on_averaging(net: MakeNet, loader: BatchLoader) -> None:
    steps = Steps()
    trainer = fit(net, loader, EMA(None), steps, epochs=1)
    trainer.callbacks.remove(steps)  # its hook stays where it is
    trainer.fit(loader, epochs=1)
    assert len(steps.weights) == 6
    expected = torch.stack([weights["fc2.bias"] for weights in steps.weights]).mean(0)
    torch.testing.assert_close(trainer.eval_model.state_dict()["fc2.bias"], expected)


@pytest.mark.parametrize("decay", [0.6, None])
def test_a_resumed_fit_goes_on_averaging(
    net: MakeNet, loader: BatchLoader, val_loader: BatchLoader, tmp_path: Path, decay: float | None
) -> None:
    whole = fit(net, loader, EMA(decay), val_loader=val_loader, epochs=3)
    loader.epoch = 0
    fit(net, loader, EMA(decay), Checkpoint(tmp_path), epochs=1)
    resumed = Trainer(net(seed=1), callbacks=[EMA(decay)], device="cpu")
    resumed.fit(loader, val_loader, epochs=3, resume=tmp_path)
    assert_same(resumed.eval_model.state_dict(), whole.eval_model.state_dict())
    assert_same(resumed.model.state_dict(), whole.model.state_dict())
    assert resumed.history[-1]["val_loss"] == whole.history[-1]["val_loss"]


def test_an_average_may_join_at_a_resume(net: MakeNet, loader: BatchLoader, tmp_path: Path) -> None:
    fit(net, loader, Checkpoint(tmp_path), epochs=1)
    steps = Steps()
    resumed = Trainer(net(seed=1), callbacks=[EMA(None), steps], device="cpu")
    resumed.fit(loader, epochs=2, resume=tmp_path)
    expected = torch.stack([weights["fc2.bias"] for weights in steps.weights]).mean(0)
    torch.testing.assert_close(resumed.eval_model.state_dict()["fc2.bias"], expected)


@pytest.mark.parametrize("decay", [1.0, -0.1, 2])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(InputError, match=f"decay must be at least 0 and below 1, or None .*, not {decay}"):
        EMA(decay)


# Checkpoints


@pytest.mark.parametrize(
    ("best", "figures", "expected"),
    [
        ("val_loss", [3.0, 1.0, 2.0], 2),
        ("val_accuracy", [0.1, 0.2, 0.2], 2),  # the first of equals
        ("loss", [3.0, 2.0, 1.0], 3),
        ("accuracy", [0.9, 0.2, 0.3], 1),
    ],
)
def test_best_and_last_are_kept(
    net: MakeNet, loader: BatchLoader, val_loader: BatchLoader, tmp_path: Path, best: Any, figures: Any, expected: int
) -> None:
    row = Row(**{best: figures})
    trainer = fit(net, loader, row, Checkpoint(tmp_path, best), val_loader=val_loader, epochs=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.safetensors", CHECKPOINT_FILE, "last.safetensors"]
    assert_same(cifarnets.load(tmp_path / "best.safetensors").state_dict(), row.weights[expected - 1])
    assert_same(cifarnets.load(tmp_path / "last.safetensors").state_dict(), trainer.model.state_dict())


def test_the_best_figure_survives_a_resume(
    net: MakeNet, loader: BatchLoader, val_loader: BatchLoader, tmp_path: Path
) -> None:
    row = Row(val_loss=[1.0, 2.0])
    fit(net, loader, row, Checkpoint(tmp_path, "val_loss"), val_loader=val_loader, epochs=1)
    again = Trainer(net(), callbacks=[row, Checkpoint(tmp_path, "val_loss")], device="cpu")
    again.fit(loader, val_loader, epochs=2, resume=tmp_path)
    assert_same(cifarnets.load(tmp_path / "best.safetensors").state_dict(), row.weights[0])


def test_a_model_that_load_could_not_build_keeps_its_state_alone(loader: BatchLoader, tmp_path: Path) -> None:
    fit(with_norm, loader, Checkpoint(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT_FILE]
    resumed = Trainer(with_norm(), device="cpu")
    assert len(resumed.fit(loader, epochs=2, resume=tmp_path)) == 2
    with pytest.raises(
        InputError, match=r"can keep no best model, so say best=None, or: BatchNormNet is not registered"
    ):
        fit(with_norm, loader, Checkpoint(tmp_path, "loss"))


def test_nor_do_a_subclass_and_a_model_that_was_changed(net: MakeNet, loader: BatchLoader, tmp_path: Path) -> None:
    class Mine(cifarnets.models.ConvNet):
        pass

    def changed() -> nn.Module:
        model: Any = net()
        model.fc2 = nn.Linear(8, 4)
        return model

    for name, make in (("subclass", lambda: Mine(num_classes=3)), ("changed", changed)):
        fit(make, loader, Checkpoint(tmp_path / name))
        assert [path.name for path in (tmp_path / name).iterdir()] == [CHECKPOINT_FILE]
        with pytest.raises(InputError, match="can keep no best model"):
            fit(make, loader, Checkpoint(tmp_path / name, "loss"))


def test_the_state_is_saved_every_so_many_batches(net: MakeNet, loader: BatchLoader, tmp_path: Path) -> None:
    seen: list[bool] = []

    class Look(Callback):
        def on_batch_start(self, trainer: Trainer) -> None:
            seen.append((tmp_path / CHECKPOINT_FILE).exists())

    fit(net, loader, Look(), Checkpoint(tmp_path, every_batches=2), epochs=1)
    assert seen == [False, False, True]


def test_an_interrupted_fit_is_saved_at_the_batch_it_came_to(
    net: MakeNet, loader: BatchLoader, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupts(Callback):
        def on_batch_start(self, trainer: Trainer) -> None:
            if trainer.batches_done == 1:
                signal.raise_signal(signal.SIGINT)

    trainer = Trainer(net(), callbacks=[Interrupts(), Checkpoint(tmp_path)], device="cpu")
    with pytest.raises(KeyboardInterrupt):
        trainer.fit(loader, epochs=1)
    assert trainer.interrupted
    assert "stopping after this batch" in capsys.readouterr().err
    assert read_state(tmp_path / CHECKPOINT_FILE)["progress"]["batch"] == 2


def test_a_fit_clears_away_what_killed_writes_left(net: MakeNet, loader: BatchLoader, tmp_path: Path) -> None:
    leftover = tmp_path / ".cifarnets-0123456789abcdef.tmp"
    leftover.write_bytes(b"half a checkpo")
    other = tmp_path / ".report.docx.tmp"
    other.write_text("mine")
    fit(net, loader, Checkpoint(tmp_path), epochs=1)
    assert not leftover.exists()
    assert other.exists()


def as_test(dataset: ImageDataset) -> ImageDataset:
    copy = dataset.select(range(24))
    copy.split = "test"
    return copy


class TorchvisionTest(Dataset[Any]):
    """What torchvision's test set says of itself."""

    train = False

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return torch.zeros(3, 32, 32), 0


LOADERS: dict[str, Callable[[ImageDataset], Any]] = {
    "BatchLoader": lambda val: BatchLoader(as_test(val), device="cpu"),
    "DataLoader": lambda val: DataLoader(as_test(val), 8),
    "Subset": lambda val: DataLoader(Subset(as_test(val), range(9)), 8),
    "ConcatDataset": lambda val: DataLoader(ConcatDataset([val, as_test(val)]), 8),
    "torchvision": lambda _: DataLoader(TorchvisionTest(), 4),
}


@pytest.mark.parametrize("kind", LOADERS)
@pytest.mark.parametrize("monitor", ["val_loss", "val_accuracy"])
def test_the_test_set_chooses_only_if_told_so(
    net: MakeNet, loader: BatchLoader, val: ImageDataset, tmp_path: Path, kind: str, monitor: Any
) -> None:
    test_loader = LOADERS[kind](val)
    makers: list[Any] = [
        lambda **options: Checkpoint(tmp_path, monitor, **options),
        lambda **o: EarlyStopping(monitor, **o),
    ]
    for make, name in zip(makers, ("Checkpoint", "EarlyStopping"), strict=True):
        with pytest.raises(InputError, match=f"^{name} would choose on the test set.*train_val_split.*allow_test=True"):
            fit(net, loader, make(), val_loader=test_loader)
        assert len(fit(net, loader, make(allow_test=True), val_loader=test_loader, epochs=1).history) == 1
    # To look at it is no choice, nor is what rests on the training images.
    fit(net, loader, EarlyStopping("loss"), Checkpoint(tmp_path, "accuracy"), val_loader=test_loader, epochs=1)


@pytest.mark.parametrize("make", [EarlyStopping, lambda: Checkpoint("nowhere", "val_loss")])
def test_a_choice_needs_held_out_images(net: MakeNet, loader: BatchLoader, make: Callable[[], Callback]) -> None:
    with pytest.raises(InputError, match=r"follows val_loss: pass val_loader to fit, or follow another figure"):
        fit(net, loader, make())


@pytest.mark.parametrize("make", [EarlyStopping, lambda monitor: Checkpoint("nowhere", monitor)])
def test_an_unknown_figure_is_refused(make: Callable[[Any], Callback]) -> None:
    with pytest.raises(InputError, match=r"(monitor|best) of \w+ must be one of 'val_loss', .* not 'val_acc'"):
        make("val_acc")


# Early stopping


@pytest.mark.parametrize(
    ("monitor", "figures", "options", "epochs"),
    [
        ("val_loss", [3, 2, 2, 2, 1], {"patience": 2}, 4),
        ("val_loss", [3, 2, 2, 1, 1], {"patience": 2}, 5),
        ("val_loss", [3, 2, 1, 0, -1], {"patience": 1}, 5),
        ("val_accuracy", [0.1, 0.2, 0.1, 0.3, 0.3], {"patience": 1}, 3),
        ("val_loss", [3, 2.9, 2.8, 2.7, 2.6], {"patience": 3, "min_delta": 0.25}, 5),  # 2.7 is enough below 3
        ("val_loss", [3, 2.9, 2.8, 2.7, 2.6], {"patience": 3, "min_delta": 0.5}, 4),
        ("val_accuracy", [0.1, 0.15, 0.2, 0.25, 0.3], {"patience": 1, "min_delta": 0.1}, 2),
    ],
)
def test_patience(
    net: MakeNet,
    train: ImageDataset,
    val_loader: BatchLoader,
    monitor: Any,
    figures: list[float],
    options: dict[str, Any],
    epochs: int,
) -> None:
    loader = BatchLoader(train, 40, device="cpu")
    stopping = EarlyStopping(monitor, **options)
    trainer = fit(net, loader, Row(**{monitor: figures}), stopping, val_loader=val_loader, epochs=5)
    assert len(trainer.history) == epochs


def test_a_new_fit_has_its_patience_anew(net: MakeNet, train: ImageDataset) -> None:
    loader = BatchLoader(train, 40, device="cpu")
    trainer = fit(net, loader, Row(loss=[1.0] * 9), EarlyStopping("loss", patience=2), epochs=5)
    assert trainer.epoch == 3
    trainer.fit(loader, epochs=5)
    assert trainer.epoch == 5


def test_a_resumed_fit_has_what_was_left_of_it(net: MakeNet, train: ImageDataset, tmp_path: Path) -> None:
    loader = BatchLoader(train, 40, device="cpu")

    def chosen() -> list[Callback]:
        return [Checkpoint(tmp_path), Row(loss=[1.0] * 9), EarlyStopping("loss", patience=3)]

    fit(net, loader, *chosen(), epochs=2)
    for _ in range(2):  # the second time, the fit is over already
        resumed = Trainer(net(), callbacks=chosen(), device="cpu")
        assert len(resumed.fit(loader, epochs=9, resume=tmp_path)) == 4


def test_no_patience_is_refused() -> None:
    with pytest.raises(InputError, match="patience must be at least 1 epoch, not 0"):
        EarlyStopping(patience=0)
