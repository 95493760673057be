"""Images as one tensor: the dataset that everything else in `cifarnets.datasets` is made of."""

import math
import operator
import os
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from cifarnets._checked import checked
from cifarnets.datasets.folder import read_folder
from cifarnets.datasets.pictures import SIZE
from cifarnets.errors import InputError, brief

if TYPE_CHECKING:
    import PIL.Image

View = Literal["normalized", "unit", "pil"]
"""What an item's picture is: a normalised tensor, a tensor in 0..1, or a PIL image."""

ARTICLE_MEAN = (0.4915, 0.4823, 0.4468)
"""The per-channel mean that the article normalises with (step 7); the exact one is 0.4914, 0.4822, 0.4465."""

ARTICLE_STD = (0.2470, 0.2435, 0.2616)
"""The per-channel standard deviation that the article normalises with (step 7)."""


LARGEST_SIDE = 4096
"""Height and width of images, at most."""


class ImageDataset(Dataset[tuple[Any, int]]):
    """Labelled images in one uint8 tensor, served one by one or many at a time.

    Examples:
        >>> import torch
        >>> from cifarnets.datasets import ImageDataset
        >>> images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
        >>> dataset = ImageDataset(images, [0, 1, 1, 0], ["cat", "dog"])
        >>> image, label = dataset[1]
        >>> image.shape, dataset.classes[label]
        (torch.Size([3, 32, 32]), 'dog')

    Args:
        images: uint8, `[N, C, H, W]`.
        labels: `[N]`, each in `0 … len(classes) - 1`.
        classes: A name for each label.
        mean: Per channel, of images scaled to 0..1.
        std: Per channel, of images scaled to 0..1.
        transform: Called with an item's picture, as `view` gives it, when the item is read.
        view: `"normalized"` for float32 `(v / 255 - mean) / std`, `"unit"` for float32 in 0..1, `"pil"` for a
            PIL image (RGB, or L for one channel).
        split: Which part of its dataset this is: `"train"`, `"val"`, `"test"` or None for unknown.

    Raises:
        InputError: Shapes, lengths, labels, class names or constants do not fit together.
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
        if not isinstance(images, Tensor):
            raise InputError(
                f"images must be a uint8 tensor [N, C, H, W], not {type(images).__name__}; torch.from_numpy(images) "
                "makes one of an array, and .permute(0, 3, 1, 2) puts the channels of [N, H, W, C] in their place."
            )
        if images.dtype != torch.uint8 or images.ndim != 4:
            raise InputError(f"images must be uint8 [N, C, H, W], not {images.dtype} {list(images.shape)}.")
        labels = whole_numbers(labels, "labels")
        names = _class_names(classes)
        if labels.shape != images.shape[:1]:
            raise InputError(f"{len(images)} images need as many labels, not {list(labels.shape)}.")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(names):
            raise InputError(
                f"labels run from {int(labels.min())} to {int(labels.max())}, "
                f"but {len(names)} classes allow 0 … {len(names) - 1}."
            )
        if not isinstance(view, str) or view not in ("normalized", "unit", "pil"):
            raise InputError(f"view must be 'normalized', 'unit' or 'pil', not {view!r}.")
        if view == "pil" and images.shape[1] not in (1, 3):
            raise InputError(f"PIL images have 1 or 3 channels here, not {images.shape[1]}: use another view.")
        self.images = images
        self.labels = labels
        self.classes = names
        self.mean, self.std = _constants(mean, std, images.shape[1])
        self.transform = transform
        self.view: View = view
        self.split = split

    @staticmethod
    @checked
    def from_folder(
        folder: str | os.PathLike[str],
        *,
        size: int | Sequence[int] = SIZE,
        mean: Sequence[float] = ARTICLE_MEAN,
        std: Sequence[float] = ARTICLE_STD,
        classes: Sequence[str] | None = None,
        transform: Callable[[Any], Any] | None = None,
        view: View = "normalized",
        split: str | None = None,
        skip_bad: bool = False,
        progress: bool = True,
    ) -> "ImageDataset":
        """Read pictures of any size from a folder that has a folder for each class.

        A class folder gives its class the name, and holds pictures, also in subfolders. They are turned and resized as
        `predict` does it, so a model sees the same in training and in use.

        Examples:
            >>> import tempfile
            >>> from pathlib import Path
            >>> from PIL import Image
            >>> from cifarnets.datasets import ImageDataset
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     for name, colour in {"sky": (90, 150, 230), "grass": (60, 160, 40)}.items():
            ...         Path(folder, name).mkdir()
            ...         Image.new("RGB", (640, 480), colour).save(Path(folder, name, "1.jpg"))
            ...     dataset = ImageDataset.from_folder(folder)
            >>> dataset.classes, dataset.labels.tolist(), list(dataset.images.shape)
            (('grass', 'sky'), [0, 1], [2, 3, 32, 32])

        Args:
            folder: The class folders lie in it.
            size: Height and width, or one number for both.
            mean: Per channel, of images scaled to 0..1; one number for grey images. `channel_stats` computes them.
            std: Per channel.
            classes: The classes in the order of their labels; None for the names of the folders, sorted. There may be
                classes without a folder, but no folder without a class.
            transform: As for `ImageDataset`.
            view: As for `ImageDataset`.
            split: As for `ImageDataset`.
            skip_bad: Leave out files that are no pictures, or damaged, and warn of them (`logging`, logger
                `cifarnets`); else they are an error that names them.
            progress: Show a bar on a terminal.

        Raises:
            DataNotFoundError: There is no such folder, or no class folder in it.
            UnknownNameError: A folder is none of the `classes`.
            InputError: Files cannot be used, or a class folder is empty, or the constants do not fit.
        """
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2 or not all(0 < side <= LARGEST_SIDE for side in sides):
            raise InputError(f"size must be a height and a width of 1 to {LARGEST_SIDE:,}, not {brief(size)}.")
        names = None if classes is None else _class_names(classes)
        _constants(mean, std, len(mean))  # before the pictures are read
        if len(mean) not in (1, 3):
            raise InputError(f"pictures have 1 or 3 channels, and mean has {len(mean)} numbers.")
        images, labels, found = read_folder(folder, sides, len(mean), names, skip_bad, progress)
        return ImageDataset(images, labels, found, mean=mean, std=std, transform=transform, view=view, split=split)

    @property
    def targets(self) -> list[int]:
        """The labels as a list, as in torchvision's datasets."""
        return self.labels.tolist()

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The label of each class name."""
        return {name: label for label, name in enumerate(self.classes)}

    @property
    def constants(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """The `(mean, std)` between a picture in 0..1 and an item; None where the dataset cannot know."""
        if self.view == "normalized":
            return self.mean, self.std
        if self.view == "unit" and self.transform is None:  # a transform may well normalise
            return (0.0,) * len(self.mean), (1.0,) * len(self.std)
        return None

    def fingerprint(self) -> str:
        """A short text that other images or other labels do not have, from all labels and some 250 of the images.

        A fit that resumes compares it with that of the fit that was stopped.

        Examples:
            >>> from cifarnets.datasets import SyntheticCIFAR10
            >>> data = SyntheticCIFAR10(size=100)
            >>> data.fingerprint() == SyntheticCIFAR10(size=100).fingerprint()
            True
            >>> data.fingerprint() == SyntheticCIFAR10(size=100, seed=1).fingerprint()
            False
        """
        some = self.images[:: max(1, len(self) // 250)]
        checksum = 0
        for tensor in (self.labels, some):
            checksum = zlib.crc32(tensor.cpu().numpy().tobytes(), checksum)
        return f"{checksum:08x}"

    def select(
        self,
        indices: Tensor | Sequence[int] | Sequence[bool],
        *,
        labels: Tensor | None = None,
        classes: Sequence[str] | None = None,
    ) -> "ImageDataset":
        """A dataset of the images at `indices`, in that order; everything else stays.

        Examples:
            >>> from cifarnets.datasets import SyntheticCIFAR10
            >>> dataset = SyntheticCIFAR10(size=100)
            >>> len(dataset.select(range(20))), len(dataset.select(dataset.labels == 3))
            (20, 10)

        Args:
            indices: Whole numbers `[M]`, or a mask of bools `[N]`.
            labels: New labels `[M]`, where they change.
            classes: New class names, where they change.

        Raises:
            InputError: There is no such image, or the mask has another length.
        """
        chosen = _chosen(indices, len(self))
        return ImageDataset(
            self.images[chosen],
            self.labels[chosen] if labels is None else labels,
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
        try:
            number = operator.index(index)
        except TypeError as error:
            raise InputError(
                f"an index must be one whole number, not {index!r}: dataset.select(…) takes several, and gives a "
                "dataset of them."
            ) from error
        return self.__getitems__([range(len(self))[number]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, int]]:
        """Many items at once: torch's `DataLoader` calls this, and the batch is converted in one go."""
        chosen = whole_numbers(indices, "indices")
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
    """Compute `(v - mean[c]) / std[c]` (article, step 7).

    Examples:
        >>> import torch
        >>> from cifarnets.datasets import normalize
        >>> white = torch.full((3, 32, 32), 255, dtype=torch.uint8)
        >>> normalize(white, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)).max()
        tensor(2.)

    Args:
        images: `[…, C, H, W]`, uint8 (scaled to 0..1 first) or float in 0..1.
        mean: Per channel.
        std: Per channel.

    Returns:
        A new float tensor of the same shape.

    Raises:
        InputError: The images are neither uint8 nor float, or the constants do not fit their channels.
    """
    if not isinstance(images, Tensor) or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise InputError(
            f"images must be a tensor, uint8 or float in 0..1, not {getattr(images, 'dtype', type(images).__name__)}."
        )
    unit = to_unit(images) if images.dtype == torch.uint8 else images.clone()
    center, spread = _columns(unit, mean, std)
    return unit.sub_(center).div_(spread)


