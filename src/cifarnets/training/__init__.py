"""The training engine: the loop, its callbacks, optimizers and schedules. It knows no dataset."""

from cifarnets.training.callbacks import EMA, Callback, EarlyStopping
from cifarnets.training.checkpoint import Checkpoint
from cifarnets.training.history import History
from cifarnets.training.logs import ArticleLog, CSVLog, JSONLinesLog, ProgressBar, TensorBoardLog
from cifarnets.training.lr_finder import LRSearch, find_lr
from cifarnets.training.muon import ConvMuon
from cifarnets.training.optimizers import make_optimizer
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
    "TensorBoardLog",
    "Trainer",
    "find_lr",
    "make_optimizer",
    "make_schedule",
]
