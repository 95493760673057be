"""The hooks of callbacks: their order, what each may do, and what becomes of their errors."""

import os
import signal
import sys
from pathlib import Path

import pytest
from tests.training.helpers import HOOKS, MakeNet, OnEveryHook

from cifarnets import Trainer
from cifarnets.datasets import BatchLoader
from cifarnets.errors import CallbackError, InputError
from cifarnets.training import Checkpoint, EarlyStopping
from cifarnets.training.checkpoint import CHECKPOINT_FILE


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
def test_a_callback_may_stop_at_every_hook(
    net: MakeNet, loader: BatchLoader, hook: str, batches: int, epochs: int
) -> None:
    calls: list[str] = []

    def stop(at: str, trainer: Trainer) -> None:
        calls.append(at)
        if at == hook:
            trainer.stop()

    trainer = Trainer(net(), callbacks=[OnEveryHook(stop)], device="cpu")
    history = trainer.fit(loader, epochs=2)
    assert calls.count("on_batch_end") == batches
    assert len(history) == trainer.epoch == epochs
    assert calls[0] == "on_fit_start"
    assert calls[-1] == "on_fit_end"
    assert not trainer.interrupted
    assert not trainer.failed
    trainer.callbacks.clear()
    assert len(trainer.fit(loader, epochs=1)) == epochs + 1, "a stopped trainer can go on"


def test_hooks_are_called_in_order(net: MakeNet, loader: BatchLoader, tmp_path: Path) -> None:
    calls: list[tuple[str, str]] = []
    first = OnEveryHook(lambda hook, _: calls.append(("first", hook)))
    second = OnEveryHook(lambda hook, _: calls.append(("second", hook)))

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
def test_a_callback_that_fails_is_named(net: MakeNet, loader: BatchLoader, hook: str) -> None:
    ended: list[str] = []

    class Faulty(OnEveryHook):
        pass

    def fail(at: str, _: Trainer) -> None:
        if at == hook:
            raise ZeroDivisionError("no such thing")

    after = OnEveryHook(lambda at, _: ended.append(at))
    trainer = Trainer(net(), callbacks=[after, Faulty(fail)], device="cpu")
    with pytest.raises(CallbackError, match=f"^Faulty.{hook} failed: no such thing$") as caught:
        trainer.fit(loader, epochs=1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert ended[-1] == "on_fit_end", "the others can still close what they opened"
    assert trainer.failed or hook == "on_fit_end"


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send itself these signals")
def test_on_fit_end_runs_in_all_callbacks_and_the_first_error_is_raised(
    net: MakeNet, loader: BatchLoader, tmp_path: Path
) -> None:
    def fall(hook: str, _: Trainer) -> None:
        if hook == "on_fit_end":
            raise OSError("no room")

    def stop(hook: str, trainer: Trainer) -> None:
        if hook == "on_batch_end":
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = Trainer(net(), callbacks=[OnEveryHook(fall), OnEveryHook(stop), Checkpoint(tmp_path)], device="cpu")
    with pytest.raises(CallbackError, match=r"^OnEveryHook\.on_fit_end failed: no room$"):
        trainer.fit(loader, epochs=1)
    assert (tmp_path / CHECKPOINT_FILE).is_file(), "the checkpoint was written all the same"
    with pytest.raises(InputError, match="EarlyStopping follows val_loss"):
        Trainer(net(), callbacks=[EarlyStopping(), OnEveryHook(fall)], device="cpu").fit(loader, epochs=1)


def test_a_hook_of_the_epoch_start_sees_the_model_in_training_mode(net: MakeNet, loader: BatchLoader) -> None:
    seen: dict[str, bool] = {}
    note = OnEveryHook(lambda hook, trainer: seen.update({hook: trainer.model.training}))
    Trainer(net(), callbacks=[note], device="cpu").fit(loader, epochs=1)
    assert seen["on_epoch_start"]
    assert seen["on_batch_end"]
    assert not seen["on_fit_end"]


@pytest.mark.parametrize("wrong", [Checkpoint, "EMA", None, lambda trainer: None])
def test_what_is_no_callback_is_refused(net: MakeNet, wrong: object) -> None:
    with pytest.raises(InputError, match="callbacks of Trainer must be a list of Callback, not"):
        Trainer(net(), callbacks=[wrong], device="cpu")  # type: ignore[list-item]