def denormalize(images: Tensor, mean: Sequence[float] = ARTICLE_MEAN, std: Sequence[float] = ARTICLE_STD) -> Tensor:
    """Undo `normalize`: back to 0..1, clipped there, ready to be shown.

    Examples:
        >>> from cifarnets.datasets import SyntheticCIFAR10, denormalize
        >>> image, _ = SyntheticCIFAR10(size=100)[0]
        >>> bool(image.min() < 0), bool(denormalize(image).min() >= 0)
        (True, True)

    Args:
        images: Float, `[…, C, H, W]`.
        mean: The mean that the images were normalised with.
        std: The standard deviation that the images were normalised with.

    Raises:
        InputError: The images are not float, or the constants do not fit their channels.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        raise InputError(
            f"normalised images are a float tensor, not {getattr(images, 'dtype', type(images).__name__)}."
        )
    center, spread = _columns(images, mean, std)
    return (images * spread + center).clamp_(0, 1)


def to_pil(image: Tensor) -> "PIL.Image.Image":
    """A uint8 tensor `[3, H, W]` or `[1, H, W]` as a PIL image."""
    from PIL import Image

    array = image.permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def channel_stats(dataset: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute the exact mean and standard deviation of each channel, over all pixels (article, steps 5-6).

    The histogram of each channel is counted in whole numbers, so the result has no rounding of many sums. The standard
    deviation is that of all pixels with Bessel's correction, as `Tensor.std` computes it. The 0.2023, 0.1994, 0.2010
    that many scripts use is something else: the mean of the deviations within each image.

    Examples:
        >>> from cifarnets.datasets import SyntheticCIFAR10, channel_stats
        >>> mean, std = channel_stats(SyntheticCIFAR10(size=100))
        >>> [round(value, 1) for value in mean]
        [0.5, 0.5, 0.5]

    Args:
        dataset: One of ours, or torchvision's `CIFAR10`.

    Returns:
        `(mean, std)` of the images scaled to 0..1.

    Raises:
        InputError: The dataset is empty, or of an unknown kind.
    """
    images = as_image_dataset(dataset).images
    if not images.numel():
        raise InputError("channel_stats needs at least one image.")
    values = torch.arange(256, dtype=torch.float64, device=images.device) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten().to(torch.int64), minlength=256).to(torch.float64)
        mean = (counts @ values) / counts.sum()
        means.append(mean.item())
        deviations.append((counts @ (values - mean).square() / (counts.sum() - 1)).sqrt().item())
    return tuple(means), tuple(deviations)


