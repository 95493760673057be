"""The progress of a fit where no terminal shows a bar: lines in a log file, and the bar of a notebook."""

import re
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from cifarnets import Trainer
from cifarnets._progress import progress_bar
from cifarnets.datasets import BatchLoader
from cifarnets.training import Callback, ProgressBar

Net = Callable[..., nn.Module]


def fit(net: Net, loader: Any, *more: Callback, val_loader: Any = None, epochs: int = 2) -> Trainer:
    trainer = Trainer(net(), callbacks=more, device="cpu")
    trainer.fit(loader, val_loader, epochs=epochs)
    return trainer


def test_a_line_an_epoch_where_there_is_no_terminal(
    net: Net, loader: BatchLoader, val_loader: BatchLoader, capfd: pytest.CaptureFixture[str]
) -> None:
    trainer = fit(net, loader, val_loader=val_loader, epochs=1)
    printed = capfd.readouterr()
    row = trainer.history[0]
    figures = ", ".join(f"{name} {row[name]:.4f}" for name in ("loss", "accuracy", "val_loss", "val_accuracy"))
    assert printed.out == ""
    assert printed.err == f"epoch 1/1: {figures}, {row['images_per_second']:,.0f} images/s\n"
    fit(net, loader, ProgressBar(show=True))
    assert "epoch 1/2: " in capfd.readouterr().err


def test_lines_come_every_few_seconds_at_most(
    net: Net, loader: BatchLoader, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(net, loader, epochs=6)
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/6", "epoch 6/6"]
    assert re.search(r" images/s, \d\d:\d\d left$", lines[0])
    monkeypatch.setattr("cifarnets.training.logs._Lines.BETWEEN_EPOCHS", 0)
    fit(net, loader, epochs=6)
    assert len(capfd.readouterr().err.splitlines()) == 6


def test_a_long_epoch_is_not_silent(
    net: Net, loader: BatchLoader, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cifarnets.training.logs._Lines.WITHIN_EPOCH", 0)
    fit(net, loader, epochs=1)
    *within, _ = capfd.readouterr().err.splitlines()
    assert [re.split(": loss ", line)[0] for line in within] == [f"epoch 1/1, batch {n}/3" for n in (1, 2, 3)]


def test_the_last_epoch_of_a_stopped_fit_is_printed(
    net: Net, loader: BatchLoader, capfd: pytest.CaptureFixture[str]
) -> None:
    class StopsAfterTwo(Callback):
        def on_epoch_end(self, trainer: Trainer) -> None:
            if trainer.epoch == 2:
                trainer.stop()

    fit(net, loader, StopsAfterTwo(), epochs=6)
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["epoch 1/6", "epoch 2/6"]


@pytest.mark.parametrize("kernel", [object(), None])
def test_a_notebook_shows_the_bar_and_ipython_on_a_pipe_does_not(
    kernel: object, net: Net, loader: BatchLoader, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a warning of tqdm's that ipywidgets is missing: here every warning is an error."""
    shell = SimpleNamespace(kernel=kernel)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.delitem(sys.modules, "tqdm.auto", raising=False)
    fit(net, loader, epochs=1)
    assert ("100%|" in capfd.readouterr().err) == (kernel is not None)


@pytest.mark.parametrize(
    ("show", "kernel", "seen"), [(None, None, False), (None, object(), True), (False, object(), False)]
)
def test_other_bars_are_there_in_a_notebook_too(
    show: bool | None, kernel: object, seen: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of `ImageDataset.from_folder` and of the download; here, stderr is no terminal."""
    shell = SimpleNamespace(kernel=kernel)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.delitem(sys.modules, "tqdm.auto", raising=False)
    with progress_bar(show, total=2) as bar:
        bar.update(2)
    assert ("100%|" in capfd.readouterr().err) == seen
