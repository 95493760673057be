"""A new head on released weights: first train the head alone, then the whole net with a lower learning rate.

python examples/fine_tune.py --data-root DIR
"""

import argparse
from pathlib import Path

import cifarnets
from cifarnets import Trainer, create, evaluate, info
from cifarnets.datasets import BatchLoader, CIFAR10Normalized, cifar_subset
from cifarnets.models import head

WEIGHTS = "convnet.cifar3"
ANIMALS = ["bird", "cat", "frog", "horse"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=40, help="training images of each class (default: 40)")
    parser.add_argument("--data-root", type=Path, help="the folder that holds cifar-10-batches-py")
    options = parser.parse_args()

    cifarnets.seed_everything(0)
    facts = info(WEIGHTS).release
    assert facts is not None
    animals = cifar_subset(CIFAR10Normalized(options.data_root, download=True, mean=facts.mean, std=facts.std), ANIMALS)
    few = animals.select([i for c in range(len(ANIMALS)) for i in (animals.labels == c).nonzero()[: options.images, 0]])
    test = cifar_subset(CIFAR10Normalized(options.data_root, train=False, mean=facts.mean, std=facts.std), ANIMALS)
    loader = BatchLoader(few, batch_size=50, shuffle=True)

    model = create(WEIGHTS, pretrained=True, num_classes=len(ANIMALS))
    model.requires_grad_(False)
    head(model).requires_grad_(True)
    Trainer(model, lr=0.05).fit(loader, epochs=20)
    print(f"new head on a frozen trunk:      {evaluate(model, BatchLoader(test)).accuracy:.4f}")

    model.requires_grad_(True)
    Trainer(model, lr=0.01).fit(loader, epochs=20)
    print(f"then the whole net:              {evaluate(model, BatchLoader(test)).accuracy:.4f}")

    fresh = create(facts.architecture, **{**facts.config, "num_classes": len(ANIMALS)})
    Trainer(fresh, lr=0.05).fit(loader, epochs=40)
    print(f"from scratch, as many epochs:    {evaluate(fresh, BatchLoader(test)).accuracy:.4f}")


if __name__ == "__main__":
    main()
