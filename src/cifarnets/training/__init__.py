"""Training: the loop, what happens beside it, and runs as data."""

from cifarnets.training.callbacks import (
    EMA,
    ArticleLog,
    Callback,
    Checkpoint,
    CSVLog,
    EarlyStopping,
    JSONLinesLog,
    ProgressBar,
    TensorBoardLog,
)
from cifarnets.distillation import soft_labels
from cifarnets.training.history import History
from cifarnets.training.lr_finder import LRSearch, find_lr
from cifarnets.training.muon import ConvMuon
from cifarnets.training.optimizers import make_optimizer
from cifarnets.recipes.recipe import Recipe, Run, list_recipes, load_recipe, reproduce, run
from cifarnets.training.schedules import make_schedule
from cifarnets.training.trainer import Trainer

__all__ = [
    "EMA",
    "ArticleLog",
    "CSVLog",
    "Callback",
    "Checkpoint",
    "ConvMuon",
    "EarlyStopping",
    "History",
    "JSONLinesLog",
    "LRSearch",
    "ProgressBar",
    "Recipe",
    "Run",
    "TensorBoardLog",
    "Trainer",
    "find_lr",
    "list_recipes",
    "load_recipe",
    "make_optimizer",
    "make_schedule",
    "reproduce",
    "run",
    "soft_labels",
]
