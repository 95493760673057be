"""The figures of an evaluation, each computed a second time in another way."""

import dataclasses
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

import cifarnets
from cifarnets import Evaluation, Trainer, evaluate, models
from cifarnets._batch import Batch
from cifarnets.datasets import BatchLoader, CIFAR10Normalized, ImageDataset, SyntheticCIFAR10, cifar_subset
from cifarnets.errors import CifarNetsError, InputError, MissingExtraError
from cifarnets.inference import check_batch, collect_logits
from cifarnets.models import annotate
from cifarnets.models.metadata import classes_of


class Table(nn.Module):
    """Answers the n-th image that it is asked about with the n-th row of a table."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)
        self.asked = 0

    def forward(self, images: Tensor) -> Tensor:
        self.asked += len(images)
        return self.logits[self.asked - len(images) : self.asked]


def batches_of(labels: Tensor, size: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(torch.rand(len(part), 3, 32, 32), part) for part in labels.split(size)]


def logits_of(*probabilities: list[float]) -> Tensor:
    """Logits whose softmax these are."""
    return torch.tensor(probabilities, dtype=torch.float64).log()


def by_numpy(logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Everything that an `Evaluation` tells, image by image, as one would write it down first."""
    n, k = logits.shape
    logits = logits.astype(np.float64)
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    probabilities = shifted / shifted.sum(1, keepdims=True)
    confusion = np.zeros((k, k), int)
    loss = correct = 0.0
    bins: dict[int, list[tuple[float, float]]] = {}
    for row, label in zip(probabilities, labels, strict=True):
        taken = int(np.argmax(row))
        confusion[label, taken] += 1
        loss -= math.log(row[label])
        correct += taken == label
        # The bin (i/15, (i+1)/15] that holds the confidence.
        index = next(i for i in range(15) if row[taken] <= (i + 1) / 15 + 1e-12)
        bins.setdefault(index, []).append((row[taken], float(taken == label)))
    ece = sum(abs(sum(c for c, _ in b) - sum(a for _, a in b)) for b in bins.values()) / n
    return {
        "n": n,
        "loss": loss / n,
        "accuracy": correct / n,
        "ece": ece,
        "per_class": {i: confusion[i, i] / confusion[i].sum() for i in range(k) if confusion[i].sum()},
        "confusion": confusion.tolist(),
    }


