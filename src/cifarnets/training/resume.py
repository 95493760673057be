"""All that the rest of a fit depends on: taken from a trainer, and given back to one."""

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifarnets.errors import InputError
from cifarnets.seeding import ON_CPU, restore_rng, rng_state
from cifarnets.training import distributed
from cifarnets.training.optimizers import parameters_of
from cifarnets.training.schedules import ScheduleLike
from cifarnets.training.metrics import EpochMetrics

if TYPE_CHECKING:
    from cifarnets.training.trainer import Trainer


def collect(trainer: "Trainer") -> dict[str, Any]:
    """The state of a fit between two batches; with several processes, each must ask."""
    world, tally = trainer.world, trainer.metrics.state_dict() if trainer.batch else {}
    if trainer.batch and world.size > 1:
        losses, correct = world.sum(torch.stack(tally["losses"])), world.sum(tally["correct"])
        tally = {**tally, "losses": list(losses), "correct": correct}
    waiting = trainer.batch % trainer.accumulate  # batches whose gradients no step has used yet
    return {
        "model": dict(trainer.model.state_dict()),
        "optimizer": trainer.optimizer.state_dict(),
        "gradients": [p.grad for p in parameters_of(trainer.optimizer)] if waiting else [],
        "schedule": trainer.schedule.state_dict() if trainer.schedule else {},
        "scaler": trainer._scaler.state_dict(),
        "progress": {
            "first": trainer._first,
            "epoch": trainer.epoch,
            "batch": trainer.batch,
            "step": trainer.step,
            "lr": trainer.lr,
            "epochs": trainer.epochs - trainer._first,
            "schedule": _name(trainer.schedule_like),
            "batches": _count(trainer.loader),
        },
        "history": list(trainer.history),
        "tally": tally,
        "epoch_start": trainer._epoch_start or position(trainer.loader),
        "rng": world.gather(trainer._rng_to_restore or rng_state()),
        "callbacks": [(type(callback).__name__, callback.state_dict()) for callback in trainer.callbacks],
    }


def restore(trainer: "Trainer", state: Mapping[str, Any]) -> None:
    """Make a trainer what the one was that the state was collected from.

    Raises:
        InputError: It is the state of another fit; the trainer is then as it was.
    """
    parts: dict[str, Any] = {"model": trainer.model, "optimizer": trainer.optimizer, "scaler": trainer._scaler}
    before = copy.deepcopy({name: part.state_dict() for name, part in parts.items()})
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        _check_plan(trainer, state)
    except (RuntimeError, ValueError, KeyError) as error:
        for name, part in parts.items():  # torch has loaded what fits, up to what does not
            part.load_state_dict(before[name])
        if isinstance(error, InputError):
            raise
        raise InputError(f"the checkpoint is not of this model and optimizer: {error}") from error
    at, planned = state["progress"], trainer.epochs - trainer._first
    for parameter, gradient in zip(parameters_of(trainer.optimizer), state["gradients"], strict=False):
        parameter.grad = None if gradient is None else gradient.to(parameter)
    if trainer.schedule:
        trainer.schedule.load_state_dict(state["schedule"])
    trainer._first, trainer.epoch, trainer.batch, trainer.step = at["first"], at["epoch"], at["batch"], at["step"]
    trainer.lr = at["lr"]
    trainer.epochs = trainer._first + planned
    trainer.history[:] = state["history"]
    trainer.metrics = tally = EpochMetrics(**state["tally"])
    counted = trainer.world.is_main  # once: the figures are those of all processes
    tally.losses = [loss.to(trainer.device) * counted for loss in tally.losses]
    if tally.correct is not None:
        tally.correct = tally.correct.to(trainer.device) * counted
    trainer._epoch_start = state["epoch_start"]
    trainer._rng_to_restore = state["rng"][trainer.world.rank % len(state["rng"])]
    saved = list(state["callbacks"])
    for callback in trainer.callbacks:
        found = next((entry for entry in saved if entry[0] == type(callback).__name__), None)
        if found is not None:
            saved.remove(found)
            callback.load_state_dict(found[1])


def _check_plan(trainer: "Trainer", state: Mapping[str, Any]) -> None:
    """Refuse to go on with another schedule, other data or another number of epochs, where that is another fit."""
    at, start, planned = state["progress"], state["epoch_start"], trainer.epochs - trainer._first
    own = trainer.schedule.state_dict() if trainer.schedule else {}
    if _name(trainer.schedule_like) != at["schedule"] or own.keys() != state["schedule"].keys():
        raise InputError("the checkpoint is of a fit with another schedule.")
    if trainer.schedule and planned != at["epochs"]:
        raise InputError(
            f"the checkpoint is of a fit of {at['epochs']} epochs with a schedule made for these; it cannot go on for "
            f"{planned}."
        )
    batches, here = _count(trainer.loader), position(trainer.loader)
    # What else a loader remembers is its own affair; that it remembers as much must hold.
    kinds = [(point["loader"] is None, [part is None for part in point["generators"]]) for point in (start, here)]
    if batches != at["batches"] or kinds[0] != kinds[1]:
        raise InputError(
            f"the checkpoint is of a fit on another loader: {at['batches']} batches an epoch, not {batches}, or "
            "another kind."
        )


def _name(schedule: ScheduleLike) -> str | None:
    return schedule if isinstance(schedule, str) else None


def _count(loader: Any) -> int | None:
    try:
        return len(loader)
    except TypeError:
        return None


def position(loader: Any) -> dict[str, Any]:
    """What the order of a loader's next pass depends on."""
    loader_state = getattr(loader, "state_dict", None)
    return {
        "rng": rng_state(),
        "loader": loader_state() if loader_state else None,
        "generators": [own.get_state() if isinstance(own, torch.Generator) else None for own in _generators(loader)],
    }


def go_back(loader: Any, start: Mapping[str, Any]) -> None:
    """Make a loader's next pass and the random numbers what they were when `position` was asked."""
    restore_rng(start["rng"])
    if start["loader"] is not None:
        loader.load_state_dict(start["loader"])
    for own, state in zip(_generators(loader), start["generators"], strict=True):
        if state is not None:
            own.set_state(state)


def _generators(loader: Any) -> tuple[Any, Any]:
    """A DataLoader's own, and that of its sampler."""
    return getattr(loader, "generator", None), getattr(getattr(loader, "sampler", None), "generator", None)


def open_epoch(trainer: "Trainer") -> Iterator[tuple[Tensor, Tensor, int]]:
    """The batches of the next epoch, or what is left of the one that a state was taken in; see `distributed.share`."""
    rng, trainer._rng_to_restore = trainer._rng_to_restore, None
    if rng is None:
        trainer._epoch_start = position(trainer.loader)
    else:
        restore_rng(rng)
    # Every process starts from the numbers of the first, so that all draw the same order; devices keep their own.
    trainer._epoch_start = start = trainer.world.first(trainer._epoch_start)
    shared = {key: state for key, state in start["rng"].items() if trainer.world.size == 1 or key in ON_CPU}
    go_back(trainer.loader, {**start, "rng": shared})
    set_epoch = getattr(getattr(trainer.loader, "sampler", None), "set_epoch", None)
    if set_epoch is not None:  # of a DistributedSampler
        set_epoch(trainer.epoch)
    batches = distributed.share(trainer.loader, trainer.world)
    if rng is None or not trainer.batch:
        trainer.batch = 0
        trainer.metrics = EpochMetrics()
        return batches
    for _ in range(trainer.batch):  # passed over: the model has learnt from them
        next(batches)
    restore_rng(rng)
    return batches
