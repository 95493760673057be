"""An epoch of ResNet-20 with flips and shifts, batch 128: torchvision's DataLoader in a plain loop, and our Trainer.

python -m benchmarks.resnet_epoch
python -m benchmarks.resnet_epoch --images 1280 --rounds 1      on a CPU
"""

import argparse
import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Subset
from torchvision import datasets, transforms

from benchmarks._side_by_side import table, take_turns
from cifarnets import Trainer, seed_everything
from cifarnets.datasets import ARTICLE_MEAN, ARTICLE_STD, Augment, BatchLoader, CIFAR10Normalized
from cifarnets.datasets.files import data_root
from cifarnets.models import create
from cifarnets.training.precision import autocast_dtype

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SGD: dict[str, Any] = {"momentum": 0.9, "weight_decay": 5e-4}


def theirs(images: int, workers: int) -> Callable[[], object]:
    steps = [transforms.RandomCrop(32, 4, padding_mode="reflect"), transforms.RandomHorizontalFlip()]
    steps += [transforms.ToTensor(), transforms.Normalize(ARTICLE_MEAN, ARTICLE_STD)]
    data = Subset(datasets.CIFAR10(data_root(), transform=transforms.Compose(steps)), range(images))
    loader: Any = DataLoader(data, 128, True, num_workers=workers, pin_memory=DEVICE.type == "cuda")
    model = create("resnet20").to(DEVICE)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, nesterov=True, **SGD)
    dtype = autocast_dtype("auto", DEVICE)

    def epoch() -> None:
        model.train()
        for batch, labels in loader:
            inputs, targets = batch.to(DEVICE, non_blocking=True), labels.to(DEVICE, non_blocking=True)
            with torch.autocast(DEVICE.type, dtype) if dtype else contextlib.nullcontext():
                loss = F.cross_entropy(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return epoch


def ours(images: int, compiled: bool = False) -> Callable[[], object]:
    data = CIFAR10Normalized().select(range(images))
    loader = BatchLoader(
        data, 128, True, device=DEVICE, seed=0, augment=Augment("random", translate=4), channels_last=True
    )
    options = {**SGD, "nesterov": True, "fused": True}
    trainer = Trainer(
        create("resnet20"),
        lr=0.1,
        optimizer_options=options,
        precision="auto",
        channels_last=True,
        compile=compiled,
        device=DEVICE,
        progress=False,
    )
    return lambda: trainer.fit(loader, epochs=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=50_000 if DEVICE.type == "cuda" else 1280)
    parser.add_argument("--workers", type=int, default=8 if DEVICE.type == "cuda" else 0)
    options = parser.parse_args()
    seed_everything(0)
    plain = f"torchvision's DataLoader, {options.workers} workers, a plain loop"
    contenders = {
        plain: theirs(options.images, options.workers),
        "Trainer and BatchLoader": ours(options.images),
        "Trainer and BatchLoader, compiled": ours(options.images, compiled=True),
    }
    print(table(take_turns(contenders, options.rounds), options.images, plain))


if __name__ == "__main__":
    main()
