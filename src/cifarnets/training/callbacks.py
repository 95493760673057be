"""What happens beside the loop: six moments of a fit, and the callbacks that the library ships."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from cifarnets._files import clear_leftovers
from cifarnets.errors import CallbackError, CifarNetsError, InputError, MissingExtraError, OutputError
from cifarnets.models.storage import save, why_not_loadable
from cifarnets.weights.state import FILE, write_state
from cifarnets.training.history import History

if TYPE_CHECKING:
    from tqdm import tqdm

    from cifarnets.training.trainer import Trainer

_LOG = logging.getLogger("cifarnets")
Monitor = Literal["val_loss", "val_accuracy", "loss", "accuracy"]


class Callback:
    """Override any of the six hooks; each is handed the trainer, whose attributes may be read.

    `trainer.stop()` ends the fit from any of them. An exception ends it too, as a `CallbackError`.

    Attributes:
        every_process: Whether the hooks run in every process of a distributed fit, or, by default, only in the one
            that writes.
    """

    every_process = False

    def state_dict(self) -> dict[str, Any]:
        """What must survive a checkpoint: tensors, plain values, and nestings of them."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""

    def on_fit_start(self, trainer: "Trainer") -> None:
        """Before the first epoch."""

    def on_fit_end(self, trainer: "Trainer") -> None:
        """At the end, whether the fit is complete, was stopped, or failed."""

    def on_epoch_start(self, trainer: "Trainer") -> None:
        """Before the first batch of an epoch."""

    def on_epoch_end(self, trainer: "Trainer") -> None:
        """After an epoch that ran to its end; `trainer.history[-1]` is its row, validation included."""

    def on_batch_start(self, trainer: "Trainer") -> None:
        """Before a batch."""

    def on_batch_end(self, trainer: "Trainer") -> None:
        """After a batch."""


def call(callbacks: Iterable[Callback], hook: str, trainer: "Trainer") -> None:
    """Run one hook of all callbacks that this process has a part in.

    Raises:
        CallbackError: One raised; the message names it and the hook.
    """
    for callback in callbacks:
        if not (trainer.world.is_main or callback.every_process):
            continue
        try:
            getattr(callback, hook)(trainer)
        except CifarNetsError:  # says by itself what is wrong
            raise
        except Exception as error:
            raise CallbackError(f"{type(callback).__name__}.{hook} failed: {error}") from error


def notify_end(callbacks: Iterable[Callback], trainer: "Trainer") -> CifarNetsError | None:
    """Run `on_fit_end` of all callbacks, whatever happens in one of them, and hand back the first error."""
    first: CifarNetsError | None = None
    for callback in callbacks:
        try:
            call([callback], "on_fit_end", trainer)
        except CifarNetsError as error:
            first = first or error
    return first


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
        total = batches and batches * (trainer.epochs - trainer.epoch) - trainer.batch
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
            bar.set_description_str(f"epoch {trainer.epoch + 1}/{trainer.epochs}", refresh=False)
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
                tqdm.write(f"{datetime.now()} Epoch {row['epoch']}, Training loss {row['loss']}")


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


