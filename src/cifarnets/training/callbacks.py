"""Six moments of a fit, and the callbacks that change it: averaged weights, early stopping."""

import copy
import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from cifarnets.errors import CallbackError, CifarNetsError, InputError, shorten

if TYPE_CHECKING:
    from cifarnets.training.trainer import Trainer

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

    def check_state(self, state: dict[str, Any], trainer: "Trainer") -> None:
        """Refuse a state that `load_state_dict` could not take; nothing of the trainer has been restored yet.

        Raises:
            InputError: It is damaged, or of a callback with other arguments.
        """

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


def notify(callbacks: Iterable[Callback], hook: str, trainer: "Trainer") -> None:
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
            notify([callback], "on_fit_end", trainer)
        except CifarNetsError as error:
            first = first or error
    return first


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
            rule = None if self.decay is None else functools.partial(_ema, self.decay)
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
            self._hook = None

    def _update(self, trainer: "Trainer") -> None:
        assert self.average is not None  # the hook is set where it is made
        self.average.update_parameters(trainer.model)
        if trainer.epoch < self.start_epoch:
            self.average.n_averaged.zero_()  # the next update copies

    def check_state(self, state: dict[str, Any], trainer: "Trainer") -> None:
        own = {f"module.{name}": value for name, value in trainer.model.state_dict().items()}
        own["n_averaged"] = torch.tensor(0)
        average = state.get("average", {})
        fits = isinstance(average, dict) and (not state or average.keys() == own.keys())
        if not fits or any(_kind(value) != _kind(own[name]) for name, value in average.items()):
            raise InputError("the checkpoint is damaged: the average of EMA does not fit the model.")

    def state_dict(self) -> dict[str, Any]:
        return {} if self.average is None else {"average": dict(self.average.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state or None


@torch.no_grad()
def _ema(decay: float, averages: list[Tensor], current: list[Tensor], _: Any) -> None:
    """Move averages towards the current values. Unlike torch's function of this kind, it can be pickled."""
    if averages[0].is_floating_point():  # AveragedModel groups tensors by device and dtype
        torch._foreach_lerp_(averages, current, 1 - decay)
    else:
        for average, value in zip(averages, current, strict=True):
            average.copy_(value * (1 - decay) + average * decay)


def _kind(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)


class Best:
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

    def at(self, best: float) -> "Best":
        """The same rule with another best figure."""
        other = copy.copy(self)
        other.best = best
        return other

    def check_state(self, state: dict[str, Any], user: str) -> None:
        """Refuse a best figure that is no number."""
        best = state.get("best")
        is_whole = type(best) is int and abs(best) < 2**63
        if not is_whole and not (isinstance(best, float) and not math.isnan(best)):
            raise InputError(f"the checkpoint is damaged: the best figure of {user} is {shorten(best)}.")

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
        self._best = Best(monitor, min_delta)
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

    def check_state(self, state: dict[str, Any], trainer: "Trainer") -> None:
        waited = state.get("waited")
        if type(waited) is not int or not 0 <= waited < 2**31:
            raise InputError(f"the checkpoint is damaged: EarlyStopping waited {shorten(waited)} epochs.")
        self._best.check_state(state, "EarlyStopping")

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self.waited, "best": self._best.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.waited, self._best = state["waited"], self._best.at(state["best"])
        self._resumed = True
