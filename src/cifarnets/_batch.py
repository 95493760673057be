"""A batch, as the datasets serve it and the training engine takes it."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """The images of one step, or one process's part of them.

    Attributes:
        images: float32 `[B, C, H, W]`.
        labels: int64 `[B]`, or float32 `[B, K]` where labels are mixed or soft.
        size: How many images the whole batch has, over all processes.
    """

    images: Tensor
    labels: Tensor
    size: int
