"""What a Trainer cannot use, it refuses with the batch, the reason and what to do."""

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.training.helpers import MakeNet, OnEveryHook, batches_of, weights_of
from torch import Tensor, nn
from torch.utils.data import DataLoader

import cifarnets
from cifarnets import Trainer, evaluate
from cifarnets.datasets import BatchLoader, ImageDataset
from cifarnets.errors import DivergedError, InputError, TrainingError
from cifarnets.training import distributed

NAN = torch.full((2, 3, 32, 32), math.nan)


FAULTS: list[Any] = [
    ((torch.zeros(2, 3, 28, 28), None), r"cannot take images \[2, 3, 28, 28\]; CIFAR-10's are 32×32"),
    ((torch.zeros(2, 1, 32, 32), None), r"the model takes images of 3 channels, not \[2, 1, 32, 32\]"),
    ((torch.zeros(3, 32, 32), None), r"images must be float \[B, C, H, W\], not torch.float32 \[3, 32, 32\]"),
    ((torch.zeros(2, 3, 32, 32, dtype=torch.uint8), None), r"images must be float .*, not torch.uint8"),
    ((None, torch.tensor([0, 1], dtype=torch.int32)), r"2 images need int64 labels \[2\], not torch.int32 \[2\]"),
    ((None, [0, 1, 2]), r"2 images need int64 labels \[2\], not torch.int64 \[3\]"),
    ((None, [0, 3]), r"labels run from 0 to 3, but the model has 3 outputs .*create it with num_classes=4"),
    ((None, [-1, 2]), r"labels run from -1 to 2, and every label must be a class, 0 … 2: leave out"),
    ((torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.int64)), "the batch is empty"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=[message for _, message in FAULTS])
@pytest.mark.parametrize("place", [1, 2])
def test_a_batch_that_does_not_fit_is_refused_by_number(
    net: MakeNet, fault: tuple[Any, Any], message: str, place: int
) -> None:
    batches = batches_of(*[(None, None)] * (place - 1), fault)
    with pytest.raises(InputError, match=f"epoch 1, batch {place}: .*{message}"):
        Trainer(net(), device="cpu").fit(batches)


def test_images_that_hold_nan_are_named(net: MakeNet) -> None:
    batches = batches_of((None, None), (NAN, None))
    trainer = Trainer(net(), device="cpu")
    with pytest.raises(
        DivergedError, match=r"^epoch 1, batch 2: the loss is nan: the images of this batch hold NaN or infinity.$"
    ):
        trainer.fit(batches)
    assert trainer.failed
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters()), "no step was taken with it"


