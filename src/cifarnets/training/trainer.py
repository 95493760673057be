"""The training loop: fit → epoch → step. Everything else is a callback or a plain object handed in."""

import contextlib
import functools
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from cifarnets.device import resolve_device
from cifarnets.errors import CallbackError, CifarNetsError, DivergedError, InputError, TrainingError
from cifarnets.evaluation import (
    Batches,
    Evaluation,
    check_batch,
    check_labels,
    class_names,
    collect_logits,
    explaining,
    measure,
)
from cifarnets.models.meta import describe, get_meta
from cifarnets.seeding import restore_rng, rng_state, seed_everything
from cifarnets.training import distributed
from cifarnets.training.callbacks import Callback, Checkpoint, ProgressBar
from cifarnets.training.checkpoint import FILE, read_state
from cifarnets.training.history import History
from cifarnets.training.optimizers import OptimizerLike, make_optimizer
from cifarnets.training.precision import Precision, autocast_dtype
from cifarnets.training.schedules import ScheduleLike, make_schedule

if TYPE_CHECKING:
    from cifarnets.training.lr_finder import LRSearch

Loss = Callable[[Tensor, Tensor], Tensor]
CHECK_EVERY = 50
"""Batches between two looks at what only waiting tells: the loss on a GPU, and whether another process stops."""


