"""What an epoch has seen so far."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cifarnets.errors import DivergedError
from cifarnets.training.distributed import World

COMPARE_EVERY = 50
"""How many batches' answers are compared at once: to compare a few at a time costs more than the comparing itself."""


class EpochMetrics:
    """Losses, right answers, images and seconds of an epoch's batches.

    Tensors are kept, not read: reading would wait for the device at every batch.
    """

    def __init__(
        self, losses: Sequence[Tensor] = (), correct: Tensor | None = None, images: int = 0, seconds: float = 0.0
    ) -> None:
        self.losses = list(losses)
        self.correct = correct
        self.images = images
        self.seconds = seconds
        self._answers: list[tuple[Tensor, Tensor]] = []  # logits and labels that are not compared yet

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, images: int) -> None:
        """Note one batch; shares of the classes count for the largest."""
        self.losses.append(loss)
        # Copies, for a model or a loader may write its next batch where this one stands.
        self._answers.append((logits.detach().clone(), labels.clone() if labels.ndim == 1 else labels.argmax(1)))
        if len(self._answers) == COMPARE_EVERY:
            self._compare()
        self.images += images

    def accuracy(self) -> float:
        """The share of right answers so far; waits for the device."""
        self._compare()
        return self.correct.item() / self.images if self.correct is not None else 0.0

    def state_dict(self) -> dict[str, Any]:
        """The arguments that make another one like this."""
        self._compare()
        return {"losses": self.losses, "correct": self.correct, "images": self.images, "seconds": self.seconds}

    def read_losses(self, epoch: int, last: int = 0) -> Tensor:
        """The losses of the last batches, of all by default: float64, on the CPU where the device has none.

        Args:
            epoch: For the message, from 1.
            last: How many.

        Raises:
            DivergedError: One is NaN or infinite; the message says which batch's.
        """
        if not self.losses:
            return torch.empty(0, dtype=torch.float64)
        losses = torch.stack(self.losses[-last:])
        values = losses.double() if losses.device.type != "mps" else losses.cpu().double()
        wrong = values.isfinite().logical_not().nonzero().flatten().tolist()
        if wrong:
            batch = len(self.losses) - len(values) + wrong[0] + 1
            raise diverged(values[wrong[0]].item(), f"epoch {epoch}, batch {batch}")
        return values

    def row(self, epoch: int, lr: float, world: World) -> dict[str, float]:
        """The history's row of the whole epoch, of all processes together.

        Raises:
            DivergedError: As `read_losses`.
        """
        self._compare()
        return {
            "epoch": epoch,
            "loss": world.sum(self.read_losses(epoch)).mean().item(),
            "accuracy": world.sum(torch.as_tensor(self.correct)).item() / self.images,
            "lr": lr,
            "seconds": self.seconds,
            "images_per_second": self.images / self.seconds,
        }

    def _compare(self) -> None:
        if self._answers:
            logits, labels = (torch.cat(parts) for parts in zip(*self._answers, strict=True))
            right = (logits.argmax(1) == labels).sum()
            self.correct = right if self.correct is None else self.correct + right
            self._answers.clear()


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


def diverged(loss: float, where: str, images: Tensor | None = None) -> DivergedError:
    """The error for a loss that is no number, with its likely cause."""
    if images is not None and not images.isfinite().all():
        return DivergedError(f"the loss is {loss} at {where}: the images of that batch hold NaN or infinity.")
    return DivergedError(f"the loss is {loss} at {where}: training has diverged; try a lower learning rate.")
