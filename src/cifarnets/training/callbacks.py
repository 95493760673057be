"""The hooks of a fit, and the callbacks that change it: averaged weights, early stopping."""

import copy
import functools
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from cifarnets._checked import checked
from cifarnets.errors import CallbackError, CifarNetsError, InputError, brief
from cifarnets.inference import refuse_test_set

if TYPE_CHECKING:
    from cifarnets.training.trainer import Trainer

Monitor = Literal["val_loss", "val_accuracy", "loss", "accuracy"]


class Callback:
    """Base of all callbacks: override any of the six hooks. Each hook gets the trainer and may read its attributes.

    Call `trainer.stop()` in a hook to end the fit. An exception in a hook also ends it, as a `CallbackError`.

    Examples:
        >>> from cifarnets import Trainer, create
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> from cifarnets.training import Callback
        >>> class StopAtTwo(Callback):
        ...     def on_epoch_end(self, trainer):
        ...         if trainer.epoch == 2:
        ...             trainer.stop()
        >>> trainer = Trainer(create("convnet"), callbacks=[StopAtTwo()], progress=False)
        >>> len(trainer.fit(BatchLoader(SyntheticCIFAR10(size=100)), epochs=5))
        2

    Attributes:
        every_process: True to run the hooks in every process of a distributed fit; False to run them only in the
            process that writes.
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
        """Run before the first epoch."""

    def on_fit_end(self, trainer: "Trainer") -> None:
        """Run at the end of every fit: a complete, a stopped or a failed one."""

    def on_epoch_start(self, trainer: "Trainer") -> None:
        """Run before the first batch of an epoch."""

    def on_epoch_end(self, trainer: "Trainer") -> None:
        """Run after a complete epoch; `trainer.history[-1]` has its figures, validation included."""

    def on_batch_start(self, trainer: "Trainer") -> None:
        """Run before a batch."""

    def on_batch_end(self, trainer: "Trainer") -> None:
        """Run after a batch."""


def notify(callbacks: Iterable[Callback], hook: str, trainer: "Trainer") -> None:
    """Run one hook of all callbacks that run in this process.

    Raises:
        CallbackError: A callback raised an error; the message names the callback and the hook.
    """
    for callback in callbacks:
        if not (trainer.world.is_main or callback.every_process):
            continue
        try:
            getattr(callback, hook)(trainer)
        except CifarNetsError:  # its own message says what is wrong
            raise
        except Exception as error:
            raise CallbackError(f"{type(callback).__name__}.{hook} failed: {error}") from error


def notify_end(callbacks: Iterable[Callback], trainer: "Trainer") -> CifarNetsError | None:
    """Run `on_fit_end` of all callbacks, even if one of them fails, and return the first error."""
    first: CifarNetsError | None = None
    for callback in callbacks:
        try:
            notify([callback], "on_fit_end", trainer)
        except CifarNetsError as error:
            first = first or error
    return first


class EMA(Callback):
    """Averages the weights (torch's `AveragedModel`) after every step; the fit evaluates and saves the average.

    Examples:
        >>> from cifarnets import Trainer, create
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> from cifarnets.training import EMA
        >>> trainer = Trainer(create("convnet"), callbacks=[EMA(decay=0.9)], progress=False)
        >>> history = trainer.fit(BatchLoader(SyntheticCIFAR10(size=100)), epochs=1)
        >>> trainer.eval_model is trainer.model
        False

    Args:
        decay: The decay of the exponential moving average; None for the plain mean of all weights (stochastic weight
            averaging, Izmailov et al. 2018).
        start_epoch: The number of epochs before the averaging begins. Until then, the average equals the model.
    """

    every_process = True

    @checked
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
            try:
                with torch.device("cpu"):  # whatever a user's default device is, torch's counter stays here
                    self.average = AveragedModel(trainer.model, multi_avg_fn=rule, use_buffers=True)
            except RuntimeError as error:  # torch copies no tensor that was computed from parameters
                raise InputError(
                    f"EMA cannot copy the model ({str(error).partition('. ')[0]}). If it was pruned or has a weight "
                    "norm, make that permanent first: torch.nn.utils.prune.remove(module, 'weight')."
                ) from error
        if self._restored is not None:
            self.average.load_state_dict(self._restored["average"])
            self._restored = None
        trainer.eval_model = self.average.module
        # A hook of the optimizer, not `on_batch_end`: a step can take several batches, and fp16 can skip it.
        self._hook = trainer.optimizer.register_step_post_hook(lambda *_: self._update(trainer))

    def on_fit_end(self, trainer: "Trainer") -> None:
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _update(self, trainer: "Trainer") -> None:
        assert self.average is not None  # the hook is set where it is made
        if self.decay is None or not self.average.n_averaged:
            self.average.update_parameters(trainer.model)
        else:  # the same without its copy of the counter to the device, which waits for every step that is under way
            _move_average(self.decay, self.average.module, trainer.model)
            self.average.n_averaged += 1
        if trainer.epoch < self.start_epoch:
            self.average.n_averaged.zero_()  # the next update copies

    def check_state(self, state: dict[str, Any], trainer: "Trainer") -> None:
        own = {f"module.{name}": value for name, value in trainer.model.state_dict().items()}
        own["n_averaged"] = torch.tensor(0, device="cpu")
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
    else:  # counters of batches: all in one line, for each alone would cost a GPU as much
        moved = _in_line(current) * (1 - decay) + _in_line(averages) * decay
        parts = torch.split(moved.to(averages[0].dtype), [average.numel() for average in averages])
        torch._foreach_copy_(averages, [part.view_as(own) for part, own in zip(parts, averages, strict=True)])


@torch.no_grad()
def _move_average(decay: float, average: nn.Module, model: nn.Module) -> None:
    """Move the parameters and buffers of an average towards those of the model."""
    own, theirs = ([*module.parameters(), *module.buffers()] for module in (average, model))
    kinds: dict[Any, tuple[list[Tensor], list[Tensor]]] = {}
    for one, other in zip(own, theirs, strict=True):
        group = kinds.setdefault((one.device, one.dtype), ([], []))
        group[0].append(one)
        group[1].append(other.to(one.device))
    for averages, current in kinds.values():
        _ema(decay, averages, current, None)


def _in_line(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _kind(value: Any) -> Any:
    return (value.shape, value.dtype) if isinstance(value, Tensor) else type(value)


class Best:
    """Follows one figure of the history and reports an improvement."""

    def __init__(self, monitor: Monitor, min_delta: float = 0.0) -> None:
        if monitor not in ("val_loss", "val_accuracy", "loss", "accuracy"):
            raise InputError(f"monitor must be val_loss, val_accuracy, loss or accuracy, not {monitor!r}.")
        self.monitor = monitor
        self.sign = 1 if monitor.endswith("loss") else -1
        self.min_delta = min_delta
        self.best = math.inf

    def check(self, trainer: "Trainer", user: str, allow_test: bool) -> None:
        """Refuse a fit without a validation loader, or with the test set as one."""
        if not self.monitor.startswith("val_"):
            return
        if trainer.val_loader is None:
            raise InputError(f"{user} follows {self.monitor}: pass val_loader to fit, or follow another figure.")
        if not allow_test:
            refuse_test_set(trainer.val_loader, user)

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
            raise InputError(f"the checkpoint is damaged: the best figure of {user} is {brief(best)}.")

    def improved(self, trainer: "Trainer") -> bool:
        value = self.sign * trainer.history[-1][self.monitor]
        if value < self.best - self.min_delta:
            self.best = value
            return True
        return False


class EarlyStopping(Callback):
    """Stops the fit when a figure has not improved for some epochs.

    Examples:
        >>> from cifarnets import Trainer, create
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10, train_val_split
        >>> from cifarnets.training import EarlyStopping
        >>> train, val = train_val_split(SyntheticCIFAR10(size=200), val=50)
        >>> stopping = EarlyStopping("val_accuracy", patience=1, min_delta=1.0)
        >>> trainer = Trainer(create("convnet"), callbacks=[stopping], progress=False)
        >>> len(trainer.fit(BatchLoader(train), BatchLoader(val), epochs=5))
        2

    Args:
        monitor: The figure. A loss improves when it falls, an accuracy when it rises.
        patience: The number of epochs without improvement that ends the fit.
        min_delta: The smallest change that counts as an improvement.
        allow_test: True to accept the test set as validation images. The test accuracy is then too good.
    """

    every_process = True  # all processes see the same figures, so they stop together

    @checked
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
        elif self.waited >= self.patience:  # the fit was at its end when it was saved
            trainer.stop()

    def on_epoch_end(self, trainer: "Trainer") -> None:
        self.waited = 0 if self._best.improved(trainer) else self.waited + 1
        if self.waited >= self.patience:
            trainer.stop()

    def check_state(self, state: dict[str, Any], trainer: "Trainer") -> None:
        waited = state.get("waited")
        if type(waited) is not int or not 0 <= waited < 2**31:
            raise InputError(f"the checkpoint is damaged: EarlyStopping waited {brief(waited)} epochs.")
        self._best.check_state(state, "EarlyStopping")

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self.waited, "best": self._best.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.waited, self._best = state["waited"], self._best.at(state["best"])
        self._resumed = True
