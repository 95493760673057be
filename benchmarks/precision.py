"""bf16 and fp32 on the CPU: validation accuracy of the article's net on CIFAR-3 after the last epoch, for each seed."""

import argparse
import statistics

from cifarnets import Trainer, seed_everything
from cifarnets._runtime import describe_machine
from cifarnets.datasets import BatchLoader, CIFAR10Normalized, cifar_subset, train_val_split
from cifarnets.models import create
from cifarnets.training.precision import Precision


def accuracy(precision: Precision, seed: int, epochs: int) -> float:
    cifar3 = cifar_subset(CIFAR10Normalized(), ["airplane", "automobile", "ship"])
    train, val = train_val_split(cifar3, 1500, seed=0)
    seed_everything(seed)
    trainer = Trainer(
        create("convnet", num_classes=3),
        lr=0.05,
        optimizer_options={"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        schedule="one_cycle",
        precision=precision,
        device="cpu",
        progress=False,
    )
    loader = BatchLoader(train, 64, shuffle=True, device="cpu", seed=seed)
    history = trainer.fit(loader, BatchLoader(val, 1000, device="cpu"), epochs)
    return float(history[-1]["val_accuracy"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    print(f"{describe_machine()}; {options.epochs} epochs, 1,500 training images held out\n")
    seeds = range(options.seeds)
    print(f"| precision | {' | '.join(f'seed {seed}' for seed in seeds)} | mean |\n|---|{'---|' * (len(seeds) + 1)}")
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    for precision in precisions:
        found = [accuracy(precision, seed, options.epochs) for seed in seeds]
        print(f"| {precision} | {' | '.join(f'{a:.4f}' for a in found)} | {statistics.mean(found):.4f} |", flush=True)


if __name__ == "__main__":
    main()