class Trainer:
    """Trains a model (article, step 20, whose choices are the defaults: SGD, lr 0.01, cross-entropy).

    Examples:
        >>> history = Trainer(model).fit(loader, epochs=10)  # doctest: +SKIP

    Under `torchrun` the same lines train on several processes: each batch is shared out, gradients are averaged, and
    one process writes.

    Args:
        model: Any module that maps images to logits. It is moved to the device, and stays there.
        optimizer: A name of `torch.optim` in lower case, a class, or an instance.
        lr: Learning rate, the highest one where a schedule changes it; ignored with an instance.
        optimizer_options: Further arguments of the optimizer, such as `{"momentum": 0.9}`.
        decay_biases: Whether weight decay applies to biases and normalisation layers too.
        schedule: `"constant"`, `"cosine"`, `"one_cycle"`, `"triangular"`, `"step"`, or a function that makes one of
            torch's schedulers for an optimizer; stepped after every optimizer step, anew in every fit.
        schedule_options: Further arguments of a named schedule, such as `{"warmup": 0.1}`.
        loss: Maps `(logits, labels)` to a mean; None for cross-entropy.
        label_smoothing: Of the cross-entropy (Szegedy et al. 2016).
        accumulate: Batches whose mean gradient makes one optimizer step.
        clip_norm: The highest norm of all gradients together; None for no limit.
        precision: `"fp32"`, `"bf16"`, `"fp16"` (with gradient scaling), or `"auto"` for the fastest that the device
            has in hardware.
        compile: Run the model through `torch.compile`; the first steps then take long.
        channels_last: Keep images and convolutions as `[N, H, W, C]` in memory, which is faster for most nets.
        deterministic: Ask torch for deterministic algorithms. On the CPU that costs nothing measurable; on CUDA some
            layers get slower, and one without such an algorithm raises.
        device: `"auto"` takes CUDA, MPS or CPU, the first at hand.
        callbacks: Called at six moments of the fit, in this order, a `Checkpoint` last; see `Callback`.
        seed: Seeds Python, NumPy and torch when a fit starts; None leaves them alone. (What the model starts from
            was drawn before: see `seed_everything`.)
        progress: Show a progress bar, if this is a terminal.

    Attributes:
        history: One dict an epoch, over all fits.
        epoch: Epochs completed, over all fits.
        epochs: The count of epochs at which the present fit ends.
        batch: Batches done in the present epoch.
        step: Optimizer steps taken, over all fits.
        lr: Learning rate of the last step (of the first parameter group).
        last_loss: Loss of the last batch, a tensor on the device: to read it is to wait for it.
        eval_model: What is evaluated and saved: the model, or its average where a callback keeps one.
        interrupted: Whether Ctrl-C or SIGTERM ended the last fit.
        failed: Whether an error ended it, so that its state may be torn.
        world: The processes that train together; `world.is_main` in the one that writes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: OptimizerLike = "sgd",
        lr: float = 1e-2,
        optimizer_options: Mapping[str, Any] | None = None,
        decay_biases: bool = True,
        schedule: ScheduleLike = None,
        schedule_options: Mapping[str, Any] | None = None,
        loss: Loss | None = None,
        label_smoothing: float = 0.0,
        accumulate: int = 1,
        clip_norm: float | None = None,
        precision: Precision = "fp32",
        compile: bool = False,  # noqa: A002 (torch's word)
        channels_last: bool = False,
        deterministic: bool = False,
        device: str | torch.device = "auto",
        callbacks: Sequence[Callback] = (),
        seed: int | None = None,
        progress: bool = True,
    ) -> None:
        if accumulate < 1:
            raise InputError(f"accumulate must be at least 1 batch, not {accumulate}.")
        if loss is not None and label_smoothing:
            raise InputError("label_smoothing is of the cross-entropy; build it into a loss of your own.")
        if not 0 <= label_smoothing <= 1:
            raise InputError(f"label_smoothing must be between 0 and 1, not {label_smoothing}.")
        if clip_norm is not None and not clip_norm > 0:
            raise InputError(f"clip_norm must be above 0, or None for no limit, not {clip_norm}.")
        self.device = resolve_device(device)
        self.world = distributed.join(self.device)
        self._layout = torch.channels_last if channels_last else torch.preserve_format
        self.model = self.eval_model = model.to(self.device)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.model, optimizer, lr, optimizer_options, decay_biases)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self.schedule_like, self.schedule_options = schedule, schedule_options
        self.schedule: LRScheduler | None = None
        self.loss = loss or functools.partial(F.cross_entropy, label_smoothing=label_smoothing)
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.dtype = autocast_dtype(precision, self.device)
        self._scaler = torch.amp.GradScaler("cuda", enabled=self.dtype is torch.float16)
        self._forward: Callable[[Tensor], Tensor] = self._wrap(compile)
        self.deterministic = deterministic
        self.seed = seed
        # A checkpoint comes last, so that it holds what the others remember of the same moment.
        self.callbacks = sorted(callbacks, key=lambda callback: isinstance(callback, Checkpoint))
        if progress and not any(isinstance(callback, ProgressBar) for callback in self.callbacks):
            self.callbacks.append(ProgressBar())
        self.history = History()
        self.epoch = self.epochs = self.batch = self.step = 0
        self.lr = self._rates[0]
        self.last_loss = torch.full((), math.nan, device=self.device)
        self.loader: Batches = ()
        self.val_loader: Batches | None = None
        self.interrupted = self.failed = self._stopping = False
        self._first = 0  # epochs completed when the present fit started
        self._tally = _Tally()
        self._epoch_start: dict[str, Any] | None = None  # None between epochs
        self._rng_to_restore: dict[str, Any] | None = None

    def fit(
        self,
        loader: Batches,
        val_loader: Batches | None = None,
        epochs: int = 20,
        *,
        resume: str | os.PathLike[str] | None = None,
    ) -> History:
        """Train for some more epochs; a second call goes on where the first ended.

        Ctrl-C and SIGTERM end the fit after the present batch; a `Checkpoint` saves its state first, and the history
        of the completed epochs is returned.

        Args:
            loader: Anything that gives `(images [B, C, H, W], labels [B])` and can be gone through once an epoch.
            val_loader: Evaluated after every epoch; never trained on.
            epochs: How many more.
            resume: A folder that a `Checkpoint` of the same fit wrote into: the fit goes on from the very batch, with
                the same random numbers, and ends as if it had never stopped. Without a checkpoint in it the fit
                starts from the beginning.

        Returns:
            The history, `trainer.history`.

        Raises:
            InputError: A batch does not fit the model; the message says which and why.
            DivergedError: The loss became NaN or infinite; the message says at which epoch and batch.
            CallbackError: A callback raised; the message says which, and where.
            WeightsError: The checkpoint is damaged, or of another model.
        """
        if epochs < 1:
            raise InputError(f"epochs must be at least 1, not {epochs}.")
        self.loader, self.val_loader = loader, val_loader
        self._first = self.epoch
        self._stopping = self.interrupted = self.failed = False
        self._describe_model()
        if self.seed is not None:
            seed_everything(self.seed)
        self.optimizer.zero_grad()
        self._start_schedule(epochs)
        if resume is not None and (Path(resume) / FILE).is_file():
            self.load_state_dict(read_state(Path(resume) / FILE))
        self.epochs = self._first + epochs
        with self._signals(), _algorithms(self.deterministic):
            try:
                self._call("on_fit_start")
                while self.epoch < self.epochs and not self._agreed_to_stop():
                    self._run_epoch()
                self.interrupted = self.world.any(self.interrupted, self.device)
            except KeyboardInterrupt:
                self.interrupted = self.failed = True
            except RuntimeError as error:
                self.failed = True
                if self.world.size > 1 and not isinstance(error, CifarNetsError):
                    raise TrainingError(
                        f"process {self.world.rank} of {self.world.size} cannot go on; has another one ended? ({error})"
                    ) from error
                raise
            except BaseException:
                self.failed = True
                raise
            finally:
                self._call("on_fit_end")
        return self.history

    def stop(self) -> None:
        """End the fit before its next batch.

        An epoch that is cut short leaves no row in the history. With several processes, the others are told within 50
        batches.
        """
        self._stopping = True

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the fit depends on: what a `Checkpoint` writes and `fit(resume=…)` reads.

        With several processes, each must ask.
        """
        tally = vars(self._tally) if self.batch else {}
        if self.batch and self.world.size > 1:
            tally = {**tally, **{key: list(self.world.sum(torch.stack(tally[key]))) for key in ("losses", "correct")}}
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "gradients": [p.grad for p in self._parameters()] if self.batch % self.accumulate else [],
            "schedule": self.schedule.state_dict() if self.schedule else {},
            "scaler": self._scaler.state_dict(),
            "progress": {
                "first": self._first,
                "epoch": self.epoch,
                "batch": self.batch,
                "step": self.step,
                "lr": self.lr,
            },
            "history": list(self.history),
            "tally": tally,
            "epoch_start": self._epoch_start or self._now(),
            "rng": self.world.gather(self._rng_to_restore or rng_state()),
            "callbacks": [(type(callback).__name__, callback.state_dict()) for callback in self.callbacks],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, so that the next epoch is the one that it was taken in.

        Raises:
            InputError: It is the state of another model, optimizer or schedule.
        """
        try:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if (self.schedule.state_dict() if self.schedule else {}).keys() != state["schedule"].keys():
                raise ValueError("its schedule is another one.")
            if self.schedule:
                self.schedule.load_state_dict(state["schedule"])
            self._scaler.load_state_dict(state["scaler"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise InputError(f"the checkpoint is not of this model and optimizer: {error}") from error
        for parameter, gradient in zip(self._parameters(), state["gradients"], strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter)
        at = state["progress"]
        self._first, self.epoch, self.batch, self.step = at["first"], at["epoch"], at["batch"], at["step"]
        self.lr = at["lr"]
        self.history[:] = state["history"]
        self._tally = _Tally(**state["tally"])
        if not self.world.is_main:  # the sums are counted once
            self._tally.losses = [torch.zeros_like(loss) for loss in self._tally.losses]
            self._tally.correct = [torch.zeros_like(correct) for correct in self._tally.correct]
        self._epoch_start = state["epoch_start"]
        self._rng_to_restore = state["rng"][self.world.rank % len(state["rng"])]
        saved = list(state["callbacks"])
        for callback in self.callbacks:
            found = next((entry for entry in saved if entry[0] == type(callback).__name__), None)
            if found is not None:
                saved.remove(found)
                callback.load_state_dict(found[1])

    def find_lr(self, loader: Batches, low: float = 1e-5, high: float = 1.0, steps: int = 100) -> "LRSearch":
        """Try rising learning rates on some batches; model, optimizer and random numbers are afterwards as before.

        See `cifarnets.training.find_lr`, which this calls.
        """
        from cifarnets.training.lr_finder import find_lr

        return find_lr(self, loader, low, high, steps)

    def _run_epoch(self) -> None:
        batches = self._open_epoch()
        self._call("on_epoch_start")
        self.model.train()
        mark = time.perf_counter()
        for images, labels, whole in batches:
            if self._agreed_to_stop():
                return
            self._call("on_batch_start")
            images = images.to(self.device, non_blocking=True, memory_format=self._layout)
            self.run_batch(images, labels.to(self.device, non_blocking=True), whole)
            if self.batch % CHECK_EVERY == 0:
                self._check_finite(self._tally.losses[-CHECK_EVERY:])
            now = time.perf_counter()
            self._tally.seconds += now - mark
            mark = now
            self._call("on_batch_end")
        if not self.batch:
            raise InputError("the loader gave no batch; a generator can be gone through only once: pass a list.")
        if self.batch % self.accumulate:
            self._update()  # what is left over when the batches are not a multiple
        self._close_epoch()

    def run_batch(self, images: Tensor, labels: Tensor, whole: int) -> None:
        """One batch forward and backward, and an optimizer step when enough are accumulated.

        Args:
            images: This process's part of the batch, `[B, C, H, W]`.
            labels: `[B]`, or shares of the classes `[B, K]`.
            whole: Images in the whole batch.
        """
        where = f"epoch {self.epoch + 1}, batch {self.batch + 1}"
        if not whole:
            raise InputError(f"{where}: the batch is empty.")
        check_batch(self.model, images, labels, where, soft=True)
        answers = labels if labels.ndim == 1 else labels.argmax(1)
        with torch.autocast(self.device.type, self.dtype) if self.dtype else contextlib.nullcontext():
            with explaining(images, where):
                logits = self._forward(images)
            if self.batch == 0 and len(labels):
                check_labels(answers, logits.shape[1], f"{where}: labels")
            try:
                loss = self.loss(logits, labels) if len(labels) else logits.sum() * 0
            except IndexError:  # how torch refuses a label, on the CPU
                check_labels(answers, logits.shape[1], f"{where}: labels")
                raise
        if self.device.type == "cpu" and not math.isfinite(loss.item()):
            raise _diverged(loss.item(), where, images)
        # Gradients are averaged over processes and batches, so each weighs as many images as it had.
        weight = len(labels) * self.world.size / whole
        scaled = loss if weight == 1 else loss * weight
        if self.accumulate > 1:
            scaled = scaled / self.accumulate
        self._scaler.scale(scaled).backward()  # type: ignore[no-untyped-call]
        self.batch += 1
        if self.batch % self.accumulate == 0:
            self._update()
        self.last_loss = loss.detach()
        self._tally.losses.append(self.last_loss if self.world.size == 1 else self.last_loss * (len(labels) / whole))
        self._tally.correct.append((logits.detach().argmax(1) == answers).sum())
        self._tally.images += whole

    def _update(self) -> None:
        """One optimizer step from the gradients at hand, and the schedule's next rate."""
        if self.clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self._parameters(), self.clip_norm)
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        self.step += 1
        self.lr = self.optimizer.param_groups[0]["lr"]
        if self.schedule:
            self.schedule.step()

    def _open_epoch(self) -> Iterator[tuple[Tensor, Tensor, int]]:
        """The batches of the next epoch, or what is left of the one that a checkpoint was taken in."""
        rng, self._rng_to_restore = self._rng_to_restore, None
        if rng is None:
            self._epoch_start = self._now()
        # Every process starts from the numbers of the first, so that all draw the same order.
        self._epoch_start = self.world.first(self._epoch_start)
        self._go_back(self._epoch_start)
        batches = distributed.share(self.loader, self.world)
        if rng is None or not self.batch:
            self.batch = 0
            self._tally = _Tally()
            return batches
        for _ in range(self.batch):  # passed over: the model has learnt from them
            next(batches)
        restore_rng(rng)
        return batches

    def _close_epoch(self) -> None:
        """Read the figures of the whole epoch, validate, and write the history's row."""
        tally = self._tally
        loss = self.world.sum(self._check_finite(tally.losses)).mean().item()
        correct = self.world.sum(torch.stack(tally.correct).sum()).item()
        self.epoch += 1
        self.batch = 0
        self._epoch_start = None
        row = {
            "epoch": self.epoch,
            "loss": loss,
            "accuracy": correct / tally.images,
            "lr": self.lr,
            "seconds": tally.seconds,
            "images_per_second": tally.images / tally.seconds,
        }
        if self.val_loader is not None:
            result = self._validate(self.val_loader)
            row |= {"val_loss": result.loss, "val_accuracy": result.accuracy}
        self.history.append(row)
        self._call("on_epoch_end")

    def _validate(self, loader: Batches) -> Evaluation:
        """As `evaluate`, with the images shared out among the processes."""
        mine = ((images, labels) for images, labels, _ in distributed.share(loader, self.world))
        parts = self.world.gather(collect_logits(self.eval_model, mine, self.device))
        logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        return measure(logits, labels, class_names(self.model, loader))

    def _check_finite(self, losses: list[Tensor]) -> Tensor:
        """The losses of the last batches, read: float64, on the CPU where the device has none."""
        values = torch.stack(losses)
        values = values.double() if self.device.type != "mps" else values.cpu().double()
        wrong = values.isfinite().logical_not().nonzero().flatten().tolist()
        if wrong:
            batch = self.batch - len(losses) + wrong[0] + 1
            raise _diverged(values[wrong[0]].item(), f"epoch {self.epoch + 1}, batch {batch}")
        return values

    def _agreed_to_stop(self) -> bool:
        """Whether all processes stop here; with several they ask each other every so many batches only."""
        if self.world.size > 1:
            if self.batch % CHECK_EVERY:
                return False
            self._stopping = self.world.any(self._stopping, self.device)
        return self._stopping

    def _now(self) -> dict[str, Any]:
        """What the order of the next batches depends on."""
        loader_state = getattr(self.loader, "state_dict", None)
        generator = getattr(self.loader, "generator", None)  # a DataLoader's own
        return {
            "rng": rng_state(),
            "loader": loader_state() if loader_state else None,
            "generator": generator.get_state() if isinstance(generator, torch.Generator) else None,
        }

    def _go_back(self, start: Mapping[str, Any] | None) -> None:
        """Make the loader's next pass and the random numbers what they were when `_now` was asked."""
        assert start is not None
        restore_rng(start["rng"])
        loader: Any = self.loader
        if start["loader"] is not None:
            loader.load_state_dict(start["loader"])
        if start["generator"] is not None:
            loader.generator.set_state(start["generator"])

    def _start_schedule(self, epochs: int) -> None:
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        try:
            steps = epochs * math.ceil(len(self.loader) / self.accumulate)  # type: ignore[arg-type]
        except TypeError:
            steps = None
        if self.schedule_like is not None or self.schedule_options:
            self.schedule = make_schedule(self.optimizer, self.schedule_like, steps, self.schedule_options)

    def _describe_model(self) -> None:
        """Let the model note the classes and the preprocessing of what it learns from."""
        dataset = getattr(self.loader, "dataset", None)
        if get_meta(self.model) is None or dataset is None:
            return
        mean, std = getattr(dataset, "constants", None) or (None, None)
        describe(self.model, classes=getattr(dataset, "classes", None), mean=mean, std=std)

    def _wrap(self, compiled: bool) -> Callable[[Tensor], Tensor]:
        """The model as it is called in training; `self.model` stays bare, so nothing of this is ever saved."""
        module: Any = self.model
        if self.world.size > 1:
            module = nn.parallel.DistributedDataParallel(module)
        return torch.compile(module) if compiled else module

    def _parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _call(self, hook: str) -> None:
        for callback in self.callbacks:
            if not (self.world.is_main or callback.every_process):
                continue
            try:
                getattr(callback, hook)(self)
            except CifarNetsError:  # says by itself what is wrong
                raise
            except Exception as error:
                raise CallbackError(f"{type(callback).__name__}.{hook} failed: {error}") from error

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Until the block ends, the first Ctrl-C or SIGTERM lets the present batch finish; the second does not."""
        usual: dict[signal.Signals, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
        ours = threading.current_thread() is threading.main_thread()
        mine = {number: action for number, action in usual.items() if ours and signal.getsignal(number) is action}

        def ask_to_stop(number: int, _frame: FrameType | None) -> None:
            signal.signal(number, usual[signal.Signals(number)])
            self.interrupted = True
            self.stop()
            if self.world.is_main:
                print("\nstopping after this batch (once more: at once)", file=sys.stderr)

        for number in mine:
            signal.signal(number, ask_to_stop)
        try:
            yield
        finally:
            for number, action in mine.items():
                signal.signal(number, action)


class _Tally:
    """What an epoch has seen so far. Tensors are kept, not read: reading would wait for the device at every batch."""

    def __init__(
        self, losses: Sequence[Tensor] = (), correct: Sequence[Tensor] = (), images: int = 0, seconds: float = 0.0
    ) -> None:
        self.losses = list(losses)
        self.correct = list(correct)
        self.images = images
        self.seconds = seconds


@contextlib.contextmanager
def _algorithms(deterministic: bool) -> Iterator[None]:
    """Deterministic algorithms only, until the block ends."""
    before = torch.are_deterministic_algorithms_enabled()
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _diverged(loss: float, where: str, images: Tensor | None = None) -> DivergedError:
    if images is not None and not images.isfinite().all():
        return DivergedError(f"the loss is {loss} at {where}: the images of that batch hold NaN or infinity.")
    return DivergedError(f"the loss is {loss} at {where}: training has diverged; try a lower learning rate.")
