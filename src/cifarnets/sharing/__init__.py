"""A model leaves this library, or comes into it."""

from cifarnets.sharing.foreign import LoadReport, import_model, load_state

__all__ = ["LoadReport", "import_model", "load_state"]