def as_image_dataset(dataset: Any) -> ImageDataset:
    """An `ImageDataset` as it is, torchvision's `CIFAR10` wrapped, and torch's `Subset` of either as a selection.

    The items of a wrapped dataset stay what they were.

    Raises:
        InputError: It is none of these.
    """
    if isinstance(dataset, ImageDataset):
        return dataset
    if type(dataset) is Subset:  # also what random_split makes
        return as_image_dataset(dataset.dataset).select(dataset.indices)
    if isinstance(dataset, ConcatDataset):
        raise InputError(
            "a ConcatDataset cannot be taken apart: join the images in one ImageDataset(torch.cat([a.images, "
            "b.images]), torch.cat([a.labels, b.labels]), a.classes), or use torch.utils.data.DataLoader."
        )
    data, targets, classes = (getattr(dataset, name, None) for name in ("data", "targets", "classes"))
    if data is None or targets is None or classes is None or getattr(data, "ndim", 0) != 4:
        raise InputError(
            "expected a dataset of cifarnets or torchvision's CIFAR10 (with data, targets and classes), or a torch "
            f"Subset of one, not {type(dataset).__name__}."
        )
    if getattr(dataset, "target_transform", None) is not None:
        raise InputError("a torchvision dataset with a target_transform cannot be relabelled; drop it first.")
    train = getattr(dataset, "train", None)
    images = data if isinstance(data, Tensor) else torch.from_numpy(np.ascontiguousarray(data))
    return ImageDataset(
        images.permute(0, 3, 1, 2).contiguous(),
        targets,
        classes,
        transform=dataset.transform,
        view="pil",
        split=None if train is None else "train" if train else "test",
    )


