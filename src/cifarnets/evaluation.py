"""How good a model is on labelled images."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets._device import resolve_device
from cifarnets.errors import InputError
from cifarnets.inference import (
    TTA,
    Batches,
    check_labels,
    check_probabilities,
    collect_logits,
    match_data,
    name_outputs,
)

CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """Accuracy, loss, calibration and confusion of a model; prints as a table.

    Examples:
        >>> import torch
        >>> from cifarnets import Evaluation
        >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1, 1])
        >>> result = Evaluation.from_logits(logits, labels, ("cat", "dog"))
        >>> result.per_class, result.confusion
        ({'cat': 1.0, 'dog': 0.5}, ((1, 0), (1, 1)))

    Attributes:
        n: Images seen.
        loss: Mean cross-entropy, in nats.
        accuracy: Top-1, 0..1.
        ece: Expected calibration error, 0..1: how far confidence is from accuracy, over 15 equal bins weighted by
            their images (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3).
        per_class: The accuracy on the images of each class, by name; a class without images is left out.
        confusion: `confusion[i][j]` counts the images of class i that the model took for class j.
    """

    n: int
    loss: float
    accuracy: float
    ece: float
    per_class: dict[str, float]
    confusion: tuple[tuple[int, ...], ...]

    @classmethod
    @checked
    def from_logits(cls, logits: Tensor, labels: Tensor, classes: tuple[str, ...] | None = None) -> "Evaluation":
        """Evaluate logits `[N, K]` that are known already, against labels int64 `[N]`.

        Examples:
            >>> import torch
            >>> from cifarnets import Evaluation
            >>> Evaluation.from_logits(torch.eye(3), torch.tensor([0, 1, 1])).accuracy
            0.6666666666666666

        Args:
            logits: One row an image.
            labels: The true classes.
            classes: Names of the outputs; numbers stand for missing ones.

        Raises:
            InputError: There is no image, a label has no logit, or a logit is NaN or infinite.
        """
        if logits.ndim != 2 or labels.shape != logits.shape[:1]:
            raise InputError(
                f"logits must be [N, K] and labels [N], not {list(logits.shape)} and {list(labels.shape)}."
            )
        n, k = logits.shape
        if not n:
            raise InputError("there is no image, so there is nothing to measure.")
        check_labels(labels, k)
        logits = logits.double()
        probabilities = logits.softmax(1)
        check_probabilities(probabilities)
        confidence, predicted = probabilities.max(1)
        correct = (predicted == labels).double()
        confusion = torch.bincount(labels * k + predicted, minlength=k * k).view(k, k)
        counts = confusion.sum(1)
        names = name_outputs(classes, k)
        return cls(
            n=n,
            loss=F.cross_entropy(logits, labels).item(),
            accuracy=correct.mean().item(),
            ece=_calibration_error(confidence, correct),
            per_class={name: (confusion[i, i] / counts[i]).item() for i, name in enumerate(names) if counts[i]},
            confusion=tuple(map(tuple, confusion.tolist())),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values, ready for JSON.

        Examples:
            >>> import torch
            >>> from cifarnets import Evaluation
            >>> Evaluation.from_logits(torch.eye(2), torch.tensor([0, 1])).to_dict()["n"]
            2
        """
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"accuracy {self.accuracy:.4f}   loss {self.loss:.4f}   ECE {self.ece:.4f}   images {self.n:,}", ""]
        counts = [sum(row) for row in self.confusion]
        width = max(map(len, self.per_class), default=0)
        seen = [count for count in counts if count]
        for (name, accuracy), count in zip(self.per_class.items(), seen, strict=True):
            bar = "█" * round(accuracy * 30)
            lines.append(f"{name:<{width}}  {accuracy:.4f}  {bar:<30}  {count:,} images")
        return "\n".join(lines)


@checked
def evaluate(
    model: nn.Module, loader: Batches, *, device: str | torch.device = "auto", tta: TTA | None = None
) -> Evaluation:
    """Measure a model on labelled images, in eval mode and without gradients (article, step 21).

    The model is on the same device afterwards, and in the same train or eval mode.

    Examples:
        >>> import cifarnets
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> model = cifarnets.models.create("convnet")
        >>> cifarnets.evaluate(model, BatchLoader(SyntheticCIFAR10(size=100), 50)).n
        100

    Args:
        model: Any module that maps images to logits `[B, K]`.
        loader: Anything that gives `(images [B, C, H, W], labels [B])`.
        device: Where to compute; `"auto"` takes the first of CUDA, MPS and CPU that is there.
        tta: Test-time augmentation. `"mirror"` averages the logits of each image and its mirror image;
            `"mirror_shift"` adds both shifted by a pixel along a diagonal, with half the weight (Jordan 2024).

    Raises:
        InputError: There is no batch, or one does not fit the model; the message says which and why. Or the loader's
            classes or normalising constants are not those that the model was trained with.
    """
    classes = match_data(model, loader)
    logits, labels = collect_logits(model, loader, resolve_device(device), tta)
    return Evaluation.from_logits(logits, labels, classes)


def _calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Sum |accuracy - confidence| over the bins (i/15, (i+1)/15], weighted by their images."""
    bins = (confidence * CALIBRATION_BINS).ceil().clamp(1, CALIBRATION_BINS).long() - 1
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64, device=confidence.device).index_add_(
        0, bins, correct - confidence
    )
    return (gaps.abs().sum() / len(confidence)).item()
