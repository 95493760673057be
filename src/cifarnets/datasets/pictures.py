"""Any picture as a tensor: files, PIL images, arrays and tensors."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnets.errors import DataNotFoundError, InputError

if TYPE_CHECKING:
    import PIL.Image

Picture: TypeAlias = "str | os.PathLike[str] | PIL.Image.Image | np.ndarray[Any, Any] | Tensor"
SIZE = 32


def to_picture(image: Picture, channels: int) -> Tensor:
    """Any picture as float32 `[channels, 32, 32]` in 0..1."""
    if isinstance(image, Tensor):
        pixels = image.detach().cpu()
    elif isinstance(image, np.ndarray):
        pixels = _from_array(image)
    else:
        pixels = _from_pil(open_picture(image) if isinstance(image, (str, os.PathLike)) else image, channels)
    if pixels.ndim != 3 or 0 in pixels.shape:
        raise InputError(
            "a picture must be [H, W] or [H, W, C] as an array, [C, H, W] as a tensor, "
            f"not {list(getattr(image, 'shape', pixels.shape))}."
        )
    if pixels.shape[0] == 1:
        pixels = pixels.expand(channels, -1, -1)
    if pixels.shape[0] != channels:
        raise InputError(f"the model takes {channels} channels, and the picture has {pixels.shape[0]}.")
    if pixels.dtype == torch.uint8:
        unit = pixels.float() / 255
    elif pixels.is_floating_point():
        unit = pixels.float()
        # Resizing leaves the likes of 1.0000001, which are no sign of a mistake.
        if not (unit.isfinite().all() and unit.min() >= -1e-4 and unit.max() <= 1 + 1e-4):
            raise InputError(
                f"float pictures must be in 0..1 (this one: {unit.min():.3g} … {unit.max():.3g}); pass uint8 for "
                "0..255, and pictures before they are normalised: predict does that itself."
            )
    else:
        raise InputError(f"pictures must be uint8, or float in 0..1, not {pixels.dtype}.")
    if unit.shape[1:] != (SIZE, SIZE):
        unit = F.interpolate(unit[None], (SIZE, SIZE), mode="bilinear", antialias=True)[0]
    return unit


def _from_array(array: "np.ndarray[Any, Any]") -> Tensor:
    """`[H, W]` or `[H, W, C]` as `[C, H, W]`; other shapes as they are, for `to_picture` to refuse."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputError(f"pictures must be uint8, or float in 0..1, not {array.dtype}.")
    # A copy: torch takes no foreign byte order and no negative strides, and warns of read-only memory.
    pixels = torch.from_numpy(array.astype(np.uint8 if array.dtype == np.uint8 else np.float32, order="C"))
    if pixels.ndim == 2:
        return pixels[None]
    return pixels.movedim(-1, 0) if pixels.ndim == 3 else pixels


def _from_pil(picture: "PIL.Image.Image", channels: int) -> Tensor:
    from PIL import Image, ImageOps

    if not isinstance(picture, Image.Image):
        raise InputError(
            "a picture must be a path, a PIL image, an array or a tensor (several go in a list), "
            f"not {type(picture).__name__}."
        )
    try:
        picture = ImageOps.exif_transpose(picture)
        if picture.mode.startswith("I;16"):  # convert() would clip 0..65535 at 255
            picture = Image.fromarray((np.array(picture) >> 8).astype(np.uint8))
        elif picture.mode in ("I", "F"):
            raise ValueError(
                f"mode {picture.mode!r} does not say what is white; scale it to 0..255 and convert it to 'L'"
            )
        elif picture.mode == "P":  # PIL warns of a palette with transparency unless it goes this way
            picture = picture.convert("RGBA")
        pixels = torch.from_numpy(np.array(picture.convert("RGB" if channels == 3 else "L")))
    except Exception as error:  # a damaged file that PIL has not read yet, or a mode that it cannot convert
        raise InputError(f"cannot use the picture: {error}.") from error
    return pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)


def open_picture(path: str | os.PathLike[str]) -> "PIL.Image.Image":
    from PIL import Image, UnidentifiedImageError

    path = Path(path)
    try:
        picture: PIL.Image.Image = Image.open(path)
        with picture:
            picture.load()
        return picture
    except UnidentifiedImageError as error:
        size = f"{path.stat().st_size:,} bytes"
        raise InputError(f"{str(path)!r} is not a picture that can be read ({size}).") from error
    except FileNotFoundError as error:
        raise DataNotFoundError(f"there is no file {str(path)!r}.") from error
    except Exception as error:  # each decoder has its own ways to fail on a damaged file
        raise InputError(f"cannot read the picture {str(path)!r}: {error}.") from error
