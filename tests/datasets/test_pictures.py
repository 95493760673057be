"""Every kind of picture gives the same pixels, and what is no picture says so."""

import io
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cifarnets.datasets import pictures
from cifarnets.datasets.pictures import ORIENTATION, to_picture, to_pictures
from cifarnets.errors import DataNotFoundError, InputError

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such thing")
ROUNDING = 1.001 / 255
"""Resizing to whole numbers rounds, and PIL and torch may do it differently."""


def seen(picture: Any, channels: int = 3) -> Tensor:
    return to_picture(picture, channels)


def drawn(height: int = 32, width: int = 32, channels: int = 3) -> np.ndarray[Any, Any]:
    """Noise over a slope: uint8 `[H, W, C]`, no two orientations of which are alike."""
    slope = np.linspace(0, 150, height)[:, None, None] + np.linspace(0, 50, width)[None, :, None]
    noise = np.random.default_rng(0).integers(0, 50, (height, width, channels))
    return (slope + noise).astype(np.uint8)


def as_unit(pixels: np.ndarray[Any, Any]) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1) / 255


def encoded(picture: PIL.Image.Image, kind: str, **options: Any) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def assert_alike(found: Tensor, expected: Tensor, what: str = "") -> None:
    torch.testing.assert_close(found, expected, atol=ROUNDING, rtol=0, msg=lambda text: f"{what}: {text}")


