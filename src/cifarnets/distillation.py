"""Learning from another model's predictions."""

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets._device import resolve_device
from cifarnets.datasets import BatchLoader
from cifarnets.datasets.images import ImageDataset
from cifarnets.errors import InputError
from cifarnets.inference import TTA, check_probabilities, collect_logits, match_data
from cifarnets.models import load
from cifarnets.models.metadata import get_meta

__all__ = ["soft_labels"]

Teacher = nn.Module | str | os.PathLike[str]
"""A model, or what `load` takes."""


@checked
def soft_labels(
    dataset: ImageDataset,
    teacher: Teacher | Sequence[Teacher],
    share: float = 0.5,
    temperature: float = 2.0,
    tta: TTA | None = "mirror",
    *,
    device: str | torch.device = "auto",
) -> Tensor:
    """Mix the labels of a dataset with a teacher's probabilities, computed once for all epochs (distillation).

    Hinton et al. 2015 (arXiv:1503.02531) divide the student's logits by the temperature too. This function does not:
    the student learns to be as unsure as these labels are.

    Examples:
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> from cifarnets.distillation import soft_labels
        >>> from cifarnets.models import create
        >>> images = SyntheticCIFAR10(size=100)
        >>> labels = soft_labels(images, create("convnet"))
        >>> labels.shape
        torch.Size([100, 10])
        >>> loader = BatchLoader(images, shuffle=True, labels=labels)

    Args:
        dataset: The images to learn from; the teacher sees them with its own normalisation.
        teacher: A model, or anything that `load` takes: a name, a path, an `hf://` address. It may know more classes
            than the dataset has: its outputs for the others are left out. Of several in a list, the mean of their
            probabilities counts.
        share: The teacher's share of each label, 0..1.
        temperature: Divides the teacher's logits; above 1, the less likely classes count more.
        tta: Test-time augmentation of the teacher, as in `evaluate`.
        device: Where to compute.

    Returns:
        float32 `[N, K]` on the CPU for `BatchLoader(labels=…)`; each row sums to one.

    Raises:
        InputError: A number is out of range, the teacher has other classes, or it gives NaN.
        CifarNetsError: `load` cannot load the teacher.
    """
    numbers = all(isinstance(value, (int, float)) for value in (share, temperature))
    if not numbers or not 0 <= share <= 1 or not 0 < temperature < 1e6:
        raise InputError(f"share must be within 0..1 and temperature above 0, not {share} and {temperature}.")
    teachers = [teacher] if isinstance(teacher, (nn.Module, str, os.PathLike)) else list(teacher)
    if not teachers:
        raise InputError("the list of teachers is empty: name at least one.")
    device = resolve_device(device)
    parts = [_probabilities(dataset, one, temperature, tta, device) for one in teachers]
    labels = F.one_hot(dataset.labels, len(dataset.classes)).float()
    return labels.lerp(torch.stack(parts).mean(0) if len(parts) > 1 else parts[0], share)


def _probabilities(
    dataset: ImageDataset, teacher: Teacher, temperature: float, tta: TTA | None, device: torch.device
) -> Tensor:
    """What a teacher says of all images, which it sees as it was trained on them: float32 `[N, K]` on the CPU."""
    model = teacher if isinstance(teacher, nn.Module) else load(teacher)
    meta = get_meta(model)
    mean, std = dataset.constants or (dataset.mean, dataset.std)  # where the teacher does not know its own
    if meta and meta.mean and meta.std:
        mean, std = meta.mean, meta.std
    known, chosen = dataset.classes, list(range(len(dataset.classes)))
    if meta and meta.classes and set(dataset.classes) <= set(meta.classes):
        known, chosen = meta.classes, [meta.classes.index(name) for name in dataset.classes]
    seen = ImageDataset(dataset.images, dataset.labels, known, mean=mean, std=std)
    loader = BatchLoader(seen, 1000, device=device, channels_last=True, seed=0)
    match_data(model, loader)
    logits, _ = collect_logits(model, loader, device, tta)
    if logits.shape[1] != len(known):
        raise InputError(
            f"the teacher has {logits.shape[1]} outputs, and the images have {len(dataset.classes)} classes."
        )
    probabilities = (logits[:, chosen] / temperature).softmax(1)
    check_probabilities(probabilities)
    return probabilities
