"""Runs as data: recipes, and the folder that a run leaves."""

from cifarnets.recipes.recipe import Recipe, list_recipes, load_recipe
from cifarnets.recipes.run import Run, reproduce, run_recipe

__all__ = ["Recipe", "Run", "list_recipes", "load_recipe", "reproduce", "run_recipe"]
