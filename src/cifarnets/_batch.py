"""A batch of labelled images."""

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """Images and labels of one step.

    Attributes:
        images: `[B, C, H, W]`: all images of the batch, or the shard of one of several processes.
        labels: int64 `[B]`, or the weights of the classes, float32 `[B, K]`.
        size: Images in the whole batch, over all processes.
    """

    images: Tensor
    labels: Tensor
    size: int
