"""Entry points for `torch.hub`, one for each model: no installation is needed.

model = torch.hub.load("cifarnets/cifarnets", "resnet20", pretrained=True)
model = torch.hub.load("cifarnets/cifarnets", "convnet", weights="cifar3")
model = torch.hub.load("cifarnets/cifarnets", "vgg11_bn", num_classes=100)
"""

import sys as _sys
from pathlib import Path as _Path
from typing import Any as _Any

dependencies = ["torch", "numpy", "safetensors"]

# The version of this clone, even where another one is installed.
_sys.path.insert(0, str(_Path(__file__).resolve().parent / "src"))

from cifarnets import models as _models  # noqa: E402


def _entry(name: str) -> _Any:
    def entry(pretrained: bool = False, weights: str | None = None, **config: _Any) -> _Any:
        tagged = f"{name}.{weights}" if weights else name
        return _models.create(tagged, pretrained=pretrained or weights is not None, **config)

    released = [weights for weights in _models.list_models(pretrained=True) if weights.partition(".")[0] == name]
    tags = [weights.partition(".")[2] for weights in released if weights != name]
    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"""{_models.info(name).description}

    Args:
        pretrained: Load the released weights{"" if name in released else "; there are none for this model"}.
        weights: Load the released weights of that tag{f": {', '.join(tags)}" if tags else "; there are none"}.
        config: Arguments of the model, such as num_classes; with weights, num_classes only.
    """
    return entry


globals().update({_name: _entry(_name) for _name in _models.list_models()})
