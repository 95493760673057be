"""Ctrl-C and SIGTERM: the batch ends, the state is saved, and the program ends as everybody expects."""

import functools
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.training.helpers import MakeNet, OnEveryHook, StopAt, assert_same_weights, without_times
from torch import Tensor

from cifarnets import Trainer, load
from cifarnets.datasets import BatchLoader, ImageDataset
from cifarnets.training import Checkpoint
from cifarnets.training.checkpoint import CHECKPOINT_FILE
from cifarnets.training.signals import is_interactive
from cifarnets.weights.state import read_state

ENDS = {signal.SIGTERM: SystemExit, signal.SIGINT: KeyboardInterrupt}
"""What a fit in a script raises after a signal."""

without_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send itself these signals")


def send(number: int, hook: str = "on_batch_start", epoch: int = 0, times: int = 1) -> OnEveryHook:
    """A callback that sends this process a signal."""

    def act(at: str, trainer: Trainer) -> None:
        if at == hook and trainer.epoch == epoch:
            for _ in range(times):
                os.kill(os.getpid(), number)

    return OnEveryHook(act)


@pytest.fixture
def interactive(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session in which a person types: Python's prompt sets this."""
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)


class TestOneSignal:
    @without_signals
    @pytest.mark.parametrize("number", ENDS)
    def test_the_batch_ends_and_the_program_is_asked_to_end(
        self, net: MakeNet, loader: BatchLoader, number: signal.Signals, capsys: pytest.CaptureFixture[str]
    ) -> None:
        before = signal.getsignal(number)
        trainer = Trainer(net(), callbacks=[send(number, epoch=1)], device="cpu")
        with pytest.raises(ENDS[number]) as caught:
            trainer.fit(loader, epochs=5)
        if isinstance(caught.value, SystemExit):
            assert caught.value.code == 143
        assert len(trainer.history) == 1
        assert trainer.global_step == 4
        assert trainer.interrupted
        assert not trainer.failed
        assert "stopping after this batch" in capsys.readouterr().err
        assert signal.getsignal(number) is before
        trainer.callbacks.clear()
        assert len(trainer.fit(loader, epochs=1)) == 2
        assert not trainer.interrupted

    @without_signals
    @pytest.mark.parametrize("number", ENDS)
    def test_the_checkpoint_is_saved_and_the_callbacks_end_first(
        self, net: MakeNet, loader: BatchLoader, number: signal.Signals, tmp_path: Path
    ) -> None:
        hooks: list[str] = []
        note = OnEveryHook(lambda hook, _: hooks.append(hook))
        trainer = Trainer(net(), callbacks=[send(number), note, Checkpoint(tmp_path)], device="cpu")
        with pytest.raises(ENDS[number]):
            trainer.fit(loader, epochs=5)
        assert hooks == ["on_fit_start", "on_epoch_start", "on_batch_start", "on_batch_end", "on_fit_end"]
        assert read_state(tmp_path / CHECKPOINT_FILE)["progress"]["batch"] == 1

    @without_signals
    @pytest.mark.usefixtures("interactive")
    def test_ctrl_c_in_an_interactive_session_returns_the_history(
        self, net: MakeNet, loader: BatchLoader, tmp_path: Path
    ) -> None:
        callbacks = [send(signal.SIGINT, epoch=1), Checkpoint(tmp_path)]
        trainer = Trainer(net(), callbacks=callbacks, device="cpu")
        history = trainer.fit(loader, epochs=5)
        assert [row["epoch"] for row in history] == [1]
        assert trainer.interrupted
        assert not trainer.failed
        assert read_state(tmp_path / CHECKPOINT_FILE)["progress"]["batch"] == 1

    @without_signals
    @pytest.mark.usefixtures("interactive")
    def test_sigterm_ends_an_interactive_session_too(self, net: MakeNet, loader: BatchLoader) -> None:
        with pytest.raises(SystemExit):
            Trainer(net(), callbacks=[send(signal.SIGTERM)], device="cpu").fit(loader, epochs=5)

    @without_signals
    def test_a_signal_in_the_last_hook_of_a_complete_fit_ends_the_program_too(
        self, net: MakeNet, loader: BatchLoader
    ) -> None:
        callbacks = [send(signal.SIGTERM, "on_fit_end", epoch=1)]
        trainer = Trainer(net(), callbacks=callbacks, device="cpu")
        with pytest.raises(SystemExit):
            trainer.fit(loader, epochs=1)
        assert len(trainer.history) == 1


