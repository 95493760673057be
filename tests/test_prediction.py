"""Every kind of picture reaches the model as the same pixels, and what is no picture says so."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cifarnets import features, load, models, predict, prediction, save
from cifarnets.datasets import CIFAR10Normalized, ImageDataset, normalize
from cifarnets.errors import DataNotFoundError, InputError, UnknownNameError

ORIENTATION = 0x0112
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


def seen(picture: Any, **options: Any) -> Tensor:
    """What the model is shown of one picture, `[C, 32, 32]`."""
    spy = Spy()
    predict(spy, picture, **{**UNIT, **options})
    assert len(spy.seen) == 1
    return spy.seen[0]


def drawn(height: int = 32, width: int = 32, channels: int = 3) -> np.ndarray[Any, Any]:
    """Noise over a slope: uint8 `[H, W, C]`, no two orientations of which are alike."""
    slope = np.linspace(0, 150, height)[:, None, None] + np.linspace(0, 50, width)[None, :, None]
    noise = np.random.default_rng(0).integers(0, 50, (height, width, channels))
    return (slope + noise).astype(np.uint8)


def as_unit(pixels: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 255


def encoded(picture: PIL.Image.Image, kind: str, **options: Any) -> PIL.Image.Image:
    """As it comes out of a file."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return PIL.Image.open(io.BytesIO(file.getvalue()))