class TestFigures:
    @settings(derandomize=True, deadline=None, max_examples=150)
    @given(
        seed=st.integers(0, 2**31),
        n=st.integers(1, 60),
        k=st.integers(1, 12),
        scale=st.sampled_from([0.01, 1.0, 5.0, 30.0]),
        skill=st.sampled_from([0.0, 2.0, 10.0]),
    )
    def test_every_figure_is_that_of_a_loop_in_numpy(
        self, seed: int, n: int, k: int, scale: float, skill: float
    ) -> None:
        random = torch.Generator().manual_seed(seed)
        labels = torch.randint(k, (n,), generator=random)
        logits = torch.randn(n, k, generator=random) * scale + skill * nn.functional.one_hot(labels, k)
        found, expected = Evaluation.from_logits(logits, labels), by_numpy(logits.numpy(), labels.numpy())
        assert found.n == n
        assert found.loss == pytest.approx(expected["loss"], rel=1e-9, abs=1e-12)
        assert found.accuracy == pytest.approx(expected["accuracy"])
        assert found.ece == pytest.approx(expected["ece"], abs=1e-9)
        assert found.per_class == pytest.approx({str(i): value for i, value in expected["per_class"].items()})
        assert [list(row) for row in found.confusion] == expected["confusion"]

    def test_an_example_small_enough_to_check_by_eye(self) -> None:
        logits = logits_of([0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.6, 0.1], [0.25, 0.25, 0.5])
        result = Evaluation.from_logits(logits, torch.tensor([0, 1, 0, 0]), ("cat", "dog", "ship"))
        assert result.accuracy == 0.5
        assert result.loss == pytest.approx(-math.log(0.7 * 0.8 * 0.3 * 0.25) / 4)
        assert result.per_class == {"cat": pytest.approx(1 / 3), "dog": 1.0}  # no image of a ship
        assert result.confusion == ((1, 1, 1), (0, 1, 0), (0, 0, 0))
        assert result.ece == pytest.approx((0.3 + 0.2 + 0.6 + 0.5) / 4)  # four bins of one image each

    @pytest.mark.parametrize(
        ("probabilities", "labels", "expected"),
        [
            # As sure as right: of two answers of 0.5, one is.
            ([[0.5, 0.5], [0.5, 0.5]], [0, 1], 0.0),
            # Sure and right; sure and wrong.
            ([[1.0, 1e-300]], [0], 0.0),
            ([[1e-300, 1.0]], [0], 1.0),
            # In one bin what is too sure makes up for what is not sure enough,
            ([[0.55, 0.45], [0.59, 0.41]], [0, 1], abs(0.55 + 0.59 - 1) / 2),
            # and in two it does not: 0.6 ends the bin (8/15, 9/15], and 0.61 is in the next.
            ([[0.6, 0.4], [0.61, 0.39]], [0, 1], (0.4 + 0.61) / 2),
            # 0.2 = 3/15 ends a bin, too, and lies below 0.21.
            ([[0.2] * 5, [0.21, 0.2, 0.2, 0.2, 0.19]], [1, 0], (0.2 + 0.79) / 2),
            # One class: always sure, always right.
            ([[1.0]], [0], 0.0),
        ],
    )
    def test_calibration(self, probabilities: list[list[float]], labels: list[int], expected: float) -> None:
        assert Evaluation.from_logits(logits_of(*probabilities), torch.tensor(labels)).ece == pytest.approx(
            expected, abs=1e-9
        )

    def test_step_18_a_confident_wrong_answer_costs_far_more_than_squared_error_says(self) -> None:
        label = torch.tensor([1])
        unsure, wrong = logits_of([0.5, 0.5]), logits_of([0.999, 0.001])
        losses = [Evaluation.from_logits(logits, label).loss for logits in (unsure, wrong)]
        assert losses == pytest.approx([0.6931, 6.9078], abs=1e-4)
        squared = [((logits.softmax(1)[0] - torch.tensor([0, 1])) ** 2).sum().item() for logits in (unsure, wrong)]
        assert losses[1] / losses[0] > 9 > 4 > squared[1] / squared[0]

    def test_a_hopeless_answer_has_an_infinite_loss_and_the_rest_stands(self) -> None:
        result = Evaluation.from_logits(torch.tensor([[0.0, -math.inf], [3.0, 0.0]]), torch.tensor([1, 0]))
        assert result.loss == math.inf
        assert result.accuracy == 0.5

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_nan_and_infinity_are_counted_and_refused(self, value: float) -> None:
        logits = torch.zeros(5, 3)
        logits[1, 2] = logits[4, 0] = value
        with pytest.raises(InputError, match="the model gives NaN or infinity for 2 of 5 images"):
            Evaluation.from_logits(logits, torch.zeros(5, dtype=torch.int64))

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0, 3], "labels run from 0 to 3, but the model has 3 outputs (0 … 2): create it with num_classes=4"),
            ([-1, 2], "labels run from -1 to 2, and every label must be a class, 0 … 2"),
            ([0, -100], "labels run from -100 to 0, and every label must be a class, 0 … 2"),
        ],
    )
    def test_labels_without_an_output_are_refused(self, labels: list[int], message: str) -> None:
        with pytest.raises(InputError) as caught:
            Evaluation.from_logits(torch.zeros(2, 3), torch.tensor(labels))
        assert message in str(caught.value)

    def test_names_beyond_those_known_are_numbers(self) -> None:
        labels = torch.arange(4)
        assert list(Evaluation.from_logits(torch.eye(4), labels, ("a", "b")).per_class) == ["a", "b", "2", "3"]
        assert list(Evaluation.from_logits(torch.eye(4), labels).per_class) == ["0", "1", "2", "3"]
        assert list(Evaluation.from_logits(torch.eye(2), labels[:2], ("a", "b", "c")).per_class) == ["a", "b"]


