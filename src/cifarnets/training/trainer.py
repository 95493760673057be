"""The training loop: fit → epoch → step. Everything else is a callback or a plain object handed in."""

import contextlib
import functools
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from cifarnets._device import keep_memory, resolve_device
from cifarnets.errors import InputError
from cifarnets.evaluation import Batches, check_batch, check_labels, class_names, explaining, in_channels, input_dtype
from cifarnets.models.metadata import annotate_from
from cifarnets.seeding import deterministic_algorithms, seed_everything
from cifarnets.training import distributed
from cifarnets.training.callbacks import Callback, Checkpoint, ProgressBar, call, notify_end
from cifarnets.weights.state import FILE, read_state
from cifarnets.training.history import History
from cifarnets.training.optimizers import OptimizerLike, make_optimizer, parameters_of
from cifarnets.training.precision import Precision, autocast_dtype, compiler_options, grad_scaler
from cifarnets.training.resume import collect, open_epoch, restore
from cifarnets.training.schedules import ScheduleLike, count_steps, start_schedule
from cifarnets.training.signals import asking, fetch
from cifarnets.training.metrics import EpochMetrics, check_weights, diverged

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
        schedule: `"constant"`, `"cosine"`, `"one_cycle"`, `"triangular"`, `"trapezoidal"`, `"step"`, or a function that
            makes one of torch's schedulers for an optimizer; stepped after every optimizer step, anew in every fit.
        schedule_options: Further arguments of a named schedule, such as `{"warmup": 0.1}`.
        loss: Maps `(logits, labels)` to a mean; None for cross-entropy.
        label_smoothing: Of the cross-entropy (Szegedy et al. 2016).
        accumulate: Batches whose mean gradient makes one optimizer step.
        clip_norm: The highest norm of all gradients together; None for no limit.
        precision: `"fp32"`, `"bf16"`, `"fp16"` (with gradient scaling), or `"auto"` for the fastest that the device
            has in hardware.
        compile: Run the model through `torch.compile`; the first steps then take long, and a CPU needs a C++ compiler.
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
        tally: What the present epoch has seen so far.
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
        keep_memory(self.device)
        self._on_cuda = self.device.type == "cuda"  # where a copy may go on by itself; MPS reads what is gone by then
        self.world = distributed.join(self.device)
        self._layout = torch.channels_last if channels_last else torch.preserve_format
        self._input_dtype, self._channels = input_dtype(model), in_channels(model)
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
        self._scaler = grad_scaler(self.dtype, self.optimizer)
        forward = self.world.wrap(self.model)  # `self.model` stays bare, so nothing of this is ever saved
        self._forward: Any = torch.compile(forward, options=compiler_options(self.dtype)) if compile else forward
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
        self.metrics = EpochMetrics()
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
            InputError: A batch does not fit the model, or the checkpoint is of another fit; the message says why.
            DivergedError: The loss became NaN or infinite; the message says at which epoch and batch.
            CallbackError: A callback raised; the message says which, and where.
            WeightsError: The checkpoint is damaged.
        """
        if epochs < 1:
            raise InputError(f"epochs must be at least 1, not {epochs}.")
        self.loader, self.val_loader = loader, val_loader
        self._first = self.epoch
        self._stopping = self.interrupted = self.failed = False
        annotate_from(self.model, getattr(loader, "dataset", None))
        if self.seed is not None:
            seed_everything(self.seed)
        self.optimizer.zero_grad()
        steps = count_steps(loader, epochs, self.accumulate)
        self.schedule = start_schedule(self.optimizer, self._rates, self.schedule_like, steps, self.schedule_options)
        self.epochs = self._first + epochs
        if resume is not None and (Path(resume) / FILE).is_file():
            self.load_state_dict(read_state(Path(resume) / FILE))
        with asking(self._interrupt, quiet=not self.world.is_main), deterministic_algorithms(self.deterministic):
            failure: BaseException | None = None
            try:
                with self.world.together():
                    self._call("on_fit_start")
                    while self.epoch < self.epochs and not self._agreed_to_stop():
                        self._run_epoch()
                    self.interrupted = self.world.any(self.interrupted, self.device)
            except BaseException as error:
                self.failed = True
                self.interrupted = isinstance(error, KeyboardInterrupt)
                failure = None if self.interrupted else error
            ended = notify_end(self.callbacks, self)
            if failure or ended:
                raise failure or ended  # type: ignore[misc]
        return self.history

    def stop(self) -> None:
        """End the fit before its next batch.

        An epoch that is cut short leaves no row in the history. With several processes, the others are told within 50
        batches.
        """
        self._stopping = True

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the fit depends on, as a `Checkpoint` writes it; each of several processes must ask."""
        return collect(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state, so that the next epoch is the one that it was taken in.

        Raises:
            InputError: It is the state of another model, optimizer or schedule.
        """
        restore(self, state)

    def find_lr(self, loader: Batches, low: float = 1e-5, high: float = 1.0, steps: int = 100) -> "LRSearch":
        """Try rising learning rates and put everything back; see `cifarnets.training.find_lr`, which this calls."""
        from cifarnets.training.lr_finder import find_lr

        return find_lr(self, loader, low, high, steps)

    def _run_epoch(self) -> None:
        batches = open_epoch(self)
        self._call("on_epoch_start")
        self.model.train()
        mark = time.perf_counter()
        for batch in fetch(batches, lambda: self._stopping and self.world.size == 1):
            if batch is None or self._agreed_to_stop():
                return
            self._call("on_batch_start")
            self.train_step(*batch)
            del batch  # whose memory can then serve the next one
            if self.batch % CHECK_EVERY == 0:
                self.metrics.read_losses(self.epoch + 1, CHECK_EVERY)
            self.metrics.seconds += (now := time.perf_counter()) - mark
            mark = now
            self._call("on_batch_end")
        if not self.batch:
            raise InputError("the loader gave no batch; a generator can be gone through only once: pass a list.")
        if self.batch % self.accumulate:
            self._update()  # what is left over when the batches are not a multiple
        self.metrics.read_losses(self.epoch + 1)  # waits for the device, whose time counts
        self.metrics.seconds += time.perf_counter() - mark
        self._close_epoch()

    def train_step(self, images: Tensor, labels: Tensor, whole: int) -> None:
        """One batch forward and backward, and an optimizer step when enough are accumulated.

        Args:
            images: This process's part of the batch, `[B, C, H, W]`, on any device.
            labels: `[B]`, or shares of the classes `[B, K]`.
            whole: Images in the whole batch.
        """
        where = f"epoch {self.epoch + 1}, batch {self.batch + 1}"
        if not whole:
            raise InputError(f"{where}: the batch is empty.")
        check_batch(self._channels, images, labels, where, soft=True)
        images = images.to(self.device, self._input_dtype, non_blocking=self._on_cuda, memory_format=self._layout)
        given = labels  # where they lie, so that no check of them waits
        labels = labels.to(self.device, non_blocking=self._on_cuda)
        with torch.autocast(self.device.type, self.dtype) if self.dtype else contextlib.nullcontext():
            with explaining(images, where):
                logits = self._forward(images)
            if len(labels) and (self.batch == 0 or given.device.type != self.device.type):
                check_labels(given, logits.shape[1], f"{where}: labels")
            try:
                loss = self.loss(logits, labels) if len(labels) else logits.sum() * 0
            except IndexError:  # how torch refuses a label, on the CPU
                check_labels(given, logits.shape[1], f"{where}: labels")
                raise
        if self.device.type == "cpu" and not math.isfinite(loss.item()):
            raise diverged(loss.item(), where, images)
        # Gradients are averaged over processes and batches, so each weighs as many images as it had.
        weight = len(labels) * self.world.size / whole / self.accumulate
        scaled = loss if weight == 1 else loss * weight
        self._scaler.scale(scaled).backward()
        self.batch += 1
        if self.batch % self.accumulate == 0:
            self._update()
        self.last_loss = loss.detach()
        share = self.last_loss if self.world.size == 1 else self.last_loss * (len(labels) / whole)
        self.metrics.add(share, logits, labels, whole)

    def _update(self) -> None:
        """One optimizer step from the gradients at hand, and the schedule's next rate."""
        if self.clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(parameters_of(self.optimizer), self.clip_norm)
        scale = self._scaler.get_scale()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        if self._scaler.get_scale() < scale:
            return  # fp16 gradients overflowed, and no step was taken
        self.step += 1
        self.lr = self.optimizer.param_groups[0]["lr"]
        if self.schedule:
            self.schedule.step()

    def _close_epoch(self) -> None:
        """Read the figures of the whole epoch, validate, and write the history's row."""
        row = self.metrics.row(self.epoch + 1, self.lr, self.world)
        check_weights(self.model, self.epoch + 1)
        self.epoch += 1
        self.batch = 0
        self._epoch_start = None
        if self.val_loader is not None:
            classes = class_names(self.model, self.val_loader)
            result = distributed.evaluate(self.eval_model, self.val_loader, self.device, self.world, classes)
            row |= {"val_loss": result.loss, "val_accuracy": result.accuracy}
        self.history.append(row)
        self._call("on_epoch_end")

    def _agreed_to_stop(self) -> bool:
        """Whether all processes stop here; with several they ask each other every so many batches only."""
        asked = self.world.size == 1 or self.batch % CHECK_EVERY == 0
        if asked:
            self._stopping = self.world.any(self._stopping, self.device)
        return asked and self._stopping

    def _call(self, hook: str) -> None:
        call(self.callbacks, hook, self)

    def _interrupt(self) -> None:
        self.interrupted = self._stopping = True