class TestPictures:
    @pytest.mark.parametrize("size", [(32, 32), (48, 40), (7, 9)], ids=str)
    def test_every_kind_of_the_same_picture_is_seen_alike(self, size: tuple[int, int], tmp_path: Path) -> None:
        pixels = drawn(*size)
        picture = PIL.Image.fromarray(pixels)
        picture.save(tmp_path / "a.png")
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        expected = seen(pixels)
        assert expected.shape == (3, 32, 32)
        if size == (32, 32):
            assert torch.equal(expected, as_unit(pixels))
        kinds: dict[str, Any] = {
            "path": tmp_path / "a.png",
            "string": str(tmp_path / "a.png"),
            "PIL": picture,
            "RGBA": picture.convert("RGBA"),
            "read-only array": np.asarray(picture),
            "reversed strides": np.ascontiguousarray(pixels[::-1])[::-1],
            "Fortran order": np.asfortranarray(pixels),
            "tensor": tensor,
            "contiguous tensor": tensor.contiguous(),
            "float array": pixels.astype(np.float32) / np.float32(255),
            "float tensor": tensor.float() / 255,
            "tensor with a gradient": (tensor.float() / 255).requires_grad_(),
        }
        for name, kind in kinds.items():
            assert torch.equal(seen(kind), expected), name
        torch.testing.assert_close(seen(pixels / 255), expected)  # float64
        torch.testing.assert_close(seen((pixels / 255).astype(">f4")), expected)
        torch.testing.assert_close(seen((tensor / 255).half()), expected, atol=1e-3, rtol=0)

    def test_a_grey_picture_is_shown_on_every_channel(self, tmp_path: Path) -> None:
        pixels = drawn(channels=1)
        picture = PIL.Image.fromarray(pixels[..., 0])
        assert picture.mode == "L"
        picture.save(tmp_path / "grey.png")
        expected = as_unit(pixels).expand(3, -1, -1)
        tensor = torch.from_numpy(pixels[..., 0])[None]
        for kind in (picture, tmp_path / "grey.png", pixels, pixels[..., 0], tensor, tensor / 255):
            assert torch.equal(seen(kind), expected)

    def test_a_model_of_one_channel_is_shown_greys(self) -> None:
        one = {"mean": (0,), "std": (1,)}
        picture = PIL.Image.fromarray(drawn())
        expected = as_unit(np.array(picture.convert("L"))[..., None])
        for kind in (picture, picture.convert("L"), np.array(picture.convert("L"))):
            assert torch.equal(seen(kind, **one), expected)

    def test_palettes_are_looked_up_and_transparency_is_dropped(self) -> None:
        picture = PIL.Image.fromarray(drawn()).convert("P", palette=PIL.Image.Palette.ADAPTIVE)
        expected = as_unit(np.array(picture.convert("RGB")))
        assert torch.equal(seen(picture), expected)
        transparent = encoded(picture, "PNG", transparency=bytes(range(256)))
        assert transparent.mode == "P"
        assert torch.equal(seen(transparent), expected)

        half = PIL.Image.fromarray(drawn()).convert("RGBA")
        half.putalpha(128)
        assert torch.equal(seen(half), as_unit(drawn()))

    def test_sixteen_bits_are_scaled_and_not_clipped(self, tmp_path: Path) -> None:
        grey = drawn(channels=1)[..., 0]
        PIL.Image.fromarray(grey.astype(np.uint16) << 8).save(tmp_path / "deep.png")
        deep = PIL.Image.open(tmp_path / "deep.png")
        assert deep.mode == "I;16"
        for kind in (deep, tmp_path / "deep.png"):
            assert torch.equal(seen(kind), as_unit(grey[..., None]).expand(3, -1, -1))

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_a_camera_s_rotation_is_undone(self, orientation: int, kind: str, tmp_path: Path) -> None:
        turned = {
            1: lambda p: p,
            2: np.fliplr,
            3: lambda p: np.rot90(p, 2),
            4: np.flipud,
            5: lambda p: p.transpose(1, 0, 2),
            6: lambda p: np.rot90(p, -1),
            7: lambda p: np.rot90(p.transpose(1, 0, 2), 2),
            8: np.rot90,
        }[orientation]
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = orientation
        PIL.Image.fromarray(drawn(40, 48)).save(tmp_path / "photo", kind, exif=exif)
        expected = seen(np.ascontiguousarray(turned(drawn(40, 48))))
        assert torch.equal(seen(tmp_path / "photo"), expected)
        with PIL.Image.open(tmp_path / "photo") as opened:
            assert torch.equal(seen(opened), expected)

    @pytest.mark.parametrize("size", [(64, 64), (100, 37), (33, 500), (5, 6), (1, 1)], ids=str)
    def test_other_sizes_are_resized_as_pil_does_with_antialiasing(self, size: tuple[int, int]) -> None:
        pixels = drawn(*size)
        resized = PIL.Image.fromarray(pixels).resize((32, 32), PIL.Image.Resampling.BILINEAR)
        # PIL rounds to whole numbers, once for the height and once for the width.
        torch.testing.assert_close(seen(pixels), as_unit(np.array(resized)), atol=1.5 / 255, rtol=0)

    def test_a_fine_pattern_becomes_grey_instead_of_stripes(self) -> None:
        board = np.indices((256, 256)).sum(0) % 2 * 255
        assert (seen(board.astype(np.uint8)) - 0.5).abs()[:, 1:-1, 1:-1].max() < 0.01

    def test_what_resizing_rounds_above_one_is_taken(self) -> None:
        white = torch.nn.functional.interpolate(torch.ones(1, 3, 40, 43), (32, 32), mode="bilinear", antialias=True)[0]
        white[0, 0, 0] = 1 + 2**-20
        assert seen(white).max() == pytest.approx(1)

    @settings(derandomize=True, deadline=None, max_examples=40)
    @given(
        height=st.integers(1, 80),
        width=st.integers(1, 80),
        value=st.lists(st.integers(0, 255), min_size=3, max_size=3),
    )
    def test_one_colour_stays_that_colour_at_any_size(self, height: int, width: int, value: list[int]) -> None:
        pixels = np.broadcast_to(np.array(value, np.uint8), (height, width, 3))
        expected = (torch.tensor(value) / 255)[:, None, None].expand(3, 32, 32)
        torch.testing.assert_close(seen(pixels), expected)

    def test_constants_are_applied_channel_by_channel(self) -> None:
        mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 2.0)
        expected = (as_unit(drawn()) - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
        torch.testing.assert_close(seen(drawn(), mean=mean, std=std), expected)


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
    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataNotFoundError, match=r"there is no file '.*cat.png'"):
            predict(Spy(), tmp_path / "cat.png", **UNIT)
        with pytest.raises(FileNotFoundError):
            predict(Spy(), "cat.png", **UNIT)

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"'.*file.png' is not a picture that can be read \(0 bytes\)"),
            (b"This is text.\n" * 200, r"not a picture that can be read \(2,800 bytes\)"),
            (b"\x89PNG\r\n\x1a\n", "not a picture that can be read"),
        ],
        ids=["empty", "text", "signature"],
    )
    def test_a_file_that_is_no_picture(self, content: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / "file.png").write_bytes(content)
        with pytest.raises(InputError, match=message):
            predict(Spy(), tmp_path / "file.png", **UNIT)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
    def test_a_picture_cut_short(self, kind: str, tmp_path: Path) -> None:
        PIL.Image.fromarray(drawn(64, 64)).save(tmp_path / "whole", kind)
        content = (tmp_path / "whole").read_bytes()
        assert seen(tmp_path / "whole").shape == (3, 32, 32)
        (tmp_path / "cut").write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=r"cut'"):
            predict(Spy(), tmp_path / "cut", **UNIT)

    def test_a_decoder_that_fails_in_a_way_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stumble(_: object) -> None:
            raise SyntaxError("frame 0")  # as PIL's AVIF decoder does

        PIL.Image.fromarray(drawn()).save(tmp_path / "a.png")
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", stumble)
        with pytest.raises(InputError, match=r"cannot read the picture '.*a.png': frame 0"):
            predict(Spy(), tmp_path / "a.png", **UNIT)
        with (
            PIL.Image.open(tmp_path / "a.png") as opened,
            pytest.raises(InputError, match="cannot use the picture: frame 0"),
        ):
            predict(Spy(), opened, **UNIT)

    @settings(derandomize=True, deadline=None, max_examples=60)
    @given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP"]))
    def test_a_damaged_picture_raises_nothing_else(
        self, data: st.DataObject, kind: str, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        path = tmp_path_factory.getbasetemp() / "damaged"
        PIL.Image.fromarray(drawn(20, 20)).save(path, kind)
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            # Beyond the fields of the size, which could ask for a great deal of memory.
            content[data.draw(st.integers(26, len(content) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(content)
        try:
            assert seen(path).shape == (3, 32, 32)
        except InputError as error:
            assert "damaged'" in str(error)  # noqa: PT017 (either outcome is right)

    def test_a_folder_and_a_file_without_permission(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot read the picture .*: .*directory"):
            predict(Spy(), tmp_path, **UNIT)
        if os.name == "posix" and os.geteuid():
            (tmp_path / "locked.png").touch(mode=0)
            with pytest.raises(InputError, match=r"cannot read the picture .*Permission denied"):
                predict(Spy(), tmp_path / "locked.png", **UNIT)

    @pytest.mark.parametrize(
        ("picture", "message"),
        [
            (np.zeros(3072, np.uint8), r"must be \[H, W\] or \[H, W, C\] as an array.*, not \[3072\]"),
            (np.zeros((2, 2, 2, 2, 3), np.uint8), r"not \[2, 2, 2, 2, 3\]"),
            (np.zeros((0, 32, 3), np.uint8), r"not \[0, 32, 3\]"),
            (torch.zeros(32, 32), r"\[C, H, W\] as a tensor, not \[32, 32\]"),
            (torch.zeros(3, 32, 0), r"not \[3, 32, 0\]"),
            (PIL.Image.new("RGB", (0, 5)), "a picture must be"),
            (np.zeros((32, 32, 4), np.uint8), "the model takes 3 channels, and the picture has 4"),
            (torch.zeros(32, 32, 3), "the model takes 3 channels, and the picture has 32"),
            (np.zeros((32, 32, 3), np.int64), r"must be uint8, or float in 0..1, not int64"),
            (np.zeros((32, 32, 3), bool), "not bool"),
            (np.array([["cat"]]), "not <U3"),
            (torch.zeros(3, 32, 32, dtype=torch.int32), "must be uint8, or float in 0..1, not torch.int32"),
            (np.full((32, 32, 3), 255.0), r"must be in 0..1 \(this one: 255 … 255\); pass uint8 for 0..255"),
            (torch.full((3, 32, 32), -0.5), r"\(this one: -0.5 … -0.5\)"),
            (torch.full((3, 32, 32), float("nan")), r"must be in 0..1 \(this one: nan … nan\)"),
            (PIL.Image.new("F", (32, 32)), "mode 'F' does not say what is white"),
            (PIL.Image.new("I", (32, 32)), "mode 'I' does not say what is white"),
            (PIL.Image.new("La", (32, 32)), "cannot use the picture"),
            (None, "must be a path, a PIL image, an array or a tensor .*not NoneType"),
            (b"cat.png", "not bytes"),
            ((path for path in ["cat.png"]), r"\(several go in a list\), not generator"),
        ],
        ids=lambda value: None if isinstance(value, str) else type(value).__name__,
    )
    def test_what_is_no_picture(self, picture: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            predict(Spy(), picture, **UNIT)

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
        with pytest.raises(InputError, match="the model answers NaN or infinity for 1 of 1 images"):
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
    monkeypatch.setattr(prediction, "BATCH", 3)
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
    with pytest.raises(InputError, match="Sequential has no linear layer: name one of 0"):
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