class TestTop5:
    def test_it_is_the_share_of_images_whose_class_is_among_five(self) -> None:
        logits = torch.arange(8.0).repeat(4, 1)  # the likeliest are 7, 6, 5, 4, 3
        assert Evaluation.from_logits(logits, torch.tensor([7, 3, 2, 0])).top5 == 0.5

    @pytest.mark.parametrize("classes", [2, 5])
    def test_five_of_five_say_nothing(self, classes: int) -> None:
        assert Evaluation.from_logits(torch.eye(classes), torch.arange(classes)).top5 is None


class TestConfidenceInterval:
    @pytest.mark.parametrize(
        ("right", "n", "expected"),
        # R: binom::binom.confint(right, n, methods = "wilson")
        [(81, 100, (0.7222, 0.8749)), (0, 10, (0.0, 0.2775)), (10, 10, (0.7225, 1.0)), (15, 148, (0.0624, 0.1605))],
    )
    def test_it_is_wilson_s(self, right: int, n: int, expected: tuple[float, float]) -> None:
        labels = (torch.arange(n) >= right).long()
        result = Evaluation.from_logits(torch.tensor([[1.0, 0.0]]).repeat(n, 1), labels)
        assert result.confidence_interval() == pytest.approx(expected, abs=1e-4)

    def test_a_higher_level_is_wider(self) -> None:
        result = Evaluation.from_logits(torch.eye(2).repeat(10, 1), torch.tensor([0, 1, 1, 1]).repeat(5))
        inner, outer = result.confidence_interval(0.5), result.confidence_interval(0.99)
        assert outer[0] < inner[0] < result.accuracy < inner[1] < outer[1]
        for level in (0.0, 1.0, 95.0):
            with pytest.raises(InputError, match=r"level must be between 0 and 1, such as 0\.95"):
                result.confidence_interval(level)


class TestReliabilityAndMistakes:
    def test_the_bins_hold_every_image_and_give_the_error(self) -> None:
        labels = torch.randint(4, (200,))
        result = Evaluation.from_logits(torch.randn(200, 4) * 3, labels)
        assert sum(part.images for part in result.reliability) == 200
        assert sum(part.images * part.accuracy for part in result.reliability) / 200 == pytest.approx(result.accuracy)
        for number, part in enumerate(result.reliability):
            assert part.images == 0 or number / 15 < part.confidence <= (number + 1) / 15 + 1e-12

    def test_the_worst_mistakes_come_first_with_their_place(self) -> None:
        logits = logits_of([0.9, 0.1], [0.3, 0.7], [0.95, 0.05], [0.6, 0.4], [0.2, 0.8])
        result = Evaluation.from_logits(logits, torch.tensor([1, 1, 1, 0, 0]))
        found = [(mistake.image, mistake.label, mistake.predicted) for mistake in result.mistakes]
        assert found == [(2, 1, 0), (0, 1, 0), (4, 0, 1)]
        assert [mistake.confidence for mistake in result.mistakes] == pytest.approx([0.95, 0.9, 0.8])

    def test_no_more_than_sixteen_are_kept(self) -> None:
        result = Evaluation.from_logits(torch.tensor([[1.0, 0.0]]).repeat(40, 1), torch.ones(40, dtype=torch.int64))
        assert [mistake.image for mistake in result.mistakes] == list(range(16))


class TestTable:
    def test_a_row_for_each_class(self) -> None:
        logits = torch.tensor([[2.0, 0, 0], [2, 0, 0], [0, 0, 2], [0, 0, 2]])
        table = Evaluation.from_logits(logits, torch.tensor([0, 2, 2, 2]), ("cat", "bird", "ship")).to_dataframe()
        assert table.index.name == "class"
        assert table["images"].to_dict() == {"cat": 1, "bird": 0, "ship": 3}
        assert table.loc["cat"].tolist() == [1, 1.0, 0.5]
        assert table.loc["ship", "accuracy"] == pytest.approx(2 / 3)
        assert math.isnan(table.loc["bird", "accuracy"])
        assert math.isnan(table.loc["bird", "precision"])

    def test_without_pandas_the_message_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(MissingExtraError, match=r"tables need pandas: pip install 'cifarnets\[tables\]'"):
            Evaluation.from_logits(torch.eye(2), torch.tensor([0, 1])).to_dataframe()


