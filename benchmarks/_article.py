"""The article's own code (steps 15-21), unchanged: the baseline for the library's speed."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from cifarnets.datasets import ImageDataset

CLASSES = ["airplane", "automobile", "ship"]
Pairs = list[tuple[Tensor, int]]


class Net(nn.Module):
    """The article's net: tanh before each pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 8, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(8 * 8 * 8, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.max_pool2d(torch.tanh(self.conv1(x)), 2)
        out = F.max_pool2d(torch.tanh(self.conv2(out)), 2)
        out = torch.tanh(self.fc1(out.view(-1, 8 * 8 * 8)))
        return self.fc2(out)  # type: ignore[no-any-return]


def pairs(dataset: ImageDataset) -> Pairs:
    """Images and labels in the article's form: a list of pairs, made before the timing starts."""
    return [dataset[index] for index in range(len(dataset))]


class Loop:
    """The article's loop; each call trains one epoch."""

    def __init__(self, train: Pairs | Dataset[Any], workers: int = 0) -> None:
        self.model = Net()
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
