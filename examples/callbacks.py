"""A new callback: it measures how far the weights move in each epoch, and stops the fit when they hardly move.

python examples/callbacks.py --epochs 10
"""

import argparse

import torch
from torch import Tensor

import cifarnets
from cifarnets import Trainer, create
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10, train_val_split
from cifarnets.training import Callback


class WeightChange(Callback):
    """Prints the relative change of all weights after every epoch, and stops the fit below a limit."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.before = torch.empty(0)

    def on_epoch_start(self, trainer: Trainer) -> None:
        self.before = self._weights(trainer)

    def on_epoch_end(self, trainer: Trainer) -> None:
        change = ((self._weights(trainer) - self.before).norm() / self.before.norm()).item()
        row = trainer.history[-1]
        print(f"epoch {row['epoch']}: weights moved by {change:.1%}, validation accuracy {row['val_accuracy']:.3f}")
        if change < self.limit:
            trainer.stop()

    @staticmethod
    def _weights(trainer: Trainer) -> Tensor:
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10, help="the most epochs (default: 10)")
    parser.add_argument("--limit", type=float, default=0.12, help="stop below this change (default: 0.12)")
    options = parser.parse_args()

    cifarnets.seed_everything(0)
    train, val = train_val_split(SyntheticCIFAR10(train=True), val=500)
    trainer = Trainer(
        create("convnet"),
        lr=0.02,
        optimizer_options={"momentum": 0.9},
        callbacks=[WeightChange(options.limit)],
    )
    trainer.fit(BatchLoader(train, shuffle=True), BatchLoader(val, batch_size=500), epochs=options.epochs)
    print(f"stopped after {trainer.epoch} of at most {options.epochs} epochs")


if __name__ == "__main__":
    main()
