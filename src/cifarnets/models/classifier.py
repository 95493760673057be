"""The trunk and the head of a model, under timm's names."""

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets.errors import InputError
from cifarnets.models.metadata import get_meta, unwrap


class Classifier(nn.Module):
    """Base of the nets here: a trunk turns images into features, and a head, the last layer, turns those into logits.

    The names are those of timm. A family defines `forward_features` and `forward_head`, sets `num_classes` and
    `num_features`, and puts `make_head()` under the name `head_name`.

    Examples:
        >>> import torch
        >>> from cifarnets.models import create
        >>> model = create("resnet20")
        >>> images = torch.zeros(2, 3, 32, 32)
        >>> model.forward_features(images).shape
        torch.Size([2, 64, 8, 8])
        >>> model.get_classifier()
        Linear(in_features=64, out_features=10, bias=True)
        >>> model.reset_classifier(3)
        >>> model(images).shape
        torch.Size([2, 3])

    Attributes:
        num_classes: The number of outputs; 0 for a model without a head, which gives features.
        num_features: The length of the vector that the head is given.
        head_name: The name of the head among the modules.
    """

    num_classes: int
    num_features: int
    head_name: str = "head"

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature maps of images `[N, C, H, W]`; of a fully connected net, its last hidden units `[N, D]`.

        Examples:
            >>> import torch
            >>> from cifarnets.models import create
            >>> create("convnet").forward_features(torch.zeros(2, 3, 32, 32)).shape
            torch.Size([2, 8, 8, 8])
        """
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits `[N, num_classes]` from what `forward_features` gives.

        Examples:
            >>> import torch
            >>> from cifarnets.models import create
            >>> model = create("convnet")
            >>> maps = model.forward_features(torch.zeros(2, 3, 32, 32))
            >>> model.forward_head(maps).shape, model.forward_head(maps, pre_logits=True).shape
            (torch.Size([2, 10]), torch.Size([2, 32]))

        Args:
            x: The last feature maps.
            pre_logits: Stop before the head, at the vectors `[N, num_features]`.
        """
        raise NotImplementedError

    def get_classifier(self) -> nn.Module:
        """The head: a linear layer, or `nn.Identity` in a model of no classes.

        Examples:
            >>> from cifarnets.models import create
            >>> create("convnet").get_classifier()
            Linear(in_features=32, out_features=10, bias=True)
        """
        return self.get_submodule(self.head_name)

    def reset_classifier(self, num_classes: int) -> None:
        """Put a fresh head in the place of the present one.

        `model.meta` then has the new `num_classes`, and forgets the classes and all that the former training left.

        Examples:
            >>> from cifarnets.models import create
            >>> model = create("convnet", pretrained=True)
            >>> model.reset_classifier(4)
            >>> model.num_classes, model.meta.config["num_classes"], model.meta.classes
            (4, 4, None)

        Args:
            num_classes: The number of outputs; 0 for features `[N, num_features]` instead of logits.

        Raises:
            InputError: `num_classes` is not a whole number of at least 0.
        """
        num_classes = self.num_classes = checked_count("num_classes", num_classes, least=0)
        fresh, like = self.make_head(), next(self.parameters(), None)
        if like is not None:
            fresh.to(like.device, like.dtype)
        setattr(self, self.head_name, fresh.train(self.training))
        if (meta := get_meta(self)) is not None:
            config = {**meta.config, **({"num_classes": num_classes} if "num_classes" in meta.config else {})}
            self.meta = replace(meta, config=config, classes=None, training={}, results={}, provenance={})

    def make_head(self) -> nn.Module:
        """A fresh head for `num_features` and `num_classes`.

        Examples:
            >>> from cifarnets.models import create
            >>> create("vgg11_bn", num_classes=0).make_head()
            Identity()
        """
        return nn.Linear(self.num_features, self.num_classes) if self.num_classes else nn.Identity()


@checked
def head(model: nn.Module) -> nn.Module:
    """The layer of any model that makes the logits: `model.get_classifier()`, or else the last `nn.Linear`.

    Examples:
        >>> from cifarnets.models import create, head
        >>> head(create("airbench94"))
        Linear(in_features=256, out_features=10, bias=False)

    Args:
        model: Any module; wrappers such as `torch.compile` are looked through.

    Raises:
        InputError: The model has neither.
    """
    model = unwrap(model)
    get: Any = getattr(model, "get_classifier", None)
    found = get() if callable(get) else None
    if isinstance(found, nn.Module):
        return found
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise InputError(f"{type(model).__name__} has no get_classifier() and no linear layer, so it has no head.")
    return linear[-1]


def checked_count(name: str, value: Any, least: int) -> int:
    """A whole number of at least `least`, as it was passed.

    Examples:
        >>> from cifarnets.models.classifier import checked_count
        >>> checked_count("num_classes", 3, least=0)
        3

    Raises:
        InputError: It is something else.
    """
    if isinstance(value, np.integer):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number of at least {least}, not {value!r}.")
    return int(value)
