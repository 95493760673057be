"""A new net: after `register`, you can create it by name, train it, save it and load it like the others.

python examples/own_model.py --epochs 5
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor, nn

import cifarnets
from cifarnets import Trainer, create, evaluate, info, load, save
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
from cifarnets.models import register


@register("strided")
class StridedNet(nn.Module):
    """Three convolutions with stride 2, and the mean of each channel."""

    # The weight file records every argument, so the signature names each of them.
    def __init__(self, num_classes: int = 10, in_channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.conv3 = nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1)
        self.classify = nn.Linear(4 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = torch.relu(conv(x))
        logits: Tensor = self.classify(x.mean((2, 3)))
        return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=5, help="epochs to train (default: 5)")
    parser.add_argument("--out", type=Path, default=Path("strided.safetensors"), help="weight file to write")
    options = parser.parse_args()

    cifarnets.seed_everything(0)
    model = create("strided", width=12)
    print(f"{info('strided').description} {sum(p.numel() for p in model.parameters()):,} parameters")

    loader = BatchLoader(SyntheticCIFAR10(train=True), batch_size=64, shuffle=True)
    test_loader = BatchLoader(SyntheticCIFAR10(train=False), batch_size=500)
    Trainer(model, optimizer="adamw", lr=3e-3).fit(loader, epochs=options.epochs)
    result = evaluate(model, test_loader)
    print(result)

    again = load(save(model, options.out))  # the file has the name of the model and its arguments
    print(f"Saved as {options.out}. The loaded model gives the same result: {evaluate(again, test_loader) == result}")


if __name__ == "__main__":
    main()
