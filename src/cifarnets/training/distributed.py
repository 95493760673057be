"""Several processes on one machine or more: `torch.distributed`, as `torchrun` starts it.

Every process builds the same model and the same loaders. Each takes its shard of every batch. The gradients are
averaged, so that a step is the same as one process would take with the whole batch. The history counts the images of
all.
"""

import atexit
import contextlib
import importlib
import os
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cifarnets.errors import CifarNetsError, InputError, TrainingError

TIMEOUT = timedelta(minutes=10)
_wrapped: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


@dataclass(frozen=True)
class World:
    """The processes of a run.

    Attributes:
        rank: Which one this is; 0 is the one that writes.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks to the terminal."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes, `values` itself where there is one."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def any(self, flag: bool, device: torch.device) -> bool:
        """Whether the flag is up in any process; every process must ask."""
        if self.size == 1:
            return flag
        return bool(self.sum(torch.tensor(float(flag), device=device)).item())

    def gather(self, value: Any) -> list[Any]:
        """The value of every process, in the order of ranks."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def first(self, value: Any) -> Any:
        """The value of process 0."""
        return self.gather(value)[0] if self.size > 1 else value

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model with its gradients averaged over all processes, where there are several."""
        if self.size == 1:
            return model
        wrapped = nn.parallel.DistributedDataParallel(model)
        _wrapped.add(wrapped)
        return wrapped

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Explain errors that a lost process causes, and leave the group cleanly when the program ends.

        Raises:
            TrainingError: torch raised, and there are several.
        """
        if self.size == 1:
            yield
            return
        atexit.unregister(leave)  # it waits for what is under way, and after an error that may never end
        try:
            yield
        except InputError:  # of a check between two operations, so nothing is under way
            atexit.register(leave)
            raise
        except RuntimeError as error:
            if isinstance(error, CifarNetsError):
                raise
            raise TrainingError(
                f"process {self.rank} of {self.size} cannot go on; has another one ended? ({error})"
            ) from error
        atexit.register(leave)


def join(device: torch.device) -> World:
    """Return the processes that this one is part of; the first call joins the group that `torchrun` started.

    Raises:
        InputError: There are several processes, and torch cannot let them talk on this device.
    """
    if not dist.is_available():
        return World()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
            return World()
        if device.type == "mps":
            raise InputError("several processes cannot train together on mps; choose the CPU (`--device cpu`).")
        from torch.distributed.rendezvous import rendezvous  # which a torch without distributed lacks

        if device.type == "cuda":
            torch.cuda.set_device(device)
        # Its functions take the group of this moment, here None, as a default: imported later, as torch itself would,
        # it would keep the group for good.
        importlib.import_module("torch.distributed.nn")
        store, rank, size = next(rendezvous("env://", timeout=TIMEOUT))
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # After a restart, torchrun's store still holds the addresses of the processes that have gone. (Several
            # machines count their restarts each for itself, so there the count is no common name.)
            store = dist.distributed_c10d.PrefixStore(
                f"restart{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store
            )
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
    return World(dist.get_rank(), dist.get_world_size())


def leave() -> None:
    """Leave the group of processes, if there is one; no Trainer of this process can train in it afterwards.

    torch talks to the others in threads, which end too: a thread still at work while the interpreter ends would abort
    the process.
    """
    while _wrapped:
        wrapped = _wrapped.pop()
        del wrapped.reducer, wrapped.logger, wrapped.process_group  # what keeps the threads
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
