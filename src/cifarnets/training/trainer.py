"""The training loop: fit → epoch → train step → optimizer step."""

import contextlib
import copy
import functools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from cifarnets._batch import Batch
from cifarnets._checked import checked
from cifarnets._device import resolve_device
from cifarnets._runtime import kept_memory
from cifarnets.errors import CifarNetsError, DivergedError, InputError, brief
from cifarnets.evaluation import Evaluation
from cifarnets.inference import (
    Batches,
    batch_context,
    check_batch,
    check_labels,
    collect_logits,
    eval_mode,
    forward,
    match_data,
)
from cifarnets.models.metadata import annotate_from, get_meta, in_channels, input_dtype, unwrap
from cifarnets.seeding import deterministic_algorithms, seed_everything
from cifarnets.training import distributed
from cifarnets.training.callbacks import Callback, notify, notify_end
from cifarnets.training.checkpoint import Checkpoint, find_state
from cifarnets.training.feed import NO_BATCH, EpochFeed, WorkersEndedError
from cifarnets.training.history import History
from cifarnets.training.logs import ProgressBar
from cifarnets.training.metrics import EpochMetrics, check_weights, divergence
from cifarnets.training.optimizers import OptimizerLike, make_optimizer, parameters_of
from cifarnets.training.pooling import compiled
from cifarnets.training.precision import Precision, autocast_dtype, compiler_options, grad_scaler
from cifarnets.training.resume import (
    check_optimizer_state,
    check_schedule_step,
    check_state,
    copy_of,
    take_zero_step,
)
from cifarnets.training.schedules import ScheduleLike, count_steps, start_schedule
from cifarnets.training.signals import end_program, stop_on_signal

Loss = Callable[[Tensor, Tensor], Tensor]
CHECK_EVERY = 50
"""Check the losses on the device, and whether another process stops, every so many batches: both have to wait."""
_PLAIN = (bool, int, float, str, tuple, type(None))


