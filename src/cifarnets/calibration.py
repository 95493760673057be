"""Probabilities that say how often a model is right: temperature scaling."""

import math

import torch
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets._device import resolve_device
from cifarnets.errors import InputError
from cifarnets.inference import Batches, check_labels, check_probabilities, collect_logits, match_data, refuse_test_set
from cifarnets.models.classifier import head

HOTTEST = 1000.0
"""The temperature, or its inverse, beyond which none is looked for."""


@checked
def calibrate(
    model: nn.Module, val_loader: Batches, *, device: str | torch.device = "auto", allow_test: bool = False
) -> float:
    """Divide the logits of a model by one temperature, so that its probabilities say how often it is right.

    The temperature goes into the weights of the head. The model stays what it is otherwise: it chooses the same
    classes, `save` writes it and `load` reads it like any other. Use images that the model has not learnt from, and
    not the test set that you report on: a validation split of the training set (Guo et al. 2017, "On Calibration of
    Modern Neural Networks", section 4.2).

    Examples:
        >>> import cifarnets
        >>> from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
        >>> cifarnets.seed_everything(0)
        >>> model, loader = cifarnets.create("convnet"), BatchLoader(SyntheticCIFAR10(size=200), 20)
        >>> history = cifarnets.Trainer(model, lr=0.1, progress=False).fit(loader, epochs=3)
        >>> before = cifarnets.evaluate(model, loader)
        >>> temperature = cifarnets.calibrate(model, loader)
        >>> after = cifarnets.evaluate(model, loader)
        >>> after.loss <= before.loss, after.accuracy == before.accuracy
        (True, True)

    Args:
        model: A trained model whose head is a linear layer; its weights are changed in place.
        val_loader: Labelled images, as `evaluate` takes them.
        device: Where to compute; `"auto"` takes the first of CUDA, MPS and CPU that is there.
        allow_test: True to accept the test set. Its calibration error is then too good.

    Returns:
        The temperature: above 1 for a model that was too sure of itself, below 1 for one that was not sure enough.

    Raises:
        InputError: As `evaluate`; or the head is no linear layer; or the images are a test set; or no temperature
            fits, because the model is right about every image, or no better than chance.
    """
    _linear_head(model)
    if not allow_test:
        refuse_test_set(val_loader, "calibrate")
    match_data(model, val_loader)
    temperature = fit_temperature(*collect_logits(model, val_loader, resolve_device(device)))
    divide_logits(model, temperature)
    return temperature


def divide_logits(model: nn.Module, temperature: float) -> None:
    """Divide the logits of a model by a temperature, in the weights of its head.

    Examples:
        >>> import torch
        >>> from cifarnets.calibration import divide_logits
        >>> from cifarnets.models import create
        >>> model, images = create("convnet").eval(), torch.zeros(1, 3, 32, 32)
        >>> before = model(images)
        >>> divide_logits(model, 2.0)
        >>> torch.allclose(model(images), before / 2)
        True

    Raises:
        InputError: The head is no linear layer.
    """
    layer = _linear_head(model)
    with torch.no_grad():
        layer.weight.div_(temperature)
        if layer.bias is not None:
            layer.bias.div_(temperature)


def _linear_head(model: nn.Module) -> nn.Linear:
    layer = head(model)
    if not isinstance(layer, nn.Linear):
        raise InputError(f"the head must be a linear layer to take a temperature, not {type(layer).__name__}.")
    return layer


@checked
def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """Find the temperature that makes the cross-entropy of logits `[N, K]` smallest.

    Examples:
        >>> import torch
        >>> from cifarnets.calibration import fit_temperature
        >>> logits = torch.tensor([[4.0, 0.0]] * 4)  # 98 % sure of the first class, and right three times of four
        >>> round(fit_temperature(logits, torch.tensor([0, 0, 0, 1])), 3)
        3.641

    Args:
        logits: One row an image.
        labels: The true classes, int64 `[N]`.

    Raises:
        InputError: No temperature fits; or a label has no logit; or a logit is NaN or infinite.
    """
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or not len(labels):
        raise InputError(f"logits must be [N, K] and labels [N], not {list(logits.shape)} and {list(labels.shape)}.")
    check_labels(labels, logits.shape[1])
    logits = logits.double()
    check_probabilities(logits.softmax(1))
    true = logits.gather(1, labels[:, None]).mean().item()

    def slope(inverse: float) -> float:
        """The derivative of the cross-entropy by 1/T, which grows with 1/T: the cross-entropy is convex in it."""
        return ((inverse * logits).softmax(1) * logits).sum(1).mean().item() - true

    low, high = 1 / HOTTEST, HOTTEST
    if slope(low) >= 0:
        raise InputError("the model does no better than chance on these images, so no temperature fits it.")
    if slope(high) <= 0:
        raise InputError(
            f"the model is right about all {len(labels):,} images, so no temperature fits it: use images that it has "
            "not learnt from."
        )
    for _ in range(60):  # halves the interval of the logarithm: 60 times is more than a float64 can tell apart
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)
