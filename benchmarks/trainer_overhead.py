"""The cost of a trainer: one epoch of the article's net on CIFAR-3 in memory, batch 64, compared with a raw loop."""

import argparse
import logging
import os
import warnings
from collections.abc import Callable, Iterator

os.environ["KERAS_BACKEND"] = "torch"
os.environ["CUDA_VISIBLE_DEVICES"] = ""

import keras
import lightning
import skorch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._side_by_side import table, take_turns
from cifarnets import Trainer
from cifarnets.datasets import BatchLoader, CIFAR10Normalized, cifar_subset
from cifarnets.models import create

Batches = list[tuple[Tensor, Tensor]]


def raw(batches: Batches) -> Callable[[], object]:
    model = create("convnet", num_classes=3)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)

    def epoch() -> float:
        total = 0.0
        for images, labels in batches:
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item()
        return total / len(batches)

    return epoch


def ours(batches: Batches) -> Callable[[], object]:
    trainer = Trainer(create("convnet", num_classes=3), device="cpu", progress=False)
    return lambda: trainer.fit(batches, epochs=1)


def with_skorch(batches: Batches) -> Callable[[], object]:
    net = skorch.NeuralNetClassifier(
        create("convnet", num_classes=3),
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        lr=1e-2,
        max_epochs=1,
        train_split=None,
        iterator_train=lambda dataset, **_: dataset.batches,
        dataset=_Held,
        verbose=0,
    )
    net.initialize()
    held = _Held(batches)
    return lambda: net.partial_fit(held, None)


class _Iterable:
    """A list that Lightning does not mistake for several loaders."""

    def __init__(self, batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class _Held(torch.utils.data.Dataset[Tensor]):
    """Ready batches as a dataset, which skorch requires."""

    def __init__(self, X: "Batches | _Held", y: None = None) -> None:  # noqa: ARG002, N803 (skorch's names)
        self.batches: Batches = X.batches if isinstance(X, _Held) else X

    def __len__(self) -> int:
        return sum(len(labels) for _, labels in self.batches)


class _Module(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.model = create("convnet", num_classes=3)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def with_lightning(batches: Batches) -> Callable[[], object]:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module, loader = _Module(), _Iterable(batches)

    def epoch() -> None:
        trainer.fit_loop.max_epochs += 1
        trainer.fit(module, loader)

    return epoch


def with_keras(batches: Batches) -> Callable[[], object]:
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((3, 32, 32)),
            layers.Conv2D(16, 3, padding="same", activation="tanh", data_format="channels_first"),
            layers.MaxPooling2D(2, data_format="channels_first"),
            layers.Conv2D(8, 3, padding="same", activation="tanh", data_format="channels_first"),
            layers.MaxPooling2D(2, data_format="channels_first"),
            layers.Flatten(),
            layers.Dense(32, activation="tanh"),
            layers.Dense(3),
        ]
    )
    model.compile(keras.optimizers.SGD(1e-2), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images, labels = (torch.cat(column) for column in zip(*batches, strict=True))
    return lambda: model.fit(images, labels, batch_size=64, shuffle=False, verbose=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    cifar3 = cifar_subset(CIFAR10Normalized(), ["airplane", "automobile", "ship"])
    batches = list(BatchLoader(cifar3, 64, device="cpu"))
    contenders = {
        "raw loop": raw(batches),
        "cifarnets": ours(batches),
        f"skorch {skorch.__version__}": with_skorch(batches),
        f"Lightning {lightning.__version__}": with_lightning(batches),
        f"Keras {keras.__version__} on torch": with_keras(batches),
    }
    print(table(take_turns(contenders, options.rounds), len(cifar3), "raw loop"))


if __name__ == "__main__":
    main()
