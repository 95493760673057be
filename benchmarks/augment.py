"""Augmentation beside training: batches of 128 images of CIFAR-10, one kind after another, and ResNet-20's step."""

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks._side_by_side import table, take_turns
from cifarnets import Trainer, create
from cifarnets.datasets import Augment, BatchLoader, CIFAR10Normalized

BATCH, BATCHES = 128, 8
KINDS: dict[str, Any] = {
    "translate": 4,
    "cutout": 8,
    "rotate": 15,
    "sharpness": 1.2,
    "brightness": 0.1,
    "contrast": 0.1,
    "saturation": 0.5,
    "hue": 0.05,
    "erase": 0.25,
    "mixup": 0.2,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    part = CIFAR10Normalized().select(range(BATCH * BATCHES))

    def loader(**kinds: Any) -> BatchLoader:
        augment = Augment(**kinds) if kinds else None
        return BatchLoader(part, BATCH, shuffle=True, device="cpu", seed=0, augment=augment, channels_last=True)

    def drained(**kinds: Any) -> Callable[[], object]:
        batches = loader(**kinds)
        return lambda: sum(len(images) for images, _ in batches)

    trainer = Trainer(create("resnet20"), lr=0.1, channels_last=True, device="cpu", progress=False)
    plain = loader()
    step = "ResNet-20, a training step"
    contenders: dict[str, Callable[[], object]] = {
        step: lambda: trainer.fit(plain, epochs=1),
        "BatchLoader": drained(),
        "… flip": drained(flip="random"),
        **{f"… {name}={amount}": drained(flip=None, **{name: amount}) for name, amount in KINDS.items()},
        "… all of them": drained(flip="random", **KINDS),
    }
    print(table(take_turns(contenders, options.rounds), BATCH * BATCHES, step))


if __name__ == "__main__":
    main()
