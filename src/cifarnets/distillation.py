"""Learning from another model's answers."""

import os

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifarnets.datasets import BatchLoader
from cifarnets.datasets.images import ImageDataset
from cifarnets._device import resolve_device
from cifarnets.errors import InputError
from cifarnets.evaluation import TTA, check_answers, class_names, collect_logits
from cifarnets.models import load
from cifarnets.models.metadata import get_meta


def soft_labels(
    dataset: ImageDataset,
    teacher: nn.Module | str | os.PathLike[str],
    share: float = 0.5,
    temperature: float = 2.0,
    tta: TTA | None = "mirror",
    device: str | torch.device = "auto",
) -> Tensor:
    """Labels mixed with what a teacher answers (distillation), asked once for all epochs.

    Unlike in Hinton et al. 2015 (arXiv:1503.02531), the student's logits are not divided by the temperature: what it
    learns is as unsure as the labels are.

    Examples:
        >>> labels = soft_labels(images, "convnet")  # doctest: +SKIP
        >>> loader = BatchLoader(images, shuffle=True, labels=labels)  # doctest: +SKIP

    Args:
        dataset: The images to learn from; the teacher is given them with its own normalisation.
        teacher: A model of the same classes, or what `load` takes: a name, a path.
        share: Of the teacher in the mixture, 0..1.
        temperature: What the teacher's logits are divided by: above one, the lesser classes count more.
        tta: Test-time augmentation of the teacher, as in `evaluate`.
        device: Where to compute.

    Returns:
        float32 `[N, K]` on the CPU, rows of sum one, for `BatchLoader(labels=…)`.

    Raises:
        InputError: A number is out of range, the teacher's classes are others, or it answers NaN.
        CifarNetsError: As `load` does.
    """
    numbers = all(isinstance(value, (int, float)) for value in (share, temperature))
    if not numbers or not 0 <= share <= 1 or not temperature > 0:
        raise InputError(f"share must be within 0..1 and temperature above 0, not {share} and {temperature}.")
    if not isinstance(teacher, (nn.Module, str, os.PathLike)):
        raise InputError(f"a teacher is a model, a name or a path, not {teacher!r}.")
    model = teacher if isinstance(teacher, nn.Module) else load(teacher)
    meta, resolved = get_meta(model), resolve_device(device)
    mean, std = dataset.constants or (dataset.mean, dataset.std)  # what it was trained on, if it does not say
    if meta and meta.mean and meta.std:
        mean, std = meta.mean, meta.std
    seen = ImageDataset(dataset.images, dataset.labels, dataset.classes, mean=mean, std=std)
    loader = BatchLoader(seen, 1000, device=resolved, channels_last=True, seed=0)
    class_names(model, loader)  # the same?
    logits, labels = collect_logits(model, loader, resolved, tta)
    if logits.shape[1] != len(dataset.classes):
        raise InputError(
            f"the teacher has {logits.shape[1]} outputs, and the images have {len(dataset.classes)} classes."
        )
    answers = (logits / temperature).softmax(1)
    check_answers(answers)
    return F.one_hot(labels, logits.shape[1]).float().lerp(answers, share)
