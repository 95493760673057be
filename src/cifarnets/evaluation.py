"""How good a model is on labelled images."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets._device import resolve_device
from cifarnets.errors import InputError
from cifarnets.models.metadata import get_meta

Batches = Iterable[tuple[Tensor, Tensor]]
"""Anything that gives `(images [B, C, H, W], labels [B])`: a BatchLoader, a DataLoader, a list."""

TTA = Literal["mirror", "mirror_shift"]
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found; prints as a table.

    Attributes:
        n: Images seen.
        loss: Mean cross-entropy, in nats.
        accuracy: Top-1, 0..1.
        ece: Expected calibration error, 0..1: how far confidence is from accuracy, over 15 equal bins weighted by
            their images (Guo et al. 2017, "On Calibration of Modern Neural Networks", eq. 3).
        per_class: Class name to the accuracy on its images; classes without an image are left out.
        confusion: `confusion[i][j]`: images of class i that were taken for class j.
    """

    n: int
    loss: float
    accuracy: float
    ece: float
    per_class: dict[str, float]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, ready for JSON."""
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


def evaluate(
    model: nn.Module, loader: Batches, device: str | torch.device = "auto", *, tta: TTA | None = None
) -> Evaluation:
    """Accuracy, loss and more of a model, in eval mode and without gradients (article, step 21).

    The model's device and train/eval modes are afterwards what they were.

    Args:
        model: Any module that maps images to logits `[B, K]`.
        loader: Anything that gives `(images, labels)`.
        device: Where to compute; `"auto"` takes CUDA, MPS or CPU, the first at hand.
        tta: Test-time augmentation: the mean of the logits of each image and its mirror image (`"mirror"`), and of
            both shifted by a pixel along a diagonal too, with half the weight (`"mirror_shift"`; Jordan 2024).

    Raises:
        InputError: There is no batch, or one does not fit the model; the message says which and why.
    """
    classes = class_names(model, loader)
    logits, labels = collect_logits(model, loader, resolve_device(device), tta)
    return measure(logits, labels, classes)


def collect_logits(
    model: nn.Module, batches: Batches, device: torch.device, tta: TTA | None = None
) -> tuple[Tensor, Tensor]:
    """The model's float32 logits `[N, K]` for all batches, and their labels `[N]`, on the CPU.

    Raises:
        InputError: There is no batch, or one does not fit the model.
    """
    logits, labels, dtype, channels = [], [], input_dtype(model), in_channels(model)
    with eval_mode(model, device):
        for index, batch in enumerate(batches):
            where = f"batch {index + 1}"
            images, answers = as_pair(batch, where)
            check_batch(channels, images, answers, where)
            with explaining(images, where):
                logits.append(answer(model, images.to(device, dtype), tta))
            labels.append(answers.to(device))
    if not labels:
        raise InputError("the loader gave no batch, so there is nothing to evaluate.")
    return torch.cat(logits).cpu(), torch.cat(labels).cpu()


def answer(model: nn.Module, images: Tensor, tta: TTA | None = None) -> Tensor:
    """The model's float32 logits `[B, K]`, with test-time augmentation if asked for.

    Raises:
        InputError: There is no such augmentation, or the model gives something else.
    """
    if tta not in (None, "mirror", "mirror_shift"):
        raise InputError(f"tta must be 'mirror', 'mirror_shift' or None, not {tta!r}.")

    def logits(view: Tensor) -> Tensor:
        found = model(view)
        if not isinstance(found, Tensor) or found.ndim != 2:
            kind = list(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise InputError(f"a model must give logits [B, K], not {kind}.")
        return found.float()

    def both_sides(view: Tensor) -> Tensor:
        return (logits(view) + logits(view.flip(-1))) / 2

    if tta is None:
        return logits(images)
    if tta == "mirror":
        return both_sides(images)
    height, width = images.shape[2:]
    padded = F.pad(images, (1, 1, 1, 1), mode="reflect")
    corners = (padded[:, :, :height, :width], padded[:, :, 2:, 2:])
    return both_sides(images) / 2 + (both_sides(corners[0]) + both_sides(corners[1])) / 4


def measure(logits: Tensor, labels: Tensor, classes: tuple[str, ...] | None = None) -> Evaluation:
    """The figures for logits `[N, K]` and labels `[N]` that are known already.

    Raises:
        InputError: There is no image, a label has no logit, or a logit is NaN or infinite.
    """
    n, k = logits.shape
    if not n:
        raise InputError("there is no image, so there is nothing to measure.")
    check_labels(labels, k, "the labels")
    logits = logits.double()
    probabilities = logits.softmax(1)
    check_answers(probabilities)
    confidence, predicted = probabilities.max(1)
    correct = (predicted == labels).double()
    confusion = torch.bincount(labels * k + predicted, minlength=k * k).view(k, k)
    counts = confusion.sum(1)
    names = name_outputs(classes, k)
    return Evaluation(
        n=n,
        loss=F.cross_entropy(logits, labels).item(),
        accuracy=correct.mean().item(),
        ece=_calibration_error(confidence, correct),
        per_class={name: (confusion[i, i] / counts[i]).item() for i, name in enumerate(names) if counts[i]},
        confusion=tuple(map(tuple, confusion.tolist())),
    )


def class_names(model: nn.Module, loader: object) -> tuple[str, ...] | None:
    """The names of the outputs: the model's own, else those of the loader's dataset.

    Raises:
        InputError: They are known from both, and differ: labels would mean one thing and outputs another.
    """
    meta = get_meta(model)
    own = meta.classes if meta else None
    classes = getattr(getattr(loader, "dataset", None), "classes", None)
    if not isinstance(classes, (list, tuple)):  # a dataset may call something else so, such as their number
        classes = None
    if own is not None and classes is not None and tuple(classes) != own:
        raise InputError(
            f"the loader's classes ({', '.join(classes)}) are not those that the model was trained on "
            f"({', '.join(own)}): choose them with cifar_subset, in that order."
        )
    return own or (None if classes is None else tuple(classes))


def name_outputs(classes: Sequence[str] | None, outputs: int) -> tuple[str, ...]:
    """A name for every output; those beyond the known classes are called by their number."""
    known = tuple(classes or ())[:outputs]
    return known + tuple(map(str, range(len(known), outputs)))


@contextlib.contextmanager
def eval_mode(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on `device`, in eval mode and without gradients, until the block ends."""
    modes = {module: module.training for module in model.modules()}
    home = next((p.device for p in model.parameters()), device)
    model.to(device).eval()
    try:
        # Not inference_mode: what a loader or a model caches meanwhile could never be trained with.
        with torch.no_grad():
            yield
    finally:
        model.to(home)
        for module, training in modes.items():
            module.training = training


