"""CIFAR-10 nets with weights that one can trust: data, models, training, evaluation and safe weight files.

`create` makes a model, `Trainer` trains it, `evaluate` measures it, `predict` classifies pictures, `save` and `load`
keep it. `cifarnets.datasets` has the images, `cifarnets.models` the architectures, `cifarnets.recipes` whole runs as
data, and `cifarnets.viz` pictures to look at. Every error is a `CifarNetsError`.
"""

from cifarnets import _runtime, datasets, distillation, errors, models, recipes, training, viz
from cifarnets.errors import CifarNetsError
from cifarnets.evaluation import Evaluation, evaluate
from cifarnets.models import create, info, list_models, load, save
from cifarnets.prediction import features, predict
from cifarnets.recipes import reproduce
from cifarnets.seeding import seed_everything
from cifarnets.training import Trainer
from cifarnets.verification import Check, verify
from cifarnets.version import __version__

__all__ = [
    "Check",
    "CifarNetsError",
    "Evaluation",
    "Trainer",
    "__version__",
    "create",
    "datasets",
    "distillation",
    "errors",
    "evaluate",
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
    "training",
    "verify",
    "viz",
]

_runtime.set_environment()