def whole_numbers(values: Any, name: str) -> Tensor:
    """Values as int64, on their own device, or on the CPU whatever the default device is.

    Raises:
        InputError: They are not whole numbers.
    """
    found = _as_tensor(values, name)
    if found.numel() and (found.is_floating_point() or found.is_complex()):
        raise InputError(f"{name} must be whole numbers, not {found.dtype} {list(found.shape)}.")
    return found.to(torch.int64)


def _as_tensor(values: Any, name: str) -> Tensor:
    if isinstance(values, Tensor):  # torch.as_tensor would move it to the default device
        return values
    try:
        if isinstance(values, np.ndarray):  # a copy: torch warns of read-only memory
            return torch.from_numpy(np.array(values))
        return torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"{name} must be whole numbers, not {brief(values)}.") from error


def _chosen(indices: Any, count: int) -> Tensor:
    """Indices, or a mask, as int64 `[M]`."""
    if isinstance(indices, (Set, Mapping)) or not isinstance(indices, Iterable):
        raise InputError(f"indices must be a list, an array or a tensor, not {brief(indices)}.")
    found = _as_tensor(indices if isinstance(indices, (Tensor, np.ndarray)) else list(indices), "indices")
    if found.dtype == torch.bool:
        if tuple(found.shape) != (count,):
            raise InputError(f"a mask for {count} images must have that length, not {list(found.shape)}.")
        return found.nonzero().flatten()
    chosen = whole_numbers(found, "indices")
    if chosen.ndim != 1 or (chosen.numel() and not -count <= int(chosen.min()) <= int(chosen.max()) < count):
        raise InputError(f"indices must be a list of numbers from 0 to {count - 1}, not {brief(indices)}.")
    return chosen


def _class_names(classes: Any) -> tuple[str, ...]:
    """The class names as a tuple, or why they cannot be used."""
    if isinstance(classes, (str, bytes)) or not isinstance(classes, Iterable) or getattr(classes, "ndim", 1) < 1:
        raise InputError(f"classes must be a list of names, not {brief(classes)}.")
    if isinstance(classes, Set):
        raise InputError(
            f"classes must be in an order, which a set has not: sorted({brief(classes)}) is a list in one."
        )
    names = tuple(classes)
    strangers = [name for name in names if not isinstance(name, str)]
    if strangers:
        raise InputError(
            f"class names must be text, not {type(strangers[0]).__name__} ({brief(strangers[0])}): "
            "[str(name) for name in classes] makes text of numbers."
        )
    return tuple(str(name) for name in names)  # NumPy's text becomes Python's


def _constants(
    mean: Sequence[float], std: Sequence[float], channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        if any(isinstance(values, (str, bytes, Set, Mapping)) for values in (mean, std)):
            raise TypeError
        means, stds = tuple(map(float, mean)), tuple(map(float, std))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"mean and std must be lists of numbers, one for each channel, not {brief(mean)} and {brief(std)}."
        ) from error
    if len(means) != channels or len(stds) != channels:
        raise InputError(
            f"images of {channels} channels need {channels} means and stds, not {brief(means)} and {brief(stds)}."
        )
    if not all(value > 0 for value in stds):
        raise InputError(f"every std must be above 0, not {stds}.")
    if not all(map(math.isfinite, (*means, *stds))):
        raise InputError(f"mean and std must be finite, not {means} and {stds}.")
    return means, stds


def _columns(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Mean and std as `[C, 1, 1]` tensors where `images` lives, in its own dtype."""
    mean, std = _constants(mean, std, images.shape[-3] if images.ndim > 2 else 0)
    columns = torch.tensor([mean, std], dtype=images.dtype, device=images.device).view(2, -1, 1, 1)
    return columns[0], columns[1]
