"""CIFAR-10 nets with weights that one can trust: data, models, training, evaluation and safe weight files.

`create` makes a model, `Trainer` trains it, `evaluate` measures it, `predict` classifies pictures, `save` and `load`
keep it, and `export` writes it for other programs. `cifarnets.datasets` has the images, `cifarnets.models` the
architectures, `cifarnets.recipes` whole runs as data, and `cifarnets.viz` pictures to look at. Every error is a
`CifarNetsError`.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from cifarnets._runtime import set_environment as _set_environment
from cifarnets.version import __version__

if TYPE_CHECKING:
    from cifarnets import datasets, distillation, errors, models, recipes, sharing, training, viz
    from cifarnets.calibration import calibrate
    from cifarnets.errors import CifarNetsError
    from cifarnets.evaluation import Evaluation, evaluate
    from cifarnets.models import create, info, list_models, load, save
    from cifarnets.prediction import features, predict
    from cifarnets.recipes import reproduce
    from cifarnets.seeding import seed_everything
    from cifarnets.sharing import export
    from cifarnets.training import Trainer
    from cifarnets.verification import Check, verify

__all__ = [
    "Check",
    "CifarNetsError",
    "Evaluation",
    "Trainer",
    "__version__",
    "calibrate",
    "create",
    "datasets",
    "distillation",
    "errors",
    "evaluate",
    "export",
    "features",
    "info",
    "list_models",
    "load",
    "models",
    "predict",
    "recipes",
    "reproduce",
    "save",
    "seed_everything",
    "sharing",
    "training",
    "verify",
    "viz",
]

# Where the functions and classes come from: each module is imported when one of its names is first used (PEP 562).
# So the command line can print its help, and check its options, without the seconds that torch takes to import.
_NAMES = {
    "calibration": ("calibrate",),
    "errors": ("CifarNetsError",),
    "evaluation": ("Evaluation", "evaluate"),
    "models": ("create", "info", "list_models", "load", "save"),
    "prediction": ("features", "predict"),
    "recipes": ("reproduce",),
    "seeding": ("seed_everything",),
    "sharing": ("export",),
    "training": ("Trainer",),
    "verification": ("Check", "verify"),
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names}

_set_environment()  # before torch makes its first tensor


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        value = getattr(importlib.import_module(f"cifarnets.{_MODULE_OF[name]}"), name)
        globals()[name] = value  # the next use finds it without this function
        return value
    if name in __all__:
        return importlib.import_module(f"cifarnets.{name}")
    raise AttributeError(f"module 'cifarnets' has no attribute {name!r}", name=name, obj=sys.modules[__name__])


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
