"""A teacher's answers as labels."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from cifarnets import Trainer, evaluate, models, save
from cifarnets.datasets import Augment, BatchLoader, ImageDataset
from cifarnets.distillation import soft_labels
from cifarnets.errors import InputError, UnknownNameError
from cifarnets.inference import collect_logits
from cifarnets.recipes import Recipe, load_recipe, run_recipe
from cifarnets.recipes.recipe import command_of
from cifarnets.recipes.run import read_run

CPU = torch.device("cpu")


@pytest.fixture
def teacher(synthetic3: ImageDataset) -> models.ConvNet:
    model = models.ConvNet(num_classes=3)
    Trainer(model, optimizer="adamw", lr=3e-3, progress=False).fit(BatchLoader(synthetic3, 32, True, seed=0), epochs=5)
    return model.eval()


def test_labels_are_mixed_with_the_softened_answers(teacher: models.ConvNet, synthetic3: ImageDataset) -> None:
    logits, labels = collect_logits(teacher, BatchLoader(synthetic3, 1000), CPU, "mirror")
    expected = 0.7 * F.one_hot(labels, 3) + 0.3 * (logits / 4).softmax(1)
    found = soft_labels(synthetic3, teacher, 0.3, 4.0)
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found.sum(1), torch.ones(len(found)))
    assert torch.equal(soft_labels(synthetic3, teacher, share=0), F.one_hot(labels, 3).float())
    plain, _ = collect_logits(teacher, BatchLoader(synthetic3, 1000), CPU)
    assert torch.allclose(soft_labels(synthetic3, teacher, 1, 1, tta=None), plain.softmax(1), atol=1e-5)


def test_a_teacher_may_know_more_classes(synthetic3: ImageDataset) -> None:
    """The probabilities are those of the teacher among the classes of the images, found by their names."""
    teacher = models.ConvNet(num_classes=5).eval()
    names = ("other", synthetic3.classes[2], synthetic3.classes[0], "more", synthetic3.classes[1])
    models.annotate(teacher, classes=names)
    logits, _ = collect_logits(teacher, BatchLoader(synthetic3, 1000), CPU)
    found = soft_labels(synthetic3, teacher, 1, 1, tta=None)
    assert torch.allclose(found, logits[:, [2, 4, 1]].softmax(1), atol=1e-5)


def test_the_loader_serves_them_in_the_order_of_the_images(teacher: models.ConvNet, synthetic3: ImageDataset) -> None:
    soft = soft_labels(synthetic3, teacher)
    loader = BatchLoader(synthetic3, 7, True, seed=3, labels=soft)
    order = loader.order(0)
    assert torch.equal(torch.cat([labels for _, labels in loader]), soft[order])
    reversed_ = BatchLoader(synthetic3, 7, labels=2 - synthetic3.labels)
    assert torch.equal(torch.cat([labels for _, labels in reversed_]), 2 - synthetic3.labels)


def test_mixup_mixes_them_like_labels(synthetic3: ImageDataset) -> None:
    hard = F.one_hot(synthetic3.labels, 3).float()
    options: dict[str, Any] = {"shuffle": True, "seed": 1, "augment": Augment(mixup=0.5)}
    a = torch.cat([labels for _, labels in BatchLoader(synthetic3, 32, **options)])
    b = torch.cat([labels for _, labels in BatchLoader(synthetic3, 32, labels=hard, **options)])
    assert torch.equal(a, b)


@pytest.mark.parametrize(
    "labels", [torch.zeros(5, dtype=torch.long), torch.zeros(300), torch.zeros(300, 2), torch.zeros(300, 3).double()]
)
def test_labels_that_do_not_fit_the_images_are_refused(labels: torch.Tensor, synthetic3: ImageDataset) -> None:
    with pytest.raises(InputError, match=r"labels must be int64 \[300\] or float32 \[300, 3\], not torch\."):
        BatchLoader(synthetic3, labels=labels)


def test_a_student_learns_from_a_teacher_alone(teacher: models.ConvNet, synthetic3: ImageDataset) -> None:
    """What it learns is the teacher's answer, whatever the labels say."""
    wrong = 2 - synthetic3.labels
    other = BatchLoader(synthetic3, 32, True, seed=0, labels=soft_labels(synthetic3, teacher, share=1))
    student = models.create("convnet", num_classes=3)
    Trainer(student, optimizer="adamw", lr=3e-3, progress=False).fit(other, epochs=5)
    theirs = evaluate(teacher, BatchLoader(synthetic3)).accuracy
    assert theirs > 0.8
    assert evaluate(student, BatchLoader(synthetic3)).accuracy > 0.8
    assert evaluate(student, BatchLoader(synthetic3, labels=wrong)).accuracy < 0.5


def test_the_teacher_sees_images_as_it_was_trained_on_them(teacher: models.ConvNet, synthetic3: ImageDataset) -> None:
    expected = soft_labels(synthetic3, teacher)
    for options in ({"view": "unit"}, {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.5, 0.5)}):
        other = ImageDataset(synthetic3.images, synthetic3.labels, synthetic3.classes, **options)
        assert torch.equal(soft_labels(other, teacher), expected)


