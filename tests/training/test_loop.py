"""The loop is what a plain PyTorch loop does, and the history what one would compute."""

import math
import pickle
import random
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tests.training.helpers import (
    BatchNormNet,
    MakeNet,
    OnEveryHook,
    assert_same_weights,
    batches_of,
    random_numbers,
    without_times,
)
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader, IterableDataset, Subset
from torch.utils.data.distributed import DistributedSampler

import cifarnets
from cifarnets import Trainer, evaluate
from cifarnets.datasets import BatchLoader, CIFAR10Normalized, ImageDataset, SyntheticCIFAR10, cifar_subset
from cifarnets.datasets.files import data_root, is_complete
from cifarnets.errors import CallbackError, InputError
from cifarnets.models import create
from cifarnets.models.metadata import get_meta
from cifarnets.training import EMA, ArticleLog, Callback, Checkpoint


@pytest.fixture(scope="module")
def real3() -> ImageDataset:
    """200 real images of the article's three classes."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    root = next(root for root in (data_root(), beside) if is_complete(root))
    return cifar_subset(CIFAR10Normalized(root, train=False), ["airplane", "automobile", "ship"]).select(range(200))


def kinds_of_loader(dataset: ImageDataset, batch_size: int) -> dict[str, Callable[[], Any]]:
    return {
        "BatchLoader": lambda: BatchLoader(dataset, batch_size, shuffle=True, device="cpu", seed=7),
        "DataLoader": lambda: DataLoader(dataset, batch_size, shuffle=True, generator=torch.Generator().manual_seed(7)),
        "list": lambda: list(BatchLoader(dataset, batch_size, device="cpu")),
    }


@pytest.mark.cifar10
@pytest.mark.parametrize(("kind", "epochs"), [("BatchLoader", 20), ("DataLoader", 5), ("list", 5)])
def test_it_is_the_plain_loop_of_the_article(real3: ImageDataset, kind: str, epochs: int) -> None:
    loader = kinds_of_loader(real3, 64)[kind]
    cifarnets.seed_everything(0)
    plain = cifarnets.models.create("convnet", num_classes=3)
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-2)
    losses, printed, batches = [], [], loader()
    for _ in range(epochs):
        total, over_images = 0.0, 0.0
        for images, labels in batches:
            loss = F.cross_entropy(plain(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            over_images += loss.item() * len(images)
        losses.append(over_images / len(real3))
        printed.append(total / len(batches))  # what the article prints

    cifarnets.seed_everything(0)
    model = cifarnets.models.create("convnet", num_classes=3)
    means: list[float] = []
    note = OnEveryHook(
        lambda hook, trainer: means.append(trainer.metrics.batch_mean_loss) if hook == "on_epoch_end" else None
    )
    history = Trainer(model, device="cpu", callbacks=[note]).fit(loader(), epochs=epochs)
    assert history.column("loss") == pytest.approx(losses, abs=1e-6)
    assert means == pytest.approx(printed, abs=1e-6)
    assert abs(losses[0] - printed[0]) > 1e-5, "the last batch is smaller, so the two means must differ"
    assert losses[-1] < losses[0] - 0.001, "nothing was learnt, so nothing was compared"
    assert_same_weights(model, plain, 1e-6)


def test_a_batch_is_let_go_before_the_next_is_made(
    train: ImageDataset, net: MakeNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that two never need memory at once, and the next one finds that of the last in the cache."""
    monkeypatch.setattr("cifarnets.datasets.loader.BLOCK", 16)
    alive: list[weakref.ref[Tensor]] = []

    class Loader(BatchLoader):
        def shard(self, rank: int, size: int) -> Iterator[Any]:
            for batch in super().shard(rank, size):
                alive.append(weakref.ref(batch[0]))
                yield batch
                del batch

        def _convert(self, images: Tensor) -> Tensor:
            assert all(batch() is None for batch in alive)
            return super()._convert(images)

    loader = Loader(train, 16, device="cpu")
    Trainer(net(), device="cpu").fit(loader, epochs=1)
    assert len(alive) == len(loader) > 1