class TestEvaluate:
    def test_batches_of_any_size_give_the_same_figures(self) -> None:
        labels = torch.randint(3, (11,))
        logits = torch.randn(11, 3)
        expected = Evaluation.from_logits(logits, labels)
        for size in (1, 4, 11):
            assert evaluate(Table(logits), batches_of(labels, size), device="cpu") == expected

    def test_every_kind_of_loader_gives_the_same_figures(self, synthetic3: ImageDataset) -> None:
        model = models.create("convnet", num_classes=3)
        with torch.no_grad():
            logits = torch.cat([model(image[None]) for image, _ in map(synthetic3.__getitem__, range(len(synthetic3)))])
        expected = Evaluation.from_logits(logits, synthetic3.labels, synthetic3.classes)
        assert set(expected.per_class) == set(synthetic3.classes)
        in_memory = BatchLoader(synthetic3, 128, device="cpu")
        shuffled = DataLoader(synthetic3, batch_size=50, shuffle=True)
        for loader in (in_memory, DataLoader(synthetic3, batch_size=64), shuffled):
            found = evaluate(model, loader, device="cpu")
            assert found.confusion == expected.confusion
            assert (found.loss, found.ece) == pytest.approx((expected.loss, expected.ece), abs=1e-6)
            assert found.per_class == expected.per_class
        # A list has no dataset that could name the classes.
        assert list(evaluate(model, list(in_memory), device="cpu").per_class) == ["0", "1", "2"]

    def test_the_model_s_own_class_names_are_used_where_the_loader_has_none(self, synthetic3: ImageDataset) -> None:
        model = models.create("convnet", num_classes=4)
        models.annotate(model, classes=("x", "y", "z"))
        result = evaluate(model, list(BatchLoader(synthetic3, 100, device="cpu")), device="cpu")
        assert list(result.per_class) == ["x", "y", "z"]
        assert [len(row) for row in result.confusion] == [4, 4, 4, 4]

    @pytest.mark.cifar10
    def test_on_the_real_test_set(self, real_root: Path) -> None:
        test = CIFAR10Normalized(train=False)
        result = evaluate(models.create("convnet"), BatchLoader(test, 1000, device="cpu"), device="cpu")
        assert result.n == 10_000
        assert [sum(row) for row in result.confusion] == [1000] * 10
        assert 0.05 < result.accuracy < 0.2  # it has learnt nothing
        assert result.loss == pytest.approx(math.log(10), abs=0.1)
        assert tuple(result.per_class) == test.classes


