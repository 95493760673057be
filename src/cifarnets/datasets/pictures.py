"""Any picture as a tensor: files, PIL images, arrays and tensors."""

import contextlib
import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnets._files import as_path, open_regular
from cifarnets.errors import CifarNetsError, DataNotFoundError, InputError, brief

if TYPE_CHECKING:
    import PIL.Image

Picture: TypeAlias = "str | os.PathLike[str] | bytes | IO[bytes] | PIL.Image.Image | np.ndarray[Any, Any] | Tensor"
"""A path, the bytes of a file, a file opened in binary mode, a PIL image, an array or a tensor."""

SIZE = 32
"""Height and width of CIFAR-10's images."""

FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO")
"""The formats that are opened, under Pillow's names. Pillow knows more; for one of them, EPS, it runs a program."""

MOST_PIXELS = 64_000_000
"""Pixels that are decoded at most. A file of 45 bytes may claim to have any number of them."""

MOST_BYTES = 500_000_000
"""Bytes of a file that are read at most."""

DRAFT = 8
"""A JPEG is decoded at a size that is still this many times the wanted one, or larger."""

ORIENTATION = 0x0112
"""The EXIF tag that says how the camera was held."""

TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
"""What sets a picture upright, under Pillow's names."""

BYTES = "the bytes"
"""What a picture without a name is called in a message."""

SIDEWAYS = {TURNS[value] for value in (5, 6, 7, 8)}
"""Those that exchange width and height."""


def to_pictures(
    images: "Picture | Sequence[Picture]", channels: int, size: tuple[int, int] = (SIZE, SIZE)
) -> tuple[Tensor, bool]:
    """One picture, or several, as a model sees them before they are normalised.

    Examples:
        >>> import torch
        >>> pictures, single = to_pictures([torch.zeros(3, 64, 64), torch.ones(1, 20, 30)], channels=3)
        >>> pictures.shape, single
        (torch.Size([2, 3, 32, 32]), False)

    Args:
        images: A picture as `to_picture` takes it; a list or an iterator of them, an array `[N, H, W, C]` or a tensor
            `[N, C, H, W]` for several.
        channels: How many channels the result has, 1 or 3.
        size: Height and width of the result.

    Returns:
        float32 `[N, channels, *size]` in 0..1 on the CPU, and whether it was a single picture.

    Raises:
        DataNotFoundError: There is no such file.
        InputError: Something is no picture; the message says which one of several.
    """
    if isinstance(images, (Tensor, np.ndarray)) and images.ndim == 4:
        if not len(images):
            return _empty(channels, size), False
        return _to_unit(_from_array(images) if isinstance(images, np.ndarray) else images, channels, size), False
    if not isinstance(images, (list, tuple)) and not (isinstance(images, Iterator) and not hasattr(images, "read")):
        return to_picture(cast(Picture, images), channels, size)[None], True
    pictures = []
    for number, image in enumerate(images, 1):
        try:
            pictures.append(to_picture(image, channels, size))
        except CifarNetsError as error:
            raise type(error)(f"picture {number}: {error}") from error
    return (torch.stack(pictures) if pictures else _empty(channels, size)), False