class TestKinds:
    @pytest.mark.parametrize("size", [(32, 32), (48, 40), (7, 9)], ids=str)
    def test_every_kind_of_the_same_picture_is_seen_alike(self, size: tuple[int, int], tmp_path: Path) -> None:
        pixels = drawn(*size)
        picture = PIL.Image.fromarray(pixels)
        picture.save(tmp_path / "a.png")
        content = (tmp_path / "a.png").read_bytes()
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        expected = seen(pixels)
        assert (expected.shape, expected.dtype) == ((3, 32, 32), torch.float32)
        kinds: dict[str, Any] = {
            "path": tmp_path / "a.png",
            "string": str(tmp_path / "a.png"),
            "bytes": content,
            "bytearray": bytearray(content),
            "BytesIO": io.BytesIO(content),
            "PIL": picture,
            "RGBA": picture.convert("RGBA"),
            "read-only array": np.asarray(picture),
            "reversed strides": np.ascontiguousarray(pixels[::-1])[::-1],
            "Fortran order": np.asfortranarray(pixels),
            "tensor": tensor,
            "contiguous tensor": tensor.contiguous(),
            "float array": pixels.astype(np.float32) / np.float32(255),
            "float tensor": tensor.float() / 255,
            "tensor with a gradient": (tensor.float() / 255).requires_grad_(),
            "float64": pixels / 255,
            "big-endian": (pixels / 255).astype(">f4"),
        }
        for name, kind in kinds.items():
            assert_alike(seen(kind), expected, name)
            if size == (32, 32):
                torch.testing.assert_close(seen(kind), as_unit(pixels))
        torch.testing.assert_close(seen((tensor / 255).half()), expected, atol=ROUNDING + 1e-3, rtol=0)

    def test_an_open_file_is_read_from_its_beginning_and_stays_open(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").write_bytes(encoded(PIL.Image.fromarray(drawn()), "PNG"))
        with (tmp_path / "a.png").open("rb") as file:
            file.read(10)
            for _ in range(2):
                assert torch.equal(seen(file), as_unit(drawn()))
        with (
            (tmp_path / "a.png").open(encoding="latin-1") as text,
            pytest.raises(InputError, match=r"binary mode \('rb'\)"),
        ):
            seen(text)

    def test_a_grey_picture_is_shown_on_every_channel(self, tmp_path: Path) -> None:
        pixels = drawn(channels=1)
        picture = PIL.Image.fromarray(pixels[..., 0])
        assert picture.mode == "L"
        picture.save(tmp_path / "grey.png")
        expected = as_unit(pixels).expand(3, -1, -1)
        tensor = torch.from_numpy(pixels[..., 0])[None]
        for kind in (picture, tmp_path / "grey.png", pixels, pixels[..., 0], tensor, tensor / 255):
            assert torch.equal(seen(kind), expected)

    @pytest.mark.parametrize("size", [(40, 50), (300, 200)], ids=str)
    def test_a_grey_picture_is_resized_as_a_coloured_one(self, size: tuple[int, int]) -> None:
        grey = PIL.Image.fromarray(drawn(*size, 1)[..., 0])
        for kind in (grey, np.array(grey), torch.from_numpy(np.array(grey))[None]):
            assert_alike(seen(kind), seen(grey.convert("RGB")))

    def test_one_channel_is_grey(self) -> None:
        picture = PIL.Image.fromarray(drawn())
        expected = as_unit(np.array(picture.convert("L"))[..., None])
        for kind in (picture, picture.convert("L"), np.array(picture.convert("L"))):
            assert torch.equal(seen(kind, 1), expected)

    def test_palettes_are_looked_up_and_transparency_is_dropped(self) -> None:
        picture = PIL.Image.fromarray(drawn()).convert("P", palette=PIL.Image.Palette.ADAPTIVE)
        expected = as_unit(np.array(picture.convert("RGB")))
        assert torch.equal(seen(picture), expected)
        transparent = PIL.Image.open(io.BytesIO(encoded(picture, "PNG", transparency=bytes(range(256)))))
        assert transparent.mode == "P"
        assert torch.equal(seen(transparent), expected)
        assert "transparency" in transparent.info, "the picture is the caller's"

        half = PIL.Image.fromarray(drawn()).convert("RGBA")
        half.putalpha(128)
        assert torch.equal(seen(half), as_unit(drawn()))

    def test_sixteen_bits_are_scaled_and_not_clipped(self, tmp_path: Path) -> None:
        grey = drawn(channels=1)[..., 0]
        PIL.Image.fromarray(grey.astype(np.uint16) << 8).save(tmp_path / "deep.png")
        deep = PIL.Image.open(tmp_path / "deep.png")
        assert deep.mode == "I;16"
        for kind in (deep, tmp_path / "deep.png"):
            assert torch.equal(seen(kind), as_unit(grey[..., None]).expand(3, -1, -1))

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["PNG", "TIFF"])
    def test_a_camera_s_rotation_is_undone(self, orientation: int, kind: str, tmp_path: Path) -> None:
        turned: Callable[[Any], Any] = {
            1: lambda p: p,
            2: np.fliplr,
            3: lambda p: np.rot90(p, 2),
            4: np.flipud,
            5: lambda p: p.transpose(1, 0, 2),
            6: lambda p: np.rot90(p, -1),
            7: lambda p: np.rot90(p.transpose(1, 0, 2), 2),
            8: np.rot90,
        }[orientation]
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = orientation
        PIL.Image.fromarray(drawn(40, 48)).save(tmp_path / "photo", kind, exif=exif)
        expected = seen(np.ascontiguousarray(turned(drawn(40, 48))))
        assert_alike(seen(tmp_path / "photo"), expected)
        with PIL.Image.open(tmp_path / "photo") as opened:
            assert_alike(seen(opened), expected)

    def test_a_number_in_the_exif_data_that_is_none(self) -> None:
        """Orientation 6 beside a YResolution of NaN, which Pillow cannot write back."""
        entries = struct.pack("<HHII", ORIENTATION, 3, 1, 6) + struct.pack("<HHIf", 0x011B, 11, 1, float("nan"))
        exif = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + entries + b"\0\0\0\0"
        photo = encoded(PIL.Image.fromarray(drawn(64, 64)), "JPEG", exif=exif, quality=95, subsampling=0)
        plain = encoded(PIL.Image.fromarray(drawn(64, 64)), "JPEG", quality=95, subsampling=0)
        assert_alike(seen(photo), seen(plain).rot90(-1, (1, 2)))

    def test_to_another_size(self) -> None:
        pixels = drawn(80, 60)
        resized = PIL.Image.fromarray(pixels).resize((24, 48), PIL.Image.Resampling.BILINEAR)
        for kind in (pixels, PIL.Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)):
            assert_alike(to_picture(kind, 3, (48, 24)), as_unit(np.array(resized)))
        exif = PIL.Image.Exif()
        exif[ORIENTATION] = 6
        turned = encoded(PIL.Image.fromarray(pixels), "PNG", exif=exif)
        assert_alike(to_picture(turned, 3, (24, 48)), to_picture(np.rot90(pixels, -1), 3, (24, 48)))

    @pytest.mark.parametrize("size", [(64, 64), (100, 37), (33, 500), (5, 6), (1, 1)], ids=str)
    def test_other_sizes_are_resized_as_pil_does_with_antialiasing(self, size: tuple[int, int]) -> None:
        pixels = drawn(*size)
        resized = PIL.Image.fromarray(pixels).resize((32, 32), PIL.Image.Resampling.BILINEAR)
        assert_alike(seen(pixels), as_unit(np.array(resized)))
        exact = torch.nn.functional.interpolate(as_unit(pixels)[None], (32, 32), mode="bilinear", antialias=True)[0]
        # Rounded twice, once for the height and once for the width.
        torch.testing.assert_close(seen(pixels), exact, atol=1.5 / 255, rtol=0)

    def test_a_fine_pattern_becomes_grey_instead_of_stripes(self) -> None:
        board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
        for kind in (board, board / 255, PIL.Image.fromarray(board)):
            assert (seen(kind) - 0.5).abs()[:, 1:-1, 1:-1].max() < 0.01

    def test_what_resizing_rounds_above_one_is_taken(self) -> None:
        white = torch.nn.functional.interpolate(torch.ones(1, 3, 40, 43), (32, 32), mode="bilinear", antialias=True)[0]
        white[0, 0, 0] = 1 + 2**-20
        assert seen(white).max() == pytest.approx(1)

    @settings(max_examples=40)
    @given(
        height=st.integers(1, 80),
        width=st.integers(1, 80),
        value=st.lists(st.integers(0, 255), min_size=3, max_size=3),
    )
    def test_one_colour_stays_that_colour_at_any_size(self, height: int, width: int, value: list[int]) -> None:
        pixels = np.broadcast_to(np.array(value, np.uint8), (height, width, 3))
        expected = (torch.tensor(value) / 255)[:, None, None].expand(3, 32, 32)
        torch.testing.assert_close(seen(pixels), expected)

    def test_default_dtype_and_device_have_no_say(self) -> None:
        expected = seen(drawn(50, 60)), seen(drawn(50, 60) / 255)
        torch.set_default_dtype(torch.float64)
        try:
            with torch.device("meta"):
                found = seen(drawn(50, 60)), seen(drawn(50, 60) / 255)
        finally:
            torch.set_default_dtype(torch.float32)
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


