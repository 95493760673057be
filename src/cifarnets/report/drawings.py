"""Small pictures drawn by code, which a page brings along."""

import functools

import numpy as np
import torch
from torch import Tensor

from cifarnets.datasets import SyntheticCIFAR10

Points = "list[tuple[float, float]]"

FINE = 8
"""Points in a row of each pixel, whose mean it is."""


def drawings(size: tuple[int, int] = (32, 32), channels: int = 3) -> dict[str, Tensor]:
    """An airplane, an automobile and a ship, and some forms of `SyntheticCIFAR10`, by their names.

    Examples:
        >>> pictures = drawings()
        >>> list(pictures)
        ['airplane', 'automobile', 'ship', 'disc', 'cross', 'stripes', 'ring', 'checkerboard']
        >>> pictures["ship"].shape
        torch.Size([3, 32, 32])

    Args:
        size: Height and width.
        channels: 3, or 1 for grey.

    Returns:
        uint8 `[channels, *size]` each, the same on every machine.
    """
    pictures = {"airplane": _airplane(), "automobile": _automobile(), "ship": _ship()}
    forms = SyntheticCIFAR10(train=False, size=10, seed=4)
    labels = forms.targets.tolist() if isinstance(forms.targets, Tensor) else list(forms.targets)
    for name in ("disc", "cross", "stripes", "ring", "checkerboard"):
        pictures[name] = forms.images[labels.index(forms.classes.index(name))]
    if channels == 1:  # as Pillow makes grey of colours
        weights = torch.tensor([19595, 38470, 7471], device="cpu").view(3, 1, 1)
        pictures = {k: ((v.long() * weights).sum(0, keepdim=True) + 0x8000 >> 16).byte() for k, v in pictures.items()}
    rows, columns = (torch.arange(side, device="cpu") * 32 // side for side in size)
    return {name: picture[:, rows][:, :, columns].contiguous() for name, picture in pictures.items()}


class _Canvas:
    """32×32 pixels, on which forms are drawn one over the other."""

    def __init__(self, top: str, bottom: str) -> None:
        axis = (np.arange(32 * FINE) + 0.5) / FINE
        self.x, self.y = axis[None, :], axis[:, None]
        share = (self.y / 32)[..., None]
        self.pixels = np.broadcast_to(
            _colour(top) * (1 - share) + _colour(bottom) * share, (32 * FINE, 32 * FINE, 3)
        ).copy()

    def polygon(self, colour: str, *points: tuple[float, float]) -> None:
        """Fill a polygon: a point is inside if a line from it crosses an odd number of sides."""
        inside = np.zeros((32 * FINE, 32 * FINE), dtype=bool)
        for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
            if y0 != y1:
                crosses = (self.y < y0) != (self.y < y1)
                inside ^= crosses & (self.x < x0 + (self.y - y0) * (x1 - x0) / (y1 - y0))
        self.pixels[inside] = _colour(colour)

    def ellipse(self, colour: str, x: float, y: float, across: float, down: float) -> None:
        self.pixels[((self.x - x) / across) ** 2 + ((self.y - y) / down) ** 2 < 1] = _colour(colour)

    def picture(self) -> Tensor:
        means = self.pixels.reshape(32, FINE, 32, FINE, 3).mean((1, 3))
        return torch.from_numpy(np.round(means).astype(np.uint8)).movedim(-1, 0).contiguous()


def _airplane() -> Tensor:
    canvas = _Canvas("#5d9fe0", "#cfe5f7")
    canvas.ellipse("#eaf4fc", 7, 26, 7, 2)
    canvas.ellipse("#eaf4fc", 26, 6.5, 6, 1.6)
    canvas.polygon("#8d96a3", (13, 15), (19, 15), (15.5, 7), (12.5, 7))  # the far wing
    canvas.polygon("#3c62a8", (2.5, 9), (6, 9), (10, 15.5), (4, 16))  # the tail
    canvas.ellipse("#f4f5f7", 16, 17, 13.2, 2.7)
    canvas.polygon("#f4f5f7", (3, 14.6), (12, 14.3), (12, 19.7), (6, 18.5))
    canvas.polygon("#a3acb8", (12, 18), (19, 17.6), (12.5, 26), (9.5, 26))  # the near wing
    for x in range(11, 25, 2):
        canvas.ellipse("#33475f", x, 16.2, 0.5, 0.55)
    canvas.polygon("#33475f", (26, 15.4), (28.2, 16.6), (26, 16.6))
    return canvas.picture()


def _automobile() -> Tensor:
    canvas = _Canvas("#b9c3c9", "#d9dcd8")
    canvas.polygon("#6d8a5c", (0, 12), (32, 10), (32, 20), (0, 20))
    canvas.polygon("#6b6d70", (0, 19), (32, 19), (32, 32), (0, 32))
    canvas.ellipse("#4a4b4e", 16, 26.5, 14, 1.8)  # its shadow
    canvas.polygon("#c8261f", (8, 15.5), (11.5, 9.5), (21, 9.5), (25.5, 15.5))
    canvas.polygon("#c8261f", (2, 17), (4, 15), (27, 15), (30, 17.5), (30, 23.5), (2, 23.5))
    canvas.polygon("#253649", (10, 15), (12.3, 10.8), (15.7, 10.8), (15.7, 15))
    canvas.polygon("#253649", (17, 15), (17, 10.8), (20.4, 10.8), (23.6, 15))
    canvas.polygon("#8e1712", (2, 21.8), (30, 21.8), (30, 23.5), (2, 23.5))
    canvas.ellipse("#f7e08a", 29, 18.6, 1, 1)
    for x in (8.5, 23.5):
        canvas.ellipse("#17181a", x, 23.7, 3.7, 3.7)
        canvas.ellipse("#c9ccd0", x, 23.7, 1.7, 1.7)
    return canvas.picture()


def _ship() -> Tensor:
    canvas = _Canvas("#9cc4e4", "#dbe7ee")
    canvas.polygon("#2f5f86", (0, 21.5), (32, 21.5), (32, 32), (0, 32))
    canvas.polygon("#f2f2ee", (7, 17.5), (8, 12.5), (23, 12.5), (24.5, 17.5))
    canvas.polygon("#e4e4de", (10, 12.6), (11, 9), (20, 9), (21, 12.6))
    canvas.polygon("#c4442d", (13, 9.2), (13.4, 4.5), (17.4, 4.5), (17.8, 9.2))
    canvas.polygon("#1d2430", (13.3, 6), (13.4, 4.5), (17.4, 4.5), (17.5, 6))
    canvas.polygon("#2b2f3a", (1.5, 17), (31, 17), (27.5, 24.5), (5, 24.5))
    canvas.polygon("#a5352a", (4, 22.6), (28.3, 22.6), (27.5, 24.5), (5, 24.5))
    for x in range(9, 24, 3):
        canvas.ellipse("#35516e", x, 15, 0.8, 0.7)
    for y in (25.2, 28.3):
        canvas.polygon("#5f8fb4", (2, y), (30, y), (28, y + 0.7), (4, y + 0.7))
    return canvas.picture()


@functools.lru_cache
def _colour(text: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.float64]]":
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)], dtype=np.float64)
