"""A convolution and a pooling taken apart: the numbers shown are those that torch computes."""

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.patches import Rectangle
from tests.viz.reading import titles
from torch import Tensor

from cifarnets.errors import InputError, UnknownNameError
from cifarnets.viz import KERNELS, show_convolution, show_pooling

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def pixels(axes: "Axes") -> Tensor:
    return torch.from_numpy(np.array(axes.images[0].get_array()))


def numbers(axes: "Axes") -> list[str]:
    """What stands in the cells of a table."""
    return [text.get_text() for text in axes.texts if text.get_text() not in ("×", "=")]


def marked(axes: "Axes") -> list[tuple[int, int, int]]:
    """Row, column and side of each frame."""
    frames = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    corners = [(frame.get_y(), frame.get_x(), frame.get_height(), frame.get_width()) for frame in frames]
    return [(round(y + high / 2), round(x + wide / 2), round(wide)) for y, x, high, wide in corners]


@pytest.fixture
def image() -> Tensor:
    return torch.rand(3, 12, 10)


class TestShowConvolution:
    def test_the_article_s_kernel_is_the_default(self, image: Tensor) -> None:
        assert KERNELS["edge"].tolist() == [[-1, 0, 1]] * 3  # step 11
        figure = show_convolution(image)
        output = F.conv2d(image[None], KERNELS["edge"].expand(1, 3, 3, 3))[0, 0]
        torch.testing.assert_close(pixels(figure.axes[1]), output)

    def test_patch_times_kernel_gives_the_products_whose_sum_is_the_marked_value(self, image: Tensor) -> None:
        weight = torch.randn(3, 3, 3)
        figure = show_convolution(image, weight, at=(4, 6))
        before, after, *tables = figure.axes
        assert len(tables) == 9
        total = F.conv2d(image[None], weight[None])[0, 0, 4, 6]
        torch.testing.assert_close(sum(pixels(axes).sum() for axes in tables[2::3]), total)
        for channel in range(3):
            patch, kernel, products = tables[3 * channel : 3 * channel + 3]
            torch.testing.assert_close(pixels(patch), image[channel, 4:7, 6:9])
            torch.testing.assert_close(pixels(kernel), weight[channel])
            torch.testing.assert_close(pixels(products), pixels(patch) * pixels(kernel))
            assert numbers(patch) == [f"{value:.2f}" for value in image[channel, 4:7, 6:9].flatten().tolist()]
        note = figure.subfigs[1].get_supxlabel()
        assert note == f"the sum of the 27 products, the marked value of the output = {total:.2f}".replace("-", "−")
        assert titles(figure)[:3] == ["the image, 12×10", "the output, 10×8", "the patch in red"]
        assert marked(before) == [(5, 7, 3)]
        assert marked(after)[0][:2] == (4, 6)

    def test_a_map_has_one_row_and_whole_numbers_stay_whole(self) -> None:
        step = torch.zeros(6, 6)
        step[:, 3:] = 2
        figure = show_convolution(step, "edge")
        _, after, patch, kernel, products = figure.axes
        assert numbers(kernel) == ["−1", "0", "1"] * 3
        assert numbers(patch) in (["0", "0", "2"] * 3, ["0", "2", "2"] * 3)
        assert numbers(products) == ["0", "0", "2"] * 3
        assert pixels(after).tolist() == [[0, 6, 6, 0]] * 4

    def test_the_place_is_where_the_output_is_farthest_from_0(self, image: Tensor) -> None:
        image[:, 5:8, 2] = -9.0
        after = show_convolution(image, "edge").axes[1]
        assert marked(after)[0][:2] == (5, 2)

    def test_every_classic_is_drawn_and_bytes_are_scaled(self, image: Tensor) -> None:
        for name, kernel in KERNELS.items():
            assert kernel.shape == (3, 3)
            figure = show_convolution((image[0] * 255).byte(), name, at=(0, 0))
            torch.testing.assert_close(pixels(figure.axes[2]), (image[0] * 255).byte()[:3, :3] / 255)
        torch.testing.assert_close(pixels(show_convolution(image[:1], "identity").axes[1]), image[0, 1:-1, 1:-1])

    def test_what_cannot_be_shown_is_refused(self, image: Tensor) -> None:
        with pytest.raises(UnknownNameError, match="edge"):
            show_convolution(image, "egde")
        for at in ((10, 0), (0, 8), (-1, 0), (1,)):
            with pytest.raises(InputError, match="at must be a row below 10 and a column below 8"):
                show_convolution(image, at=at)
        for kernel, message in (
            (torch.zeros(2, 3, 3), "a kernel of 2 channels does not fit an image of 3"),
            (torch.zeros(9, 9), r"with sides of 1 to 7, not \[3, 9, 9\]"),
            (torch.zeros(5), "a kernel is"),
        ):
            with pytest.raises(InputError, match=message):
                show_convolution(image, kernel)
        with pytest.raises(InputError, match="is larger than the image, 2×2"):
            show_convolution(image[:, :2, :2])


class TestShowPooling:
    def test_step_13_average_and_maximum_side_by_side(self, image: Tensor) -> None:
        figure = show_pooling(image, at=(2, 1))
        before, average, maximum, *tables = figure.axes
        assert titles(figure)[:3] == ["before, 12×10", "average, 6×5", "maximum, 6×5"]
        means, peaks = F.avg_pool2d(image[None], 2)[0], F.max_pool2d(image[None], 2)[0]
        torch.testing.assert_close(pixels(average), means.permute(1, 2, 0))
        torch.testing.assert_close(pixels(maximum), peaks.permute(1, 2, 0))
        torch.testing.assert_close(pixels(tables[0]), image[0, 4:8, 2:6])
        assert numbers(tables[1]) == [f"{value:.2f}" for value in means[0, 2:4, 1:3].flatten().tolist()]
        assert numbers(tables[2]) == [f"{value:.2f}" for value in peaks[0, 2:4, 1:3].flatten().tolist()]
        assert marked(before)[0][2] == 4
        assert marked(average) == marked(maximum)
        # Windows and what comes of them have the same colours, in the same order.
        colors = [[patch.get_edgecolor() for patch in axes.patches[-4:]] for axes in tables]
        assert colors[0] == colors[1] == colors[2]
        assert len(set(colors[0])) == 4

    def test_a_rest_is_left_out(self) -> None:
        figure = show_pooling(torch.arange(49.0).view(7, 7), size=3)
        assert pixels(figure.axes[2]).tolist() == [[16, 19], [37, 40]]

    def test_the_windows_are_where_both_differ_most(self) -> None:
        values = torch.zeros(8, 8)
        values[4, 2] = 1
        assert show_pooling(values).axes[3].images[0].get_array().tolist()[0] == [1, 0, 0, 0]

    def test_what_cannot_be_shown_is_refused(self, image: Tensor) -> None:
        for size in (1, 5):
            with pytest.raises(InputError, match="size must be 2 to 4"):
                show_pooling(image, size=size)
        with pytest.raises(InputError, match="an image of 12×3 has no four windows of 2×2"):
            show_pooling(image[..., :3])
        with pytest.raises(InputError, match="at must be a row below 5 and a column below 4"):
            show_pooling(image, at=(5, 0))
