"""A model leaves this library, or comes into it."""

from cifarnets.sharing.card import model_card
from cifarnets.sharing.hub import Pushed, pull, push

__all__ = ["Pushed", "model_card", "pull", "push"]