class TestAtOnce:
    """What ends a fit in the middle of a step: nothing torn is kept."""

    def assert_nothing_is_kept(self, trainer: Trainer, folder: Path) -> None:
        assert trainer.interrupted
        assert trainer.failed
        assert not (folder / CHECKPOINT_FILE).exists()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    @without_signals
    @pytest.mark.parametrize("session", ["script", "interactive"])
    def test_a_second_ctrl_c(
        self, net: MakeNet, loader: BatchLoader, tmp_path: Path, session: str, request: pytest.FixtureRequest
    ) -> None:
        if session == "interactive":
            request.getfixturevalue("interactive")
        done: list[str] = []
        note = OnEveryHook(lambda hook, _: done.append(hook))
        callbacks = [note, send(signal.SIGINT, times=2), Checkpoint(tmp_path)]
        trainer = Trainer(net(), callbacks=callbacks, device="cpu")
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(loader, epochs=5)
        assert done == ["on_fit_start", "on_epoch_start", "on_batch_start", "on_fit_end"]
        self.assert_nothing_is_kept(trainer, tmp_path)

    @pytest.mark.parametrize("session", ["script", "interactive"])
    def test_a_keyboard_interrupt_inside_a_loader(
        self, net: MakeNet, loader: BatchLoader, tmp_path: Path, session: str, request: pytest.FixtureRequest
    ) -> None:
        if session == "interactive":
            request.getfixturevalue("interactive")

        class Interrupted:
            def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
                yield next(iter(loader))
                raise KeyboardInterrupt

        trainer = Trainer(net(), callbacks=[Checkpoint(tmp_path)], device="cpu")
        with pytest.raises(KeyboardInterrupt):
            trainer.fit(Interrupted(), epochs=9)
        self.assert_nothing_is_kept(trainer, tmp_path)


@without_signals
def test_a_handler_of_the_user_stays(net: MakeNet, loader: BatchLoader) -> None:
    caught: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: caught.append(number))
    try:
        callbacks = [send(signal.SIGTERM, "on_epoch_start"), send(signal.SIGTERM, "on_epoch_start", epoch=1)]
        assert len(Trainer(net(), callbacks=callbacks, device="cpu").fit(loader, epochs=2)) == 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert caught == [signal.SIGTERM] * 2


def test_a_fit_in_another_thread_leaves_signals_alone(net: MakeNet, loader: BatchLoader) -> None:
    trainer = Trainer(net(), device="cpu")
    thread = threading.Thread(target=trainer.fit, args=(loader,), kwargs={"epochs": 1})
    thread.start()
    thread.join()
    assert len(trainer.history) == 1


def test_stop_in_mid_epoch_leaves_no_row_and_a_new_fit_starts_a_new_epoch(net: MakeNet, train: ImageDataset) -> None:
    loader = BatchLoader(train, 16, shuffle=True, device="cpu", seed=0)
    trainer = Trainer(net(), accumulate=3, callbacks=[StopAt(2)], device="cpu")
    before = net()
    assert trainer.fit(loader, epochs=1) == []
    assert_same_weights(trainer.model, before)  # two batches of three: no step was due
    trainer.callbacks.clear()
    trainer.fit(loader, epochs=1)
    again = Trainer(before, accumulate=3, device="cpu")
    fresh = BatchLoader(train, 16, shuffle=True, device="cpu", seed=0)
    fresh.epoch = 1
    again.fit(fresh, epochs=1)
    assert without_times(trainer.history) == without_times(again.history)
    assert_same_weights(trainer.model, again.model)