class Corner(nn.Module):
    """Answers with the first pixel, and twice that: tells which view of an image it was shown."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0, 0, 0], 2 * x[:, 0, 0, 0]], 1)


class TestAugmentation:
    def logits(self, images: Tensor, tta: Any) -> Tensor:
        labels = torch.zeros(len(images), dtype=torch.int64)
        return collect_logits(Corner(), [(images, labels)], torch.device("cpu"), tta)[0]

    def test_mirror_is_the_mean_over_an_image_and_its_mirror_image(self) -> None:
        images = torch.rand(5, 3, 32, 32)
        expected = (images[:, 0, 0, 0] + images[:, 0, 0, -1]) / 2
        torch.testing.assert_close(self.logits(images, "mirror"), torch.stack([expected, 2 * expected], 1))
        assert torch.equal(self.logits(images, None)[:, 0], images[:, 0, 0, 0])

    def test_shifts_along_the_diagonal_have_half_the_weight(self) -> None:
        images = torch.rand(5, 3, 32, 32)
        first = images[:, 0]
        # The corner of each of the six views, written out; beyond the edge the image is reflected.
        straight = (first[:, 0, 0] + first[:, 0, -1]) / 2
        down = (first[:, 1, 1] + first[:, 1, -2]) / 2  # what lies one before the corner is what lies one after it
        up = (first[:, 1, 1] + first[:, 1, -2]) / 2
        torch.testing.assert_close(self.logits(images, "mirror_shift")[:, 0], straight / 2 + down / 4 + up / 4)

    def test_an_unknown_one_is_refused(self) -> None:
        with pytest.raises(
            InputError, match="tta of evaluate must be one of 'mirror', 'mirror_shift' or nothing, not 'flip'"
        ):
            evaluate(Corner(), batches_of(torch.tensor([0])), device="cpu", tta="flip")  # type: ignore[arg-type]


class Watching(nn.Module):
    """Notes in what state it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.Dropout(0.5))
        self.norm = nn.BatchNorm1d(4)
        self.states: list[tuple[bool, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.states.append((self.training, self.norm.training, torch.is_grad_enabled()))
        return self.norm(self.first(x))


class TestLeavesNoTrace:
    @pytest.fixture
    def model(self) -> Watching:
        """A model in training whose norm is frozen, as in fine-tuning."""
        model = Watching().train()
        model.norm.eval()
        return model

    def assert_untouched(self, model: Watching, before: dict[str, Tensor]) -> None:
        assert model.training
        assert model.first.training
        assert model.first[2].training
        assert not model.norm.training
        assert model.states
        assert set(model.states) == {(False, False, False)}  # asked in eval mode, without gradients
        assert torch.is_grad_enabled()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())

    def test_each_module_is_in_its_mode_again(self, model: Watching) -> None:
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        evaluate(model, batches_of(torch.tensor([0, 1, 2, 3, 0])), device="cpu")
        self.assert_untouched(model, before)

    def test_also_when_a_batch_raises(self, model: Watching) -> None:
        def failing() -> Iterator[tuple[Tensor, Tensor]]:
            yield batches_of(torch.tensor([0]))[0]
            raise OSError("the disk is gone")

        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(OSError, match="the disk is gone"):
            evaluate(model, failing(), device="cpu")
        self.assert_untouched(model, before)

        bad = [*batches_of(torch.tensor([0])), (torch.rand(1, 3, 16, 16), torch.tensor([0]))]
        with pytest.raises(InputError, match="batch 2"):
            evaluate(model, bad, device="cpu")
        self.assert_untouched(model, before)

    def test_what_a_loader_caches_meanwhile_can_be_trained_with(self, synthetic3: ImageDataset) -> None:
        class Caching:
            def __init__(self) -> None:
                self.cache: list[tuple[Tensor, Tensor]] = []

            def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
                if not self.cache:
                    self.cache = list(BatchLoader(synthetic3, 100, device="cpu"))
                return iter(self.cache)

        loader, model = Caching(), models.create("convnet", num_classes=3)
        before = evaluate(model, loader, device="cpu").loss
        Trainer(model, device="cpu", lr=0.1, progress=False).fit(loader, epochs=2)
        assert evaluate(model, loader, device="cpu").loss < before

    @pytest.mark.gpu
    def test_the_model_comes_home(self) -> None:
        model = models.create("convnet", num_classes=3).train()
        batches = batches_of(torch.tensor([0, 1, 2, 0, 1]))
        assert evaluate(model, batches, device="cuda").loss == pytest.approx(
            evaluate(model, batches, device="cpu").loss, rel=1e-3
        )
        assert {p.device.type for p in model.parameters()} == {"cpu"}
        on_gpu = model.cuda()
        evaluate(on_gpu, batches_of(torch.tensor([0])), device="cpu")
        assert {p.device.type for p in on_gpu.parameters()} == {"cuda"}


class TestRefuses:
    @pytest.fixture
    def model(self) -> nn.Module:
        return models.create("convnet", num_classes=3)

    def test_no_batch_and_no_image(self, model: nn.Module) -> None:
        with pytest.raises(InputError, match="the loader gave no batch"):
            evaluate(model, [], device="cpu")
        with pytest.raises(InputError, match="batch 1: the batch is empty"):
            evaluate(model, [(torch.zeros(0, 3, 32, 32), torch.zeros(0, dtype=torch.int64))], device="cpu")

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda x, y: (x[0], y), r"batch 2: images must be float \[B, C, H, W\], not torch.float32 \[3, 32, 32\]"),
            (lambda x, y: ((x * 255).byte(), y), r"batch 2: images must be float .*, not torch.uint8 \[4, 3, 32, 32\]"),
            (lambda x, y: (x[:, :1], y), r"takes images of 3 channels, not \[4, 1, 32, 32\]"),
            (lambda x, y: (x[..., :28, :28], y), r"batch 2: the model cannot take images \[4, 3, 28, 28\].*are 32×32"),
            (lambda x, y: (x.repeat(1, 1, 2, 2), y), r"batch 2: the model cannot take images \[4, 3, 64, 64\]"),
            (lambda x, y: (x, y[:3]), r"batch 2: 4 images need int64 labels \[4\], not torch.int64 \[3\]"),
            (lambda x, y: (x, y.float()), r"4 images need int64 labels \[4\], not torch.float32 \[4\]"),
            (lambda x, y: (x, y.int()), "not torch.int32"),
            (lambda x, y: (x, torch.nn.functional.one_hot(y, 3)), r"not torch.int64 \[4, 3\]"),
            (lambda x, y: (x, y + 3), r"run from 0 to 5, but the model has 3 outputs .*num_classes=6"),
            (lambda x, y: (x, y - 1), "run from -1 to 2"),
            (lambda x, y: (x.log().sqrt(), y), "the model gives NaN or infinity for 4 of 8 images"),
        ],
    )
    def test_a_batch_that_does_not_fit_is_named(
        self, model: nn.Module, change: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], message: str
    ) -> None:
        good = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
        with pytest.raises(InputError, match=message):
            evaluate(model, [good, change(*good)], device="cpu")

    def test_soft_labels_are_taken_only_where_they_are_asked_for(self) -> None:
        images, weights = torch.rand(4, 3, 32, 32), torch.rand(4, 3)
        check_batch(Batch(images, weights, 4), 3, soft=True)
        check_batch(Batch(images, torch.tensor([0, 1, 2, 0]), 4), 3, soft=True)
        for labels, soft in ((weights, False), (weights[:3], True), (weights.long(), True)):
            with pytest.raises(InputError, match="4 images need int64 labels"):
                check_batch(Batch(images, labels, 4), 3, soft=soft)

    def test_a_device_that_is_not_here(self, model: nn.Module) -> None:
        with pytest.raises(InputError, match="device 'abacus' cannot be used here"):
            evaluate(model, batches_of(torch.tensor([0])), device="abacus")

    def test_what_is_wrong_inside_a_model_stays_what_it_is(self) -> None:
        class Broken(nn.Module):
            def __init__(self, error: Exception) -> None:
                super().__init__()
                self.error = error

            def forward(self, x: Tensor) -> Tensor:
                raise self.error

        with pytest.raises(RuntimeError, match="inside") as caught:
            evaluate(Broken(RuntimeError("inside")), batches_of(torch.tensor([0])), device="cpu")
        assert not isinstance(caught.value, CifarNetsError)
        with pytest.raises(torch.OutOfMemoryError):
            evaluate(Broken(torch.OutOfMemoryError()), [(torch.rand(1, 3, 64, 64), torch.tensor([0]))], device="cpu")

    def test_images_of_another_float_are_taken(self, model: nn.Module) -> None:
        images, labels = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
        expected = evaluate(model, [(images, labels)], device="cpu")
        assert evaluate(model, [(images.double(), labels)], device="cpu") == expected