@pytest.mark.parametrize("kind", ["BatchLoader", "DataLoader", "list"])
def test_every_option_at_once_is_the_plain_loop_with_it(train: ImageDataset, net: MakeNet, kind: str) -> None:
    loader = kinds_of_loader(train, 9)[kind]  # five batches, of which the fifth makes a step of its own
    plain, epochs = net(), 4
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = OneCycleLR(optimizer, max_lr=0.05, total_steps=epochs * 3)
    batches, norms = loader(), []
    for _ in range(epochs):
        for number, (images, labels) in enumerate(batches, start=1):
            (F.cross_entropy(plain(images), labels, label_smoothing=0.1) / 2).backward()
            if number % 2 == 0 or number == len(batches):
                norms.append(nn.utils.clip_grad_norm_(plain.parameters(), 0.4).item())
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()

    model = net()
    trainer = Trainer(
        model,
        lr=0.05,
        optimizer_options={"momentum": 0.9, "weight_decay": 5e-4},
        schedule="one_cycle",
        accumulate=2,
        clip_norm=0.4,
        label_smoothing=0.1,
        device="cpu",
    )
    trainer.fit(loader(), epochs=epochs)
    assert max(norms) > 0.4 > min(norms), "the limit must matter in some steps and not in others"
    assert trainer.global_step == 12
    assert_same_weights(model, plain, 1e-6)


def test_weight_decay_can_spare_biases(net: MakeNet, loader: BatchLoader) -> None:
    plain, model = net(), net()
    groups: list[dict[str, Any]] = [
        {"params": [p for p in plain.parameters() if p.ndim > 1], "weight_decay": 0.5},
        {"params": [p for p in plain.parameters() if p.ndim == 1]},
    ]
    Trainer(plain, optimizer=torch.optim.SGD(groups, lr=0.1), device="cpu").fit(loader, epochs=1)
    loader.epoch = 0
    Trainer(model, lr=0.1, optimizer_options={"weight_decay": 0.5}, decay_biases=False, device="cpu").fit(
        loader, epochs=1
    )
    assert_same_weights(model, plain)


def test_the_history_tells_each_epoch(net: MakeNet, loader: BatchLoader, val_loader: BatchLoader) -> None:
    model = net()
    trainer = Trainer(model, lr=0.0, device="cpu")  # weights that stay let the figures be computed again
    history = trainer.fit(loader, val_loader, epochs=2)
    assert history is trainer.history
    assert [row["epoch"] for row in history] == [1, 2]
    result = evaluate(model, val_loader, device="cpu")
    loader.epoch = 0
    batches = list(loader)
    losses = [F.cross_entropy(model(images), labels, reduction="sum").item() for images, labels in batches]
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    first = history[0]
    assert first["loss"] == pytest.approx(sum(losses) / 40, abs=1e-6)
    assert first["accuracy"] == right / 40
    assert (first["val_loss"], first["val_accuracy"]) == (pytest.approx(result.loss), result.accuracy)
    assert first["images_per_second"] == pytest.approx(40 / first["seconds"])
    assert first["lr"] == 0.0


def test_a_second_fit_goes_on(net: MakeNet, train: ImageDataset) -> None:
    def loader() -> BatchLoader:
        return BatchLoader(train, 16, shuffle=True, device="cpu", seed=0)

    once, twice = (Trainer(net(), optimizer_options={"momentum": 0.9}, device="cpu") for _ in range(2))
    once.fit(loader(), epochs=3)
    both = loader()
    twice.fit(both, epochs=1)
    history = twice.fit(both, epochs=2)
    assert without_times(history) == without_times(once.history)
    assert (twice.epoch, twice.end_epoch, twice.global_step) == (3, 3, 9)
    assert_same_weights(twice.model, once.model)


def test_a_schedule_starts_anew_in_every_fit(net: MakeNet, loader: BatchLoader) -> None:
    rates: list[float] = []
    note = OnEveryHook(lambda hook, trainer: rates.append(trainer.lr) if hook == "on_batch_end" else None)
    trainer = Trainer(net(), lr=0.1, schedule="cosine", callbacks=[note], device="cpu")
    trainer.fit(loader, epochs=2)
    trainer.fit(loader, epochs=2)
    assert rates[:6] == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 6)) for step in range(6)])
    assert rates[6:] == pytest.approx(rates[:6])


def test_a_seed_fixes_all_random_numbers(loader: BatchLoader) -> None:
    def fit(seed: int | None) -> list[Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3072, 3))
        drawn: list[Any] = []
        note = OnEveryHook(lambda *_: drawn.append(random_numbers()))
        drawn.append(without_times(Trainer(model, seed=seed, callbacks=[note], device="cpu").fit([*loader], epochs=1)))
        return drawn

    loader.shuffle = False
    first = fit(5)
    torch.rand(3)
    random.random()
    assert fit(5) == first
    assert fit(6) != first
    random.seed(1)
    unseeded = fit(None)
    assert fit(None) != unseeded, "without a seed, Python's numbers must go on"


