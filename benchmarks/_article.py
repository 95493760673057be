"""The article's own code (steps 15-21), unchanged: the baseline for the library's speed."""

from typing import Any

import torch
from examples.plain_torch import FunctionalNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cifarnets.datasets import ImageDataset

CLASSES = ["airplane", "automobile", "ship"]
Pairs = list[tuple[Tensor, int]]


def pairs(dataset: ImageDataset) -> Pairs:
    """Images and labels in the article's form: a list of pairs, made before the timing starts."""
    return [dataset[index] for index in range(len(dataset))]


class Loop:
    """The article's loop; each call trains one epoch."""

    def __init__(self, train: Pairs | Dataset[Any], workers: int = 0) -> None:
        self.model = FunctionalNet()
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-2)
        self.loader = DataLoader(train, batch_size=64, shuffle=True, num_workers=workers)  # type: ignore[arg-type]

    def __call__(self) -> float:
        total = 0.0
        for images, labels in self.loader:
            loss = nn.functional.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            total += loss.item()
        return total / len(self.loader)

    def accuracy(self, images: Pairs) -> float:
        correct = 0
        with torch.no_grad():
            for batch, labels in DataLoader(images, batch_size=64):  # type: ignore[arg-type]
                correct += int((self.model(batch).argmax(dim=1) == labels).sum())
        return correct / len(images)
