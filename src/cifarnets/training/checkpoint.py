"""Checkpoints of a fit: its whole state, its last model and its best model."""

import os
from typing import TYPE_CHECKING, Any

from cifarnets._checked import checked
from cifarnets._files import as_path, clear_leftovers
from cifarnets.errors import InputError
from cifarnets.models.storage import save, why_not_loadable
from cifarnets.training.callbacks import Best, Callback, Monitor
from cifarnets.weights.state import read_state, write_state

if TYPE_CHECKING:
    from cifarnets.training.trainer import Trainer

CHECKPOINT_FILE = "checkpoint.safetensors"


class Checkpoint(Callback):
    """Saves the whole state of a fit, its last model and its best model in a folder.

    `checkpoint.safetensors` has everything that `Trainer.fit(resume=folder)` needs. `last.safetensors` and
    `best.safetensors` are models for `load`; they are saved only if `load` can build the model. Each file is replaced
    only when the new one is complete. When Ctrl-C or SIGTERM ends the fit, the state is saved first.

    Examples:
        >>> from cifarnets import Trainer, create
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> from cifarnets.training import Checkpoint
        >>> loader = BatchLoader(SyntheticCIFAR10(size=100), shuffle=True, seed=0)
        >>> trainer = Trainer(create("convnet"), callbacks=[Checkpoint("kept")], progress=False)
        >>> history = trainer.fit(loader, epochs=1)
        >>> again = Trainer(create("convnet"), callbacks=[Checkpoint("kept")], progress=False)
        >>> len(again.fit(loader, epochs=3, resume="kept"))
        3

    Args:
        folder: The folder; it is made if missing.
        best: The figure of the history that decides which model is the best; None to save no best model.
        every_batches: Also save the state within an epoch, every this many batches.
        allow_test: True to accept the test set as validation images. The test accuracy is then too good.
    """

    every_process = True  # every process contributes its state; one writes

    @checked
    def __init__(
        self,
        folder: str | os.PathLike[str],
        best: Monitor | None = None,
        *,
        every_batches: int | None = None,
        allow_test: bool = False,
    ) -> None:
        self.folder = as_path(folder)
        self.every_batches = every_batches
        self.allow_test = allow_test
        self._best = Best(best) if best else None
        self._keeps_models = False

    def on_fit_start(self, trainer: "Trainer") -> None:
        reason = why_not_loadable(trainer.model)
        self._keeps_models = not reason
        if self._best:
            self._best.check(trainer, "Checkpoint", self.allow_test)
            if reason:
                raise InputError(f"Checkpoint can keep no best model, so say best=None, or: {reason}")
        if trainer.world.is_main:
            clear_leftovers(self.folder)

    def on_batch_end(self, trainer: "Trainer") -> None:
        if self.every_batches and trainer.batches_done % self.every_batches == 0:
            self._write_state(trainer)

    def on_epoch_end(self, trainer: "Trainer") -> None:
        improved = self._best is not None and self._best.improved(trainer)
        if trainer.world.is_main and self._keeps_models:
            save(trainer.eval_model, self.folder / "last.safetensors")
            if improved:
                save(trainer.eval_model, self.folder / "best.safetensors")
        self._write_state(trainer)

    def on_fit_end(self, trainer: "Trainer") -> None:
        if trainer.interrupted and not trainer.failed:
            self._write_state(trainer)

    def check_state(self, state: dict[str, Any], trainer: "Trainer") -> None:
        if self._best and state:
            self._best.check_state(state, "Checkpoint")

    def state_dict(self) -> dict[str, Any]:
        return {"best": self._best.best} if self._best else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if self._best and state:
            self._best = self._best.at(state["best"])

    def _write_state(self, trainer: "Trainer") -> None:
        # Losses on a GPU are read only now and then, and a NaN must not replace the last good state.
        trainer.metrics.read_losses(trainer.epoch + 1)
        state = trainer.state_dict()
        if trainer.world.is_main:
            write_state(self.folder / CHECKPOINT_FILE, state)


def find_state(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Read the state that a `Checkpoint` wrote, given its folder or the file itself; None if there is none yet.

    Raises:
        InputError: The path is none, or names a file that is not there.
        WeightsError: The file is damaged.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InputError(f"resume must be the folder of a Checkpoint, or its file, not {path!r}.")
    found = as_path(path)
    if found.is_dir():
        found = found / CHECKPOINT_FILE
    elif found.suffix == ".safetensors" and not found.exists():
        raise InputError(
            f"there is no checkpoint {str(path)!r} to resume from; name the folder that a Checkpoint writes."
        )
    if not found.exists():
        return None
    state = read_state(found)
    if not isinstance(state, dict):
        raise InputError(f"{str(found)!r} does not hold the state of a fit.")
    return state
