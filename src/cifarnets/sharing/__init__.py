"""A model leaves this library, or comes into it."""

from cifarnets.sharing.export import Exported, evaluate_exported, export

__all__ = ["Exported", "evaluate_exported", "export"]