def test_a_teacher_that_does_not_say_sees_what_the_dataset_serves(synthetic3: ImageDataset) -> None:
    seen = []

    class Teacher(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return torch.zeros(len(images), 3)

    unit = ImageDataset(synthetic3.images, synthetic3.labels, synthetic3.classes, view="unit")
    soft_labels(unit, Teacher(), tta=None)
    assert torch.equal(torch.cat(seen), synthetic3.images / 255)


def test_a_teacher_that_gives_nan_and_what_is_no_teacher(teacher: Any, synthetic3: ImageDataset) -> None:
    with pytest.raises(InputError, match=r"teacher of soft_labels must be .*, not 5"):
        soft_labels(synthetic3, 5)  # type: ignore[arg-type]
    torch.nn.init.constant_(teacher.fc2.bias, float("nan"))
    with pytest.raises(InputError, match="gives NaN or infinity"):
        soft_labels(synthetic3, teacher)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.full((300,), 3), "labels must be 0 … 2"),
        (torch.full((300,), -1), "labels must be 0 … 2"),
        (torch.full((300, 3), float("nan")), "finite and not negative"),
        (torch.full((300, 3), -0.1), "finite and not negative"),
    ],
)
def test_labels_that_mean_no_class_are_refused(labels: torch.Tensor, message: str, synthetic3: ImageDataset) -> None:
    with pytest.raises(InputError, match=message):
        BatchLoader(synthetic3, labels=labels)


@pytest.mark.parametrize(
    "numbers", [(1.5, 1.0), (-0.1, 1.0), (0.5, 0.0), (0.5, -1.0), (float("nan"), 1.0), (None, 1.0)]
)
def test_numbers_out_of_range(numbers: tuple[float, float], teacher: models.ConvNet, synthetic3: ImageDataset) -> None:
    with pytest.raises(
        InputError, match=r"share must be within 0\.\.1 and temperature above 0|share of soft_labels must be a number"
    ):
        soft_labels(synthetic3, teacher, *numbers)


def test_a_teacher_of_other_classes_is_refused(synthetic3: ImageDataset) -> None:
    with pytest.raises(InputError, match="are not those that the model was trained on"):
        soft_labels(synthetic3, "convnet.cifar3")
    with pytest.raises(InputError, match="the teacher has 10 outputs, and the images have 3 classes"):
        soft_labels(synthetic3, models.create("convnet"))
    with pytest.raises(UnknownNameError, match=r"unknown weights 'convnet\.x'"):
        soft_labels(synthetic3, "convnet.x")


def test_several_teachers_count_alike(teacher: models.ConvNet, synthetic3: ImageDataset, tmp_path: Path) -> None:
    """Each sees the images as it was trained on them, and the mean of their probabilities counts."""
    other = models.ConvNet(num_classes=3)
    models.annotate(other, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    one, two = (soft_labels(synthetic3, model, 1.0) for model in (teacher, other))
    found = soft_labels(synthetic3, [teacher, str(save(other, tmp_path / "other.safetensors"))], 1.0)
    assert torch.allclose(found, (one + two) / 2, atol=1e-6)
    assert torch.equal(soft_labels(synthetic3, [teacher], 1.0), one)
    ensemble = models.Ensemble([teacher, other])
    assert torch.allclose(
        soft_labels(synthetic3, ensemble, 1.0, 1.0, tta=None),
        soft_labels(synthetic3, (teacher, other), 1.0, 1.0, tta=None),
        atol=1e-5,
    )
    with pytest.raises(InputError, match="the list of teachers is empty"):
        soft_labels(synthetic3, [])
    with pytest.raises(InputError, match=r"teacher of soft_labels must be .*, not \[5\]"):
        soft_labels(synthetic3, [5])  # type: ignore[list-item]


def test_several_teachers_are_part_of_a_recipe(tmp_path: Path) -> None:
    paths = [str(save(models.create("fcnet", widths=(n,)), tmp_path / f"{n}.safetensors")) for n in (3, 5)]
    recipe = Recipe("fcnet", config={"widths": (4,)}, epochs=1, synthetic=True, distill={"teacher": paths, "share": 1})
    run = run_recipe(recipe, tmp_path / "run", progress=False)
    assert run.model.meta.training["distill"] == {"teacher": paths, "share": 1}
    assert read_run(tmp_path / "run", recipe)[0].distill == recipe.distill
    words = command_of(recipe)
    assert words[words.index("--distill") :][:4] == [
        "--distill",
        f"teacher={json.dumps(paths)}",
        "--distill",
        "share=1",
    ]
    toml = tmp_path / "mine.toml"
    toml.write_text(f'model = "fcnet"\ndistill = {{teacher = {json.dumps(paths)}, share = 1}}\n')
    assert load_recipe(toml).distill == {"teacher": paths, "share": 1}


def test_it_is_part_of_a_recipe(tmp_path: Path) -> None:
    data = Recipe("convnet", synthetic=True).dataset(True)
    model = models.create("fcnet", widths=(8,))
    Trainer(model, lr=0.1, progress=False).fit(BatchLoader(data, 64, True, seed=0), epochs=1)
    path = str(save(model, tmp_path / "teacher.safetensors"))
    recipe = Recipe("fcnet", config={"widths": (4,)}, epochs=1, synthetic=True, distill={"teacher": path, "share": 0.9})
    soft, hard = (
        run_recipe(r, tmp_path / str(i), progress=False) for i, r in enumerate([recipe, replace(recipe, distill={})])
    )
    assert soft.history[0]["loss"] != hard.history[0]["loss"]
    assert soft.model.meta.training["distill"] == {"teacher": path, "share": 0.9}
    with pytest.raises(InputError, match=r"distill of a recipe does not take warmth, but share, teacher"):
        replace(recipe, distill={"teacher": path, "warmth": 3})
    nobodies: list[dict[str, Any]] = [{"share": 0.5}, *({"teacher": teacher} for teacher in (5, [], ["a", 5], ""))]
    for nobody in nobodies:
        with pytest.raises(InputError, match="distill of a recipe must name a teacher"):
            replace(recipe, distill=nobody)
