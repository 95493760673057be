"""Loading alone, without a model: 10,000 images of CIFAR-10 a round, in batches of 64."""

import argparse
from collections.abc import Callable, Iterable

import torch
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from benchmarks._side_by_side import table, take_turns
from cifarnets.datasets import ARTICLE_MEAN, ARTICLE_STD, Augment, BatchLoader, CIFAR10Normalized
from cifarnets.datasets.files import data_root

IMAGES = 10_000
BATCH = 64


def drain(loader: Iterable[object]) -> Callable[[], object]:
    def run() -> None:
        for _ in loader:
            pass

    return run


def torchvisions(workers: int) -> Callable[[], object]:
    steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize(ARTICLE_MEAN, ARTICLE_STD)])
    dataset = Subset(datasets.CIFAR10(data_root(), transform=steps), range(IMAGES))
    return drain(DataLoader(dataset, BATCH, shuffle=True, num_workers=workers))


def bare(dataset: CIFAR10Normalized) -> Callable[[], object]:
    """The minimum of work: gather in order, normalise in place."""
    images, labels, order = dataset.images[:IMAGES], dataset.labels[:IMAGES], torch.arange(IMAGES)
    mean, std = (torch.tensor(column).view(3, 1, 1) for column in (dataset.mean, dataset.std))

    def run() -> None:
        for start in range(0, IMAGES, BATCH):
            chosen = order[start : start + BATCH]
            images.index_select(0, chosen).float().div_(255).sub_(mean).div_(std)
            labels.index_select(0, chosen)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    dataset = CIFAR10Normalized()
    part = dataset.select(range(IMAGES))

    def ours(shuffle: bool = True, channels_last: bool = False, augment: Augment | None = None) -> Callable[[], object]:
        loader = BatchLoader(
            part, BATCH, shuffle=shuffle, device="cpu", seed=0, augment=augment, channels_last=channels_last
        )
        return drain(loader)

    shifted = Augment(flip="random", translate=2)
    contenders = {
        "torchvision and DataLoader, no workers": torchvisions(0),
        "torchvision and DataLoader, 2 workers": torchvisions(2),
        "bare gather and normalise": bare(dataset),
        "BatchLoader, evaluation order": ours(shuffle=False),
        "BatchLoader, shuffled": ours(),
        "… channels_last": ours(channels_last=True),
        "… flips and shifts": ours(augment=shifted),
        "… flips, shifts, channels_last": ours(channels_last=True, augment=shifted),
        "… flips, shifts, cutout": ours(augment=Augment(translate=2, cutout=8)),
        "… flips, shifts, mixup": ours(augment=Augment(translate=2, mixup=0.2)),
    }
    print(table(take_turns(contenders, options.rounds), IMAGES, "torchvision and DataLoader, no workers"))


if __name__ == "__main__":
    main()
