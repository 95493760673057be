"""A model leaves this library, or comes into it."""

from cifarnets.sharing.card import model_card
from cifarnets.sharing.export import Exported, evaluate_exported, export
from cifarnets.sharing.foreign import LoadReport, import_model, load_state
from cifarnets.sharing.hub import Pushed, pull, push

__all__ = [
    "Exported",
    "LoadReport",
    "Pushed",
    "evaluate_exported",
    "export",
    "import_model",
    "load_state",
    "model_card",
    "pull",
    "push",
]
