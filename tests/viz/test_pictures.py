"""Figures: the right pixels in the right places."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
import pytest
import torch
from torch import Tensor, nn

from cifarnets import load, models, predict
from cifarnets.datasets import CIFAR10Normalized, ImageDataset
from cifarnets.errors import InputError, MissingExtraError, OutputError
from cifarnets.viz import show, show_kernels, show_maps, show_normalized, show_predictions

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def drawn(figure: "Figure") -> list[Tensor]:
    """The pixels of each picture, as they were handed to matplotlib."""
    return [torch.from_numpy(np.array(axes.images[0].get_array())) for axes in figure.axes if axes.images]


def limits(figure: "Figure") -> list[tuple[float, float]]:
    """What each picture has as black and as white."""
    return [axes.images[0].get_clim() for axes in figure.axes if axes.images]


def titles(figure: "Figure") -> list[str]:
    return [axes.get_title() for axes in figure.axes if axes.images]


@pytest.fixture
def image() -> Tensor:
    return torch.randint(256, (3, 32, 32), dtype=torch.uint8)


class TestShow:
    def test_every_kind_of_picture_is_drawn_as_it_is(self, image: Tensor) -> None:
        upright = image.permute(1, 2, 0)
        picture = PIL.Image.fromarray(upright.numpy())
        for kind in (image, picture):
            assert torch.equal(drawn(show(kind))[0], upright)
        for unit in (image / 255, (image / 255).requires_grad_(), (image / 255).double()):
            torch.testing.assert_close(drawn(show(unit))[0], upright / 255)
        for half in (torch.bfloat16, torch.float16):
            torch.testing.assert_close(drawn(show((image / 255).to(half)))[0], upright / 255, atol=4e-3, rtol=0)

    def test_arrays_are_shown_too(self, image: Tensor) -> None:
        upright = image.permute(1, 2, 0)
        array = upright.numpy()
        assert torch.equal(drawn(show(array))[0], upright)
        torch.testing.assert_close(drawn(show(array / 255))[0], upright / 255)
        for grey in (array[..., 0], array[..., :1]):
            assert torch.equal(drawn(show(grey))[0], upright[..., 0])
        assert torch.equal(drawn(show(np.stack([array, array[::-1]])))[1], upright.flip(0))
        for wrong in (np.zeros((32, 32, 2)), np.zeros(5), np.zeros((4, 4), complex), np.array([["a"]])):
            with pytest.raises(InputError, match=r"an array is shown as \[H, W\], \[H, W, 1\] or \[H, W, 3\]"):
                show(wrong)

    def test_weights_are_no_images(self) -> None:
        with pytest.raises(InputError, match=r"the weights of a layer are no images: use cifarnets.viz.show_kernels"):
            show(nn.Conv2d(3, 4, 5).weight)

    @pytest.mark.parametrize(
        ("count", "rows", "columns"), [(16, 4, 4), (4, 2, 2), (12, 3, 4), (20, 4, 5), (32, 4, 8), (64, 8, 8)]
    )
    def test_rows_are_full_where_they_can_be(self, count: int, rows: int, columns: int) -> None:
        figure = show(torch.zeros(count, 3, 2, 2))
        places = [axes.get_position().p0.round(3).tolist() for axes in figure.axes]
        assert len({x for x, _ in places}) == columns
        assert len({y for _, y in places}) == rows
        assert len(figure.axes) == count

    def test_values_outside_are_clipped(self) -> None:
        shown = drawn(show(torch.tensor([-1.0, 0.25, 2.0]).view(3, 1, 1)))[0]
        assert shown.tolist() == [[[0, 0.25, 1]]]

    def test_a_grey_picture_is_not_stretched(self) -> None:
        grey = torch.randint(100, 120, (1, 8, 9), dtype=torch.uint8)
        for kind, white in ((grey, 255), (PIL.Image.fromarray(grey[0].numpy()), 255), (grey / 255, 1)):
            figure = show(kind)
            torch.testing.assert_close(drawn(figure)[0], grey[0] if white == 255 else grey[0] / 255)
            assert limits(figure) == [(0, white)]
            assert figure.axes[0].images[0].get_cmap().name == "gray"

    def test_a_palette_is_looked_up(self, image: Tensor) -> None:
        picture = PIL.Image.fromarray(image.permute(1, 2, 0).numpy()).convert("P")
        assert np.array_equal(drawn(show(picture))[0], np.array(picture.convert("RGB")))

    def test_normalised_images_are_shown_as_they_were(self, synthetic3: ImageDataset) -> None:
        figure = show(synthetic3[0][0], mean=synthetic3.mean, std=synthetic3.std)
        torch.testing.assert_close(drawn(figure)[0], synthetic3.images[0].permute(1, 2, 0) / 255)
        raw = show(synthetic3.images[0], mean=synthetic3.mean, std=synthetic3.std)  # never was normalised
        assert torch.equal(drawn(raw)[0], synthetic3.images[0].permute(1, 2, 0))

    @pytest.mark.cifar10
    def test_steps_2_4_and_7_image_79_in_three_views(self, real_root: Path) -> None:
        dataset = CIFAR10Normalized(train=True)
        upright = dataset.images[79].permute(1, 2, 0)
        pil = dataset.images[79].permute(1, 2, 0).numpy()
        figure = show([PIL.Image.fromarray(pil), dataset.images[79] / 255], ["automobile", "as a tensor"])
        assert torch.equal(drawn(figure)[0].byte(), upright)
        torch.testing.assert_close(drawn(figure)[1], upright / 255)
        normalised = show(dataset[79][0], "automobile", mean=dataset.mean, std=dataset.std)
        torch.testing.assert_close(drawn(normalised)[0], upright / 255)
        assert titles(normalised) == ["automobile"]

    @pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 20, 40])
    def test_several_stand_side_by_side_in_order(self, count: int) -> None:
        images = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
        names = [f"number {i}" for i in range(count)]
        for several in (images, list(images), tuple(images)):
            figure = show(several, names)
            assert [int(picture[0, 0, 0]) for picture in drawn(figure)] == list(range(count))
            assert titles(figure) == names
            assert not any(axes.axison for axes in figure.axes)  # nor the places that stay empty
            assert count <= len(figure.axes) <= count + 7
        assert titles(show(images, "first")) == ["first", *[""] * (count - 1)]

    def test_what_is_no_image_is_refused(self) -> None:
        for shape in ((32, 32), (2, 32, 32), (32, 32, 3)):
            with pytest.raises(InputError, match=r"an image is a tensor \[3, H, W\] or \[1, H, W\], not"):
                show(torch.zeros(shape))
        for nothing in ([], torch.zeros(0, 3, 32, 32)):
            with pytest.raises(InputError, match="there is no image to show"):
                show(nothing)
        others: list[Any] = [(torch.zeros(3, 8, 8), 3), "plane.png", 5]  # the first is an item of a dataset
        for other in others:
            with pytest.raises(InputError, match=r"a picture is a PIL image, a tensor or an array, not (int|str)"):
                show(other)

    def test_constants_belong_together_and_fit_the_channels(self, image: Tensor) -> None:
        for half in ({"mean": (0, 0, 0)}, {"std": (1, 1, 1)}):
            with pytest.raises(InputError, match="mean= and std= belong together"):
                show(image / 255, **half)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="images of 3 channels need 3 means"):
            show(image / 255, mean=(0.5,), std=(0.5,))


class TestShowMaps:
    def test_step_14_each_channel_is_a_picture_of_its_own(self, image: Tensor) -> None:
        model = models.create("convnet")
        maps = model.conv1(image[None] / 255)
        figure = show_maps(maps)
        assert titles(figure) == [str(i) for i in range(16)]
        for picture, found in zip(maps[0].detach(), drawn(figure), strict=True):
            assert torch.equal(found, picture)
        # Each is stretched over its own range, which may be negative.
        assert limits(figure) == [(m.min().item(), m.max().item()) for m in maps[0].detach()]
        assert len(drawn(show_maps(maps[0]))) == 16

    def test_steps_9_and_11_an_edge_is_seen(self) -> None:
        conv = nn.Conv2d(3, 1, 3, bias=False)
        conv.weight.data[:] = torch.tensor([-1.0, 0.0, 1.0])
        half = torch.zeros(1, 3, 8, 8)
        half[..., 4:] = 1
        shown = drawn(show_maps(conv(half)))[0]
        assert shown.tolist() == [[0, 0, 9, 9, 0, 0]] * 6

    def test_half_precision_is_shown_too(self) -> None:
        maps = torch.randn(2, 4, 4)
        assert torch.equal(drawn(show_maps(maps.bfloat16()))[1], maps.bfloat16()[1].float())

    @pytest.mark.parametrize("shape", [(4,), (4, 4), (2, 3, 4, 4), (0, 4, 4), (1, 2, 3, 4, 4)])
    def test_what_is_not_of_one_image_is_refused(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=r"feature maps of one image are \[C, H, W\] or \[1, C, H, W\], not"):
            show_maps(torch.zeros(shape))


class TestShowKernels:
    def test_kernels_of_colours_are_coloured(self) -> None:
        weight = models.create("convnet").conv1.weight
        figure = show_kernels(weight)
        assert len(drawn(figure)) == 16
        for kernel, found in zip(weight.detach(), drawn(figure), strict=True):
            low, high = kernel.min(), kernel.max()
            torch.testing.assert_close(found, ((kernel - low) / (high - low)).permute(1, 2, 0))

    def test_others_are_a_table_of_outputs_and_inputs(self) -> None:
        weight = torch.zeros(2, 4, 3, 3)
        weight[1, 2], weight[0, 0] = 2.0, -1.0
        figure = show_kernels(weight)
        places = [axes.get_position().p0.round(3).tolist() for axes in figure.axes]
        assert len({y for _, y in places[:4]}) == len({y for _, y in places[4:]}) == 1
        assert [x for x, _ in places[:4]] == [x for x, _ in places[4:]] == sorted({x for x, _ in places})
        assert titles(figure)[6] == "1, 2"
        assert [float(picture[0, 0]) for picture in drawn(figure)] == [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0, 0.5]

    def test_weights_of_zero(self) -> None:
        assert drawn(show_kernels(torch.zeros(1, 3, 2, 2)))[0].max() == 0

    @pytest.mark.parametrize("shape", [(4,), (16, 32), (4, 3, 3), (0, 3, 5, 5)])
    def test_what_is_no_convolution(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(InputError, match=r"a convolution are \[outputs, inputs, height, width\], not"):
            show_kernels(torch.zeros(shape))
        with pytest.raises(InputError, match="a tensor is needed here, not Conv2d"):
            show_kernels(nn.Conv2d(3, 4, 5))  # type: ignore[arg-type]

    def test_too_many(self) -> None:
        with pytest.raises(InputError, match=r"4,096 kernels are too many for one figure: pass a part, such as weight"):
            show_kernels(torch.zeros(64, 64, 3, 3))

    def test_maps_that_are_kernels_say_what_to_call(self) -> None:
        with pytest.raises(InputError, match=r"pass maps\[0\], and for the weights .* use cifarnets.viz.show_kernels"):
            show_maps(models.create("convnet").conv1.weight)


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "start"),
        [
            ("a.png", b"\x89PNG"),
            ("a.svg", b"<?xml"),
            ("a.PDF", b"%PDF"),
            ("a", b"\x89PNG"),
            ("new/folder/a.jpg", b"\xff"),
        ],
    )
    def test_the_ending_chooses_the_format(self, name: str, start: bytes, image: Tensor, tmp_path: Path) -> None:
        show(image, path=tmp_path / name)
        show_maps(image, path=str(tmp_path / name))
        assert (tmp_path / name).read_bytes().startswith(start)
        assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / name]

    def test_the_file_shows_the_picture(self, tmp_path: Path) -> None:
        red = torch.zeros(3, 4, 4)
        red[0] = 1
        show(red, path=tmp_path / "red.png")
        with PIL.Image.open(tmp_path / "red.png") as saved:
            width, height = saved.size
            assert saved.convert("RGB").getpixel((width // 2, height // 2)) == (255, 0, 0)

    def test_a_place_that_cannot_be_written_is_named(self, image: Tensor, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("kept")
        with pytest.raises(OutputError, match=r"cannot write '.*a.png'"):
            show(image, path=tmp_path / "file" / "a.png")
        with pytest.raises(OutputError, match="cannot write"):
            show_maps(image, path=tmp_path)
        assert (tmp_path / "file").read_text() == "kept"

    def test_an_ending_that_matplotlib_does_not_know(self, image: Tensor, tmp_path: Path) -> None:
        with pytest.raises(InputError, match=r"cannot be saved as '.*a.xyz': .*xyz"):
            show(image, path=tmp_path / "a.xyz")
        assert not list(tmp_path.iterdir())

    def test_a_notebook_draws_it(self, image: Tensor) -> None:
        assert show(image)._repr_png_().startswith(b"\x89PNG")  # type: ignore[attr-defined]


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, image: Tensor) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (show, show_maps):
        with pytest.raises(MissingExtraError, match=r"pip install 'cifarnets\[plots\]'"):
            draw(image)
        with pytest.raises(ImportError):
            draw(image)


def test_no_window_and_no_global_state(image: Tensor) -> None:
    before = "matplotlib.pyplot" in sys.modules
    show(image)
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_a_figure_has_no_window(image: Tensor) -> None:
    with pytest.raises(InputError, match="this figure has no window: end a notebook's cell with it, or save it"):
        show(image).show()


@pytest.mark.parametrize("kind", ["sparse", "meta"])
def test_tensors_without_pixels_are_refused(kind: str) -> None:
    zeros = torch.zeros(3, 32, 32)
    values = zeros.to_sparse() if kind == "sparse" else zeros.to("meta")
    for call in (show, show_maps, show_kernels):
        with pytest.raises(InputError, match="a dense tensor with values"):
            call(values)


class TestShowPredictions:
    PREDICTIONS = ([("cat", 0.75), ("dog", 0.25)], [("dog", 0.5), ("cat", 0.25)])

    @staticmethod
    def images() -> Tensor:
        return torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)

    def test_right_and_wrong_are_told_by_mark_and_colour(self) -> None:
        best = [guess[:1] for guess in self.PREDICTIONS]
        for labels, classes in ((["cat", "cat"], None), (torch.tensor([1, 1]), ["dog", "cat"])):
            figure = show_predictions(self.images(), best, labels, classes=classes)
            assert titles(figure) == ["✓ cat 0.75", "✗ dog 0.50\nis: cat"]
            colors = [axes.title.get_color() for axes in figure.axes]
            assert len(set(colors)) == 2
        assert titles(show_predictions(self.images(), best)) == ["cat 0.75", "dog 0.50"]

    def test_several_classes_are_bars(self) -> None:
        figure = show_predictions(self.images(), self.PREDICTIONS, ["cat", "cat"])
        assert titles(figure) == ["✓ cat 0.75", "✗ dog 0.50\nis: cat"]
        bars = [[bar.get_width() for bar in axes.patches] for axes in figure.axes if not axes.images]
        assert bars == [[0.75, 0.25], [0.5, 0.25]]
        names = [text.get_text() for axes in figure.axes for text in axes.texts]
        assert names == ["cat 0.75", "dog 0.25", "dog 0.50", "cat 0.25"]

    def test_one_image_with_what_predict_returns_for_it(self) -> None:
        model = load("convnet")
        figure = show_predictions(self.images()[0], predict(model, self.images()[0], topk=2), "ship")
        assert len(drawn(figure)) == 1

    def test_what_does_not_fit_is_refused(self) -> None:
        images = self.images()
        with pytest.raises(InputError, match="2 images, 1 predictions, 2 labels"):
            show_predictions(images, self.PREDICTIONS[:1], ["cat", "cat"])
        with pytest.raises(InputError, match="the label 1 is a number: pass classes="):
            show_predictions(images, self.PREDICTIONS, [1, 1])
        with pytest.raises(InputError, match="7 is no number of one of the classes"):
            show_predictions(images, self.PREDICTIONS, [7, 1], classes=["cat"])
        with pytest.raises(InputError, match=r"predictions are what cifarnets\.predict returns"):
            show_predictions(images, [3, 5])
        with pytest.raises(InputError, match="names no class"):
            show_predictions(images, [[], []])


class TestShowNormalized:
    def test_step_7_the_image_and_what_becomes_of_it(self, image: Tensor) -> None:
        figure = show_normalized(image, mean=(0.5, 0.25, 0.5), std=(0.25, 0.5, 0.5))
        before, after = drawn(figure)
        torch.testing.assert_close(before, image.permute(1, 2, 0) / 255)
        mean, std = torch.tensor([[0.5, 0.25, 0.5], [0.25, 0.5, 0.5]]).view(2, 3, 1, 1)
        expected = (image / 255 - mean) / std
        torch.testing.assert_close(after, expected.clamp(0, 1).permute(1, 2, 0))
        below = [axes for axes in figure.axes if not axes.images]
        for axes, values in zip(below, (image / 255, expected), strict=True):
            assert [text.get_text() for text in axes.get_legend().get_texts()] == ["red", "green", "blue"]
            for stairs, channel in zip(axes.patches, values, strict=True):
                heights, edges, _ = stairs.get_data()
                assert heights.sum() == channel.numel()
                assert edges[0] <= channel.min() <= channel.max() <= edges[-1]

    def test_constants_must_fit(self, image: Tensor) -> None:
        with pytest.raises(InputError, match="images of 1 channels need 1 means"):
            show_normalized(image[:1])


def test_images_without_pixels_and_nan_without_a_place() -> None:
    for call in (lambda image: show(image), lambda image: show_predictions(image, [("cat", 0.5)])):
        with pytest.raises(InputError, match=r"this one has none: \[3, 0, 0\]"):
            call(torch.zeros(3, 0, 0))
    with pytest.raises(InputError, match="some values of the image are NaN"):
        show_normalized(torch.full((3, 8, 8), math.nan))
