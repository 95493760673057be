"""Learning from another model's answers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets.datasets import BatchLoader
from cifarnets.datasets.images import ImageDataset
from cifarnets.device import resolve_device
from cifarnets.errors import InputError
from cifarnets.evaluation import TTA, class_names, collect_logits
from cifarnets.models import load


def soft_labels(
    dataset: ImageDataset,
    teacher: str | nn.Module,
    share: float = 0.5,
    temperature: float = 2.0,
    tta: TTA | None = "mirror",
    device: str | torch.device = "auto",
) -> Tensor:
    """Labels mixed with what a teacher answers (distillation; Hinton et al. 2015, arXiv:1503.02531), asked once.

    Examples:
        >>> labels = soft_labels(images, "resnet20")  # doctest: +SKIP
        >>> loader = BatchLoader(images, shuffle=True, labels=labels)  # doctest: +SKIP

    Args:
        dataset: The images to learn from.
        teacher: A model of the same classes, or what `load` takes: a name, a path.
        share: Of the teacher in the mixture, 0..1.
        temperature: What the teacher's logits are divided by: above one, the lesser classes count more.
        tta: Test-time augmentation of the teacher, as in `evaluate`.
        device: Where to compute.

    Returns:
        float32 `[N, K]` on the CPU, rows of sum one, for `BatchLoader(labels=…)`.

    Raises:
        InputError: A number is out of range, or the teacher's classes are others.
        CifarNetsError: As `load` does.
    """
    if not 0 <= share <= 1 or not temperature > 0:
        raise InputError(f"share must be within 0..1 and temperature above 0, not {share} and {temperature}.")
    model = load(teacher) if isinstance(teacher, str) else teacher
    resolved = resolve_device(device)
    loader = BatchLoader(dataset, 1000, device=resolved, channels_last=True)
    class_names(model, loader)  # the same?
    logits, labels = collect_logits(model, loader, resolved, tta)
    if logits.shape[1] != len(dataset.classes):
        raise InputError(
            f"the teacher has {logits.shape[1]} outputs, and the images have {len(dataset.classes)} classes."
        )
    answers = (logits / temperature).softmax(1)
    return F.one_hot(labels, logits.shape[1]).float().lerp(answers, share)