def test_the_model_learns_what_its_outputs_and_inputs_mean(net: MakeNet, loader: BatchLoader) -> None:
    model = net()
    Trainer(model, device="cpu").fit(loader, epochs=1)
    assert model.meta.classes == loader.dataset.classes
    assert (model.meta.mean, model.meta.std) == loader.dataset.constants


def test_the_size_of_the_images_travels_with_the_weights(synthetic3: ImageDataset, tmp_path: Path) -> None:
    """`predict` must resize pictures to what the model was trained on: in half the size, thin stripes are gone."""
    large = synthetic3.images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    data = ImageDataset(large[:40], synthetic3.labels[:40], synthetic3.classes)
    model: Any = cifarnets.models.create("resnet20", num_classes=3, widths=(4, 4, 8))
    loader = BatchLoader(data, 20, device="cpu")
    Trainer(model, device="cpu", progress=False).fit(loader, loader, epochs=1)
    assert model.meta.size == (64, 64)
    kept: Any = cifarnets.load(cifarnets.save(model, tmp_path / "kept.safetensors"))
    assert kept.meta.size == (64, 64)
    small = BatchLoader(synthetic3.select(range(40)), 20, device="cpu")
    with pytest.raises(InputError, match="the loader's images are 32×32, and the model was trained on 64×64"):
        evaluate(kept, small, device="cpu")
    with pytest.raises(InputError, match="the loader's images are 32×32"):
        Trainer(model, device="cpu", progress=False).fit(loader, small, epochs=1)
    Trainer(model, device="cpu", progress=False).fit(list(small), epochs=1)
    assert model.meta.size is None, "of a list nobody knows what it is"
    assert cifarnets.load("convnet").meta.size is None, "files of earlier versions say nothing"


def test_predict_sees_pictures_of_the_size_that_was_trained_on() -> None:
    torch.manual_seed(0)
    labels = torch.arange(120) % 2
    stripes = (torch.arange(64) % 2 * 255).byte().expand(64, 64)  # a pixel wide: gone in half the size
    images = torch.stack([stripes if label else stripes.T for label in labels])[:, None].repeat(1, 3, 1, 1)
    data = ImageDataset(images, labels, ["rows", "columns"])
    model = cifarnets.models.create("resnet20", num_classes=2, widths=(4, 4, 8))
    loader = BatchLoader(data, 40, shuffle=True, device="cpu", seed=0)
    Trainer(model, lr=0.05, device="cpu", progress=False).fit(loader, epochs=6)
    found = [
        prediction[0][0] == data.classes[label]
        for prediction, label in zip(cifarnets.predict(model, images), labels, strict=True)
    ]
    accuracy = evaluate(model, BatchLoader(data, 40, device="cpu"), device="cpu").accuracy
    assert accuracy == sum(found) / 120 == 1.0


def test_validation_leaves_training_mode_and_does_not_train(net: MakeNet, loader: BatchLoader) -> None:
    def fit(val: Any = None) -> nn.Module:
        loader.epoch = 0
        torch.manual_seed(0)
        model = BatchNormNet(dropout=0)
        seen: list[bool] = []
        note = OnEveryHook(
            lambda hook, trainer: seen.append(trainer.model.training) if hook == "on_batch_end" else None
        )
        Trainer(model, callbacks=[note], device="cpu").fit(loader, val, epochs=2)
        assert seen == [True] * 6
        return model

    assert_same_weights(fit([*loader]), fit())