@pytest.mark.parametrize("mark", ["ps1", "IPython"])
def test_a_prompt_and_a_notebook_are_interactive(mark: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_interactive()
    if mark == "ps1":
        monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    else:
        monkeypatch.setattr("builtins.__IPYTHON__", True, raising=False)
    assert is_interactive()


# Whole programs, which know nothing of signals.

SCRIPT = """
import sys, time
import torch
from cifarnets import Trainer, create, seed_everything
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
from cifarnets.training import Callback, Checkpoint

torch.set_num_threads(1)
folder, mark = sys.argv[1:]

class Say(Callback):
    def on_batch_end(self, trainer):
        if trainer.global_step == 7:  # in mid-epoch
            print("ready", flush=True)
            while mark == "wait" and not trainer._stopping:  # a pause could begin after the signal
                time.sleep(0.01)

data = SyntheticCIFAR10(size=200)
for seed in (0, 1, 2):
    seed_everything(seed)
    kept, loader = f"{folder}/{seed}", BatchLoader(data, 40, shuffle=True, device="cpu")
    trainer = Trainer(create("convnet"), lr=0.05, device="cpu", callbacks=[Say(), Checkpoint(kept)], progress=False)
    history = trainer.fit(loader, epochs=2, resume=kept)
print("on", history.column("loss"))
"""


@functools.cache
def status_of_ctrl_c() -> int:
    """How a script that imports torch ends after Ctrl-C: -SIGINT.

    It is 1 where packages that torch imports run code as the program ends, which makes Python forget the Ctrl-C: optree
    (of Keras), and wcwidth (of IPython).
    """
    status = subprocess.run(
        [sys.executable, "-c", "import torch._dynamo; raise KeyboardInterrupt"], stderr=subprocess.DEVNULL
    ).returncode
    assert status in (1, -signal.SIGINT)
    return status


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts a script with arguments; whatever is left of it is ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def run(script: str, *words: str, **options: Any) -> "subprocess.Popen[str]":
        path = tmp_path / "script.py"
        path.write_text(script)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        process = subprocess.Popen([sys.executable, str(path), *words], **pipes, **options)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@without_signals
@pytest.mark.parametrize("number", ENDS)
def test_a_script_ends_with_the_usual_status_and_resumes_bit_for_bit(
    number: signal.Signals, start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    untouched = start(SCRIPT, str(tmp_path / "untouched"), "run")
    expected, errors = untouched.communicate(timeout=120)
    assert untouched.returncode == 0, errors

    killed = start(SCRIPT, str(tmp_path / "killed"), "wait")
    assert killed.stdout is not None
    assert killed.stdout.readline() == "ready\n"
    killed.send_signal(number)
    output, errors = killed.communicate(timeout=120)
    assert output == "", "the script must not go on to its next line, nor to the next seed"
    if number == signal.SIGTERM:
        assert killed.returncode == 143
        assert errors == "\nstopping after this batch (once more: at once)\n"
    else:
        assert killed.returncode == status_of_ctrl_c(), "as Python ends after Ctrl-C"
        assert errors.endswith("\nKeyboardInterrupt\n")
    progress = read_state(tmp_path / "killed" / "0" / CHECKPOINT_FILE)["progress"]
    assert (progress["epoch"], progress["batch"]) == (1, 2)
    assert not (tmp_path / "killed" / "1").exists()

    resumed = start(SCRIPT, str(tmp_path / "killed"), "run")
    output, errors = resumed.communicate(timeout=120)
    assert resumed.returncode == 0, errors
    assert output.splitlines()[-1] == expected.splitlines()[-1]
    for seed in "012":
        ours, theirs = (load(tmp_path / name / seed / "last.safetensors") for name in ("killed", "untouched"))
        assert_same_weights(ours, theirs)


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
    try:
        trainer.fit(loader, epochs=2)
    finally:
        print("ended", trainer.interrupted, trainer.failed, trainer.batches_done, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no process groups of this kind")
@pytest.mark.parametrize(("number", "method"), [(signal.SIGTERM, "fork"), (signal.SIGINT, "spawn")])
def test_a_signal_to_the_workers_too_saves_first(
    number: signal.Signals, method: str, start: Callable[..., "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    process = start(WORKERS, str(folder), method, start_new_session=True)
    while process.poll() is None and not (folder / CHECKPOINT_FILE).exists():
        time.sleep(0.01)
    os.killpg(process.pid, number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else status_of_ctrl_c()), errors
    assert re.fullmatch(r"ended True False [1-9]\d*\n", output)
    assert errors.count("stopping after this batch") == 1
    assert read_state(folder / CHECKPOINT_FILE)["progress"]["batch"] == int(output.split()[-1])
