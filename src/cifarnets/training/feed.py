"""The batches of a fit: sharded over processes, resumable at any batch, safe against signals."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sized
from typing import Any

import torch
from torch.utils.data.distributed import DistributedSampler

from cifarnets._batch import Batch
from cifarnets.errors import InputError, brief
from cifarnets.inference import Batches, as_batch, batch_context
from cifarnets.models.metadata import constants_of
from cifarnets.seeding import ON_CPU, restore_rng, rng_state
from cifarnets.training.distributed import World
from cifarnets.training.resume import check_plain_values, check_rng, differences

NO_BATCH = "the loader gave no batch{}; a generator can be gone through only once: pass a list."


class WorkersEndedError(Exception):
    """A signal has ended the workers that fetch the batches."""


class EpochFeed:
    """Gives the batches of each epoch, and owns what their order depends on: the loader's state and the random state.

    Args:
        loader: Anything that gives `(images, labels)` and can be gone through once an epoch.
        world: The processes that share each batch.
    """

    def __init__(self, loader: Batches, world: World) -> None:
        self.loader = loader
        self.world = world
        self._epoch_start: dict[str, Any] | None = (
            None  # what the present epoch's order depends on; None between epochs
        )
        self._resume_rng: dict[str, Any] | None = None  # to restore once the batches before it have been skipped

    def epoch(self, number: int, skip: int, is_stopping: Callable[[], bool]) -> Iterator[Batch]:
        """Open an epoch, and return an iterator over this process's shards of its batches.

        Args:
            number: Epochs completed before; a `DistributedSampler` is set to it.
            skip: Batches to leave out, for the model had learnt from them when its state was saved.
            is_stopping: Whether the fit is about to end anyway: then a lost worker is no error, and the iterator raises
                `WorkersEndedError`.
        """
        resume_rng, self._resume_rng = self._resume_rng, None
        if resume_rng is None:
            self._epoch_start = self.position()
        else:
            restore_rng(resume_rng)
        assert self._epoch_start is not None
        # Every process starts from the numbers of the first, so that all draw the same order; devices keep their own.
        self._epoch_start = start = self.world.first(self._epoch_start)
        shared = {key: state for key, state in start["rng"].items() if self.world.size == 1 or key in ON_CPU}
        self.rewind({**start, "rng": shared})
        set_epoch = getattr(getattr(self.loader, "sampler", None), "set_epoch", None)
        if set_epoch is not None:  # of a DistributedSampler
            set_epoch(number)
        batches = self.shards()
        if self.world.size > 1 and None in (self.batches, self.settings()["batch_size"], self.settings()["images"]):
            batches = self._in_step(batches, number)
        if resume_rng is not None and skip:
            for _ in range(skip):
                next(batches)
            restore_rng(resume_rng)
        return _until_workers_end(batches, is_stopping)

    def close_epoch(self) -> None:
        """Note that the epoch has come to its end, so that the next one draws a new order."""
        self._epoch_start = None

    def shards(self) -> Iterator[Batch]:
        """Yield this process's shard of every batch of one pass.

        A BatchLoader takes its shard before it converts anything. A DataLoader with a `DistributedSampler` has split
        the images already. From any other loader each process drops what belongs to the others.
        """
        rank, size = self.world.rank, self.world.size
        shard = getattr(self.loader, "shard", None)
        if shard is not None:
            yield from shard(rank, size)
            return
        is_split = size > 1 and isinstance(getattr(self.loader, "sampler", None), DistributedSampler)
        for number, value in enumerate(self.loader, 1):
            with batch_context("batch {}", number):
                batch = as_batch(value, size if is_split else 1)
            if size > 1 and not is_split:
                own = slice(rank, None, size)
                batch = Batch(batch.images[own], batch.labels[own], batch.size)
            del value
            yield batch

    def _in_step(self, batches: Iterator[Batch], epoch: int) -> Iterator[Batch]:
        """Refuse batches of other sizes in other processes, where no length of the loader could show it before."""
        for number in itertools.count(1):
            batch = next(batches, None)
            sizes = self.world.gather(batch and batch.size)
            if len(set(sizes)) > 1:
                raise InputError(
                    f"epoch {epoch + 1}, batch {number}: every process needs the same batches, and theirs have {sizes} "
                    "images (None: no batch is left)."
                )
            if batch is None:
                return
            yield batch
            del batch

    def endless(self) -> Iterator[Batch]:
        """Yield the shards of one pass after another.

        Raises:
            InputError: A pass has no batch.
        """
        for first in itertools.count():
            batch = None
            for batch in self.shards():
                yield batch
            if batch is None:
                raise InputError(NO_BATCH.format(" a second time" if first else ""))

    def position(self) -> dict[str, Any]:
        """What the order of the loader's next pass depends on."""
        loader_state = getattr(self.loader, "state_dict", None)
        generators = [own.get_state() if isinstance(own, torch.Generator) else None for own in self._generators()]
        return {"rng": rng_state(), "loader": loader_state() if loader_state else None, "generators": generators}

    def rewind(self, start: Mapping[str, Any]) -> None:
        """Put the loader and the random numbers back to a `position`."""
        restore_rng(start["rng"])
        if start["loader"] is not None:
            self.loader.load_state_dict(start["loader"])  # type: ignore[attr-defined]
        for own, state in zip(self._generators(), start["generators"], strict=True):
            if state is not None:
                own.set_state(state)

    def state_dict(self) -> dict[str, Any]:
        """What the rest of the epoch's batches depend on; every process must ask."""
        return {
            "epoch_start": self._epoch_start or self.position(),
            "rng": self.world.gather(self._resume_rng or rng_state()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the next epoch the one that `state_dict` was taken in."""
        self._epoch_start = state["epoch_start"]
        self._resume_rng = state["rng"][self.world.rank % len(state["rng"])]

    def check(self, state: Mapping[str, Any]) -> None:
        """Refuse the state of another kind of loader, and random states that cannot be restored; nothing is changed.

        Raises:
            InputError: The message says why.
        """
        if getattr(self.loader, "persistent_workers", False):
            raise InputError(
                "a DataLoader with persistent_workers=True cannot repeat its order in a new process, so the fit cannot "
                "resume exactly; set it to False."
            )
        here, start = self.position(), state["epoch_start"]
        own_rng = state["rng"][self.world.rank % len(state["rng"])]
        if (
            not isinstance(start, Mapping)
            or not here.keys() <= start.keys()
            or not isinstance(start["generators"], list)
        ):
            raise InputError("the checkpoint is damaged: epoch_start is incomplete.")
        for rng in (start["rng"], own_rng):
            check_rng(rng)
        # What a loader remembers is up to the loader; both must remember the same kinds of things.
        kinds = [(point["loader"] is None, [part is None for part in point["generators"]]) for point in (start, here)]
        if kinds[0] != kinds[1]:
            raise InputError("the checkpoint is of a fit on another kind of loader, which keeps its order elsewhere.")
        if isinstance(here["loader"], dict):
            check_plain_values("the loader", start["loader"], here["loader"])
        try:
            restore_rng(own_rng)
            self.rewind(start)
        except Exception as error:  # a loader of the user has its own ways to refuse
            raise InputError(f"the checkpoint is damaged: the loader cannot go back ({brief(str(error))}).") from error
        finally:
            self.rewind(here)

    def check_processes(self) -> None:
        """Refuse loaders that differ between processes, which would wait for each other for ever.

        Raises:
            InputError: They do; every process raises it.
        """
        settings = {key: value for key, value in self.settings().items() if key != "data"}  # each may hold its own part
        first, *others = self.world.gather({"batches": self.batches, **settings})
        for rank, theirs in enumerate(others, 1):
            if theirs != first:
                raise InputError(
                    f"every process needs the same loader, and process {rank} has "
                    f"{'; '.join(differences(theirs, first))} as process 0."
                )

    def settings(self) -> dict[str, Any]:
        """What the order and the size of the batches depend on, in plain values."""
        dataset = getattr(self.loader, "dataset", None)
        return {
            "batch_size": getattr(self.loader, "batch_size", None),
            "images": len(dataset) if isinstance(dataset, Sized) else None,
            "constants": constants_of(dataset),
            "data": fingerprint() if callable(fingerprint := getattr(dataset, "fingerprint", None)) else None,
            "sampler": type(getattr(self.loader, "sampler", None)).__name__,
            "shuffle": getattr(self.loader, "shuffle", None),
            "augment": repr(getattr(self.loader, "augment", None)),
            "workers": bool(getattr(self.loader, "num_workers", 0)),
        }

    @property
    def image_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """`(C, H, W)` of the images of all passes, whole ones last; none where the loader does not say."""
        return tuple(getattr(self.loader, "image_shapes", ()))

    @property
    def batches(self) -> int | None:
        """Batches an epoch; None where the loader has no length."""
        try:
            return len(self.loader)  # type: ignore[arg-type]
        except TypeError:
            return None

    def _generators(self) -> tuple[Any, Any]:
        """The DataLoader's own random generator and its sampler's."""
        return getattr(self.loader, "generator", None), getattr(
            getattr(self.loader, "sampler", None), "generator", None
        )


def _until_workers_end(batches: Iterator[Batch], is_stopping: Callable[[], bool]) -> Iterator[Batch]:
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        # torch's, for a worker that has gone; or what comes of asking it for a tensor that it had announced.
        except (RuntimeError, OSError, EOFError) as error:
            if not is_stopping():
                raise
            raise WorkersEndedError from error
        yield batch
        del batch  # the Trainer can then free it before the next one is made