class TestEvaluation:
    @pytest.fixture
    def result(self) -> Evaluation:
        logits = torch.tensor([[2.0, 0, 0], [2, 0, 0], [0, 0, 2], [0, 0, 2]])
        return Evaluation.from_logits(logits, torch.tensor([0, 2, 2, 2]), ("airplane", "bird", "ship"))

    def test_it_prints_as_a_table(self, result: Evaluation) -> None:
        first, blank, *rows = str(result).splitlines()
        assert first == "accuracy 0.7500 (95 % interval 0.3006–0.9544)   loss 0.7395   ECE 0.0370   images 4"
        assert blank == ""
        assert rows == [
            "airplane  1.0000  ██████████████████████████████  1 images",
            "ship      0.6667  ████████████████████            3 images",
        ]

    def test_it_is_plain_values_for_json(self, result: Evaluation) -> None:
        read = json.loads(json.dumps(result.to_dict()))
        assert read["n"] == 4
        assert read["accuracy"] == 0.75
        assert read["per_class"] == {"airplane": 1.0, "ship": pytest.approx(2 / 3)}
        assert read["confusion"] == [[1, 0, 0], [0, 0, 0], [1, 0, 2]]
        assert set(read) == {field.name for field in dataclasses.fields(Evaluation)} - {"logits", "labels"}
        assert Evaluation.from_dict(read) == result

    def test_of_an_earlier_version_s_file_there_is_less(self, result: Evaluation) -> None:
        old = {key: result.to_dict()[key] for key in ("n", "loss", "accuracy", "ece", "per_class", "confusion")}
        read = Evaluation.from_dict(old)
        assert (read.accuracy, read.reliability, read.mistakes, read.top5) == (0.75, (), (), None)

    @pytest.mark.parametrize("content", [{}, {"n": "many"}, {"confusion": 3}, {"mistakes": [1]}, {"per_class": []}])
    def test_what_is_no_evaluation_is_refused(self, result: Evaluation, content: dict[str, Any]) -> None:
        with pytest.raises(InputError, match="this is no evaluation"):
            Evaluation.from_dict({**result.to_dict(), **content} if content else {})

    def test_a_notebook_shows_the_figures_and_every_cell(self, result: Evaluation) -> None:
        shown = result._repr_html_()
        assert "accuracy <b>0.7500" in shown
        assert re.findall(r"<td[^>]*>([^<]*)</td>", shown) == [
            "1",
            "0",
            "0",
            "100.0%",
            "0",
            "0",
            "0",
            "–",
            "1",
            "0",
            "2",
            "66.7%",
        ]
        script = Evaluation.from_logits(torch.eye(2), torch.tensor([0, 1]), ("<script>", "b"))._repr_html_()
        assert "<script>" not in script
        assert "&lt;script&gt;" in script

    def test_it_cannot_be_changed(self, result: Evaluation) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            result.accuracy = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("answer", "what"),
    [
        (lambda x: x.new_zeros(len(x), 10, 1, 1), r"\[4, 10, 1, 1\]"),
        (lambda x: (x.new_zeros(len(x), 10), None), "tuple"),
    ],
)
def test_a_model_that_gives_no_logits(answer: Any, what: str) -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return answer(x)

    with pytest.raises(InputError, match=rf"a model must give logits \[B, K\], one tensor, not {what}"):
        evaluate(Odd(), [(torch.zeros(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64))], device="cpu")


