"""What a model sees in pictures, and the features of its layers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn

from cifarnets import features, load, models, predict, prediction, save
from cifarnets.datasets import CIFAR10Normalized, ImageDataset, normalize
from cifarnets.errors import InputError, UnknownNameError

UNIT: dict[str, Any] = {"mean": (0, 0, 0), "std": (1, 1, 1), "device": "cpu"}
"""Constants that leave pictures as they are."""


class Spy(nn.Module):
    """Keeps what it was shown, and answers with fixed logits."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits or (0.0, 1.0))
        self.seen = torch.empty(0)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x.clone()
        return self.logits.expand(len(x), -1)


def drawn(height: int = 32, width: int = 32, channels: int = 3) -> np.ndarray[Any, Any]:
    """Noise over a slope: uint8 `[H, W, C]`, no two orientations of which are alike."""
    slope = np.linspace(0, 150, height)[:, None, None] + np.linspace(0, 50, width)[None, :, None]
    noise = np.random.default_rng(0).integers(0, 50, (height, width, channels))
    return (slope + noise).astype(np.uint8)


def as_unit(pixels: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 255


class TestAnswers:
    @pytest.fixture
    def model(self) -> nn.Module:
        model = models.create("convnet", num_classes=4)
        models.annotate(model, classes=("cat", "dog", "ship"), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
        return model

    def test_step_18_the_softmax_of_ten_six_four(self) -> None:
        """The article prints 0.84, 0.11, 0.04, which is the softmax of [5, 3, 2]."""
        answer = predict(Spy(10, 6, 4), drawn(), 3, classes=("a", "b", "c"), **UNIT)
        assert [name for name, _ in answer] == ["a", "b", "c"]
        assert [round(probability, 3) for _, probability in answer] == [0.980, 0.018, 0.002]
        halves = predict(Spy(5, 3, 2), drawn(), 3, **UNIT)
        assert [round(probability, 2) for _, probability in halves] == [0.84, 0.11, 0.04]

    def test_constants_are_applied_channel_by_channel(self) -> None:
        mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
        expected = (as_unit(drawn()) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        spy = Spy()
        predict(spy, drawn(), mean=mean, std=std, device="cpu")
        torch.testing.assert_close(spy.seen[0], expected)

    def test_the_likeliest_come_first_with_their_names(self) -> None:
        answer = predict(Spy(0, 3, 1, 2), drawn(), 3, classes=["a", "b"], **UNIT)
        assert [name for name, _ in answer] == ["b", "3", "2"]  # those without a name are numbers
        expected = torch.tensor([3.0, 2, 1, 0]).softmax(0)[:3].tolist()
        assert [probability for _, probability in answer] == pytest.approx(expected)
        assert predict(Spy(0, 3, 1, 2), drawn(), **UNIT) == [("1", pytest.approx(expected[0]))]

    def test_preprocessing_and_names_travel_with_the_weights(self, model: nn.Module, tmp_path: Path) -> None:
        answer = predict(model, drawn(), 4, device="cpu")
        assert {name for name, _ in answer} == {"cat", "dog", "ship", "3"}
        assert sum(probability for _, probability in answer) == pytest.approx(1)
        normalised = (as_unit(drawn()) - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / torch.tensor([0.2, 0.3, 0.4])[
            :, None, None
        ]
        expected = model(normalised[None]).softmax(1)[0].sort(descending=True).values.tolist()
        assert [probability for _, probability in answer] == pytest.approx(expected, abs=1e-6)
        assert predict(load(save(model, tmp_path / "model.safetensors")), drawn(), 4, device="cpu") == answer

    def test_keywords_win_over_what_the_model_knows(self, model: nn.Module) -> None:
        named = predict(model, drawn(), 4, classes=("w", "x", "y", "z"), device="cpu")
        assert {name for name, _ in named} == {"w", "x", "y", "z"}
        same = predict(model, drawn(), 4, device="cpu")
        assert [p for _, p in named] == [p for _, p in same]
        other = predict(model, drawn(), 4, mean=(0, 0, 0), device="cpu")
        assert [p for _, p in other] != [p for _, p in same]

    def test_several_pictures_give_a_list_in_their_order(self, model: nn.Module, tmp_path: Path) -> None:
        first, second = drawn(), 255 - drawn()
        PIL.Image.fromarray(second).save(tmp_path / "b.png")
        each = [predict(model, picture, 2, device="cpu") for picture in (first, second)]
        assert each[0] != each[1]
        stacked = np.stack([first, second])
        tensors = torch.from_numpy(stacked).permute(0, 3, 1, 2)
        mixed = [first, tmp_path / "b.png"]
        for several in (mixed, tuple(mixed), [PIL.Image.fromarray(first), tensors[1]], stacked, tensors, tensors / 255):
            answers: Any = predict(model, several, 2, device="cpu")
            assert [[name for name, _ in answer] for answer in answers] == [[name for name, _ in one] for one in each]
            found = [p for answer in answers for _, p in answer]
            assert found == pytest.approx([p for one in each for _, p in one], abs=1e-6)
        assert predict(model, [first], 2, device="cpu") == [each[0]]
        assert predict(model, stacked[:1], 2, device="cpu") == [each[0]]
        assert predict(model, [], device="cpu") == []

    def test_the_model_is_left_as_it_was(self) -> None:
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.9), nn.Linear(3072, 2)).train()
        model[1].eval()
        answers = {tuple(predict(model, drawn(), 2, **UNIT)) for _ in range(3)}
        assert len(answers) == 1  # without dropout
        assert model.training
        assert not model[1].training
        with pytest.raises(InputError):
            predict(model, drawn(), 5, **UNIT)
        assert model.training

    @pytest.mark.cifar10
    def test_images_of_the_real_test_set_are_seen_as_in_training(self, real_root: Path) -> None:
        test = CIFAR10Normalized(train=False)
        spy = Spy()
        predict(spy, test.images[:50], mean=test.mean, std=test.std, device="cpu")
        assert torch.equal(spy.seen, torch.stack([test[i][0] for i in range(50)]))

    def test_a_trained_model_names_what_it_was_trained_on(self, synthetic3: ImageDataset) -> None:
        model = models.create("convnet", num_classes=3)
        models.annotate(model, classes=synthetic3.classes, mean=synthetic3.mean, std=synthetic3.std)
        some = synthetic3.select(range(90))
        images, labels = torch.stack([image for image, _ in some]), some.labels
        for _ in range(12):
            loss = nn.functional.cross_entropy(model(images), labels)
            with torch.no_grad():
                for parameter, slope in zip(
                    model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
                ):
                    parameter -= 0.3 * slope
        answers: Any = predict(model, some.images, device="cpu")
        expected = [synthetic3.classes[i] for i in model(images).argmax(1).tolist()]
        assert [answer[0][0] for answer in answers] == expected
        assert len(set(expected)) == 3


class TestRefuses:
    @pytest.mark.parametrize("topk", [0, -1, 3])
    def test_topk_out_of_range(self, topk: int) -> None:
        with pytest.raises(InputError, match=f"topk must be between 1 and 2, the number of classes, not {topk}"):
            predict(Spy(0, 1), drawn(), topk, **UNIT)

    @pytest.mark.parametrize("given", [{}, {"mean": (0, 0, 0)}, {"std": (1, 1, 1)}], ids=str)
    @pytest.mark.parametrize("make", [Spy, lambda: models.create("convnet")], ids=["foreign", "ours"])
    def test_a_model_that_does_not_know_its_constants(self, make: Callable[[], nn.Module], given: Any) -> None:
        with pytest.raises(InputError, match=r"does not say how its images were normalised.*or pass mean= and std="):
            predict(make(), drawn(), **given)

    def test_constants_that_do_not_fit(self) -> None:
        with pytest.raises(InputError, match=r"1 constants \(0.5,\) do not fit images of 3 channels"):
            predict(models.create("convnet"), drawn(), mean=(0.5,), std=(0.5,), device="cpu")
        with pytest.raises(InputError, match="images of 3 channels need 3 means and stds"):
            predict(Spy(), drawn(), mean=(0, 0, 0), std=(1,), device="cpu")
        with pytest.raises(InputError, match="every std must be above 0"):
            predict(Spy(), drawn(), mean=(0, 0, 0), std=(1, 0, 1), device="cpu")

    def test_more_names_than_outputs(self) -> None:
        with pytest.raises(InputError, match=r"3 classes \(a, b, c\) do not fit a model of 2 outputs"):
            predict(Spy(0, 1), drawn(), classes=("a", "b", "c"), **UNIT)

    def test_answers_that_are_no_numbers(self) -> None:
        with pytest.raises(InputError, match="the model gives NaN or infinity for 1 of 1 images"):
            predict(Spy(0, float("nan")), drawn(), **UNIT)


def test_test_time_augmentation_is_that_of_evaluate() -> None:
    class Left(nn.Module):
        """Says how bright the left column is."""

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([x[:, 0, :, 0].mean(1), torch.zeros(len(x))], 1)

    picture = torch.zeros(3, 32, 32)
    picture[..., -1] = 1
    plain, mirrored = (dict(predict(Left(), picture, 2, tta=tta, **UNIT)) for tta in (None, "mirror"))  # type: ignore[arg-type]
    assert plain["0"] == 0.5
    assert mirrored["0"] == pytest.approx(float(torch.tensor([0.5, 0.0]).softmax(0)[0]))
    with pytest.raises(InputError, match="tta must be"):
        predict(Left(), picture, tta="flip", **UNIT)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("convnet", "conv2", (8, 16, 16)),
        ("convnet_functional", "conv2", (8, 16, 16)),
        ("fcnet", "3", (512,)),
        ("resnet20", "blocks.5", (32, 16, 16)),
        ("wide_resnet16_4", "blocks.1", (64, 32, 32)),
        ("vgg11_bn", None, (512,)),
        ("airbench94", "block2", (256, 7, 7)),
        ("convnet", None, (32,)),
        ("fcnet", None, (128,)),
        ("resnet20", None, (64,)),
        ("airbench94", None, (256,)),
    ],
)
def test_features_of_every_family(name: str, layer: str | None, shape: tuple[int, ...]) -> None:
    model, picture = models.create(name), torch.rand(3, 32, 32)
    constants: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    one = features(model, picture, layer, **constants)
    several = features(model, [picture, picture.flip(-1)], layer, **constants)
    assert one.shape == shape
    assert several.shape == (2, *shape)
    assert torch.allclose(several[0], one, atol=1e-5)
    assert not one.requires_grad
    assert model.training  # as it was
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_many_pictures_go_through_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pictures = load("convnet.cifar3"), torch.rand(7, 3, 32, 32)
    whole = predict(model, pictures, topk=3), features(model, pictures, "conv1")
    monkeypatch.setattr(prediction, "BATCH_SIZE", 3)
    seen: list[int] = []
    model.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    parts = predict(model, pictures, topk=3), features(model, pictures, "conv1")
    assert seen == [3, 3, 1, 3, 3, 1]
    assert torch.allclose(parts[1], whole[1], atol=1e-6)
    assert [[name for name, _ in one] for one in parts[0]] == [[name for name, _ in one] for one in whole[0]]


