"""What a fit shows and writes: progress bar, printed lines, CSV, JSON lines, TensorBoard."""

import contextlib
import logging
import os
import time
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarnets.errors import MissingExtraError, OutputError
from cifarnets.training.callbacks import Callback
from cifarnets.training.history import History

if TYPE_CHECKING:
    from tqdm import tqdm

    from cifarnets.training.trainer import Trainer

_LOG = logging.getLogger("cifarnets")


class ProgressBar(Callback):
    """One bar for the fit: epoch, loss, accuracy, images/s and time left; nothing unless stderr is a terminal.

    The Trainer adds one by itself unless told `progress=False`.

    Args:
        show: True or False instead of asking whether this is a terminal.
        every: Seconds between two looks at the loss, so that a GPU need not wait for each.
    """

    def __init__(self, show: bool | None = None, every: float = 0.2) -> None:
        self.show = show
        self.every = every
        self._bar: tqdm[Any] | None = None

    def on_fit_start(self, trainer: "Trainer") -> None:
        from tqdm import tqdm

        try:
            batches = len(trainer.loader)  # type: ignore[arg-type]
        except TypeError:
            batches = None
        total = batches and batches * (trainer.end_epoch - trainer.epoch) - trainer.batches_done
        hide = None if self.show is None else not self.show
        self._bar = tqdm(total=total, disable=hide, unit="batch", dynamic_ncols=True, leave=True)
        self._size = getattr(trainer.loader, "batch_size", None)
        self._looked = 0.0
        self._note = ""

    def on_batch_end(self, trainer: "Trainer") -> None:
        bar = self._bar
        if bar is None or bar.disable:
            return
        now = time.monotonic()
        if now - self._looked >= self.every:
            self._looked = now
            bar.set_description_str(f"epoch {trainer.epoch + 1}/{trainer.end_epoch}", refresh=False)
            speed = (
                f", {bar.format_dict['rate'] * self._size:,.0f} images/s"
                if bar.format_dict["rate"] and self._size
                else ""
            )
            seen = min(trainer.metrics.accuracy() * trainer.world.size, 1)  # of this process's share
            figures = f"loss {trainer.last_loss.item():.4f}, accuracy {seen:.4f}"
            bar.set_postfix_str(f"{figures}{self._note}{speed}", refresh=False)
        bar.update()

    def on_epoch_end(self, trainer: "Trainer") -> None:
        row = trainer.history[-1]
        if "val_accuracy" in row:
            self._note = f", val_accuracy {row['val_accuracy']:.4f}"

    def on_fit_end(self, trainer: "Trainer") -> None:
        if self._bar is not None:
            self._bar.close()


class ArticleLog(Callback):
    """Prints as the article does (step 20): a time stamp and the mean loss, at epoch 1 and every tenth."""

    def __init__(self, every: int = 10) -> None:
        self.every = every

    def on_epoch_end(self, trainer: "Trainer") -> None:
        row = trainer.history[-1]
        if row["epoch"] == 1 or row["epoch"] % self.every == 0:
            from tqdm import tqdm

            with contextlib.suppress(BrokenPipeError):  # a reader that has gone (head) is no reason to stop
                # As print, but above a progress bar, not into it.
                tqdm.write(f"{datetime.now()} Epoch {row['epoch']}, Training loss {trainer.metrics.batch_mean_loss}")


class _FileLog(Callback):
    """Writes the history to a file after every epoch; if that fails, again after the next, and at the end."""

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
    """Keeps the history in a CSV file, whole after every epoch."""

    def write(self, history: History) -> None:
        history.to_csv(self.path)


class JSONLinesLog(_FileLog):
    """Keeps the history in a file of JSON lines, whole after every epoch."""

    def write(self, history: History) -> None:
        history.to_jsonl(self.path)


class TensorBoardLog(Callback):
    """Writes every figure of the history for TensorBoard (`torch.utils.tensorboard`; the extra `tensorboard`).

    Args:
        folder: What `tensorboard --logdir` is given.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """

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