def test_a_dataset_whose_classes_are_no_names(synthetic3: ImageDataset) -> None:
    loader = DataLoader(synthetic3.select(range(8)), batch_size=4)
    loader.dataset.classes = 3  # type: ignore[attr-defined]
    assert evaluate(models.create("convnet", num_classes=3), loader, device="cpu").per_class.keys() <= {*"012"}


def test_labels_that_mean_something_else_are_refused(synthetic3: ImageDataset) -> None:
    model = models.create("convnet", num_classes=3)
    models.annotate(model, classes=synthetic3.classes)
    turned = cifar_subset(synthetic3, synthetic3.classes[::-1])
    with pytest.raises(InputError, match=r"the loader's classes .* are not those that the model was trained on"):
        evaluate(model, BatchLoader(turned, 100, device="cpu"))
    assert evaluate(model, BatchLoader(synthetic3, 100, device="cpu")).n == 300


@pytest.mark.parametrize("tta", ["mirror", "mirror_shift"])
def test_test_time_augmentation_is_the_mean_over_the_views(tta: Any) -> None:
    model = models.create("convnet", num_classes=3).eval()
    images, labels = torch.rand(8, 3, 32, 32), torch.arange(8) % 3
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
    views = (
        [(0.5, images), (0.25, padded[..., :32, :32]), (0.25, padded[..., 2:, 2:])] if "shift" in tta else [(1, images)]
    )
    with torch.no_grad():
        expected = sum(weight * (model(view) + model(view.flip(-1))) / 2 for weight, view in views)
    found = evaluate(model, [(images, labels)], device="cpu", tta=tta)
    assert found.loss == pytest.approx(torch.nn.functional.cross_entropy(expected, labels).item(), abs=1e-6)
    assert found.loss != pytest.approx(evaluate(model, [(images, labels)], device="cpu").loss, abs=1e-6)


