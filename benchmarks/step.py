"""An epoch of the article's net on CIFAR-3, batch 64: the article's loop, and our Trainer with ever faster settings."""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from examples.plain_torch import FunctionalNet
from torch import nn
from torch.utils.data import Dataset
from torchvision import datasets, transforms

from benchmarks._article import CLASSES, Loop, pairs
from benchmarks._side_by_side import table, take_turns
from cifarnets import Trainer, seed_everything
from cifarnets.datasets import ARTICLE_MEAN, ARTICLE_STD, BatchLoader, CIFAR10Normalized, ImageDataset, cifar_subset
from cifarnets.datasets.files import data_root
from cifarnets.models import create
from cifarnets.training import Callback
from cifarnets.training.precision import autocast_dtype

FAST: dict[str, Any] = {"channels_last": True, "optimizer_options": {"fused": True}}


def trainer(model: nn.Module | None = None, **options: Any) -> Trainer:
    return Trainer(model or create("convnet"), device="cpu", progress=False, **options)


def ours(cifar3: ImageDataset, **options: Any) -> Callable[[], object]:
    loader = BatchLoader(cifar3, 64, True, device="cpu", seed=0, channels_last=options.get("channels_last", False))
    fit = trainer(**options)
    return lambda: fit.fit(loader, epochs=1)


def bare_step(cifar3: ImageDataset, batches: int) -> Callable[[], object]:
    """The steps of the fast Trainer's epoch alone: the same batch again and again, without a loader."""
    model = create("convnet").to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, fused=True)
    images, labels = next(iter(BatchLoader(cifar3, 64, device="cpu", channels_last=True)))

    def epoch() -> None:
        for _ in range(batches):
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            loss.item()

    return epoch


class OnTheFly(Dataset[Any]):
    """torchvision's CIFAR-10 with its transforms, the three classes alone."""

    def __init__(self) -> None:
        steps = transforms.Compose([transforms.ToTensor(), transforms.Normalize(ARTICLE_MEAN, ARTICLE_STD)])
        self.whole = datasets.CIFAR10(data_root(), transform=steps)
        self.labels = {0: 0, 1: 1, 8: 2}
        self.chosen = [index for index, label in enumerate(self.whole.targets) if label in self.labels]

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.whole[self.chosen[index]]
        return image, self.labels[label]


class Losses(Callback):
    """Notes the loss of every batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_batch_end(self, trainer: Trainer) -> None:
        self.losses.append(trainer.last_loss.item())


def difference(cifar3: ImageDataset) -> float:
    """The largest difference between a batch's loss in the article's loop and in the fast Trainer, over an epoch."""
    batches = list(BatchLoader(cifar3, 64, True, device="cpu", seed=0))
    note = Losses()
    fast = trainer(**FAST, callbacks=[note])
    net = FunctionalNet()
    net.load_state_dict(fast.model.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-2)
    theirs = []
    for images, labels in batches:
        loss = F.cross_entropy(net(images), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        theirs.append(loss.item())
    fast.fit(batches, epochs=1)
    return max(abs(a - b) for a, b in zip(note.losses, theirs, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=16)
    options = parser.parse_args()
    cifar3 = cifar_subset(CIFAR10Normalized(), CLASSES)
    seed_everything(0)
    print(f"Largest difference of a batch's loss over the first epoch, fp32: {difference(cifar3):.1e}\n")
    article = "the article's loop, a list of tensors"
    contenders: dict[str, Callable[[], object]] = {
        article: Loop(pairs(cifar3)),
        "the article's loop, torchvision on the fly": Loop(OnTheFly()),
        "the article's loop, torchvision, 2 workers": Loop(OnTheFly(), workers=2),
        "Trainer and BatchLoader, the article's settings": ours(cifar3),
        "Trainer and BatchLoader, channels_last, fused": ours(cifar3, **FAST),
        "… its bare step, on one batch": bare_step(cifar3, -(-len(cifar3) // 64)),
        "Trainer and BatchLoader, compiled too": ours(cifar3, **FAST, compile=True),
    }
    if autocast_dtype("auto", torch.device("cpu")) is not None:
        contenders["Trainer and BatchLoader, bf16 too"] = ours(cifar3, **FAST, precision="bf16")
        bf16 = {**FAST, "precision": "bf16", "compile": True}
        contenders["Trainer and BatchLoader, bf16 and compiled"] = ours(cifar3, **bf16)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache  # an empty one, so that all is compiled
        first = []
        for run in (run for name, run in contenders.items() if "compiled" in name):
            started = time.perf_counter()
            run()
            first.append(f"{time.perf_counter() - started:.0f} s")
        print(f"First epochs of the compiled rows: {', '.join(first)}. The first one also loads the compiler.\n")
        seconds = take_turns(contenders, options.rounds)
    print(table(seconds, len(cifar3), article))
    whole, bare = (
        seconds[name] for name in ("Trainer and BatchLoader, channels_last, fused", "… its bare step, on one batch")
    )
    share = statistics.median(b / a for a, b in zip(whole, bare, strict=True))
    print(f"\nThe whole epoch, loader included, runs at {share:.0%} of the speed of its bare step.")


if __name__ == "__main__":
    main()
