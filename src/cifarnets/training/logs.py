"""What a fit shows and writes: progress, CSV, JSON lines, TensorBoard."""

import contextlib
import logging
import os
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarnets._checked import checked
from cifarnets._progress import in_notebook, progress_bar
from cifarnets.errors import MissingExtraError, OutputError
from cifarnets.training.callbacks import Callback
from cifarnets.training.history import History

if TYPE_CHECKING:
    from tqdm import tqdm

    from cifarnets.training.trainer import Trainer

_LOG = logging.getLogger("cifarnets")


class ProgressBar(Callback):
    """Shows how far a fit is and how well it goes: epoch, loss, accuracy, images/s and time left.

    On a terminal and in a notebook it is a bar. Where stderr goes elsewhere (a pipe, a log file, CI, Slurm) it prints a
    line there for every epoch, at most one every few seconds, and one a minute within a long epoch.

    The Trainer adds one itself, except with `progress=False`.

    Examples:
        >>> from cifarnets import Trainer, create
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> from cifarnets.training import ProgressBar
        >>> trainer = Trainer(create("convnet"), callbacks=[ProgressBar(show=False)])
        >>> history = trainer.fit(BatchLoader(SyntheticCIFAR10(size=100)), epochs=1)

    Args:
        show: True for a bar and False for nothing, wherever stderr goes.
        every: Seconds between two looks at the loss, so that a GPU need not wait for each batch.
    """

    @checked
    def __init__(self, show: bool | None = None, every: float = 0.2) -> None:
        self.show = show
        self.every = every
        self._bar: tqdm[Any] | None = None
        self._lines: _Lines | None = None

    def on_fit_start(self, trainer: "Trainer") -> None:
        try:
            batches = len(trainer.loader)  # type: ignore[arg-type]
        except TypeError:
            batches = None
        total = batches and batches * (trainer.end_epoch - trainer.epoch) - trainer.batches_done
        self._looked = 0.0
        self._note = ""
        self._size = getattr(trainer.loader, "batch_size", None)
        if self.show is None and not in_notebook() and not sys.stderr.isatty():
            self._lines = _Lines(trainer, batches, total)
        elif self.show is not False:
            self._bar = progress_bar(True, total=total, unit="batch")

    def on_batch_end(self, trainer: "Trainer") -> None:
        if self._lines is not None:
            self._lines.on_batch_end(trainer)
        bar = self._bar
        if bar is None:
            return
        now = time.monotonic()
        if now - self._looked >= self.every:
            self._looked = now
            bar.set_description_str(f"epoch {trainer.epoch + 1}/{trainer.end_epoch}", refresh=False)
            rate = bar.format_dict["rate"]
            speed = f", {rate * self._size:,.0f} images/s" if rate and self._size else ""
            bar.set_postfix_str(f"{_figures_so_far(trainer)}{self._note}{speed}", refresh=False)
        bar.update()

    def on_epoch_end(self, trainer: "Trainer") -> None:
        if self._lines is not None:
            self._lines.on_epoch_end(trainer)
        row = trainer.history[-1]
        if "val_accuracy" in row:
            self._note = f", val_accuracy {row['val_accuracy']:.4f}"

    def on_fit_end(self, trainer: "Trainer") -> None:
        if self._lines is not None:
            self._lines.close(trainer)
        if self._bar is not None:
            self._bar.close()
        self._bar = self._lines = None


class _Lines:
    """The progress of a fit in lines, for a file that people read later, or while it grows."""

    BETWEEN_EPOCHS, WITHIN_EPOCH = 5.0, 60.0
    """Seconds from one line to the next."""

    def __init__(self, trainer: "Trainer", batches: int | None, total: int | None) -> None:
        self._batches, self._total = batches, total
        self._done = 0
        self._shown = trainer.epoch
        self._started = time.monotonic()
        self._printed = self._started
        self._is_first = True

    def on_batch_end(self, trainer: "Trainer") -> None:
        self._done += 1
        if time.monotonic() - self._printed >= self.WITHIN_EPOCH:
            of = f"/{self._batches}" if self._batches else ""
            place = f"epoch {trainer.epoch + 1}/{trainer.end_epoch}, batch {trainer.batches_done}{of}"
            self._print(f"{place}: {_figures_so_far(trainer)}{self._time_left()}")

    def on_epoch_end(self, trainer: "Trainer") -> None:
        is_due = time.monotonic() - self._printed >= self.BETWEEN_EPOCHS
        if self._is_first or is_due or trainer.epoch == trainer.end_epoch:
            self._print_epoch(trainer)

    def close(self, trainer: "Trainer") -> None:
        if trainer.epoch > self._shown:  # such as after an early stop
            self._print_epoch(trainer)

    def _print_epoch(self, trainer: "Trainer") -> None:
        self._shown, self._is_first, row = trainer.epoch, False, trainer.history[-1]
        names = [name for name in ("loss", "accuracy", "val_loss", "val_accuracy") if name in row]
        figures = ", ".join(f"{name} {row[name]:.4f}" for name in names)
        speed = f"{row['images_per_second']:,.0f} images/s"
        self._print(f"epoch {row['epoch']}/{trainer.end_epoch}: {figures}, {speed}{self._time_left()}")

    def _time_left(self) -> str:
        from tqdm import tqdm

        if not self._done or not self._total or self._done >= self._total:
            return ""
        seconds = (time.monotonic() - self._started) / self._done * (self._total - self._done)
        return f", {tqdm.format_interval(seconds)} left"

    def _print(self, text: str) -> None:
        self._printed = time.monotonic()
        with contextlib.suppress(OSError):  # a reader that has gone (head) is no reason to stop
            print(text, file=sys.stderr, flush=True)


