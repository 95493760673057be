"""All that the rest of a fit depends on: taken from a trainer, and given back to one."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cifarnets.errors import InputError
from cifarnets.seeding import restore_rng, rng_state
from cifarnets.training import distributed
from cifarnets.training.tally import Tally

if TYPE_CHECKING:
    from cifarnets.training.trainer import Trainer


def collect(trainer: "Trainer") -> dict[str, Any]:
    """The state of a fit between two batches; with several processes, each must ask."""
    world, tally = trainer.world, vars(trainer._tally) if trainer.batch else {}
    if trainer.batch and world.size > 1:
        tally = {**tally, **{key: list(world.sum(torch.stack(tally[key]))) for key in ("losses", "correct")}}
    waiting = trainer.batch % trainer.accumulate  # batches whose gradients no step has used yet
    return {
        "model": dict(trainer.model.state_dict()),
        "optimizer": trainer.optimizer.state_dict(),
        "gradients": [p.grad for p in trainer._parameters()] if waiting else [],
        "schedule": trainer.schedule.state_dict() if trainer.schedule else {},
        "scaler": trainer._scaler.state_dict(),
        "progress": {
            "first": trainer._first,
            "epoch": trainer.epoch,
            "batch": trainer.batch,
            "step": trainer.step,
            "lr": trainer.lr,
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
        InputError: It is the state of another model, optimizer or schedule.
    """
    try:
        trainer.model.load_state_dict(state["model"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        if (trainer.schedule.state_dict() if trainer.schedule else {}).keys() != state["schedule"].keys():
            raise ValueError("its schedule is another one.")
        if trainer.schedule:
            trainer.schedule.load_state_dict(state["schedule"])
        trainer._scaler.load_state_dict(state["scaler"])
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"the checkpoint is not of this model and optimizer: {error}") from error
    for parameter, gradient in zip(trainer._parameters(), state["gradients"], strict=False):
        parameter.grad = None if gradient is None else gradient.to(parameter)
    at = state["progress"]
    trainer._first, trainer.epoch, trainer.batch, trainer.step = at["first"], at["epoch"], at["batch"], at["step"]
    trainer.lr = at["lr"]
    trainer.history[:] = state["history"]
    trainer._tally = tally = Tally(**state["tally"])
    if not trainer.world.is_main:  # the sums are counted once
        tally.losses, tally.correct = ([torch.zeros_like(x) for x in part] for part in (tally.losses, tally.correct))
    trainer._epoch_start = state["epoch_start"]
    trainer._rng_to_restore = state["rng"][trainer.world.rank % len(state["rng"])]
    saved = list(state["callbacks"])
    for callback in trainer.callbacks:
        found = next((entry for entry in saved if entry[0] == type(callback).__name__), None)
        if found is not None:
            saved.remove(found)
            callback.load_state_dict(found[1])


def position(loader: Any) -> dict[str, Any]:
    """What the order of a loader's next pass depends on."""
    loader_state = getattr(loader, "state_dict", None)
    generator = getattr(loader, "generator", None)  # a DataLoader's own
    return {
        "rng": rng_state(),
        "loader": loader_state() if loader_state else None,
        "generator": generator.get_state() if isinstance(generator, torch.Generator) else None,
    }


def go_back(loader: Any, start: Mapping[str, Any]) -> None:
    """Make a loader's next pass and the random numbers what they were when `position` was asked."""
    restore_rng(start["rng"])
    if start["loader"] is not None:
        loader.load_state_dict(start["loader"])
    if start["generator"] is not None:
        loader.generator.set_state(start["generator"])


def open_epoch(trainer: "Trainer") -> Iterator[tuple[Tensor, Tensor, int]]:
    """The batches of the next epoch, or what is left of the one that a state was taken in; see `distributed.share`."""
    rng, trainer._rng_to_restore = trainer._rng_to_restore, None
    if rng is None:
        trainer._epoch_start = position(trainer.loader)
    # Every process starts from the numbers of the first, so that all draw the same order.
    trainer._epoch_start = start = trainer.world.first(trainer._epoch_start)
    go_back(trainer.loader, start)
    batches = distributed.share(trainer.loader, trainer.world)
    if rng is None or not trainer.batch:
        trainer.batch = 0
        trainer._tally = Tally()
        return batches
    for _ in range(trainer.batch):  # passed over: the model has learnt from them
        next(batches)
    restore_rng(rng)
    return batches
