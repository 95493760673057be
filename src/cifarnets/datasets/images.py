"""Images as one tensor: the dataset that everything else in `cifarnets.datasets` is made of."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cifarnets.errors import InputError

if TYPE_CHECKING:
    import PIL.Image

View = Literal["normalized", "unit", "pil"]
"""What an item's picture is: a normalised tensor, a tensor in 0..1, or a PIL image."""

ARTICLE_MEAN = (0.4915, 0.4823, 0.4468)
"""The per-channel mean that the article normalises with (step 7); the exact one is 0.4914, 0.4822, 0.4465."""

ARTICLE_STD = (0.2470, 0.2435, 0.2616)
"""The per-channel standard deviation that the article normalises with (step 7)."""


class ImageDataset(Dataset[tuple[Any, int]]):
    """Labelled images held as one uint8 tensor, served one by one or many at a time.

    Args:
        images: uint8, `[N, C, H, W]`.
        labels: `[N]`, each in `0 … len(classes) - 1`.
        classes: A name for each label.
        mean: Per channel, of images scaled to 0..1.
        std: Per channel, likewise.
        transform: Called with an item's picture, as `view` gives it, when the item is read.
        view: `"normalized"` for float32 `(v / 255 - mean) / std`, `"unit"` for float32 in 0..1, `"pil"` for a
            PIL image (RGB, or L for one channel).
        split: Which part of its dataset this is: `"train"`, `"val"`, `"test"` or None for unknown.

    Raises:
        InputError: Shapes, lengths, labels or constants do not fit together.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | Sequence[int],
        classes: Sequence[str],
        *,
        mean: Sequence[float] = ARTICLE_MEAN,
        std: Sequence[float] = ARTICLE_STD,
        transform: Callable[[Any], Any] | None = None,
        view: View = "normalized",
        split: str | None = None,
    ) -> None:
        labels = torch.as_tensor(labels, dtype=torch.int64)
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(f"images must be uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}.")
        if labels.shape != images.shape[:1]:
            raise InputError(f"{len(images)} images need as many labels, not {list(labels.shape)}.")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise InputError(
                f"labels run from {int(labels.min())} to {int(labels.max())}, "
                f"but {len(classes)} classes allow 0 … {len(classes) - 1}."
            )
        if view not in ("normalized", "unit", "pil"):
            raise InputError(f"view must be 'normalized', 'unit' or 'pil', not {view!r}.")
        self.images = images
        self.labels = labels
        self.classes = tuple(classes)
        self.mean, self.std = _constants(mean, std, images.shape[1])
        self.transform = transform
        self.view: View = view
        self.split = split

    @property
    def targets(self) -> list[int]:
        """The labels as a list, as torchvision's datasets have it."""
        return self.labels.tolist()

    @property
    def class_to_idx(self) -> dict[str, int]:
        """Class name to label."""
        return {name: label for label, name in enumerate(self.classes)}

    @property
    def constants(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """The `(mean, std)` between a picture in 0..1 and what this dataset serves; None where it cannot know."""
        if self.view == "normalized":
            return self.mean, self.std
        if self.view == "unit" and self.transform is None:  # which may well normalise
            return (0.0,) * len(self.mean), (1.0,) * len(self.std)
        return None

    def select(
        self, indices: Tensor | Sequence[int], *, labels: Tensor | None = None, classes: Sequence[str] | None = None
    ) -> "ImageDataset":
        """A dataset of the images at `indices`, in that order; everything else as here.

        Args:
            indices: int64 `[M]`.
            labels: New labels `[M]`, where they change.
            classes: New class names, where they change.
        """
        indices = torch.as_tensor(indices, dtype=torch.int64)
        return ImageDataset(
            self.images[indices],
            self.labels[indices] if labels is None else labels,
            self.classes if classes is None else classes,
            mean=self.mean,
            std=self.std,
            transform=self.transform,
            view=self.view,
            split=self.split,
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """Many items at once: torch's `DataLoader` calls this, and the batch is converted in one go."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        images = self.images[chosen]
        pictures: Sequence[Any]
        if self.view == "pil":
            pictures = [to_pil(image) for image in images]
        elif self.view == "unit":
            pictures = to_unit(images).unbind()
        else:
            pictures = normalize(images, self.mean, self.std).unbind()
        if self.transform is not None:
            pictures = [self.transform(picture) for picture in pictures]
        return list(zip(pictures, self.labels[chosen].tolist(), strict=True))

    def __repr__(self) -> str:
        split = f", split={self.split!r}" if self.split else ""
        return f"{type(self).__name__}({len(self):,} images, {len(self.classes)} classes, view={self.view!r}{split})"


def to_unit(images: Tensor) -> Tensor:
    """uint8 0..255 to float32 0..1, as torchvision's `ToTensor` does (article, step 3)."""
    return images.to(torch.float32) / 255


def normalize(images: Tensor, mean: Sequence[float] = ARTICLE_MEAN, std: Sequence[float] = ARTICLE_STD) -> Tensor:
    """`(v - mean[c]) / std[c]` (article, step 7).

    Args:
        images: `[…, C, H, W]`, uint8 (scaled to 0..1 first) or float in 0..1.
        mean: Per channel.
        std: Per channel.

    Returns:
        A new float tensor of the same shape.
    """
    unit = to_unit(images) if images.dtype == torch.uint8 else images.clone()
    center, spread = _columns(unit, mean, std)
    return unit.sub_(center).div_(spread)


def denormalize(images: Tensor, mean: Sequence[float] = ARTICLE_MEAN, std: Sequence[float] = ARTICLE_STD) -> Tensor:
    """The inverse of `normalize`: back to 0..1, clipped there, ready to be shown.

    Args:
        images: Float, `[…, C, H, W]`.
        mean: The constants that the images were normalised with.
        std: Likewise.
    """
    center, spread = _columns(images, mean, std)
    return (images * spread + center).clamp_(0, 1)


def to_pil(image: Tensor) -> "PIL.Image.Image":
    """A uint8 tensor `[3, H, W]` or `[1, H, W]` as a PIL image."""
    from PIL import Image

    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def channel_stats(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The exact mean and standard deviation of each channel, over all pixels (article, steps 5-6).

    Args:
        dataset: One of ours, or torchvision's `CIFAR10`.

    Returns:
        `(mean, std)` of the images scaled to 0..1, computed in whole numbers from the histogram of each channel.
        The standard deviation is that of all pixels with Bessel's correction, as `Tensor.std` has it; the 0.2023,
        0.1994, 0.2010 found in many places is the mean of per-image deviations, another thing.
    """
    images = as_image_dataset(dataset).images
    if not images.numel():
        raise InputError("channel_stats needs at least one image.")
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten().to(torch.int64), minlength=256).to(torch.float64)
        mean = (counts @ values) / counts.sum()
        means.append(mean.item())
        deviations.append((counts @ (values - mean).square() / (counts.sum() - 1)).sqrt().item())
    return tuple(means), tuple(deviations)


def as_image_dataset(dataset: Any) -> ImageDataset:
    """An `ImageDataset` as it is; torchvision's `CIFAR10` wrapped so that its items stay what they were.

    Raises:
        InputError: It is neither.
    """
    if isinstance(dataset, ImageDataset):
        return dataset
    data, targets, classes = (getattr(dataset, name, None) for name in ("data", "targets", "classes"))
    if data is None or targets is None or classes is None or getattr(data, "ndim", 0) != 4:
        raise InputError(
            f"expected a dataset of cifarnets or torchvision's CIFAR10 (with data, targets and classes), "
            f"not {type(dataset).__name__}."
        )
    if getattr(dataset, "target_transform", None) is not None:
        raise InputError("a torchvision dataset with a target_transform cannot be relabelled; drop it first.")
    train = getattr(dataset, "train", None)
    return ImageDataset(
        torch.as_tensor(data).permute(0, 3, 1, 2).contiguous(),
        targets,
        classes,
        transform=dataset.transform,
        view="pil",
        split=None if train is None else "train" if train else "test",
    )


def _constants(
    mean: Sequence[float], std: Sequence[float], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    mean, std = tuple(map(float, mean)), tuple(map(float, std))
    if len(mean) != channels or len(std) != channels:
        raise InputError(f"images of {channels} channels need {channels} means and stds, not {mean} and {std}.")
    if not all(value > 0 for value in std):
        raise InputError(f"every std must be above 0, not {std}.")
    return mean, std


def _columns(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Mean and std as `[C, 1, 1]` tensors where `images` lives."""
    mean, std = _constants(mean, std, images.shape[-3])
    columns = torch.tensor([mean, std]).to(images).view(2, -1, 1, 1)
    return columns[0], columns[1]
