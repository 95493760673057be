"""What `predict` and `features` take: a picture in every form, several of them, and what they refuse."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import nn

from cifarnets import create, features, load, predict
from cifarnets.datasets.pictures import find_pictures
from cifarnets.errors import DataNotFoundError, InputError, UnknownNameError
from cifarnets.models import annotate


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load("convnet.cifar3")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures, one in a subfolder, and files that are none."""
    rng = np.random.default_rng(0)
    (tmp_path / "b").mkdir()
    (tmp_path / ".cache").mkdir()
    for name in ("a.png", "b/one.jpg", "c.PNG"):
        PIL.Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(tmp_path / name)
    for name in ("notes.txt", ".hidden.png", ".cache/x.png"):
        (tmp_path / name).write_text("no picture")
    return tmp_path


class TestSeveral:
    def test_a_folder_is_its_pictures_in_order(self, model: nn.Module, folder: Path) -> None:
        paths = [folder / name for name in ("a.png", "b/one.jpg", "c.PNG")]
        assert find_pictures(folder) == paths
        each = [predict(model, path, 3) for path in paths]
        assert_close(predict(model, folder, 3), each)
        assert_close(predict(model, str(folder), 3), each)

    def test_every_form_of_a_file(self, model: nn.Module, folder: Path) -> None:
        path = folder / "a.png"
        expected = predict(model, path, 3)
        content = path.read_bytes()
        assert predict(model, content, 3) == expected
        assert predict(model, io.BytesIO(content), 3) == expected
        with path.open("rb") as file:
            assert predict(model, file, 3) == expected
        mixed: list[Any] = [path, str(path), content, io.BytesIO(content), PIL.Image.open(path)]
        assert_close(predict(model, mixed, 3), [expected] * 5)

    @pytest.mark.parametrize("kind", [iter, tuple, lambda paths: (path for path in paths)])
    def test_iterators(self, kind: Callable[[Any], Any], model: nn.Module, folder: Path) -> None:
        paths = find_pictures(folder)
        assert_close(predict(model, kind(paths), 3), predict(model, paths, 3))
        assert predict(model, kind([])) == []

    def test_an_error_says_which(self, model: nn.Module, folder: Path) -> None:
        fine = np.zeros((32, 32, 3), np.uint8)
        with pytest.raises(InputError, match="picture 6: the model takes 3 channels, and the picture has 2"):
            predict(model, [fine] * 5 + [np.zeros((32, 32, 2), np.uint8)])
        with pytest.raises(DataNotFoundError, match=r"picture 2: there is no file '.*gone.png'"):
            predict(model, [fine, folder / "gone.png"])

    def test_the_pictures_are_left_alone(self, model: nn.Module) -> None:
        for picture in (torch.rand(3, 32, 32), torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)):
            before = picture.clone()
            predict(model, picture)
            assert torch.equal(picture, before)

    def test_one_picture_gets_the_same_answer_in_every_layout(self, model: nn.Module) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        expected = predict(model, tensor.contiguous(), 3)
        for same in (pixels, tensor, PIL.Image.fromarray(pixels), tensor.to(torch.float32) / 255):
            assert predict(model, same, 3) == expected

    def test_the_default_dtype_has_no_say(self, model: nn.Module) -> None:
        picture = torch.randint(0, 256, (3, 32, 32), dtype=torch.uint8)
        expected = predict(model, picture, 3)
        torch.set_default_dtype(torch.float64)
        try:
            assert predict(model, picture, 3) == expected
            assert predict(model, [picture], 3) == [expected]
        finally:
            torch.set_default_dtype(torch.float32)


def assert_close(found: Any, expected: Any) -> None:
    """The same classes, and probabilities that differ by rounding only: batches of other sizes round otherwise."""
    assert [[name for name, _ in one] for one in found] == [[name for name, _ in one] for one in expected]
    assert [p for one in found for _, p in one] == pytest.approx([p for one in expected for _, p in one], abs=1e-5)