def _figures_so_far(trainer: "Trainer") -> str:
    """Loss of the last batch, and accuracy of the epoch as far as this process's shards go."""
    accuracy = min(trainer.metrics.accuracy() * trainer.world.size, 1)
    return f"loss {trainer.last_loss.item():.4f}, accuracy {accuracy:.4f}"


class ArticleLog(Callback):
    """Prints as the article does (step 20): a time stamp and the mean loss, at epoch 1 and every tenth.

    Examples:
        >>> from cifarnets import Trainer, create
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> from cifarnets.training import ArticleLog
        >>> trainer = Trainer(create("convnet"), callbacks=[ArticleLog()], progress=False)
        >>> history = trainer.fit(BatchLoader(SyntheticCIFAR10(size=100)), epochs=1)
        20... Epoch 1, Training loss 2...

    Args:
        every: Epochs from one line to the next.
    """

    @checked
    def __init__(self, every: int = 10) -> None:
        self.every = every

    def on_epoch_end(self, trainer: "Trainer") -> None:
        row = trainer.history[-1]
        if row["epoch"] == 1 or row["epoch"] % self.every == 0:
            from tqdm import tqdm

            loss = trainer.metrics.batch_mean_loss
            with contextlib.suppress(BrokenPipeError):  # a reader that has gone (head) is no reason to stop
                # As print, but above a progress bar, not into it.
                tqdm.write(f"{datetime.now()} Epoch {row['epoch']}, Training loss {loss:.4f}")


class _FileLog(Callback):
    """Writes the history to a file after every epoch; if that fails, again after the next, and at the end."""

    @checked
    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._behind = False

    def write(self, history: History) -> None:
        raise NotImplementedError

    def on_epoch_end(self, trainer: "Trainer") -> None:
        try:
            self.write(trainer.history)
            self._behind = False
        except OutputError as error:  # on Windows, that another program has the file open will do
            self._behind = True
            _LOG.warning("%s The fit goes on, and it is tried again.", error)

    def on_fit_end(self, trainer: "Trainer") -> None:
        if self._behind:
            self.write(trainer.history)


class CSVLog(_FileLog):
    """Writes the history to a CSV file after every epoch.

    Examples:
        >>> from pathlib import Path
        >>> from cifarnets import Trainer, create
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> from cifarnets.training import CSVLog
        >>> trainer = Trainer(create("convnet"), callbacks=[CSVLog("history.csv")], progress=False)
        >>> history = trainer.fit(BatchLoader(SyntheticCIFAR10(size=100)), epochs=2)
        >>> len(Path("history.csv").read_text().splitlines())
        3

    Args:
        path: The file.
    """

    def write(self, history: History) -> None:
        history.to_csv(self.path)


class JSONLinesLog(_FileLog):
    """Writes the history to a file of JSON lines after every epoch.

    Examples:
        >>> from pathlib import Path
        >>> from cifarnets import Trainer, create
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> from cifarnets.training import JSONLinesLog
        >>> trainer = Trainer(create("convnet"), callbacks=[JSONLinesLog("history.jsonl")], progress=False)
        >>> history = trainer.fit(BatchLoader(SyntheticCIFAR10(size=100)), epochs=2)
        >>> len(Path("history.jsonl").read_text().splitlines())
        2

    Args:
        path: The file.
    """

    def write(self, history: History) -> None:
        history.to_jsonl(self.path)


class TensorBoardLog(Callback):
    """Writes every figure of the history for TensorBoard (`torch.utils.tensorboard`; the extra `tensorboard`).

    Examples:
        >>> from cifarnets import Trainer, create
        >>> from cifarnets.training import TensorBoardLog
        >>> trainer = Trainer(create("convnet"), callbacks=[TensorBoardLog("runs/tensorboard")])

    Args:
        folder: The folder for `tensorboard --logdir`.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

    @checked
    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._writer: Any = None

    def on_fit_start(self, trainer: "Trainer") -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError(
                "TensorBoardLog needs tensorboard: pip install 'cifarnets[tensorboard]'."
            ) from error
        # What a killed run wrote after its last checkpoint is hidden.
        self._writer = SummaryWriter(str(self.folder), purge_step=trainer.epoch + 1)

    def on_epoch_end(self, trainer: "Trainer") -> None:
        row = trainer.history[-1]
        for key, value in row.items():
            if key != "epoch":
                self._writer.add_scalar(key, value, row["epoch"])
        self._writer.flush()

    def on_fit_end(self, trainer: "Trainer") -> None:
        if self._writer is not None:
            self._writer.close()