class Stream(IterableDataset[Any]):
    """Images one after another; nobody knows how many."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.dataset_of_stream = dataset

    def __iter__(self) -> Iterator[Any]:
        return iter([self.dataset_of_stream[index] for index in range(40)])


def test_any_iterable_of_batches_will_do(net: MakeNet, train: ImageDataset) -> None:
    reference = Trainer(net(), device="cpu").fit(BatchLoader(train, 16, device="cpu"), epochs=2)
    batches = list(BatchLoader(train, 16, device="cpu"))

    class Own:
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            return iter(batches)

    for loader in (batches, tuple(batches), Own(), DataLoader(train, 16), DataLoader(Stream(train), 16)):
        assert without_times(Trainer(net(), device="cpu").fit(loader, epochs=2)) == without_times(reference)


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only, and spawned ones are slow")
def test_a_dataloader_with_workers(net: MakeNet, train: ImageDataset) -> None:
    reference = Trainer(net(), device="cpu").fit(BatchLoader(train, 16, device="cpu"), epochs=1)
    history = Trainer(net(), device="cpu").fit(DataLoader(train, 16, num_workers=1), epochs=1)
    assert without_times(history) == without_times(reference)


def test_soft_labels_count_for_their_largest_weight(net: MakeNet, loader: BatchLoader) -> None:
    hard = list(loader)
    soft = [(images, F.one_hot(labels, 3).float()) for images, labels in hard]
    histories = [without_times(Trainer(net(), device="cpu").fit(batches, epochs=2)) for batches in (hard, soft)]
    for mine, theirs in zip(*histories, strict=True):
        assert mine == pytest.approx(theirs)


def test_a_loss_of_the_user(net: MakeNet, loader: BatchLoader) -> None:
    def squared(logits: Tensor, labels: Tensor) -> Tensor:
        return (logits.softmax(1) - F.one_hot(labels, 3)).square().mean()

    history = Trainer(net(), loss=squared, lr=0.5, device="cpu").fit(loader, epochs=8)
    assert history[0]["loss"] == pytest.approx(2 / 9, abs=0.02)
    assert history[-1]["loss"] < history[0]["loss"]


def test_channels_last_computes_the_same(net: MakeNet, train: ImageDataset) -> None:
    histories, layouts = [], []
    for channels_last in (False, True):
        model = net()
        loader = BatchLoader(train, 16, device="cpu")
        model.conv2.register_forward_pre_hook(
            lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
        )
        histories.append(Trainer(model, channels_last=channels_last, device="cpu").fit(loader, epochs=2))
    assert set(layouts[:6]) == {False}
    assert set(layouts[6:]) == {True}
    assert histories[0].column("loss") == pytest.approx(histories[1].column("loss"), abs=1e-5)


@pytest.mark.parametrize("before", [False, True])
def test_deterministic_algorithms_are_asked_for_during_the_fit_alone(
    net: MakeNet, loader: BatchLoader, before: bool
) -> None:
    seen: list[bool] = []
    note = OnEveryHook(lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()))
    torch.use_deterministic_algorithms(before)
    try:
        Trainer(net(), deterministic=True, callbacks=[note], device="cpu").fit(loader, epochs=1)
        assert set(seen) == {True}
        assert torch.are_deterministic_algorithms_enabled() is before
        with pytest.raises(CallbackError):
            Trainer(net(), deterministic=True, callbacks=[OnEveryHook(lambda *_: 1 / 0)], device="cpu").fit(loader)
        assert torch.are_deterministic_algorithms_enabled() is before
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_compiled_model_leaves_no_trace(
    net: MakeNet, loader: BatchLoader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Compiled(nn.Module):
        """What torch.compile gives, as far as names go, without the minute that it takes."""

        calls = 0

        def __init__(self, module: nn.Module, backend: Any) -> None:
            super().__init__()
            assert backend.options == ()  # in float32
            self._orig_mod = module

        def forward(self, images: Tensor) -> Tensor:
            Compiled.calls += 1
            return self._orig_mod(images)

    monkeypatch.setattr(torch, "compile", Compiled)
    model = net()
    trainer = Trainer(model, compile=True, callbacks=[EMA(0.5), Checkpoint(tmp_path)], device="cpu")
    trainer.fit(loader, epochs=1)
    assert Compiled.calls == 3
    assert trainer.model is model
    assert trainer.state_dict()["model"].keys() == net().state_dict().keys()
    assert cifarnets.load(tmp_path / "last.safetensors").state_dict().keys() == net().state_dict().keys()


def test_double_precision_images_are_trained_on(net: MakeNet) -> None:
    batches = batches_of((torch.zeros(2, 3, 32, 32, dtype=torch.float64), None))
    assert len(Trainer(net(), device="cpu").fit(batches, epochs=1)) == 1


def test_a_distributed_sampler_has_a_new_order_each_epoch(net: MakeNet, train: ImageDataset) -> None:
    seen: list[int] = []
    sampler: DistributedSampler[Any] = DistributedSampler(train, num_replicas=1, rank=0, shuffle=True)
    orders = OnEveryHook(lambda hook, _: seen.append(tuple(sampler)) if hook == "on_epoch_start" else None)  # type: ignore[arg-type]
    Trainer(net(), callbacks=[orders], device="cpu").fit(DataLoader(train, 8, sampler=sampler), epochs=2)
    assert seen[0] != seen[1]


def test_a_step_that_is_left_out_moves_no_schedule(net: MakeNet) -> None:
    trainer = Trainer(net(), schedule="cosine", device="cpu")

    class Overflowing:
        """What a GradScaler does where fp16 gradients have overflowed."""

        scale_now = 8.0

        def get_scale(self) -> float:
            return self.scale_now

        def scale(self, loss: Tensor) -> Tensor:
            return loss

        def step(self, _: object) -> None:
            pass

        def update(self) -> None:
            self.scale_now /= 2

        def state_dict(self) -> dict[str, Any]:
            return {}

    trainer._scaler = Overflowing()  # type: ignore[assignment]
    trainer.fit(batches_of((None, None), (None, None)), epochs=1)
    assert trainer.global_step == 0
    assert trainer.schedule is not None
    assert trainer.schedule.last_epoch == 0


def test_training_and_validation_loss_are_both_means_over_images(synthetic3: ImageDataset) -> None:
    """A last batch of one image, whose label is wrong, counts as one image of 65 and not as half of two batches."""
    images = torch.cat([synthetic3.images[:64], synthetic3.images[:1]])
    labels = torch.cat([synthetic3.labels[:64], (synthetic3.labels[:1] + 1) % 3])
    data = ImageDataset(images, labels, synthetic3.classes)
    loader = BatchLoader(data, 64, device="cpu")
    row = Trainer(cifarnets.models.create("convnet", num_classes=3), lr=0.0, device="cpu").fit(
        loader, loader, epochs=1
    )[0]
    assert row["loss"] == pytest.approx(row["val_loss"], abs=1e-6)


def test_the_log_of_the_article_alone_prints_the_mean_over_batches(
    net: MakeNet, train: ImageDataset, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = train.images[:17], torch.cat([train.labels[:16], (train.labels[16:17] + 1) % 3])
    loader = BatchLoader(ImageDataset(images, labels, train.classes), 16, device="cpu")
    trainer = Trainer(net(), lr=0.0, callbacks=[ArticleLog()], device="cpu", progress=False)
    row = trainer.fit(loader, epochs=1)[0]
    losses = [F.cross_entropy(trainer.model(images), labels).item() for images, labels in loader]
    printed = float(capsys.readouterr().out.split()[-1])
    assert printed == pytest.approx(sum(losses) / 2, abs=1e-4)
    assert row["loss"] == pytest.approx((16 * losses[0] + losses[1]) / 17, abs=1e-6)
    assert abs(printed - row["loss"]) > 1e-3


def test_the_model_is_in_eval_mode_after_a_fit(loader: BatchLoader) -> None:
    """So that `model(images)` is what `evaluate` and `predict` compute, BatchNorm and dropout included."""
    model = BatchNormNet()
    trainer = Trainer(model, device="cpu", progress=False)
    trainer.fit(loader, epochs=1)
    assert not any(module.training for module in model.modules())
    trainer.fit(loader, epochs=1)
    assert not any(module.training for module in model.modules())
    with pytest.raises(CallbackError):
        Trainer(model, callbacks=[OnEveryHook(lambda *_: 1 / 0)], device="cpu").fit(loader)
    assert not any(module.training for module in model.modules())


def test_a_callback_can_keep_a_frozen_part_in_eval_mode(loader: BatchLoader) -> None:
    """`requires_grad_(False)` alone leaves the statistics of BatchNorm moving."""

    class Freeze(Callback):
        def on_epoch_start(self, trainer: Trainer) -> None:
            trainer.model[1].eval()

    def moved(*callbacks: Callback) -> bool:
        model = BatchNormNet()
        model[1].requires_grad_(False)
        before = model.state_dict()["1.running_mean"].clone()
        Trainer(model, callbacks=callbacks, device="cpu", progress=False).fit(loader, epochs=2)
        return not torch.equal(model.state_dict()["1.running_mean"], before)

    assert moved()
    assert not moved(Freeze())


@pytest.mark.parametrize("mode", ["min", "max"])
def test_reduce_on_plateau_is_fed_the_validation_figure_each_epoch(
    net: MakeNet, loader: BatchLoader, val_loader: BatchLoader, mode: Any
) -> None:
    fed: list[float] = []

    class Noting(ReduceLROnPlateau):
        def step(self, metrics: Any, epoch: Any = None) -> None:  # type: ignore[override]
            fed.append(float(metrics))
            super().step(metrics)

    trainer = Trainer(net(), lr=1e-9, schedule=lambda o: Noting(o, mode, factor=0.1, patience=0, eps=0), device="cpu")
    history = trainer.fit(loader, val_loader, epochs=3)
    assert fed == history.column("val_loss" if mode == "min" else "val_accuracy")
    assert trainer.optimizer.param_groups[0]["lr"] < 1e-9, "nothing is learnt, so the rate must fall"


def test_reduce_on_plateau_needs_validation(net: MakeNet, loader: BatchLoader) -> None:
    trainer = Trainer(net(), schedule=ReduceLROnPlateau, device="cpu")
    with pytest.raises(InputError, match="ReduceLROnPlateau follows val_loss: pass val_loader to fit"):
        trainer.fit(loader, epochs=1)


@pytest.mark.parametrize("weights", [[1.0, 2.0, 3.0], None])
def test_a_loss_module_of_another_dtype_is_moved_to_the_logits(
    net: MakeNet, loader: BatchLoader, weights: list[float] | None
) -> None:
    tensor = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    history = Trainer(net(), loss=nn.CrossEntropyLoss(tensor), lr=0.0, device="cpu").fit(loader, epochs=1)
    model = net()
    loader.epoch = 0
    expected = sum(
        F.cross_entropy(model(images), labels, None if tensor is None else tensor.float()).item() * len(images)
        for images, labels in loader
    )
    assert history[0]["loss"] == pytest.approx(expected / 40, abs=1e-6)


def test_a_trainer_with_an_average_can_be_pickled(net: MakeNet, loader: BatchLoader) -> None:
    trainer = Trainer(net(), callbacks=[EMA(0.5)], device="cpu", progress=False)
    trainer.fit(loader, epochs=1)
    copied = pickle.loads(pickle.dumps(trainer))
    trainer.fit(trainer.loader, epochs=1)
    copied.fit(copied.loader, epochs=1)
    assert_same_weights(copied.eval_model, trainer.eval_model)
    assert without_times(copied.history) == without_times(trainer.history)
    assert copied.eval_model is not copied.model


def test_images_of_drawn_pictures_are_learnt(loader: BatchLoader) -> None:
    """The shortest fit that a reader may try."""
    data = SyntheticCIFAR10(size=500)
    model = cifarnets.models.create("convnet")
    history = Trainer(model, lr=0.05, optimizer_options={"momentum": 0.9}, device="cpu", progress=False).fit(
        BatchLoader(data, 20, shuffle=True, device="cpu", seed=0), epochs=5
    )
    assert history[-1]["loss"] < history[0]["loss"] - 0.1


@pytest.mark.parametrize("callbacks", [[], [EMA(0.9)]], ids=["plain", "EMA"])
def test_a_default_device_of_the_user_has_no_say(callbacks: list[Callback]) -> None:
    model, loader = create("convnet"), BatchLoader(SyntheticCIFAR10(size=40), 20, device="cpu")
    with torch.device("meta"):
        history = Trainer(model, progress=False, device="cpu", callbacks=callbacks).fit(loader, loader, epochs=1)
    assert 0 < history[0]["val_loss"] < 10


def test_an_average_of_a_pruned_model_says_what_to_do() -> None:
    model, loader = create("convnet"), BatchLoader(SyntheticCIFAR10(size=40), 20, device="cpu")
    prune.l1_unstructured(model.get_submodule("conv1"), "weight", 0.5)
    with pytest.raises(InputError, match=r"EMA cannot copy the model .*torch\.nn\.utils\.prune\.remove"):
        Trainer(model, progress=False, callbacks=[EMA(0.9)]).fit(loader, epochs=1)
    prune.remove(model.get_submodule("conv1"), "weight")
    Trainer(model, progress=False, callbacks=[EMA(0.9)]).fit(loader, epochs=1)


def test_the_classes_are_those_of_a_subset_of_torch_too() -> None:
    data, model = SyntheticCIFAR10(size=60), create("convnet")
    Trainer(model, progress=False).fit(DataLoader(Subset(data, range(40)), 20), epochs=1)
    assert get_meta(model).classes == data.classes