def as_pair(batch: object, where: str) -> tuple[Tensor, Tensor]:
    """A loader's batch as images and labels.

    Raises:
        InputError: It is something else.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
        parts = ", ".join(type(part).__name__ for part in batch) if isinstance(batch, (tuple, list)) else ""
        raise InputError(
            f"{where}: a loader must give (images [B, C, H, W], labels [B]), two tensors, not "
            f"{type(batch).__name__}{f' of {parts}' if parts else ''}; put a dataset into a BatchLoader or DataLoader."
        )
    return batch[0], batch[1]


def check_batch(channels: int | None, images: Tensor, labels: Tensor, where: str, *, soft: bool = False) -> None:
    """Refuse a batch that the model cannot take, from shapes and types alone: no wait for the device.

    Args:
        channels: What the model takes; None for any.
        images: float `[B, C, H, W]`.
        labels: int64 `[B]`.
        where: Which batch it is, for the message.
        soft: Whether labels may be shares of the classes too, float `[B, K]`.

    Raises:
        InputError: They are not, or have not the channels of the model.
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise InputError(f"{where}: images must be float [B, C, H, W], not {images.dtype} {list(images.shape)}.")
    if channels is not None and images.shape[1] != channels:
        raise InputError(f"{where}: the model takes images of {channels} channels, not {list(images.shape)}.")
    if soft and labels.ndim == 2 and len(labels) == len(images) and labels.is_floating_point():
        return
    if labels.shape != images.shape[:1] or labels.dtype != torch.int64:
        raise InputError(
            f"{where}: {len(images)} images need int64 labels [{len(images)}], not {labels.dtype} {list(labels.shape)}."
        )


def in_channels(model: nn.Module) -> int | None:
    """How many channels its images have; None for a model that was not made by this library."""
    meta = get_meta(model)
    return meta.config.get("in_channels") if meta else None


def input_dtype(model: nn.Module) -> torch.dtype:
    """What a model computes in: the dtype of its first floating-point parameter."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


@contextlib.contextmanager
def explaining(images: Tensor, where: str) -> Iterator[None]:
    """Tell a size that the model stumbles over from other failures: how large images may be, only the model knows.

    Raises:
        InputError: torch raised, and the images are not 32×32.
    """
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if images.shape[2:] == (32, 32):
            raise
        raise InputError(
            f"{where}: the model cannot take images {list(images.shape)}; those of CIFAR-10 are 32×32 ({error})."
        ) from error


def check_answers(probabilities: Tensor) -> None:
    """Refuse what a softmax `[N, K]` makes of logits that are NaN or infinite.

    Raises:
        InputError: Some are; the message says for how many images.
    """
    broken = int(probabilities.isnan().any(1).sum())
    if broken:
        raise InputError(f"the model answers NaN or infinity for {broken} of {len(probabilities)} images.")


def check_labels(labels: Tensor, outputs: int, where: str) -> None:
    """Refuse labels `[B]`, or shares of the classes `[B, K]`, that a model of `outputs` classes cannot mean.

    Raises:
        InputError: One is below 0 or not below `outputs`.
    """
    answers = labels if labels.ndim == 1 else labels.argmax(1)
    low, high = int(answers.min()), int(answers.max())
    if low < 0 or high >= outputs:
        raise InputError(
            f"{where} run from {low} to {high}, but the model has {outputs} outputs (0 … {outputs - 1}): "
            f"create it with num_classes={high + 1}, or relabel with cifar_subset."
        )


def _calibration_error(confidence: Tensor, correct: Tensor) -> float:
    """Sum over bins (i/15, (i+1)/15] of |accuracy - confidence|, weighted by the share of images."""
    bins = (confidence * CALIBRATION_BINS).ceil().clamp(1, CALIBRATION_BINS).long() - 1
    gaps = torch.zeros(CALIBRATION_BINS, dtype=torch.float64).index_add_(0, bins, correct - confidence)
    return (gaps.abs().sum() / len(confidence)).item()