class TestSeveral:
    def test_one_and_several(self, tmp_path: Path) -> None:
        first, second = drawn(), 255 - drawn()
        PIL.Image.fromarray(second).save(tmp_path / "b.png")
        expected = torch.stack([as_unit(first), as_unit(second)])
        stacked = np.stack([first, second])
        tensors = torch.from_numpy(stacked).permute(0, 3, 1, 2)
        mixed = [first, tmp_path / "b.png"]
        kinds: list[Any] = [mixed, tuple(mixed), iter(mixed), (p for p in mixed), stacked, tensors, tensors / 255]
        for kind in kinds:
            found, single = to_pictures(kind, 3)
            assert torch.equal(found, expected)
            assert not single
        found, single = to_pictures(first, 3)
        assert torch.equal(found, expected[:1])
        assert single
        content = encoded(PIL.Image.fromarray(first), "PNG")
        for one in (content, io.BytesIO(content), tmp_path / "b.png"):
            assert to_pictures(one, 3)[1]

    def test_none_at_all(self) -> None:
        nothing: list[Any] = [[], (), np.zeros((0, 32, 32, 3), np.uint8), torch.zeros(0, 3, 32, 32)]
        for empty in nothing:
            found, single = to_pictures(empty, 3)
            assert (found.shape, single) == ((0, 3, 32, 32), False)

    def test_the_wrong_one_is_named(self, tmp_path: Path) -> None:
        good = np.zeros((32, 32, 3), np.uint8)
        with pytest.raises(InputError, match="picture 6: the model takes 3 channels, and the picture has 2"):
            to_pictures([good] * 5 + [np.zeros((32, 32, 2), np.uint8)], 3)
        with pytest.raises(DataNotFoundError, match=r"picture 2: there is no file '.*cat\.png'"):
            to_pictures([good, tmp_path / "cat.png"], 3)
        batch = torch.zeros(4, 3, 8, 8)
        batch[2, 0, 0, 0] = float("nan")
        with pytest.raises(InputError, match=r"must be in 0\.\.1 \(picture 3: nan … nan\)"):
            to_pictures(batch, 3)


