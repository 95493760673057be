"""CIFAR-10 as tensors: the dataset, its parts, and batches of it."""

from cifarnets.datasets.augment import Augment
from cifarnets.datasets.cifar10 import CIFAR10Normalized
from cifarnets.datasets.download import download_cifar10
from cifarnets.datasets.files import find_cifar10
from cifarnets.datasets.for_model import dataset_for
from cifarnets.datasets.images import (
    ARTICLE_MEAN,
    ARTICLE_STD,
    ImageDataset,
    channel_stats,
    denormalize,
    normalize,
)
from cifarnets.datasets.loader import EVAL_BATCH_SIZE, BatchLoader
from cifarnets.datasets.subset import cifar_subset, train_val_split
from cifarnets.datasets.synthetic import SyntheticCIFAR10

__all__ = [
    "ARTICLE_MEAN",
    "ARTICLE_STD",
    "EVAL_BATCH_SIZE",
    "Augment",
    "BatchLoader",
    "CIFAR10Normalized",
    "ImageDataset",
    "SyntheticCIFAR10",
    "channel_stats",
    "cifar_subset",
    "dataset_for",
    "denormalize",
    "download_cifar10",
    "find_cifar10",
    "normalize",
    "train_val_split",
]