@pytest.mark.parametrize("wrong", ["unit", "other constants"])
def test_images_normalised_in_another_way_are_refused(synthetic3: ImageDataset, wrong: str) -> None:
    model = models.create("convnet", num_classes=3)
    models.annotate(model, mean=synthetic3.mean, std=synthetic3.std)
    options: dict[str, Any] = {"view": "unit"} if wrong == "unit" else {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    other = ImageDataset(synthetic3.images, synthetic3.labels, synthetic3.classes, **options)
    for loader in (BatchLoader(other, 100, device="cpu"), DataLoader(other, 100)):
        with pytest.raises(
            InputError, match=r"the loader's images are normalised with mean .* and the model was trained"
        ):
            evaluate(model, loader, device="cpu")
    assert evaluate(model, BatchLoader(synthetic3, 100, device="cpu"), device="cpu").n == 300


@pytest.mark.parametrize("labels", [[0, 1, -100, -100], [-100] * 4])
def test_labels_that_cross_entropy_ignores_are_refused(labels: list[int]) -> None:
    with pytest.raises(InputError, match=r"labels run from -100 to .*none is ignored"):
        evaluate(models.create("convnet"), [(torch.rand(4, 3, 32, 32), torch.tensor(labels))], device="cpu")


def test_classes_are_seen_through_torchs_datasets() -> None:
    model, data = cifarnets.load("convnet"), SyntheticCIFAR10(size=100)
    part = Subset(data, range(20))
    wrapped: list[Dataset[Any]] = [part, ConcatDataset([data, part])]
    for hidden in wrapped:
        with pytest.raises(InputError, match=r"the loader's classes \(disc, cross, .* are not those"):
            evaluate(model, DataLoader(hidden, 10))
    unit = SyntheticCIFAR10(size=100, view="unit")
    annotate(model, classes=data.classes)
    with pytest.raises(InputError, match="the loader's images are normalised with mean"):
        evaluate(model, DataLoader(ConcatDataset([unit, unit]), 10))


def test_labels_that_are_changed_on_the_way_have_unknown_names() -> None:
    class Relabelled(SyntheticCIFAR10):
        target_transform = staticmethod(lambda label: label)

    assert classes_of(Subset(Relabelled(size=20), range(3))) is None
    assert classes_of(Subset(SyntheticCIFAR10(size=20), range(3))) == SyntheticCIFAR10(size=20).classes


def test_a_default_device_of_the_user_has_no_say() -> None:
    model, loader = cifarnets.create("convnet"), BatchLoader(SyntheticCIFAR10(size=40), 20, device="cpu")
    right = evaluate(model, loader)
    with torch.device("meta"):
        assert evaluate(model, loader) == right


PLAIN = Evaluation.from_logits(torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]), torch.tensor([0, 1, 1])).to_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"n": 0},
        {"n": 10**400},
        {"accuracy": math.nan},
        {"accuracy": 2.0},
        {"loss": math.nan},
        {"top5": math.inf},
        {"per_class": {"0": -1.0}},
        {"confusion": [[1, 2], [3]]},
        {"confusion": [[3]]},
        {"confusion": [[4, -1], [0, 0]]},
        {"classes": ["0"]},
        {"reliability": [{"images": -5, "confidence": 0.5, "accuracy": 0.5}]},
        {"mistakes": [{"image": 0, "label": 0, "predicted": 7, "confidence": 0.5}]},
    ],
    ids=str,
)
def test_figures_that_no_images_give_are_no_evaluation(change: dict[str, Any]) -> None:
    assert Evaluation.from_dict(PLAIN).n == 3
    with pytest.raises(InputError, match="this is no evaluation"):
        Evaluation.from_dict(PLAIN | change)


def test_an_old_file_names_the_classes_with_images_only() -> None:
    old = Evaluation.from_logits(torch.eye(3)[:2], torch.tensor([0, 2]), ("a", "b", "c")).to_dict()
    del old["classes"]
    read = Evaluation.from_dict(old)
    assert len(read.classes) == 3
    assert "1 images" in str(read)


def test_two_classes_of_one_name_are_two_lines() -> None:
    text = str(Evaluation.from_logits(torch.eye(3), torch.tensor([0, 1, 1]), ("cat", "cat", "dog")))
    assert re.findall(r"cat +(\S+)", text) == ["1.0000", "0.5000"]


def test_a_notebook_shows_no_table_of_a_thousand_classes() -> None:
    page = Evaluation.from_logits(torch.eye(1000), torch.arange(1000))._repr_html_()
    assert len(page) < 1000
    assert "A table of 1,000 classes has no place here" in page
