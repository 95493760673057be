"""Loss and accuracy of one epoch, kept on the device."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cifarnets.errors import DivergedError
from cifarnets.training.distributed import World

COMPARE_EVERY = 50
"""Compare predictions with labels for so many batches at once: launching a comparison costs more than computing it."""


class EpochMetrics:
    """Losses, correct predictions, images and seconds of an epoch's batches.

    It keeps tensors and does not read them, for reading would wait for the device at every batch.

    Args:
        losses: One tensor a batch.
        sizes: Images in each batch, over all processes.
        correct: How many predictions were right.
        seconds: Of training.
    """

    def __init__(
        self,
        losses: Sequence[Tensor] = (),
        sizes: Sequence[int] = (),
        correct: Tensor | None = None,
        seconds: float = 0.0,
    ) -> None:
        self.losses = list(losses)
        self.sizes = list(sizes)
        self.correct = correct
        self.seconds = seconds
        self.batch_mean_loss = 0.0  # as the article prints it; known at the end of the epoch
        self._pairs: list[tuple[Tensor, Tensor]] = []  # logits and labels that are not compared yet

    @property
    def images(self) -> int:
        """Images seen so far, over all processes."""
        return sum(self.sizes)

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, size: int) -> None:
        """Note one batch; of weights of the classes, the largest counts as the label."""
        self.losses.append(loss)
        self.sizes.append(size)
        # Copies, for a model or a loader may write its next batch into the same memory.
        self._pairs.append((logits.detach().clone(), labels.clone() if labels.ndim == 1 else labels.argmax(1)))
        if len(self._pairs) == COMPARE_EVERY:
            self._compare()

    def accuracy(self) -> float:
        """This process's correct predictions as a part of all images so far; waits for the device."""
        self._compare()
        return self.correct.item() / self.images if self.correct is not None else 0.0

    def read_losses(self, epoch: int, last: int = 0) -> Tensor:
        """Read the losses of the last batches, or of all: float64, on the CPU where the device has no float64.

        Args:
            epoch: For the message, from 1.
            last: How many; 0 for all.

        Raises:
            DivergedError: One is NaN or infinite; the message says which batch's.
        """
        if not self.losses:
            return torch.empty(0, dtype=torch.float64, device="cpu")
        losses = torch.stack(self.losses[-last:])
        values = losses.double() if losses.device.type != "mps" else losses.cpu().double()
        wrong = values.isfinite().logical_not().nonzero().flatten().tolist()
        if wrong:
            batch = len(self.losses) - len(values) + wrong[0] + 1
            raise DivergedError(f"epoch {epoch}, batch {batch}: {divergence(values[wrong[0]].item())}")
        return values

    def row(self, epoch: int, lr: float, world: World) -> dict[str, float]:
        """Compute the history's row for the whole epoch, over all processes.

        The loss is the mean over images, as `evaluate` computes it, whatever the size of the last batch.

        Raises:
            DivergedError: A loss is NaN or infinite.
        """
        self._compare()
        assert self.correct is not None  # an epoch has a batch
        losses = world.sum(self.read_losses(epoch)).cpu()
        self.batch_mean_loss = losses.mean().item()
        weights = torch.tensor(self.sizes, dtype=torch.float64, device="cpu")
        return {
            "epoch": epoch,
            "loss": ((losses * weights).sum() / weights.sum()).item(),
            "accuracy": world.sum(self.correct).item() / self.images,
            "lr": lr,
            "seconds": self.seconds,
            "images_per_second": self.images / self.seconds,
        }

    def state_dict(self, world: World) -> dict[str, Any]:
        """What `from_state` makes the same metrics of; every process must ask."""
        self._compare()
        losses, correct = self.losses, self.correct
        if world.size > 1 and correct is not None:
            exact = torch.stack(losses)
            exact = exact.double() if exact.device.type != "mps" else exact.cpu().double()
            losses, correct = list(world.sum(exact)), world.sum(correct)
        return {"losses": losses, "sizes": self.sizes, "correct": correct, "seconds": self.seconds}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], device: torch.device, world: World) -> "EpochMetrics":
        """Restore the metrics of `state_dict`; the main process holds what all of them had seen."""
        counted = world.is_main
        losses = [loss.to(device) * counted for loss in state.get("losses", ())]
        correct = state.get("correct")
        # Checkpoints of earlier versions have no sizes: their batches count alike.
        sizes = state.get("sizes") or [state.get("images", 0) // len(losses)] * len(losses) if losses else []
        correct = None if correct is None else correct.to(device) * counted
        return cls(losses, sizes, correct, state.get("seconds", 0.0))

    def _compare(self) -> None:
        if self._pairs:
            logits, labels = (torch.cat(parts) for parts in zip(*self._pairs, strict=True))
            correct = (logits.argmax(1) == labels).sum()
            self.correct = correct if self.correct is None else self.correct + correct
            self._pairs.clear()


def check_weights(model: nn.Module, epoch: int) -> None:
    """Refuse weights that the last step has made NaN or infinite, which no loss has shown yet.

    Raises:
        DivergedError: Some are.
    """
    finite = [parameter.isfinite().all() for parameter in model.parameters()]
    if finite and not torch.stack(finite).all():
        raise DivergedError(
            f"the weights are NaN or infinite at the end of epoch {epoch}: training has diverged; try a lower learning "
            "rate."
        )


def divergence(loss: float, images: Tensor | None = None) -> str:
    """Say what a loss that is no finite number comes from."""
    if images is not None and not images.isfinite().all():
        return f"the loss is {loss}: the images of this batch hold NaN or infinity."
    return f"the loss is {loss}: training has diverged; try a lower learning rate."
