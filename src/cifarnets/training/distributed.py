"""Several processes on one machine or more: `torch.distributed`, as `torchrun` starts it.

Every process builds the same model and the same loaders. Each batch is shared out among them, gradients are averaged
so that a step is that of one process with the whole batch, and the figures of the history are those of all.
"""

import atexit
import contextlib
import importlib
import os
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data.distributed import DistributedSampler

from cifarnets.errors import CifarNetsError, InputError, TrainingError
from cifarnets.evaluation import Batches, Evaluation, as_pair, collect_logits, measure

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
        """Work of several processes: what is likely behind an error of torch's is said, and all `leave` at exit.

        Raises:
            TrainingError: torch raised, and there are several.
        """
        if self.size == 1:
            yield
            return
        atexit.unregister(leave)  # it waits for what is under way, which after an error may be for good
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, CifarNetsError):
                raise
            raise TrainingError(
                f"process {self.rank} of {self.size} cannot go on; has another one ended? ({error})"
            ) from error
        atexit.register(leave)


def join(device: torch.device) -> World:
    """The world that this process is part of: joined on the first call if `torchrun` started it, else just itself.

    Raises:
        InputError: There are several processes, and torch cannot let them talk on this device.
    """
    if not dist.is_available():
        return World()
    if not dist.is_initialized():
        if int(os.environ.get("WORLD_SIZE", 1)) == 1 or "RANK" not in os.environ:
            return World()
        if device.type == "mps":
            raise InputError("several processes cannot share out work on mps; choose the CPU (`--device cpu`).")
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
    """Take leave of the other processes, where there are any; no Trainer of theirs can go on then.

    The threads in which torch talks to them end too. One that were still at work while the interpreter ends would abort
    the process.
    """
    while _wrapped:
        wrapped = _wrapped.pop()
        del wrapped.reducer, wrapped.logger, wrapped.process_group  # what keeps the threads
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def share(loader: Iterable[Any], world: World) -> Iterator[tuple[Tensor, Tensor, int]]:
    """This process's part of every batch, and how many images the whole batch has.

    A BatchLoader takes its part before it converts anything; a DataLoader with a `DistributedSampler` has shared out
    the images already; of everything else each process drops what is the others'.
    """
    if hasattr(loader, "shard"):
        yield from loader.shard(world.rank, world.size)
    elif isinstance(getattr(loader, "sampler", None), DistributedSampler):
        for index, batch in enumerate(loader):
            images, labels = as_pair(batch, f"batch {index + 1}")
            yield images, labels, len(labels) * world.size
    else:
        for index, batch in enumerate(loader):
            images, labels = as_pair(batch, f"batch {index + 1}")
            mine = slice(world.rank, None, world.size)
            yield (images, labels, len(labels)) if world.size == 1 else (images[mine], labels[mine], len(labels))


def evaluate(
    model: nn.Module, loader: Batches, device: torch.device, world: World, classes: tuple[str, ...] | None
) -> Evaluation:
    """As `cifarnets.evaluate`, with the images shared out among the processes."""
    mine = ((images, labels) for images, labels, _ in share(loader, world))
    parts = world.gather(collect_logits(model, mine, device))
    logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))
    return measure(logits, labels, classes)