class TestRefuses:
    @pytest.mark.parametrize("function", [predict, features])
    def test_what_is_no_model(self, function: Any) -> None:
        with pytest.raises(InputError, match=r"must be a torch\.nn\.Module, not NoneType None\."):
            function(None, torch.zeros(3, 32, 32))

    @pytest.mark.parametrize("function", [predict, features])
    @pytest.mark.parametrize("kind", ["sparse", "csr", "nested", "quantized", "meta"])
    @pytest.mark.filterwarnings("ignore")  # torch calls some of these kinds a beta, or old
    def test_a_tensor_without_pixels(self, kind: str, function: Any, model: nn.Module) -> None:
        zeros = torch.zeros(3, 32, 32)
        picture = {
            "sparse": lambda: zeros.to_sparse(),
            "csr": lambda: zeros.to_sparse_csr(),
            "nested": lambda: torch.nested.nested_tensor([zeros[0]] * 3),
            "quantized": lambda: torch.quantize_per_tensor(zeros, 1.0, 0, torch.quint8),
            "meta": lambda: zeros.to("meta", torch.uint8),
        }[kind]()
        for images in (picture, [picture]):
            with pytest.raises(InputError, match="a picture must be a dense tensor with values, not "):
                function(model, images)

    @pytest.mark.parametrize("function", [predict, features])
    def test_a_web_address(self, function: Any, model: nn.Module) -> None:
        with pytest.raises(InputError, match=r"cannot read the picture 'https://a\.example/b\.png': download it"):
            function(model, "https://a.example/b.png")

    @pytest.mark.parametrize("topk", [None, 1.0, "1", True, float("nan")])
    def test_topk_that_is_no_whole_number(self, topk: Any, model: nn.Module) -> None:
        with pytest.raises(InputError, match="topk must be a whole number"):
            predict(model, torch.zeros(3, 32, 32), topk)

    @pytest.mark.parametrize("constants", [{"mean": 0.5}, {"std": 1}, {"mean": ()}, {"std": "abc"}, {"mean": "a"}])
    def test_constants_that_are_none(self, constants: dict[str, Any], model: nn.Module) -> None:
        with pytest.raises(InputError):
            predict(model, torch.zeros(3, 32, 32), **constants)


class TestClasses:
    @pytest.mark.parametrize("kind", [np.array, list, tuple, dict.fromkeys, iter])
    def test_in_any_form_that_has_an_order(self, kind: Callable[[Any], Any], model: nn.Module) -> None:
        named = predict(model, torch.zeros(3, 32, 32), 3, classes=kind(["x", "y", "z"]))
        assert {name for name, _ in named} == {"x", "y", "z"}
        assert all(type(name) is str for name, _ in named)

    @pytest.mark.parametrize("classes", ["xyz", {"x", "y", "z"}, 3])
    def test_not_without_an_order(self, classes: Any, model: nn.Module) -> None:
        with pytest.raises(InputError, match="classes must be a list of names in the order of the outputs"):
            predict(model, torch.zeros(3, 32, 32), classes=classes)

    def test_none_at_all(self, model: nn.Module) -> None:
        assert predict(model, torch.zeros(3, 32, 32), classes=[])[0][0] in {"0", "1", "2"}


class TestFeatures:
    def test_of_several_layers_in_one_pass(self, model: nn.Module) -> None:
        calls: list[int] = []
        handle = model.register_forward_hook(lambda *_: calls.append(1))
        pictures = torch.rand(4, 3, 32, 32)
        found = features(model, pictures, ["conv1", "conv2"])
        assert len(calls) == 1
        handle.remove()
        assert list(found) == ["conv1", "conv2"]
        for name, maps in found.items():
            assert torch.equal(maps, features(model, pictures, name))
        one = features(model, pictures[0], ("conv1",))
        assert torch.allclose(one["conv1"], found["conv1"][0], atol=1e-6)

    def test_of_several_layers_of_which_one_is_unknown(self, model: nn.Module) -> None:
        with pytest.raises(UnknownNameError, match="unknown layer 'conv9'"):
            features(model, torch.rand(3, 32, 32), ["conv1", "conv9"])
        with pytest.raises(UnknownNameError, match="unknown layer 3"):
            features(model, torch.rand(3, 32, 32), [3])  # type: ignore[list-item]

    def test_of_nothing(self, model: nn.Module) -> None:
        assert features(model, []).shape[0] == 0

    def test_of_a_folder_and_an_iterator(self, model: nn.Module, folder: Path) -> None:
        found = features(model, folder)
        assert found.shape == (3, 32)
        assert torch.equal(features(model, iter(find_pictures(folder))), found)

    def test_a_hook_left_over_by_an_error_is_none(self, model: nn.Module) -> None:
        with pytest.raises(InputError):
            features(model, torch.rand(1, 2, 32, 32), ["conv1", "conv2"])
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_generator_that_fails_leaves_the_model_as_it_was() -> None:
    model = create("convnet")
    annotate(model, mean=(0.5,) * 3, std=(0.25,) * 3)
    model.train()

    def pictures() -> Iterator[torch.Tensor]:
        yield torch.zeros(3, 32, 32)
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        predict(model, pictures())
    assert model.training


def test_numpys_whole_numbers_and_tensors_of_names(model: nn.Module) -> None:
    picture = torch.zeros(3, 32, 32)
    names = [name for name, _ in predict(model, picture, topk=np.int64(2), classes=torch.arange(3))]  # type: ignore[arg-type]
    assert len(names) == 2
    assert all(name.isdigit() for name in names)