def to_picture(image: Picture, channels: int, size: tuple[int, int] = (SIZE, SIZE)) -> Tensor:
    """Any picture as float32 `[channels, *size]` in 0..1, on the CPU.

    A picture of another size is resized (bilinear, antialiased). A photograph is turned as its EXIF tag says.
    Transparency is dropped. Colours are in the order red, green, blue: turn round what OpenCV reads, which is blue,
    green, red (`image[..., ::-1]`).

    A picture of 16 bits a pixel is read as 0..65535. Many cameras and scanners use only 10 or 12 of the bits, so that
    it would be nearly black: multiply such a picture by 64 or 16 first.

    Examples:
        >>> import numpy as np
        >>> to_picture(np.full((480, 640, 3), 255, np.uint8), channels=3).shape
        torch.Size([3, 32, 32])

    Args:
        image: A path; the bytes of a picture file, or such a file opened in binary mode; a PIL image; an array `[H, W]`
            or `[H, W, C]` or a tensor `[C, H, W]`, uint8 or float in 0..1.
        channels: How many channels the result has, 1 or 3.
        size: Height and width of the result.

    Raises:
        DataNotFoundError: There is no such file.
        InputError: It is no picture, or too large a one.
    """
    if isinstance(image, (Tensor, np.ndarray)):
        pixels = _from_array(image) if isinstance(image, np.ndarray) else image
        check_dense(pixels)
        if pixels.ndim != 3:
            raise _wrong_shape(image.shape)
        return _to_unit(pixels[None], channels, size)[0]
    if isinstance(image, (bytes, bytearray, memoryview)):
        picture = _read(io.BytesIO(image), BYTES, size)
    elif isinstance(image, (str, os.PathLike)):
        picture = open_picture(image, size)
    elif hasattr(image, "read"):
        picture = _read(_all_of(image), f"the file object {getattr(image, 'name', '')!s}".rstrip(), size)
    else:
        picture = image
    return _to_unit(_from_pil(picture, channels, size)[None], channels, size)[0]


def open_picture(path: str | os.PathLike[str], size: tuple[int, int] = (SIZE, SIZE)) -> "PIL.Image.Image":
    """Read a picture file, a large JPEG at a reduced size that is still enough for `size`.

    Examples:
        >>> open_picture("cat.png").size  # doctest: +SKIP
        (640, 480)

    Raises:
        DataNotFoundError: There is no such file.
        InputError: It is no picture of a known format, is damaged, or too large.
    """
    if isinstance(path, str) and path.startswith(("http://", "https://")):
        raise InputError(f"cannot read the picture {brief(path)}: download it, and pass the path of the file.")
    path = as_path(path)
    try:
        with open_regular(path) as file:
            return _read(file, repr(str(path)), size)
    except FileNotFoundError as error:
        raise DataNotFoundError(f"there is no file {str(path)!r}.") from error
    except IsADirectoryError as error:
        raise InputError(
            f"cannot read the picture {str(path)!r}: it is a directory; pass a list of the files in it."
        ) from error
    except OSError as error:
        if path.is_dir():  # Windows denies permission
            raise InputError(f"cannot read the picture {str(path)!r}: it is a directory.") from error
        raise InputError(f"cannot read the picture {str(path)!r}: {error.strerror or error}.") from error