class Trainer:
    """Trains a model; the defaults are those of the article, step 20: SGD, a learning rate of 0.01, cross-entropy.

    Under `torchrun` the same lines train on several processes: each takes its shard of every batch, the gradients are
    averaged, and one process writes.

    Examples:
        >>> from cifarnets import Trainer, create
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> trainer = Trainer(create("convnet"), lr=0.05, optimizer_options={"momentum": 0.9}, progress=False)
        >>> history = trainer.fit(BatchLoader(SyntheticCIFAR10(size=100), shuffle=True), epochs=2)
        >>> trainer.epoch, trainer.global_step
        (2, 4)

    Args:
        model: Any module that maps images `[B, C, H, W]` to logits `[B, K]`. It is moved to the device and stays there.
        optimizer: A name of `torch.optim` in lower case, a class, or an instance.
        lr: Learning rate; the highest one if a schedule changes it. An instance of an optimizer keeps its own.
        optimizer_options: Other arguments of the optimizer, such as `{"momentum": 0.9}`.
        decay_biases: Whether weight decay applies to biases and normalisation layers too.
        schedule: `"constant"`, `"cosine"`, `"long_tailed"`, `"one_cycle"`, `"triangular"`, `"trapezoidal"`, `"step"`,
            or a function that makes one of torch's schedulers for an optimizer. It moves after every optimizer step,
            and starts anew in every fit. `ReduceLROnPlateau` moves after every epoch, by `val_loss`.
        schedule_options: Other arguments of a named schedule, such as `{"warmup": 0.1}`.
        loss: A function of logits and labels that gives their mean loss, or a module, which is moved to the device;
            None for cross-entropy.
        label_smoothing: Label smoothing of the cross-entropy, 0..1 (Szegedy et al. 2016).
        accumulate: How many batches give their mean gradient to one optimizer step.
        clip_norm: The highest norm of all gradients together; None for no limit.
        precision: `"fp32"`, `"bf16"`, `"fp16"` (with gradient scaling), or `"auto"`, the fastest that the device has in
            hardware.
        compile: Run the model through `torch.compile`. The first steps then take long, and a CPU needs a C++ compiler.
        channels_last: Keep images and convolutions as `[N, H, W, C]` in memory, which is faster for most nets.
        deterministic: Ask torch for deterministic algorithms. On CUDA some layers get slower, and a layer that has no
            such algorithm raises; on the CPU nothing changes.
        device: `"auto"` takes the first of CUDA, MPS and CPU that is there.
        callbacks: Callbacks, whose hooks run in this order; those of a `Checkpoint` run last.
        seed: Seeds Python, NumPy and torch when a fit starts; None leaves them alone. The initial weights were drawn
            before: see `seed_everything`.
        progress: Show the progress of the fit.

    Attributes:
        history: One dict for each epoch, over all fits.
        epoch: Epochs completed, over all fits.
        end_epoch: The value of `epoch` at which the present fit ends.
        batches_done: Batches done in the present epoch.
        global_step: Optimizer steps taken, over all fits.
        lr: Learning rate of the last step, of the first parameter group.
        metrics: Loss and accuracy of the present epoch so far.
        last_loss: Loss of the last batch, a tensor on the device. Reading it waits for the device.
        eval_model: The model that is evaluated and saved: the model itself, or its average if a callback keeps one.
        interrupted: Whether Ctrl-C or SIGTERM ended the last fit.
        failed: Whether an error ended the last fit, so that the weights may be torn.
        world: The processes that train together; `world.is_main` is true in the one that writes.
    """

    @checked
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
        _check_ranges(accumulate, clip_norm, label_smoothing, loss)
        self.device = resolve_device(device)
        self._on_cuda = self.device.type == "cuda"  # only CUDA copies in the background: MPS would read freed memory
        self.world = distributed.join(self.device)
        self._layout = torch.channels_last if channels_last else torch.preserve_format
        self._input_dtype, self._channels = input_dtype(model), in_channels(model)
        self.model = self.eval_model = model.to(self.device)
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        self.optimizer = make_optimizer(self.model, optimizer, lr, optimizer_options, decay_biases)
        if not isinstance(optimizer, torch.optim.Optimizer):
            _try_optimizer(self.optimizer, optimizer_options)
        self._rates = [group["lr"] for group in self.optimizer.param_groups]
        self._schedule_like, self._schedule_options = schedule, schedule_options
        self.schedule: LRScheduler | None = None
        if isinstance(loss, nn.Module):  # whose weights of the classes must be where the logits are
            loss.to(self.device, self._input_dtype)
        self.loss = loss or functools.partial(F.cross_entropy, label_smoothing=label_smoothing)
        self.accumulate = accumulate
        self.clip_norm = clip_norm
        self.precision = precision
        self.dtype = autocast_dtype(precision, self.device)
        self._scaler = grad_scaler(self.dtype, self.optimizer)
        forward = self.world.wrap(self.model)  # `self.model` stays bare, so nothing of this is ever saved
        self._forward: Any = compiled(forward, compiler_options(self.dtype)) if compile else forward
        self.deterministic = deterministic
        self.seed = seed
        self.callbacks = list(callbacks)
        if progress and not any(isinstance(callback, ProgressBar) for callback in self.callbacks):
            self.callbacks.append(ProgressBar())
        # A checkpoint comes last, so that it holds what the others remember of the same moment.
        self.callbacks.sort(key=lambda callback: isinstance(callback, Checkpoint))
        self.history = History()
        self.epoch = self.end_epoch = self.batches_done = self.global_step = 0
        self.lr = self._rates[0]
        self.last_loss = torch.full((), math.nan, device=self.device)
        self.feed = EpochFeed((), self.world)
        self.val_loader: Batches | None = None
        self.metrics = EpochMetrics()
        self.interrupted = self.failed = self._stopping = False
        self._signal = 0  # the number of the one that asked to stop
        self._first = 0  # epochs completed when the present fit started

    @property
    def loader(self) -> Batches:
        """What the present fit learns from.

        Examples:
            >>> from cifarnets import Trainer
            >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
            >>> from cifarnets.models import create
            >>> loader = BatchLoader(SyntheticCIFAR10(size=100), 50)
            >>> trainer = Trainer(create("convnet"), progress=False)
            >>> trainer.plan(loader)
            >>> trainer.loader is loader
            True
        """
        return self.feed.loader

    @checked
    def plan(self, loader: Batches, val_loader: Batches | None = None, epochs: int = 20) -> None:
        """Prepare a fit and refuse what it could not do, before it takes any time; `fit` does this itself.

        Examples:
            >>> from cifarnets import Trainer
            >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
            >>> from cifarnets.models import create
            >>> trainer = Trainer(create("convnet"), schedule="one_cycle")
            >>> trainer.plan(BatchLoader(SyntheticCIFAR10(size=100)), epochs=3)
            >>> trainer.end_epoch
            3

        Raises:
            InputError: The number of epochs, the schedule, or the classes and constants of a loader do not fit; or the
                model cannot take all sizes of images that the loader will show.
        """
        if not 1 <= epochs < 2**31:
            raise InputError(f"epochs must be at least 1, and below 2**31, not {brief(epochs)}.")
        _check_optimizer(self.optimizer, self.model)
        with self._unchanged_on_error():
            annotate_from(self.model, getattr(loader, "dataset", None))
            if val_loader is not None:
                match_data(self.model, val_loader)
            self.feed, self.val_loader = EpochFeed(loader, self.world), val_loader
            self._first, self.batches_done, self.end_epoch = self.epoch, 0, self.epoch + epochs
            for feed in (self.feed, *([] if val_loader is None else [EpochFeed(val_loader, self.world)])):
                feed.check_processes()
            steps = count_steps(loader, epochs, self.accumulate)
            self.schedule = start_schedule(
                self.optimizer, self._rates, self._schedule_like, steps, self._schedule_options
            )
            if isinstance(self.schedule, ReduceLROnPlateau) and val_loader is None:
                raise InputError("ReduceLROnPlateau follows val_loss: pass val_loader to fit.")
            self._try_sizes()

    @checked
    def fit(
        self,
        loader: Batches,
        val_loader: Batches | None = None,
        epochs: int = 20,
        *,
        resume: str | os.PathLike[str] | None = None,
    ) -> History:
        """Train for some more epochs; a second call continues where the first ended.

        Ctrl-C and SIGTERM end the fit after the present batch, and a `Checkpoint` saves the state. Then SIGTERM ends
        the program with status 143, and Ctrl-C raises KeyboardInterrupt; in an interactive session (a Python prompt,
        IPython, a notebook) the fit returns its history instead. A second Ctrl-C stops at once.

        Examples:
            >>> from cifarnets import Trainer
            >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
            >>> from cifarnets.models import create
            >>> trainer = Trainer(create("convnet"), progress=False)
            >>> history = trainer.fit(BatchLoader(SyntheticCIFAR10(size=100), shuffle=True), epochs=2)
            >>> history.column("epoch")
            [1, 2]

        Args:
            loader: Anything that gives `(images [B, C, H, W], labels [B])` and can be gone through once an epoch.
            val_loader: Evaluated after every epoch; never trained on.
            epochs: How many more.
            resume: The folder, or the file, that a `Checkpoint` of the same fit wrote. The fit continues with the very
                next batch and the same random numbers, and ends as if it had never stopped. Where the folder has no
                checkpoint, the fit starts from the beginning.

        Returns:
            The history, `trainer.history`.

        Raises:
            InputError: A batch does not fit the model, or the checkpoint is of another fit; the message says why.
            DivergedError: The loss became NaN or infinite; the message says at which epoch and batch.
            CallbackError: A callback raised; the message says which, and in which hook.
            WeightsError: The checkpoint is damaged.
            KeyboardInterrupt: Ctrl-C, in a script; or twice.
            SystemExit: SIGTERM.
        """
        self._stopping = self.interrupted = self.failed = False
        self._signal = 0
        state = None if resume is None else find_state(resume)
        with self._unchanged_on_error(), self.world.together():
            self.plan(loader, val_loader, epochs)
            if state is not None:
                self.load_state_dict(state)
        if state is None:
            self.optimizer.zero_grad()  # a fit that was stopped in mid-epoch may have left gradients
            if self.seed is not None:
                seed_everything(self.seed)
        quiet = not self.world.is_main
        with (
            stop_on_signal(self._stop_for, quiet=quiet),
            deterministic_algorithms(self.deterministic),
            kept_memory(self.device),
        ):
            try:
                self._run()
            except BaseException as error:
                self.failed = True
                self.interrupted = isinstance(error, KeyboardInterrupt)
                self._set_eval()
                notify_end(self.callbacks, self)  # the error that ended the fit is the one to report
                raise
            self._set_eval()
            ended = notify_end(self.callbacks, self)
            if ended is not None:
                raise ended
        end_program(self._signal)
        return self.history

    def stop(self) -> None:
        """End the fit before its next batch.

        An epoch that is cut short leaves no row in the history. Other processes stop within 50 batches.

        Examples:
            >>> from cifarnets import Trainer, create
            >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
            >>> from cifarnets.training import Callback
            >>> class StopAfterOne(Callback):
            ...     def on_epoch_end(self, trainer):
            ...         trainer.stop()
            >>> trainer = Trainer(create("convnet"), callbacks=[StopAfterOne()], progress=False)
            >>> len(trainer.fit(BatchLoader(SyntheticCIFAR10(size=100)), epochs=9))
            1
        """
        self._stopping = True

    def train_step(self, batch: Batch) -> None:
        """Run one batch forward and backward, and take an optimizer step when enough batches are accumulated.

        Examples:
            >>> from cifarnets import Trainer, create
            >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
            >>> trainer, loader = Trainer(create("convnet")), BatchLoader(SyntheticCIFAR10(size=100))
            >>> trainer.plan(loader, epochs=3)
            >>> for batch in trainer.feed.shards():
            ...     trainer.train_step(batch)
            >>> trainer.batches_done, trainer.global_step
            (2, 2)

        Args:
            batch: This process's shard, on any device; labels `[B]`, or weights of the classes `[B, K]`.

        Raises:
            InputError: The batch does not fit the model; the message names the epoch and the batch.
            DivergedError: The loss is NaN or infinite.
        """
        with batch_context("epoch {}, batch {}", self.epoch + 1, self.batches_done + 1):
            check_batch(batch, self._channels, soft=True)
            loss, logits, labels = self._forward_and_loss(batch)
            # Gradients are averaged over processes and batches, so each weighs as many images as it had.
            weight = len(labels) * self.world.size / batch.size / self.accumulate
            self._scaler.scale(loss if weight == 1 else loss * weight).backward()  # type: ignore[no-untyped-call]
        self.batches_done += 1
        if self.batches_done % self.accumulate == 0:
            self._optimizer_step()
        self.last_loss = loss.detach()
        part = self.last_loss if self.world.size == 1 else self.last_loss * (len(labels) / batch.size)
        self.metrics.add(part, logits, labels, batch.size)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the rest of the fit depends on, as a `Checkpoint` writes it; every process must ask.

        Examples:
            >>> from cifarnets import Trainer, create
            >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
            >>> trainer, loader = Trainer(create("convnet")), BatchLoader(SyntheticCIFAR10(size=100))
            >>> trainer.plan(loader, epochs=3)
            >>> trainer.state_dict()["progress"]["epochs"]
            3
        """
        waiting = self.batches_done % self.accumulate  # batches whose gradients no step has used yet
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "gradients": [p.grad for p in parameters_of(self.optimizer)] if waiting else [],
            "schedule": self.schedule.state_dict() if self.schedule else {},
            "scaler": self._scaler.state_dict(),
            "progress": {
                "first": self._first,
                "epoch": self.epoch,
                "batch": self.batches_done,
                "step": self.global_step,
                "lr": self.lr,
                "epochs": self.end_epoch - self._first,
                "schedule": _name(self._schedule_like),
                "batches": self.feed.batches,
                "settings": self._settings(),
            },
            "history": list(self.history),
            "tally": self.metrics.state_dict(self.world) if self.batches_done else {},
            **self.feed.state_dict(),
            "callbacks": [(type(callback).__name__, callback.state_dict()) for callback in self.callbacks],
        }

    @checked
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of the same fit, so that the next epoch is the one that it was taken in.

        All of the state is checked before anything is changed.

        Examples:
            >>> from cifarnets import Trainer, create
            >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
            >>> trainer, loader = Trainer(create("convnet")), BatchLoader(SyntheticCIFAR10(size=100))
            >>> trainer.plan(loader, epochs=3)
            >>> trainer.load_state_dict(trainer.state_dict())

        Raises:
            InputError: It is the state of another model, optimizer, schedule or loader, or it is damaged; the trainer
                is then as it was.
        """
        check_state(state, self.state_dict(), count_steps(self.loader, self.end_epoch - self._first, self.accumulate))
        planned, saved = self.end_epoch - self._first, state["progress"]["epochs"]
        if self.schedule and planned != saved:
            raise InputError(
                f"the checkpoint is of a fit of {saved} epochs with a schedule made for these; it cannot continue for "
                f"{planned}."
            )
        check_optimizer_state(self.optimizer, state["optimizer"], state["gradients"])
        if self.schedule and not isinstance(self._schedule_like, str):
            check_schedule_step(self.schedule, state["schedule"])
        self.feed.check(state)
        found = _match_callbacks(self.callbacks, state["callbacks"])
        for callback, own in found:
            callback.check_state(own, self)
        before = [dict(vars(callback)) for callback, _ in found]
        try:
            for callback, own in found:
                callback.load_state_dict(own)
            self._restore(state)
        except Exception as error:  # a callback or an optimizer of the user, which has its own ways to refuse
            for (callback, _), attributes in zip(found, before, strict=True):
                vars(callback).clear()
                vars(callback).update(attributes)
            if isinstance(error, CifarNetsError):
                raise
            raise InputError(
                f"the checkpoint is of another fit, or damaged ({type(error).__name__}: {error})."
            ) from error
        self.end_epoch = self._first + planned
        self.feed.load_state_dict(state)

    @contextlib.contextmanager
    def rehearsal(self, loader: Batches) -> Iterator[Iterator[Batch]]:
        """Train on some batches without a schedule and without callbacks, and undo all of it when the block ends.

        The model, the optimizer, the history and the random numbers are afterwards as they were.

        Examples:
            >>> from cifarnets import Trainer, create
            >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
            >>> trainer, loader = Trainer(create("convnet")), BatchLoader(SyntheticCIFAR10(size=100))
            >>> trainer.plan(loader, epochs=3)
            >>> with trainer.rehearsal(loader) as batches:
            ...     trainer.train_step(next(batches))
            ...     trainer.global_step
            1
            >>> trainer.global_step
            0

        Args:
            loader: Its batches are what the block is given, pass after pass, for `train_step`.
        """
        kept = copy.deepcopy({**self.state_dict(), "callbacks": []})  # no hook is called, so they stay as they are
        modes = {module: module.training for module in self.model.modules()}
        schedule, feed = self.schedule, self.feed
        self.schedule, self.feed = None, EpochFeed(loader, self.world)
        start = self.world.first(copy.deepcopy(self.feed.position()))
        for group, rate in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate
        self.model.train()
        try:
            yield self.feed.endless()
        finally:
            self.feed.rewind(start)
            self.schedule, self.feed = schedule, feed
            self._restore(kept)
            self.optimizer.zero_grad()
            for module, training in modes.items():
                module.training = training

    def _try_sizes(self) -> None:
        """Refuse images of several sizes of which the model cannot take one; else a fit would fail in a late epoch."""
        shapes = self.feed.image_shapes
        if len(set(shapes)) < 2:
            return
        with eval_mode(self.model, self.device) as session:
            for shape in reversed(shapes):  # whole images first, which set the sizes of lazy layers
                try:
                    forward(self.model, torch.zeros(2, *shape, dtype=session.dtype, device=self.device))
                except torch.OutOfMemoryError:
                    raise
                except Exception as error:  # each model has its own way to refuse
                    if shape == shapes[-1]:
                        raise  # the curriculum is not to blame
                    raise InputError(
                        f"{type(unwrap(self.model)).__name__} cannot take images of {shape[1]}×{shape[2]}, which the "
                        f"loader's curriculum shows: leave it out, or choose other sizes ({error.__cause__ or error})."
                    ) from error

    def _run(self) -> None:
        with self.world.together():
            self._notify("on_fit_start")
            while self.epoch < self.end_epoch and not self._agreed_to_stop():
                self._run_epoch()
            self._signal = max(self.world.gather(self._signal))  # all processes end in the same way
            self.interrupted = bool(self._signal)

    def _run_epoch(self) -> None:
        if not self.batches_done:
            self.metrics = EpochMetrics()
        batches = self.feed.epoch(self.epoch, self.batches_done, lambda: self._stopping and self.world.size == 1)
        self.model.train()
        self._notify("on_epoch_start")  # which may put a part of the model into eval mode
        mark = time.perf_counter()
        try:
            for batch in batches:
                if self._agreed_to_stop():
                    return
                self._notify("on_batch_start")
                self.train_step(batch)
                del batch  # whose memory can then serve the next one
                if self.batches_done % CHECK_EVERY == 0:
                    self.metrics.read_losses(self.epoch + 1, CHECK_EVERY)
                self.metrics.seconds += (now := time.perf_counter()) - mark
                mark = now
                self._notify("on_batch_end")
        except WorkersEndedError:
            return
        if not self.batches_done:
            raise InputError(NO_BATCH.format(""))
        if self.batches_done % self.accumulate:
            self._optimizer_step()  # what is left over when the batches are not a multiple
        self.metrics.read_losses(self.epoch + 1)  # waits for the device, whose time counts
        self.metrics.seconds += time.perf_counter() - mark
        self._close_epoch()

    def _forward_and_loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the loss, the logits, and the labels on the device."""
        images = batch.images.to(self.device, self._input_dtype, non_blocking=self._on_cuda, memory_format=self._layout)
        labels = batch.labels.to(self.device, non_blocking=self._on_cuda)
        with torch.autocast(self.device.type, self.dtype) if self.dtype else contextlib.nullcontext():
            try:
                logits = forward(self._forward, images)
            except ValueError as error:  # torch's, from BatchNorm
                if len(images) > 1:
                    raise
                raise InputError(
                    f"the model cannot train on a batch of one image ({error}): leave it out with drop_last=True."
                ) from error
            # Read where they came from, so that the check waits for no device; one already there is checked once an
            # epoch.
            if len(labels) and (self.batches_done == 0 or batch.labels.device.type == "cpu"):
                check_labels(batch.labels, logits.shape[1])
            loss = self._loss_of(logits, labels) if len(labels) else logits.sum() * 0
        if self.device.type == "cpu" and not math.isfinite(loss.item()):
            raise DivergedError(divergence(loss.item(), images))
        return loss, logits, labels

    def _loss_of(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a batch, one number; refuse a loss that gives something else."""
        try:
            loss = self.loss(logits, labels)
        except (CifarNetsError, torch.OutOfMemoryError):
            raise
        except (RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"the loss cannot take logits {logits.dtype} {list(logits.shape)} and labels {labels.dtype} "
                f"{list(labels.shape)} on {self.device}: {error}"
            ) from error
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            kind = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise InputError(f"the loss must give one number, the mean over the batch (reduction='mean'), not {kind}.")
        if not loss.requires_grad:
            raise InputError("the loss does not depend on the model's parameters, so nothing can be learnt from it.")
        return loss if loss.ndim == 0 else loss.reshape(())

    def _optimizer_step(self) -> None:
        """Take one optimizer step from the gradients, and set the schedule's next rate."""
        if self.clip_norm is not None:
            self._scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(parameters_of(self.optimizer), self.clip_norm)
        scale = self._scaler.get_scale()
        self._scaler.step(self.optimizer)
        self._scaler.update()
        self.optimizer.zero_grad()
        if self._scaler.get_scale() < scale:
            return  # fp16 gradients overflowed, and the scaler took no step
        self.global_step += 1
        self.lr = self.optimizer.param_groups[0]["lr"]
        if self.schedule and not isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step()

    def _close_epoch(self) -> None:
        """Read the metrics of the whole epoch, validate, and write the history's row."""
        row = self.metrics.row(self.epoch + 1, self.lr, self.world)
        check_weights(self.model, self.epoch + 1)
        self.epoch += 1
        self.batches_done = 0
        self.feed.close_epoch()
        if self.val_loader is not None:
            row |= self._validate(self.val_loader)
        if isinstance(self.schedule, ReduceLROnPlateau):
            self.schedule.step(row["val_accuracy" if self.schedule.mode == "max" else "val_loss"])
        self.history.append(row)
        self._notify("on_epoch_end")

    def _validate(self, loader: Batches) -> dict[str, float]:
        """Evaluate on a loader whose batches all processes share."""
        classes = match_data(self.model, loader)
        shards = ((shard.images, shard.labels) for shard in EpochFeed(loader, self.world).shards())
        parts = self.world.gather(collect_logits(self.eval_model, shards, self.device))
        logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        result = Evaluation.from_logits(logits, labels, classes)
        return {"val_loss": result.loss, "val_accuracy": result.accuracy}

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Load the parts of a state that has been checked, but for the feed's and the callbacks'."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.model.load_state_dict(state["model"])
        self._scaler.load_state_dict(state["scaler"])
        if self.schedule:
            self.schedule.load_state_dict(dict(state["schedule"]))
        for parameter in parameters_of(self.optimizer):
            parameter.grad = None
        for parameter, gradient in zip(parameters_of(self.optimizer), state["gradients"], strict=False):
            parameter.grad = None if gradient is None else gradient.to(parameter)
        progress = state["progress"]
        self._first, self.epoch = progress["first"], progress["epoch"]
        self.batches_done, self.global_step = progress["batch"], progress["step"]
        self.lr = progress["lr"]
        self.history[:] = state["history"]
        self.metrics = EpochMetrics.from_state(state["tally"], self.device, self.world)

    @contextlib.contextmanager
    def _unchanged_on_error(self) -> Iterator[None]:
        """Put back what planning a fit changes, if the block raises."""
        names = ("feed", "val_loader", "schedule", "_first", "epoch", "batches_done", "end_epoch")
        before, meta = {name: getattr(self, name) for name in names}, get_meta(self.model)
        groups = [
            {key: value for key, value in group.items() if key != "params"} for group in self.optimizer.param_groups
        ]
        try:
            yield
        except BaseException:
            vars(self).update(before)
            if meta is not None:
                unwrap(self.model).meta = meta  # type: ignore[assignment]
            for group, options in zip(self.optimizer.param_groups, groups, strict=True):
                for key in group.keys() - {"params", *options}:
                    del group[key]
                group.update(options)
            raise

    def _settings(self) -> dict[str, Any]:
        """What must be the same for a fit to continue as if it had never stopped, in plain values."""
        options = {key: value for key, value in self.optimizer.defaults.items() if isinstance(value, _PLAIN)}
        return {
            "optimizer": type(self.optimizer).__name__,
            "optimizer_options": {key: options[key] for key in sorted(options) if key != "lr"},
            "parameter_groups": [len(group["params"]) for group in self.optimizer.param_groups],
            "lr": [rate for rate in self._rates if isinstance(rate, float)],
            "loss": _describe_loss(self.loss),
            "accumulate": self.accumulate,
            "clip_norm": self.clip_norm,
            "schedule_options": dict(self._schedule_options or {}),
            **({} if self.seed is None else {"seed": self.seed}),
            **({} if self.precision == "auto" else {"precision": self.precision}),  # auto is each machine's own
            **self.feed.settings(),
        }

    def _agreed_to_stop(self) -> bool:
        """Whether all processes stop here; several of them ask each other only every so many batches."""
        asked = self.world.size == 1 or self.batches_done % CHECK_EVERY == 0
        if asked:
            self._stopping = self.world.any(self._stopping, self.device)
        return asked and self._stopping

    def _set_eval(self) -> None:
        """Leave the model as people use it next: calling it then gives what `evaluate` and `predict` compute."""
        self.model.eval()
        self.eval_model.eval()

    def _notify(self, hook: str) -> None:
        notify(self.callbacks, hook, self)

    def _stop_for(self, signal: int) -> None:
        self._signal = signal
        self._stopping = True