def test_features_are_what_the_layer_answers_in_eval_mode() -> None:
    model = load("convnet.cifar3")
    pictures = torch.rand(3, 3, 32, 32)
    inputs = normalize(pictures, model.meta.mean, model.meta.std)
    assert torch.equal(features(model, pictures, "conv1"), model.conv1(inputs))
    head = model.fc2(features(model, pictures))
    assert torch.allclose(head, model(inputs), atol=1e-6)
    assert features(model, []).shape[0] == 0


def test_features_before_a_layer_that_works_in_place() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True))
    picture = torch.rand(3, 32, 32)
    found = features(model, picture, "0", mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.allclose(found, model[0](picture), atol=1e-6)
    assert found.min() < 0


def test_features_of_an_unknown_layer_and_of_a_model_without_linear_layer() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown layer 'conv3'\. Did you mean 'conv\d'\? Available: act1"):
        features(load("convnet.cifar3"), torch.rand(3, 32, 32), "conv3")
    constants: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    with pytest.raises(
        InputError, match=r"Sequential has no get_classifier\(\) and no linear layer, so it has no head"
    ):
        features(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.rand(3, 32, 32), **constants)


def test_features_of_a_layer_that_gives_no_tensor() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Linear(2, 2)
            self.recurrent = nn.LSTM(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.recurrent(x[:, 0])[0]

    constants: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.25,) * 3}
    with pytest.raises(InputError, match="the layer 'recurrent' gives tuple, not a tensor"):
        features(Pair(), torch.rand(3, 32, 32), "recurrent", **constants)
    with pytest.raises(InputError, match="the layer 'unused' gives nothing, not a tensor"):
        features(Pair(), torch.rand(3, 32, 32), "unused", **constants)


@pytest.mark.gpu
def test_on_cuda_answers_are_those_of_the_cpu() -> None:
    model, pictures = load("convnet.cifar3"), torch.rand(5, 3, 32, 32)
    on_cpu, on_cuda = (predict(model, pictures, topk=3, device=device) for device in ("cpu", "cuda"))
    for one, other in zip(on_cpu, on_cuda, strict=True):
        assert dict(other) == pytest.approx(dict(one), abs=1e-2)
    a, b = (features(model, pictures, "conv2", device=device) for device in ("cpu", "cuda"))
    assert torch.allclose(a, b, atol=1e-2)
    assert next(model.parameters()).device.type == "cpu"