def test_a_rate_that_is_too_high_is_named(net: MakeNet, loader: BatchLoader) -> None:
    def blown_up(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.square().mean()

    trainer = Trainer(net(), lr=1e5, loss=blown_up, device="cpu")
    with pytest.raises(
        DivergedError,
        match=r"^epoch \d, batch \d: the loss is (nan|inf): training has diverged; try a lower learning rate.$",
    ):
        trainer.fit(loader, epochs=9)


@pytest.mark.parametrize(("count", "bad", "found_in"), [(60, 3, "at batch 50"), (60, 55, "at the end of the epoch")])
def test_where_losses_are_not_read_at_once_nan_is_found_within_fifty_batches(
    net: MakeNet, count: int, bad: int, found_in: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(math, "isfinite", lambda _: True)  # as on a GPU, where to look at each loss is to wait for it
    batches = batches_of(*[(None, None)] * (bad - 1), (NAN, None), *[(None, None)] * (count - bad))
    trainer = Trainer(net(), lr=0.0, device="cpu")
    # The weights are NaN from the bad batch on, so every later loss is: the first counts.
    with pytest.raises(DivergedError, match=f"^epoch 1, batch {bad}: the loss is nan: "):
        trainer.fit(batches, epochs=2)
    assert trainer.batches_done == (50 if found_in == "at batch 50" else 60)


def test_an_exhausted_generator_is_explained(net: MakeNet, loader: BatchLoader) -> None:
    trainer = Trainer(net(), device="cpu")
    with pytest.raises(InputError, match="the loader gave no batch; a generator can be gone through only once"):
        trainer.fit((batch for batch in loader), epochs=2)
    assert len(trainer.history) == 1


@pytest.mark.parametrize("schedule", [None, "one_cycle"])
def test_an_empty_loader_is_refused(net: MakeNet, schedule: str | None) -> None:
    with pytest.raises(InputError, match="the loader gave no batch"):
        Trainer(net(), schedule=schedule, device="cpu").fit([])


def test_classes_that_the_model_has_no_output_for_are_refused(synthetic3: ImageDataset, loader: BatchLoader) -> None:
    model = cifarnets.models.create("convnet", num_classes=2)
    with pytest.raises(InputError, match=r"3 classes \(disc, cross, stripes\) do not fit a model of 2 outputs"):
        Trainer(model, device="cpu").fit(loader)


@pytest.mark.parametrize("epochs", [0, -1, 1.5, True, "3", None])
def test_no_epochs_are_refused(net: MakeNet, loader: BatchLoader, epochs: Any) -> None:
    with pytest.raises(InputError, match=rf"epochs( of Trainer.fit)? must be .*, not {epochs!r}"):
        Trainer(net(), device="cpu").fit(loader, epochs=epochs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate must be at least 1 batch, not 0"),
        ({"loss": F.cross_entropy, "label_smoothing": 0.1}, "label_smoothing belongs to the default cross-entropy"),
        ({"label_smoothing": 1.5}, "label_smoothing must be between 0 and 1, not 1.5"),
        ({"label_smoothing": -0.1}, "label_smoothing must be between 0 and 1, not -0.1"),
        ({"clip_norm": 0}, "clip_norm must be above 0, or None for no limit, not 0"),
        ({"clip_norm": math.nan}, "clip_norm must be above 0, or None for no limit, not nan"),
        ({"accumulate": "2"}, "accumulate of Trainer must be a whole number, not '2'"),
        ({"accumulate": 10**400}, "accumulate must be at least 1 batch, not 1000"),
        ({"accumulate": True}, "accumulate of Trainer must be a whole number, not True"),
        ({"label_smoothing": "much"}, "label_smoothing of Trainer must be a number, not 'much'"),
        ({"clip_norm": "much"}, "clip_norm of Trainer must be a number or nothing, not 'much'"),
        ({"loss": nn.CrossEntropyLoss}, "write loss=CrossEntropyLoss(), with brackets"),
        ({"loss": 5}, "loss of Trainer must be a function or nothing, not 5"),
        ({"optimizer": "adamw", "optimizer_options": {"capturable": True}}, "AdamW refuses {'capturable': True}"),
        (
            {"optimizer": "convmuon", "optimizer_options": {"steps": "x"}},
            "with {'steps': 'x'}: steps must be a whole number",
        ),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"precision": "fp64"}, "precision of Trainer must be one of 'auto', 'fp32', 'bf16', 'fp16', not 'fp64'"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg'. Did you mean 'sgd'?"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(net: MakeNet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(cifarnets.CifarNetsError, match=re.escape(message)):
        Trainer(net(), **{"device": "cpu", **options})


def test_other_errors_of_torch_come_through(loader: BatchLoader) -> None:
    class Broken(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("a bug in the model")

    trainer = Trainer(Broken(3, 3), device="cpu")
    with pytest.raises(RuntimeError, match=r"^a bug in the model$"):
        trainer.fit(loader)

    def lookup(logits: Tensor, labels: Tensor) -> Tensor:
        raise IndexError("a bug in the loss")

    with pytest.raises(IndexError, match=r"^a bug in the loss$"):
        Trainer(cifarnets.models.create("convnet", num_classes=3), loss=lookup, device="cpu").fit(loader)


@pytest.mark.parametrize("lost_at", [0, 1, 2])
def test_where_other_processes_are_gone_the_error_says_so(net: MakeNet, loader: BatchLoader, lost_at: int) -> None:
    class Alone(distributed.World):
        def sum(self, values: Tensor) -> Tensor:
            raise RuntimeError("Connection reset by peer")

        def gather(self, value: Any) -> list[Any]:
            if len(asked) == lost_at:
                raise RuntimeError("Connection reset by peer")
            asked.append(value)
            return [value, value]

    asked: list[Any] = []
    trainer = Trainer(net(), device="cpu")
    trainer.world = Alone(rank=1, size=2)
    with pytest.raises(TrainingError, match=r"process 1 of 2 cannot go on; has another one ended.*Connection reset"):
        trainer.fit(loader)


def test_a_last_step_that_breaks_the_weights_is_named(net: MakeNet, val_loader: BatchLoader) -> None:
    def break_it(hook: str, trainer: Trainer) -> None:
        if hook == "on_batch_end":
            with torch.no_grad():
                next(trainer.model.parameters()).fill_(math.inf)

    trainer = Trainer(net(), callbacks=[OnEveryHook(break_it)], device="cpu")
    with pytest.raises(DivergedError, match="the weights are NaN or infinite at the end of epoch 1"):
        trainer.fit(batches_of((None, None)), val_loader, epochs=1)


@pytest.mark.parametrize(
    ("loader", "message"),
    [
        ("dataset", r"batch 1: a loader must give .* two tensors, not tuple of Tensor, int; put a dataset into"),
        ([(torch.zeros(2, 3, 32, 32), torch.tensor([0, 1]), 5)], "two tensors, not tuple of Tensor, Tensor, int"),
        ([np.zeros((2, 3, 32, 32))], "two tensors, not ndarray; put"),
        ([(torch.zeros(3, 32, 32), torch.tensor([0, 1, 2]))], r"images must be float \[B, C, H, W\]"),
    ],
)
def test_what_is_no_loader_is_refused(net: MakeNet, train: ImageDataset, loader: Any, message: str) -> None:
    batches: Any = train if loader == "dataset" else loader
    with pytest.raises(InputError, match=message):
        Trainer(net(), channels_last=True, device="cpu").fit(batches, epochs=1)
    with pytest.raises(InputError, match=message):
        evaluate(net(), batches, device="cpu")


@pytest.mark.parametrize("order", ["first", "second"])
def test_labels_that_cross_entropy_would_ignore_are_refused_in_every_batch(net: MakeNet, order: str) -> None:
    bad, good = (None, [0, -100]), (None, None)
    batches = batches_of(*([bad, good] if order == "first" else [good, bad]))
    number = 1 if order == "first" else 2
    with pytest.raises(InputError) as caught:
        Trainer(net(), device="cpu").fit(batches, epochs=1)
    assert str(caught.value) == (
        f"epoch 1, batch {number}: labels run from -100 to 0, and every label must be a class, 0 … 2: leave out images "
        "without a label, for none is ignored."
    )


def test_an_optimizer_of_another_model_is_refused(net: MakeNet, loader: BatchLoader) -> None:
    other, model = net(1), net()
    before = weights_of(model)
    trainer = Trainer(model, optimizer=torch.optim.SGD(other.parameters(), 0.1), device="cpu")
    with pytest.raises(InputError, match="the SGD holds no parameter of this ConvNet, so the model would not learn"):
        trainer.fit(loader, epochs=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    part: Any = net()
    Trainer(part, optimizer=torch.optim.SGD(part.fc2.parameters(), 0.1), device="cpu").fit(loader, epochs=1)


class TwoOutputs(nn.Linear):
    def forward(self, images: Tensor) -> Any:
        logits = super().forward(images.flatten(1))
        return logits, logits


@pytest.mark.parametrize("loss", [None, lambda outputs, labels: F.cross_entropy(outputs[0], labels)])
def test_a_model_of_two_outputs_is_refused_in_a_fit_as_in_evaluate(loader: BatchLoader, loss: Any) -> None:
    with pytest.raises(InputError, match=r"epoch 1, batch 1: a model must give logits \[B, K\], one tensor, not tuple"):
        Trainer(TwoOutputs(3072, 3), loss=loss, device="cpu").fit(loader, epochs=1)
    with pytest.raises(InputError, match=r"batch 1: a model must give logits \[B, K\], one tensor, not tuple"):
        evaluate(TwoOutputs(3072, 3), loader, device="cpu")


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (
            nn.CrossEntropyLoss(reduction="none"),
            r"one number, the mean over the batch \(reduction='mean'\), not \[16\]",
        ),
        (lambda logits, labels: 0.5, "the loss must give one number.*, not float"),
        (lambda logits, labels: F.cross_entropy(logits, labels).detach(), "does not depend on the model's parameters"),
        (
            nn.MarginRankingLoss(),
            r"the loss cannot take logits torch.float32 \[16, 3\] and labels torch.int64 \[16\] on cpu: ",
        ),
        (nn.CrossEntropyLoss(torch.ones(4)), r"the loss cannot take logits .*weight tensor should be defined"),
        (lambda logits: logits.mean(), "the loss cannot take logits .*2 were given"),
    ],
)
def test_a_loss_that_is_none_is_refused_at_the_first_batch(
    net: MakeNet, loader: BatchLoader, loss: Any, message: str
) -> None:
    model = net()
    before = weights_of(model)
    with pytest.raises(InputError, match=f"epoch 1, batch 1: .*{message}"):
        Trainer(model, loss=loss, device="cpu").fit(loader, epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_last_batch_of_one_image_and_batch_norm(train: ImageDataset) -> None:
    class Norm(nn.Sequential):
        def __init__(self) -> None:
            super().__init__(nn.Flatten(), nn.Linear(3072, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))

    loader = BatchLoader(train.select(range(17)), 16, device="cpu")
    with pytest.raises(InputError, match=r"epoch 1, batch 2: the model cannot train on a batch of one.*drop_last=True"):
        Trainer(Norm(), device="cpu").fit(loader, epochs=1)
    full = BatchLoader(train.select(range(17)), 16, drop_last=True, device="cpu")
    assert len(Trainer(Norm(), device="cpu").fit(full, epochs=1)) == 1


def test_data_that_the_model_was_not_trained_on_is_no_validation(net: MakeNet, train: ImageDataset) -> None:
    other = ImageDataset(train.images, train.labels, train.classes, mean=(0.5,) * 3, std=(0.5,) * 3)
    loader = BatchLoader(train, 16, device="cpu")
    with pytest.raises(InputError, match=r"the loader's images are normalised with mean \(0.5, 0.5, 0.5\)"):
        Trainer(net(), device="cpu").fit(loader, BatchLoader(other, 16, device="cpu"), epochs=1)
    with pytest.raises(InputError, match="the loader's images are normalised"):
        Trainer(net(), device="cpu").fit(loader, DataLoader(other, 16), epochs=1)
