"""The article's own code in plain PyTorch: its two nets, the training loop, and the accuracy.

python examples/plain_torch.py --epochs 100
"""

import argparse
import datetime
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from cifarnets.datasets import CIFAR10Normalized, SyntheticCIFAR10, cifar_subset

Loader = DataLoader[Any]


# --8<-- [start:net]
class Net(nn.Module):
    """The net as a module that registers every layer (step 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1)
        self.act1 = nn.Tanh()
        self.pool1 = nn.MaxPool2d(2)
        self.conv2 = nn.Conv2d(16, 8, kernel_size=3, padding=1)
        self.act2 = nn.Tanh()
        self.pool2 = nn.MaxPool2d(2)
        self.fc1 = nn.Linear(8 * 8 * 8, 32)
        self.act3 = nn.Tanh()
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.pool1(self.act1(self.conv1(x)))
        out = self.pool2(self.act2(self.conv2(out)))
        out = out.view(-1, 8 * 8 * 8)  # the step that nn.Sequential lacks
        out = self.act3(self.fc1(out))
        logits: Tensor = self.fc2(out)
        return logits


# --8<-- [end:net]


# --8<-- [start:functional]
class FunctionalNet(nn.Module):
    """The same net, which registers only the layers with parameters (step 17)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(16, 8, kernel_size=3, padding=1)
        self.fc1 = nn.Linear(8 * 8 * 8, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = F.max_pool2d(torch.tanh(self.conv1(x)), 2)
        out = F.max_pool2d(torch.tanh(self.conv2(out)), 2)
        out = out.view(-1, 8 * 8 * 8)
        out = torch.tanh(self.fc1(out))
        logits: Tensor = self.fc2(out)
        return logits


# --8<-- [end:functional]


# --8<-- [start:train]
def train_net(
    epochs: int, optimizer: torch.optim.Optimizer, model: nn.Module, loss_fn: nn.Module, train_loader: Loader
) -> None:
    for epoch in range(1, epochs + 1):
        loss_train = 0.0
        for images, labels in train_loader:
            outputs = model(images)
            loss = loss_fn(outputs, labels)
            optimizer.zero_grad()  # the gradients of the batch before
            loss.backward()
            optimizer.step()
            loss_train += loss.item()
        if epoch == 1 or epoch % 10 == 0:
            print(f"{datetime.datetime.now()} Epoch {epoch}, Training loss {loss_train / len(train_loader)}")


# --8<-- [end:train]


# --8<-- [start:validate]
def validate_net(model: nn.Module, train_loader: Loader, val_loader: Loader) -> None:
    for name, loader in [("train", train_loader), ("val", val_loader)]:
        correct = 0
        total = 0
        with torch.no_grad():
            for images, labels in loader:
                outputs = model(images)
                predicted = outputs.argmax(dim=1)
                total += labels.shape[0]
                correct += int((predicted == labels).sum())
        print(f"Accuracy {name}: {correct / total}")


# --8<-- [end:validate]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=100, help="epochs to train (default: 100, as in the article)")
    parser.add_argument("--data-root", type=Path, help="the folder that holds cifar-10-batches-py")
    parser.add_argument("--drawn", action="store_true", help="drawn pictures instead of CIFAR-10")
    options = parser.parse_args()

    if options.drawn:
        names = ["disc", "cross", "stripes"]
        cifar3 = cifar_subset(SyntheticCIFAR10(train=True), names)
        cifar3_val = cifar_subset(SyntheticCIFAR10(train=False), names)
    else:
        names = ["airplane", "automobile", "ship"]
        cifar3 = cifar_subset(CIFAR10Normalized(options.data_root, train=True, download=True), names)
        cifar3_val = cifar_subset(CIFAR10Normalized(options.data_root, train=False), names)

    torch.manual_seed(0)
    # --8<-- [start:run]
    train_loader = DataLoader(cifar3, batch_size=64, shuffle=True)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    train_net(options.epochs, optimizer, model, nn.CrossEntropyLoss(), train_loader)
    validate_net(model, train_loader, DataLoader(cifar3_val, batch_size=64))
    # --8<-- [end:run]


if __name__ == "__main__":
    main()
