"""CIFAR-10 nets that one can trust: data, models, training, evaluation and weight files.

The pieces, in the order in which one meets them: `cifarnets.datasets`, `cifarnets.models`, `Trainer`, `evaluate`,
`predict`, `save` and `load`. Every error is a `CifarNetsError`.
"""

from cifarnets import datasets, errors, models, training
from cifarnets.errors import CifarNetsError
from cifarnets.evaluation import Evaluation, evaluate
from cifarnets.models import load, save
from cifarnets.prediction import features, predict
from cifarnets.seeding import seed_everything
from cifarnets.training import Trainer, reproduce
from cifarnets.verification import Check, verify
from cifarnets.version import __version__

__all__ = [
    "Check",
    "CifarNetsError",
    "Evaluation",
    "Trainer",
    "__version__",
    "datasets",
    "errors",
    "evaluate",
    "features",
    "load",
    "models",
    "predict",
    "reproduce",
    "save",
    "seed_everything",
    "training",
    "verify",
]
