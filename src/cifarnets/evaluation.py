"""How good a model is on labelled images."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets._device import resolve_device
from cifarnets._html import confusion_table, figures_line
from cifarnets._tables import dataframe
from cifarnets.errors import InputError, brief
from cifarnets.inference import (
    TTA,
    Batches,
    check_labels,
    check_probabilities,
    collect_logits,
    match_data,
    name_outputs,
)

if TYPE_CHECKING:
    import pandas as pd

CALIBRATION_BINS = 15
MOST_SHOWN = 50
"""Classes of a confusion matrix that a notebook shows; that of a thousand has 46 MB."""
MISTAKES = 16
"""The most confident mistakes that an evaluation keeps."""


class Mistake(NamedTuple):
    """An image that a model took for another class.

    Attributes:
        image: Its place in the order of the loader, from 0.
        label: The true class.
        predicted: The class that the model chose.
        confidence: The probability that the model gave it, 0..1.
    """

    image: int
    label: int
    predicted: int
    confidence: float


class Bin(NamedTuple):
    """The images whose confidence lies in one of 15 equal bins.

    Attributes:
        images: How many there are.
        confidence: Their mean confidence, 0..1; 0 for an empty bin.
        accuracy: The share of them that the model is right about.
    """

    images: int
    confidence: float
    accuracy: float


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
        classes: The names of all classes, in the order of `confusion`.
        top5: The share of images whose class is among the five likeliest; None where there are no more than five.
        reliability: The bins of `ece`, each with its images, their mean confidence, and how often the model is right.
        mistakes: The 16 most confident mistakes: `image` (its place in the loader's order), `label`, `predicted` and
            `confidence`.
        logits: float32 `[N, K]`, from which all of it was computed; None if it was read from a file.
        labels: int64 `[N]`.
    """

    n: int
    loss: float
    accuracy: float
    ece: float
    per_class: dict[str, float]
    confusion: tuple[tuple[int, ...], ...]
    classes: tuple[str, ...] = ()
    top5: float | None = None
    reliability: tuple[Bin, ...] = field(default=(), repr=False)
    mistakes: tuple[Mistake, ...] = field(default=(), repr=False)
    logits: Tensor | None = field(default=None, repr=False, compare=False)
    labels: Tensor | None = field(default=None, repr=False, compare=False)

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
        exact = logits.double()
        probabilities = exact.softmax(1)
        check_probabilities(probabilities)
        confidence, predicted = probabilities.max(1)
        correct = (predicted == labels).double()
        confusion = torch.bincount(labels * k + predicted, minlength=k * k).view(k, k)
        counts = confusion.sum(1)
        names = name_outputs(classes, k)
        reliability = _bins(confidence, correct)
        return cls(
            n=n,
            loss=F.cross_entropy(exact, labels).item(),
            accuracy=correct.mean().item(),
            ece=sum(part.images * abs(part.accuracy - part.confidence) for part in reliability) / n,
            per_class={name: (confusion[i, i] / counts[i]).item() for i, name in enumerate(names) if counts[i]},
            confusion=tuple(map(tuple, confusion.tolist())),
            classes=names,
            top5=(exact.topk(5).indices == labels[:, None]).any(1).double().mean().item() if k > 5 else None,
            reliability=reliability,
            mistakes=_mistakes(confidence, predicted, labels),
            logits=logits.detach().cpu(),
            labels=labels.cpu(),
        )

    @classmethod
    @checked
    def from_dict(cls, content: Mapping[str, Any]) -> "Evaluation":
        """Make an evaluation of what `to_dict` gave, such as an entry of a run's `evaluation.json`.

        Examples:
            >>> import torch
            >>> from cifarnets import Evaluation
            >>> result = Evaluation.from_logits(torch.eye(2), torch.tensor([0, 1]))
            >>> Evaluation.from_dict(result.to_dict()) == result
            True

        Raises:
            InputError: It is no evaluation.
        """
        try:
            found = cls(
                n=int(content["n"]),
                loss=float(content["loss"]),
                accuracy=float(content["accuracy"]),
                ece=float(content["ece"]),
                per_class={str(name): float(value) for name, value in content["per_class"].items()},
                confusion=tuple(tuple(map(int, row)) for row in content["confusion"]),
                # Earlier versions named the classes with images only.
                classes=tuple(map(str, content["classes"]))
                if "classes" in content
                else name_outputs(tuple(map(str, content["per_class"])), len(content["confusion"])),
                top5=None if content.get("top5") is None else float(content["top5"]),
                reliability=tuple(
                    Bin(int(part["images"]), float(part["confidence"]), float(part["accuracy"]))
                    for part in content.get("reliability", ())
                ),
                mistakes=tuple(
                    Mistake(
                        int(found["image"]), int(found["label"]), int(found["predicted"]), float(found["confidence"])
                    )
                    for found in content.get("mistakes", ())
                ),
            )
            found._check()
        except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
            raise InputError(f"this is no evaluation: {type(error).__name__}: {brief(str(error))}.") from error
        return found

    def _check(self) -> None:
        """Refuse figures that no images can give: they come from a file, and tables and charts divide by them."""
        k = len(self.confusion)
        if any(len(row) != k or min(row) < 0 for row in self.confusion) or len(self.classes) != k:
            raise ValueError(f"confusion of {k} rows must have {k} counts in each, and a class for each")
        if not 0 < self.n < 2**53 or sum(map(sum, self.confusion)) != self.n:
            raise ValueError(f"n must be the images that confusion counts, at least 1, not {brief(self.n)}")
        if math.isnan(self.loss) or self.loss < 0:
            raise ValueError(f"loss must be at least 0, not {self.loss}")
        shares = [self.accuracy, self.ece, *self.per_class.values(), *(found.confidence for found in self.mistakes)]
        shares += [] if self.top5 is None else [self.top5]
        shares += [share for part in self.reliability for share in part[1:]]
        if not all(-1e-6 < share < 1 + 1e-6 for share in shares):
            raise ValueError("accuracies, confidences and other shares must be between 0 and 1")
        if any(not 0 <= part.images <= self.n for part in self.reliability):
            raise ValueError("a bin of reliability must count images of these")
        if any(not (0 <= m.image < self.n and 0 <= m.label < k and 0 <= m.predicted < k) for m in self.mistakes):
            raise ValueError("a mistake must name an image and two classes of these")

    @checked
    def confidence_interval(self, level: float = 0.95) -> tuple[float, float]:
        """Return where the accuracy on all possible images of this kind lies, as far as this many images can say.

        It is the Wilson score interval (Wilson 1927). It counts the chance in the choice of the images, not the chance
        in the training: for that, train with several seeds.

        Examples:
            >>> import torch
            >>> from cifarnets import Evaluation
            >>> result = Evaluation.from_logits(torch.eye(2).repeat(50, 1), torch.tensor([0, 1, 0, 0]).repeat(25))
            >>> result.accuracy, [round(end, 3) for end in result.confidence_interval()]
            (0.75, [0.657, 0.825])

        Args:
            level: How often such an interval holds the true accuracy, between 0 and 1.

        Raises:
            InputError: The level is not between 0 and 1.
        """
        if not 0 < level < 1:
            raise InputError(f"level must be between 0 and 1, such as 0.95, not {level}.")
        z = NormalDist().inv_cdf((1 + level) / 2)
        center = self.accuracy + z**2 / (2 * self.n)
        spread = z * math.sqrt(self.accuracy * (1 - self.accuracy) / self.n + (z / (2 * self.n)) ** 2)
        scale = 1 + z**2 / self.n
        return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)

    def to_dataframe(self) -> "pd.DataFrame":
        """Return a pandas table with a row for each class: its images, accuracy and precision (the extra `tables`).

        The accuracy of a class is also called its recall. Its precision is the share of right answers among the images
        that the model took for it. Both are missing (NaN) where there is nothing to divide by.

        Examples:
            >>> import torch
            >>> from cifarnets import Evaluation
            >>> logits, labels = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1, 1])
            >>> table = Evaluation.from_logits(logits, labels, ("cat", "dog")).to_dataframe()
            >>> float(table.loc["cat", "precision"]), int(table.loc["dog", "images"])
            (0.5, 2)

        Raises:
            MissingExtraError: pandas is not installed.
        """
        rows = []
        for number, row in enumerate(self.confusion):
            right, images, taken = row[number], sum(row), sum(other[number] for other in self.confusion)
            shares = (right / images if images else math.nan, right / taken if taken else math.nan)
            rows.append({"images": images, "accuracy": shares[0], "precision": shares[1]})
        return dataframe(rows, index=self.classes, name="class")

    def to_dict(self) -> dict[str, Any]:
        """Return all of it but `logits` and `labels` as plain values, ready for JSON.

        Examples:
            >>> import torch
            >>> from cifarnets import Evaluation
            >>> Evaluation.from_logits(torch.eye(2), torch.tensor([0, 1])).to_dict()["n"]
            2
        """
        plain = {part.name: getattr(self, part.name) for part in fields(self) if part.name not in ("logits", "labels")}
        for name in ("reliability", "mistakes"):
            plain[name] = [part._asdict() for part in plain[name]]
        return plain

    def __str__(self) -> str:
        lines = ["   ".join(f"{name} {value}" for name, value in self._figures().items()), ""]
        # Not from per_class, in which two classes of one name are one.
        seen = [
            (name, row[i], sum(row)) for i, (name, row) in enumerate(zip(self.classes, self.confusion, strict=False))
        ]
        width = max((len(name) for name, _, count in seen if count), default=0)
        for name, right, count in seen:
            if count:
                bar = "█" * round(right / count * 30)
                lines.append(f"{name:<{width}}  {right / count:.4f}  {bar:<30}  {count:,} images")
        return "\n".join(lines)

    def _figures(self) -> dict[str, str]:
        low, high = self.confidence_interval()
        top5 = {} if self.top5 is None else {"top-5": f"{self.top5:.4f}"}
        accuracy = f"{self.accuracy:.4f} (95 % interval {low:.4f}–{high:.4f})"
        return {
            "accuracy": accuracy,
            **top5,
            "loss": f"{self.loss:.4f}",
            "ECE": f"{self.ece:.4f}",
            "images": f"{self.n:,}",
        }

    def _repr_html_(self) -> str:
        if len(self.classes) > MOST_SHOWN:
            more = f"<p>A table of {len(self.classes):,} classes has no place here; to_dataframe() has them.</p>"
            return f"{figures_line(self._figures())}{more}"
        how = "<p>A row for each true class, a column for each answer of the model:</p>"
        return f"{figures_line(self._figures())}{how}{confusion_table(self.confusion, self.classes)}"


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


def _bins(confidence: Tensor, correct: Tensor) -> tuple[Bin, ...]:
    """Images, mean confidence and accuracy of the bins (i/15, (i+1)/15]."""
    bins = (confidence * CALIBRATION_BINS).ceil().clamp(1, CALIBRATION_BINS).long() - 1
    counts = torch.bincount(bins, minlength=CALIBRATION_BINS)
    sums = confidence.new_zeros(2, CALIBRATION_BINS).index_add_(1, bins, torch.stack([confidence, correct]))
    return tuple(Bin(*row) for row in zip(counts.tolist(), *(sums / counts.clamp_min(1)).tolist(), strict=True))


def _mistakes(confidence: Tensor, predicted: Tensor, labels: Tensor) -> tuple[Mistake, ...]:
    """The most confident mistakes, the worst first; of equal ones the first image."""
    wrong = (predicted != labels).nonzero()[:, 0]
    worst = wrong[confidence[wrong].sort(descending=True, stable=True).indices[:MISTAKES]]
    columns = (worst, labels[worst], predicted[worst], confidence[worst])
    return tuple(Mistake(*row) for row in zip(*(column.tolist() for column in columns), strict=True))
