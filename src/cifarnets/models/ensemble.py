"""Several models as one."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets.errors import InputError
from cifarnets.models.metadata import ModelMeta, get_meta


class Ensemble(nn.Module):
    """Several models as one, whose probabilities are the mean of theirs.

    It works like any other model in `evaluate`, `predict`, `soft_labels`, `with_normalization` and `transform_for`.
    Images are normalised with the constants in `meta`, those of the first model; a model of other constants gets them
    as it knows them. An ensemble has no file: save its models, and put them together again.

    Examples:
        >>> import torch
        >>> from cifarnets import load
        >>> from cifarnets.models import Ensemble
        >>> models = [load("convnet"), load("fcnet")]
        >>> images = torch.randn(2, 3, 32, 32)
        >>> probabilities = Ensemble(models)(images).softmax(1)
        >>> torch.allclose(probabilities, sum(model(images).softmax(1) for model in models) / 2, atol=1e-5)
        True

    Args:
        models: The models, which stay what they are.

    Attributes:
        models: The models.
        meta: What they agree on: classes, size of the images, and in `config` the numbers of outputs and of channels.

    Shapes: `[N, C, H, W]` to logits `[N, K]`, the logarithms of the mean probabilities.

    Raises:
        InputError: There is no model, or one has no head; or they differ in classes, channels or size of the images.
    """

    meta: ModelMeta

    @checked
    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        if not models:
            raise InputError("an ensemble needs at least one model.")
        self.models = nn.ModuleList(models)
        self.training = any(model.training for model in models)
        metas = [get_meta(model) for model in models]
        config = {key: _agreed(key, [meta and meta.config.get(key) for meta in metas]) for key in _CONFIG}
        if config["num_classes"] == 0:
            raise InputError("the models of an ensemble must give logits, and num_classes=0 gives features.")
        facts = {key: _agreed(key, [getattr(meta, key, None) for meta in metas]) for key in ("classes", "size")}
        known = [(meta.mean, meta.std) if meta and meta.mean and meta.std else None for meta in metas]
        mean, std = next((constants for constants in known if constants), (None, None))
        config = {key: value for key, value in config.items() if value is not None}
        self.meta = ModelMeta("ensemble", config, mean=mean, std=std, **facts)
        self._changes = [constants is not None and constants != (mean, std) for constants in known]
        for number, constants in enumerate(known):
            if self._changes[number] and constants and mean and std:
                factor = torch.tensor([a / b for a, b in zip(std, constants[1], strict=True)])
                shift = torch.tensor([(a - b) / c for a, b, c in zip(mean, *constants, strict=True)])
                self.register_buffer(f"factor{number}", factor.view(-1, 1, 1), persistent=False)
                self.register_buffer(f"shift{number}", shift.view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        logits = [
            model(x * getattr(self, f"factor{number}") + getattr(self, f"shift{number}") if changes else x)
            for number, (model, changes) in enumerate(zip(self.models, self._changes, strict=True))
        ]
        if any(part.shape != logits[0].shape for part in logits):
            raise InputError(f"models of an ensemble give outputs of other shapes: {[list(x.shape) for x in logits]}.")
        return torch.stack([part.float().log_softmax(1) for part in logits]).logsumexp(0) - math.log(len(logits))

    def get_classifier(self) -> nn.Module:
        """Refuse: there is no one head.

        Examples:
            >>> from cifarnets.models import Ensemble, create
            >>> Ensemble([create("convnet")]).get_classifier()
            Traceback (most recent call last):
            cifarnets.errors.InputError: an ensemble has a head in each of its models, …

        Raises:
            InputError: Always.
        """
        raise InputError(
            "an ensemble has a head in each of its models, and none of its own: use that of a model in "
            "`ensemble.models`, and calibrate each model before you put them together."
        )


_CONFIG = ("num_classes", "in_channels")


def _agreed(key: str, values: list[Any]) -> Any:
    """What all models say that know it."""
    known = [value for value in values if value is not None]
    for value in known:
        if value != known[0]:
            raise InputError(f"models of an ensemble must have the same {key}, not {known[0]} and {value}.")
    return known[0] if known else None