class TestBounds:
    def test_a_photograph_takes_little_more_memory(self) -> None:
        """24 megapixels; the figures are of a process of its own."""
        program = """
import resource, sys
import numpy as np, torch
from PIL import Image
from cifarnets.datasets.pictures import to_picture
torch.set_num_threads(1)
photo = Image.effect_noise((6000, 4000), 80).convert("RGB")
if sys.argv[1] == "array":
    photo = np.array(photo)
elif sys.argv[1] != "PIL":
    photo.save(sys.argv[1], quality=90)
    photo = sys.argv[1]
to_picture(np.zeros((64, 64, 3), np.uint8), 3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
to_picture(photo, 3)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
        if sys.platform != "linux":
            pytest.skip("the unit of the figure is Linux's")
        for kind in ("PIL", "array"):
            done = subprocess.run([sys.executable, "-c", program, kind], capture_output=True, text=True, check=True)
            assert int(done.stdout) < 100_000, f"{kind}: kB"

    def test_a_large_jpeg_is_decoded_at_a_reduced_size(self, monkeypatch: pytest.MonkeyPatch) -> None:
        large = np.kron(drawn(20, 30), np.ones((80, 80, 1))).astype(np.uint8)
        content = encoded(PIL.Image.fromarray(large), "JPEG", quality=95)
        exact = seen(np.array(PIL.Image.open(io.BytesIO(content))))
        monkeypatch.setattr(pictures, "MOST_PIXELS", 600 * 400)
        assert_alike(seen(content), exact)

    @pytest.mark.parametrize(
        ("kind", "mode", "position", "form"), [("GIF", "L", 6, "<HH"), ("PNG", "1", 16, ">II"), ("BMP", "1", 18, "<ii")]
    )
    def test_a_small_file_cannot_ask_for_a_lot_of_memory(self, kind: str, mode: str, position: int, form: str) -> None:
        content = bytearray(encoded(PIL.Image.new(mode, (2, 2)), kind))
        size = struct.pack(form, 9000, 9000)
        content[position : position + len(size)] = size
        if kind == "PNG":
            import zlib

            content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        with pytest.raises(InputError, match=r"9,000 × 9,000 pixels are more than 64,000,000; reduce it first"):
            seen(bytes(content))

    def test_a_large_file_is_not_read(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        content = encoded(PIL.Image.fromarray(drawn()), "PNG")
        (tmp_path / "a.png").write_bytes(content)
        monkeypatch.setattr(pictures, "MOST_BYTES", 1000)
        for kind in (content, io.BytesIO(content), tmp_path / "a.png"):
            with pytest.raises(InputError, match="bytes are more than 1,000"):
                seen(kind)

    @posix
    def test_no_picture_starts_a_program(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (tmp_path / "gs").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        (tmp_path / "x.png").write_bytes(
            b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\nshowpage\n"
        )
        with pytest.raises(InputError, match=r"not a picture that can be read .*; the formats are PNG, JPEG"):
            seen(tmp_path / "x.png")
        assert not (tmp_path / "started").exists()

    @posix
    def test_a_pipe_is_not_waited_for(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        with pytest.raises(InputError, match=r"cannot read the picture .*: it is no regular file"):
            seen(tmp_path / "pipe.png")


class TestRefuses:
    def test_a_file_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataNotFoundError, match=r"there is no file '.*cat.png'"):
            seen(tmp_path / "cat.png")
        with pytest.raises(FileNotFoundError):
            seen("cat.png")

    @pytest.mark.parametrize(
        ("path", "message"),
        [
            ("a\0b", "contains the character NUL"),
            ("x" * 300, "a name may have 255 bytes"),
            ("\ud800", "cannot encode it"),
        ],
    )
    def test_a_path_that_cannot_be(self, path: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            seen(path)

    @posix
    def test_home_is_expanded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        PIL.Image.fromarray(drawn()).save(tmp_path / "a.png")
        assert torch.equal(seen("~/a.png"), as_unit(drawn()))

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"", r"'.*file.png' is not a picture that can be read \(0 bytes\)"),
            (b"This is text.\n" * 200, r"not a picture that can be read \(2,800 bytes\)"),
            (b"\x89PNG\r\n\x1a\n", "not a picture that can be read"),
        ],
        ids=["empty", "text", "signature"],
    )
    def test_a_file_that_is_no_picture(self, content: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / "file.png").write_bytes(content)
        with pytest.raises(InputError, match=message):
            seen(tmp_path / "file.png")
        with pytest.raises(InputError, match="the bytes are not a picture that can be read"):
            seen(content)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP"])
    def test_a_picture_cut_short(self, kind: str, tmp_path: Path) -> None:
        content = encoded(PIL.Image.fromarray(drawn(64, 64)), kind)
        assert seen(content).shape == (3, 32, 32)
        (tmp_path / "cut").write_bytes(content[: len(content) // 2])
        with pytest.raises(InputError, match=r"cut'"):
            seen(tmp_path / "cut")

    def test_a_decoder_that_fails_in_a_way_of_its_own(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def stumble(_: object) -> None:
            raise SyntaxError("frame 0")  # as PIL's AVIF decoder does

        PIL.Image.fromarray(drawn()).save(tmp_path / "a.png")
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", stumble)
        with pytest.raises(InputError, match=r"cannot read the picture '.*a.png': frame 0"):
            seen(tmp_path / "a.png")
        with (
            PIL.Image.open(tmp_path / "a.png") as opened,
            pytest.raises(InputError, match="cannot use the picture: frame 0"),
        ):
            seen(opened)

    @settings(max_examples=60)
    @given(data=st.data(), kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]))
    def test_a_damaged_picture_raises_nothing_else(self, data: st.DataObject, kind: str) -> None:
        content = bytearray(encoded(PIL.Image.fromarray(drawn(20, 20)), kind))
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        try:
            found = seen(bytes(content))
        except InputError as error:
            assert "the bytes" in str(error)  # noqa: PT017 (either outcome is right)
        else:
            assert found.shape == (3, 32, 32)

    def test_a_folder_and_a_file_without_permission(self, tmp_path: Path) -> None:
        with pytest.raises(
            InputError, match=r"cannot read the picture .*: it is a directory; pass a list of the files"
        ):
            seen(tmp_path)
        if os.name == "posix" and os.geteuid():
            (tmp_path / "locked.png").touch(mode=0)
            with pytest.raises(InputError, match=r"cannot read the picture .*Permission denied"):
                seen(tmp_path / "locked.png")

    @pytest.mark.parametrize(
        ("picture", "message"),
        [
            (np.zeros(3072, np.uint8), r"must be \[H, W\] or \[H, W, C\] as an array.*, not \[3072\]"),
            (np.zeros((2, 2, 2, 2, 3), np.uint8), r"not \[2, 2, 2, 2, 3\]"),
            (np.zeros((2, 2, 2, 3), np.uint8), r"not \[2, 2, 2, 3\]"),
            (np.zeros((0, 32, 3), np.uint8), r"not \[3, 0, 32\]"),
            (torch.zeros(32, 32), r"\[C, H, W\] as a tensor, not \[32, 32\]"),
            (torch.zeros(3, 32, 0), r"not \[3, 32, 0\]"),
            (PIL.Image.new("RGB", (0, 5)), r"a picture must be .*, not \[5, 0, 3\]"),
            (np.zeros((32, 32, 4), np.uint8), "the model takes 3 channels, and the picture has 4"),
            (torch.zeros(32, 32, 3), "the model takes 3 channels, and the picture has 32"),
            (np.zeros((32, 32, 3), np.int64), r"must be uint8, or float in 0..1, not int64"),
            (np.zeros((32, 32, 3), bool), "not bool"),
            (np.array([["cat"]]), "not <U3"),
            (torch.zeros(3, 32, 32, dtype=torch.int32), "must be uint8, or float in 0..1, not torch.int32"),
            (np.full((32, 32, 3), 255.0), r"must be in 0..1 \(this one: 255 … 255\); pass uint8 for 0..255"),
            (torch.full((3, 32, 32), -0.5), r"\(this one: -0.5 … -0.5\)"),
            (torch.full((3, 32, 32), float("nan")), r"must be in 0..1 \(this one: nan … nan\)"),
            (torch.full((3, 32, 32), float("inf")), r"\(this one: inf … inf\)"),
            (torch.zeros(3, 32, 32, device="meta"), "a dense tensor with values, not .* on meta"),
            (torch.zeros(3, 32, 32).to_sparse(), r"a dense tensor with values, not torch\.sparse_coo"),
            (PIL.Image.new("F", (32, 32)), "mode 'F' does not say what is white"),
            (PIL.Image.new("I", (32, 32)), "mode 'I' does not say what is white"),
            (PIL.Image.new("La", (32, 32)), "cannot use the picture"),
            (None, "must be a path, the bytes of a file, .*not NoneType"),
            (b"cat.png", r"not a picture that can be read \(7 bytes\)"),
            ({"cat.png"}, r"\(several go in a list\), not set"),
        ],
        ids=lambda value: None if isinstance(value, str) else type(value).__name__,
    )
    def test_what_is_no_picture(self, picture: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            seen(picture)