def _name(schedule: ScheduleLike) -> str | None:
    return schedule if isinstance(schedule, str) else None


def _check_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer that trains nothing of the model."""
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(parameter) in own for parameter in parameters_of(optimizer)):
        raise InputError(
            f"the {type(optimizer).__name__} holds no parameter of this {type(model).__name__}, so the model would not "
            "learn: make it of model.parameters()."
        )


def _describe_loss(loss: Any) -> str:
    """The loss in words that are the same in every process: its name, and its plain arguments and tensors."""
    if isinstance(loss, functools.partial):
        name, arguments = _name_of(loss.func), dict(loss.keywords)
    elif isinstance(loss, nn.Module):
        plain = {key: value for key, value in vars(loss).items() if isinstance(value, _PLAIN) and key[0] != "_"}
        name, arguments = _name_of(type(loss)), {**plain, **loss.state_dict()}
        del arguments["training"]
    else:
        name, arguments = _name_of(loss), {}
    words = [f"{key}={value.tolist() if isinstance(value, Tensor) else value}" for key, value in arguments.items()]
    return f"{name}({', '.join(words)})"


def _name_of(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _check_ranges(accumulate: int, clip_norm: float | None, label_smoothing: float, loss: Any) -> None:
    """Refuse arguments of the Trainer whose types are right and which no fit could use."""
    if not 1 <= accumulate < 2**31:
        raise InputError(f"accumulate must be at least 1 batch, not {brief(accumulate)}.")
    if not 0 <= label_smoothing <= 1:
        raise InputError(f"label_smoothing must be between 0 and 1, not {label_smoothing}.")
    if clip_norm is not None and not clip_norm > 0:
        raise InputError(f"clip_norm must be above 0, or None for no limit, not {clip_norm}.")
    if isinstance(loss, type):
        raise InputError(f"the loss must be a function or an instance: write loss={loss.__name__}(), with brackets.")
    if loss is not None and label_smoothing:
        raise InputError("label_smoothing belongs to the default cross-entropy; build it into your own loss.")


def _try_optimizer(optimizer: torch.optim.Optimizer, options: Mapping[str, Any] | None) -> None:
    """Refuse options that the constructor takes and the first step does not, such as `capturable` on a CPU."""
    if any(map(is_lazy, parameters_of(optimizer))):  # they have no shape yet
        return
    trial = copy_of(optimizer)
    if trial is None:
        return
    try:
        take_zero_step(trial)
    except Exception as error:  # each class fails in its own way
        raise InputError(f"{type(optimizer).__name__} refuses {brief(dict(options or {}))}: {error}") from error


def _match_callbacks(
    callbacks: Sequence[Callback], saved: Sequence[tuple[str, dict[str, Any]]]
) -> list[tuple[Callback, dict[str, Any]]]:
    """Give each callback the first state that is left of its class; one that was not there before gets none."""
    left, found = list(saved), []
    for callback in callbacks:
        own = next((entry for entry in left if entry[0] == type(callback).__name__), None)
        if own is not None:
            left.remove(own)
            found.append((callback, own[1]))
    return found