class EMA(Callback):
    """Keeps an average of the weights, which is then what is evaluated and saved; torch's `AveragedModel`.

    Args:
        decay: Of the exponential moving average, after every optimizer step; None for the plain mean of all
            (stochastic weight averaging, Izmailov et al. 2018).
        start_epoch: Epochs before the averaging begins; until then the average is the model itself.
    """

    every_process = True

    def __init__(self, decay: float | None = 0.999, start_epoch: int = 0) -> None:
        if decay is not None and not 0 <= decay < 1:
            raise InputError(f"decay must be at least 0 and below 1, or None for the plain mean, not {decay}.")
        self.decay = decay
        self.start_epoch = start_epoch
        self.average: AveragedModel | None = None
        self._restored: dict[str, Any] | None = None
        self._hook: Any = None

    def on_fit_start(self, trainer: "Trainer") -> None:
        if self.average is None:
            # Buffers (the statistics of BatchNorm) are averaged with the weights that they belong to.
            rule = None if self.decay is None else get_ema_multi_avg_fn(self.decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(trainer.model, multi_avg_fn=rule, use_buffers=True)
        if self._restored is not None:
            self.average.load_state_dict(self._restored["average"])
            self._restored = None
        trainer.eval_model = self.average.module
        # Not a batch's end: a step may take several batches, and be left out where fp16 gradients overflow.
        self._hook = trainer.optimizer.register_step_post_hook(lambda *_: self._update(trainer))

    def on_fit_end(self, trainer: "Trainer") -> None:
        if self._hook is not None:
            self._hook.remove()

    def _update(self, trainer: "Trainer") -> None:
        assert self.average is not None  # the hook is set where it is made
        self.average.update_parameters(trainer.model)
        if trainer.epoch < self.start_epoch:
            self.average.n_averaged.zero_()  # the next update copies

    def state_dict(self) -> dict[str, Any]:
        return {} if self.average is None else {"average": dict(self.average.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state or None


class _Best:
    """Follows one figure of the history and says when it has improved."""

    def __init__(self, monitor: Monitor, min_delta: float = 0.0) -> None:
        if monitor not in ("val_loss", "val_accuracy", "loss", "accuracy"):
            raise InputError(f"monitor must be val_loss, val_accuracy, loss or accuracy, not {monitor!r}.")
        self.monitor = monitor
        self.sign = 1 if monitor.endswith("loss") else -1
        self.min_delta = min_delta
        self.best = math.inf

    def check(self, trainer: "Trainer", user: str, allow_test: bool) -> None:
        """Refuse a fit in which nothing, or the test set, would be followed."""
        if not self.monitor.startswith("val_"):
            return
        if trainer.val_loader is None:
            raise InputError(f"{user} follows {self.monitor}: pass val_loader to fit, or follow another figure.")
        if _is_test(trainer.val_loader) and not allow_test:
            raise InputError(
                f"{user} would choose on the test set, whose figures would then be too good to be true: hold out a "
                "part of the training set with train_val_split, or say allow_test=True."
            )

    def improved(self, trainer: "Trainer") -> bool:
        value = self.sign * trainer.history[-1][self.monitor]
        if value < self.best - self.min_delta:
            self.best = value
            return True
        return False


def _is_test(loader: Any) -> bool:
    """Whether a loader's images are of the test set, ours or torchvision's, as far as one can see."""
    source = loader
    while hasattr(source, "dataset"):  # that of a loader, and of torch's Subset
        source = source.dataset
    if hasattr(source, "datasets"):  # torch's ConcatDataset
        return any(map(_is_test, source.datasets))
    return getattr(source, "split", None) == "test" or getattr(source, "train", None) is False


class Checkpoint(Callback):
    """Keeps a fit on disk: its whole state, the last model, and the best one.

    `checkpoint.safetensors` holds everything that `Trainer.fit(resume=folder)` needs; `last.safetensors` and
    `best.safetensors` are models for `load`, kept if it could build them again. Each is replaced only
    once its successor is whole. When Ctrl-C or SIGTERM ends the fit, the state is saved first.

    Args:
        folder: Where to; made if missing.
        best: The figure of the history that decides which model is the best; None keeps no best one.
        every_batches: Save the state within epochs too, after so many batches.
        allow_test: Let the test set decide, against all advice.
    """

    every_process = True  # the state is collected from all; one writes

    def __init__(
        self,
        folder: str | os.PathLike[str],
        best: Monitor | None = None,
        *,
        every_batches: int | None = None,
        allow_test: bool = False,
    ) -> None:
        self.folder = Path(folder)
        self.every_batches = every_batches
        self.allow_test = allow_test
        self._best = _Best(best) if best else None
        self._keeps_models = False

    def on_fit_start(self, trainer: "Trainer") -> None:
        reason = why_not_loadable(trainer.model)
        self._keeps_models = not reason
        if self._best:
            self._best.check(trainer, "Checkpoint", self.allow_test)
            if reason:
                raise InputError(f"Checkpoint can keep no best model, so say best=None, or: {reason}")
        if trainer.world.is_main:
            clear_leftovers(self.folder)

    def on_batch_end(self, trainer: "Trainer") -> None:
        if self.every_batches and trainer.batch % self.every_batches == 0:
            self._write_state(trainer)

    def on_epoch_end(self, trainer: "Trainer") -> None:
        improved = self._best is not None and self._best.improved(trainer)
        if trainer.world.is_main and self._keeps_models:
            save(trainer.eval_model, self.folder / "last.safetensors")
            if improved:
                save(trainer.eval_model, self.folder / "best.safetensors")
        self._write_state(trainer)

    def on_fit_end(self, trainer: "Trainer") -> None:
        if trainer.interrupted and not trainer.failed:
            self._write_state(trainer)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best.best} if self._best else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._best and state:
            self._best.best = state["best"]

    def _write_state(self, trainer: "Trainer") -> None:
        trainer.metrics.read_losses(
            trainer.epoch + 1
        )  # a GPU's are read now and then only, and the last good state must not be lost to NaN
        state = trainer.state_dict()
        if trainer.world.is_main:
            write_state(self.folder / FILE, state)


class EarlyStopping(Callback):
    """Stops once a figure has not improved for some epochs.

    Args:
        monitor: The figure; a loss is to fall, an accuracy to rise.
        patience: Epochs without improvement before the fit is stopped.
        min_delta: What counts as an improvement.
        allow_test: Let the test set decide, against all advice.
    """

    every_process = True  # all see the same figures and stop together

    def __init__(
        self, monitor: Monitor = "val_loss", patience: int = 5, min_delta: float = 0.0, *, allow_test: bool = False
    ) -> None:
        if patience < 1:
            raise InputError(f"patience must be at least 1 epoch, not {patience}.")
        self.patience = patience
        self.allow_test = allow_test
        self.waited = 0
        self._best = _Best(monitor, min_delta)
        self._resumed = False

    def on_fit_start(self, trainer: "Trainer") -> None:
        self._best.check(trainer, "EarlyStopping", self.allow_test)
        resumed, self._resumed = self._resumed, False
        if not resumed:
            self.waited = 0
        elif self.waited >= self.patience:  # the fit had come to its end
            trainer.stop()

    def on_epoch_end(self, trainer: "Trainer") -> None:
        self.waited = 0 if self._best.improved(trainer) else self.waited + 1
        if self.waited >= self.patience:
            trainer.stop()

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self.waited, "best": self._best.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.waited, self._best.best = state["waited"], state["best"]
        self._resumed = True