def find_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """List the picture files in a folder and in its subfolders, sorted; names tell what they are.

    Hidden files and folders, whose names begin with a dot, are left out.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("b.jpg", "a.PNG", "notes.txt"):
        ...         Path(folder, name).touch()
        ...     [path.name for path in find_pictures(folder)]
        ['a.PNG', 'b.jpg']
    """
    from PIL import Image

    endings = {ending for ending, kind in Image.registered_extensions().items() if kind in FORMATS}
    found = []
    for parent, folders, files in os.walk(as_path(folder)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        named = [name for name in files if not name.startswith(".") and Path(name).suffix.lower() in endings]
        found += [Path(parent, name) for name in named]
    return sorted(found)


Read: TypeAlias = "tuple[str, Tensor | CifarNetsError]"
"""The name of a file, and its picture, or what is wrong with it."""


def read_ahead(
    names: Iterable[str | CifarNetsError], read: Callable[[str], Tensor], ahead: int = 128
) -> Iterator[Read]:
    """Read pictures in several threads, some ahead, and give them in their order; errors among the names pass through.

    Examples:
        >>> [(name, str(picture)) for name, picture in read_ahead(["none.png"], lambda path: to_picture(path, 3))]
        [('none.png', "there is no file 'none.png'.")]
    """

    def attempt(name: str | CifarNetsError) -> Read:
        if isinstance(name, CifarNetsError):
            return "", name
        try:
            return name, read(name)
        except CifarNetsError as error:
            return name, error

    threads = min(32, (os.cpu_count() or 1) + 1)  # decoders let go of Python's lock
    waiting: deque[Future[Read]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for name in names:
                waiting.append(pool.submit(attempt, name))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _read(file: IO[bytes], name: str, size: tuple[int, int]) -> "PIL.Image.Image":
    from PIL import Image, UnidentifiedImageError

    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    if length > MOST_BYTES:
        raise InputError(f"cannot read the picture {name}: {length:,} bytes are more than {MOST_BYTES:,}.")
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]  # an older Pillow knows fewer
    try:
        picture: PIL.Image.Image = Image.open(file, formats=formats)
        if picture.format in ("JPEG", "MPO"):  # which decodes a reduced size faster, and in less memory
            picture.draft(None, (size[1] * DRAFT, size[0] * DRAFT))
        width, height = picture.size
        if width * height > MOST_PIXELS:
            raise InputError(
                f"cannot read the picture {name}: {width:,} × {height:,} pixels are more than {MOST_PIXELS:,}; "
                "reduce it first."
            )
        picture.load()
        return picture
    except UnidentifiedImageError as error:
        raise InputError(
            f"{name} {'are' if name == BYTES else 'is'} not a picture that can be read ({length:,} bytes); the formats "
            f"are {', '.join(FORMATS)}."
        ) from error
    except CifarNetsError:
        raise
    except Exception as error:  # each decoder has its own ways to fail on a damaged file
        raise InputError(f"cannot read the picture {name}: {error}.") from error


def _all_of(file: Any) -> IO[bytes]:
    """What an open file holds, from its beginning where it can go back."""
    try:
        with contextlib.suppress(OSError, AttributeError, ValueError):
            file.seek(0)
        content = file.read(MOST_BYTES + 1)
    except Exception as error:
        raise InputError(f"cannot read the picture from the file object: {error}.") from error
    if not isinstance(content, (bytes, bytearray)):
        raise InputError(
            f"a picture's file must be opened in binary mode ('rb'); this one gives {type(content).__name__}."
        )
    return io.BytesIO(content)


def _from_array(array: "np.ndarray[Any, Any]") -> Tensor:
    """`[H, W]`, `[H, W, C]` or `[N, H, W, C]` with the channels where a tensor has them."""
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InputError(f"pictures must be uint8, or float in 0..1, not {array.dtype}.")
    if not 2 <= array.ndim <= 4:
        raise _wrong_shape(array.shape)
    dtype = array.dtype if array.dtype == np.uint8 else np.dtype(np.float32)
    if array.dtype == dtype and array.flags.writeable and array.flags.c_contiguous:
        pixels = torch.from_numpy(array)
    else:  # torch takes no foreign byte order and no negative strides, and warns of read-only memory
        pixels = torch.from_numpy(array.astype(dtype, order="C"))
    return pixels[None] if array.ndim == 2 else pixels.movedim(-1, -3)


def _from_pil(picture: "PIL.Image.Image", channels: int, size: tuple[int, int]) -> Tensor:
    """uint8 `[channels, *size]`: resized by PIL, which needs no memory for it, and then turned as a camera was held."""
    from PIL import Image

    if not isinstance(picture, Image.Image):
        raise InputError(
            "a picture must be a path, the bytes of a file, a PIL image, an array or a tensor (several go in a list), "
            f"not {type(picture).__name__}."
        )
    if 0 in picture.size:
        raise _wrong_shape((*picture.size[::-1], len(picture.getbands())))
    try:
        picture.load()
        turn = _turn(picture)  # a TIFF is turned by now
        if picture.mode.startswith("I;16"):  # convert() would clip 0..65535 at 255
            picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
        elif picture.mode in ("I", "F"):
            raise ValueError(
                f"mode {picture.mode!r} does not say what is white; scale it to 0..255 and convert it to 'L'"
            )
        elif picture.mode == "P" and "transparency" in picture.info:  # of which PIL warns
            picture = picture.copy()
            del picture.info["transparency"]
        mode = "RGB" if channels == 3 else "L"
        if picture.mode not in ("L", mode):  # `convert` copies even what needs no change
            picture = picture.convert(mode)
        height, width = size[::-1] if turn in SIDEWAYS else size
        if picture.size != (width, height):
            picture = picture.resize((width, height), Image.Resampling.BILINEAR)
        if turn is not None:
            picture = picture.transpose(Image.Transpose[turn])
        pixels = torch.from_numpy(np.array(picture))
    except Exception as error:  # a damaged file that PIL has not read yet, or a mode that it cannot convert
        raise InputError(f"cannot use the picture: {error}.") from error
    return pixels[None] if pixels.ndim == 2 else pixels.movedim(-1, 0)


def _turn(picture: "PIL.Image.Image") -> str | None:
    """What sets the picture upright; None where it is, or where its EXIF data cannot be read."""
    try:
        return TURNS.get(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # a damaged remark about a picture is no damaged picture
        return None


def _to_unit(pixels: Tensor, channels: int, size: tuple[int, int]) -> Tensor:
    """`[N, C, H, W]`, uint8 or float in 0..1, as float32 `[N, channels, *size]`."""
    check_dense(pixels)
    pixels = pixels.detach().cpu()
    if 0 in pixels.shape:
        raise _wrong_shape(pixels.shape[1:])
    if pixels.shape[1] not in (1, channels):
        raise InputError(f"the model takes {channels} channels, and the picture has {pixels.shape[1]}.")
    if pixels.is_floating_point():
        pixels = pixels.float()
        _check_range(pixels)
    elif pixels.dtype != torch.uint8:
        raise InputError(f"pictures must be uint8, or float in 0..1, not {pixels.dtype}.")
    if pixels.shape[2:] != size:
        # uint8 stays uint8: much faster than a float copy of a photograph, and equal but for the rounding.
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True)
    unit = pixels.float() / 255 if pixels.dtype == torch.uint8 else pixels
    return unit.expand(-1, channels, -1, -1)


def check_dense(pixels: Tensor) -> None:
    """Refuse a tensor whose values do not lie side by side in memory: sparse, nested, quantised, or without any.

    Raises:
        InputError: The message says which it is.
    """
    if pixels.is_meta or pixels.layout != torch.strided or pixels.is_quantized or pixels.is_nested:
        kind = next((kind for kind in ("quantized", "nested") if getattr(pixels, f"is_{kind}")), str(pixels.layout))
        raise InputError(f"a picture must be a dense tensor with values, not {kind} on {pixels.device}.")


def _check_range(pixels: Tensor) -> None:
    lowest, highest = pixels.flatten(1).aminmax(dim=1)
    # Resizing leaves the likes of 1.0000001, which are no sign of a mistake. NaN is not in the range either.
    wrong = ~((lowest >= -1e-4) & (highest <= 1 + 1e-4))
    if wrong.any():
        first = int(wrong.nonzero()[0])
        which = f"picture {first + 1}" if len(pixels) > 1 else "this one"
        raise InputError(
            f"float pictures must be in 0..1 ({which}: {lowest[first]:.3g} … {highest[first]:.3g}); pass uint8 for "
            "0..255, and pictures before they are normalised: predict does that itself."
        )


def _empty(channels: int, size: tuple[int, int]) -> Tensor:
    return torch.empty(0, channels, *size, dtype=torch.float32, device="cpu")


def _wrong_shape(shape: Sequence[int]) -> InputError:
    return InputError(f"a picture must be [H, W] or [H, W, C] as an array, [C, H, W] as a tensor, not {list(shape)}.")
