"""The file format: everything survives the trip, and nothing else is let in."""

import io
import json
import math
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from cifarnets import load, models, save
from cifarnets.errors import CifarNetsError, OutputError, WeightsError
from cifarnets.weights.files import parse_weights, read_weights, write_weights

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64)
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "plain": lambda tensor: tensor,
    "transposed": lambda tensor: tensor.transpose(0, -1) if tensor.ndim else tensor,
    "every other": lambda tensor: tensor[::2] if tensor.ndim else tensor,
    "expanded": lambda tensor: tensor.unsqueeze(0).expand(3, *tensor.shape),
    "channels last": lambda tensor: (
        tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
    ),
}


def same(one: Tensor, two: Tensor) -> bool:
    return one.dtype == two.dtype and one.shape == two.shape and torch.equal(one, two)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    values = torch.arange(math.prod(shape)).sub(7).to(dtype).view(shape)
    return LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))](values)


names = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda name: name != "__metadata__")
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
headers = st.dictionaries(names.filter(lambda name: name not in ("format", "cifarnets", "channels_last")), plain)


# --- there and back


@given(st.dictionaries(names, tensors(), max_size=4), headers)
def test_everything_survives(tmp_path_factory: Any, stored: dict[str, Tensor], header: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "round_trip.safetensors"
    assert write_weights(path, stored, header, "1.2") == path
    tensors, read = read_weights(path)
    assert read == {**header, "cifarnets": "1.2"}
    assert tensors.keys() == stored.keys()
    assert all(same(tensors[name], stored[name]) for name in stored)


@pytest.mark.parametrize("dtype", DTYPES)
def test_channels_last_comes_back_so(dtype: torch.dtype, tmp_path: Path) -> None:
    plain = torch.arange(120).to(dtype).view(2, 3, 4, 5)
    laid_out = plain.contiguous(memory_format=torch.channels_last)
    path = write_weights(tmp_path / "file", {"laid out": laid_out, "plain": plain}, {}, "1")
    tensors, header = read_weights(path)
    assert same(tensors["laid out"], plain)
    assert tensors["laid out"].stride() == laid_out.stride()
    assert tensors["plain"].is_contiguous()
    assert "channels_last" not in header


def test_shared_tensors_are_each_stored_whole(tmp_path: Path) -> None:
    tied = torch.rand(4, 4)
    stored = {"embedding": tied, "head": tied, "row": tied[1], "turned": tied.T}
    tensors, _ = read_weights(write_weights(tmp_path / "file", stored, {}, "1"))
    assert all(same(tensors[name], stored[name]) for name in stored)


def test_gradients_and_parameters_are_left_behind(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.rand(3))
    tensors, _ = read_weights(write_weights(tmp_path / "file", {"w": parameter}, {}, "1"))
    assert type(tensors["w"]) is Tensor
    assert not tensors["w"].requires_grad
    assert parameter.requires_grad


def test_other_programs_can_read_it(tmp_path: Path) -> None:
    """It is plain safetensors, with the metadata that others look for."""
    from safetensors import safe_open

    stored = {"w": torch.rand(2, 3)}
    path = write_weights(tmp_path / "file", stored, {"classes": ["größe"], "mean": None}, "1.2")
    assert same(load_file(path)["w"], stored["w"])
    with safe_open(path, "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "cifarnets": "1.2",
            "classes": '["gr\\u00f6\\u00dfe"]',
            "mean": "null",
            "channels_last": "[]",
            "halved": "[]",
            "sha256": file.metadata()["sha256"],
        }


def test_read_weights_are_the_callers_own(tmp_path: Path) -> None:
    """To train them neither changes the file, nor does a new file in its place change them."""
    path = write_weights(tmp_path / "file", {"w": torch.ones(1000)}, {}, "1")
    before = path.read_bytes()
    tensors, _ = read_weights(path)
    tensors["w"].fill_(2)
    assert path.read_bytes() == before
    untouched, _ = read_weights(path)
    write_weights(path, {"w": torch.zeros(1000)}, {}, "1")
    assert untouched["w"].eq(1).all()
    assert tensors["w"].eq(2).all()


@pytest.mark.parametrize("shift", range(0, 256, 8))
def test_every_length_of_header(shift: int, tmp_path: Path) -> None:
    """The file begins with that length, whose first byte may be that of a pickle."""
    path = write_weights(tmp_path / "file", {"w": torch.ones(1)}, {"note": "x" * shift}, "1")
    assert read_weights(path)[1]["note"] == "x" * shift


# --- what cannot be written


class Stranger:
    """Nothing that JSON knows."""


def circle() -> list[Any]:
    around: list[Any] = []
    around.append(around)
    return around


@pytest.mark.parametrize(
    ("value", "message"), [(Stranger(), "Stranger is not JSON serializable"), (circle(), "Circular reference")]
)
def test_a_header_must_be_plain(value: Any, message: str, tmp_path: Path) -> None:
    path = write_weights(tmp_path / "file", {}, {}, "1")
    before = path.read_bytes()
    with pytest.raises(WeightsError, match=rf"^the header of '.*file' must be plain values \(JSON\): .*{message}"):
        write_weights(path, {}, {"training": value}, "1")
    assert path.read_bytes() == before


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot write"):
        write_weights(tmp_path / "file" / "model.safetensors", {"w": torch.ones(1)}, {}, "1")


# --- what is not let in

READERS: list[Callable[[Path], object]] = [read_weights, load]


@pytest.fixture
def no_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpickle(*args: object, **options: object) -> None:
        pytest.fail("something was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(module, name, unpickle)


def refuse(path: Path, message: str) -> None:
    """Both ways of reading refuse it, naming the file."""
    for read in READERS:
        with pytest.raises(WeightsError, match=message) as info:
            read(path)
        assert repr(str(path)) in str(info.value)
        assert isinstance(info.value, ValueError)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def whole(path: Path) -> bytes:
    return write_weights(path, {"w": torch.rand(40, 3), "b": torch.rand(40)}, {"note": "x" * 50}, "1").read_bytes()


def test_truncated_anywhere(path: Path, whole: bytes) -> None:
    for length in [*range(0, len(whole) - 1, 13), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refuse(path, "is not a whole safetensors file: ")


def test_bytes_too_many(path: Path, whole: bytes) -> None:
    path.write_bytes(whole + b"\0")
    refuse(path, "is not a whole safetensors file: ")


@pytest.mark.parametrize("content", [b"", b"\0", b"\0" * 64, b"weights: none\n" * 30, bytes(range(256))])
def test_other_files(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    refuse(path, "is not a whole safetensors file: ")


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_in_good_order(tmp_path_factory: Any, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any_bytes.safetensors"
    path.write_bytes(content)
    refuse(path, "is not a whole safetensors file: |is a pickle")


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_of_the_header_is_no_crash(tmp_path_factory: Any, place: int, bit: int) -> None:
    """It is refused, or what it says is read as it stands; never another error."""
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    content = bytearray(write_weights(path, {"w": torch.rand(2, 3, 1, 1)}, {"mean": [0.5]}, "1").read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    content[place % (8 + length)] ^= 1 << bit
    path.write_bytes(content)
    try:
        tensors, header = read_weights(path)
    except WeightsError:
        return
    assert header["cifarnets"]
    assert sum(tensor.nbytes for tensor in tensors.values()) == 24


def test_missing(path: Path) -> None:
    refuse(path, "cannot read the weights .*: No such file or directory")


def test_a_folder(tmp_path: Path) -> None:
    for read, message in ((read_weights, "cannot read the weights "), (load, "has no model.safetensors")):
        with pytest.raises(WeightsError, match=message):
            read(tmp_path)


def test_safetensors_of_another_program(path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        save_file({"w": torch.ones(2)}, path, metadata)
        refuse(path, r"is a safetensors file of another program.*import_model, or `cifarnets import`")


class Exploit:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


def torch_zip(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def torch_legacy(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_runs_no_code(protocol: int, path: Path, tmp_path: Path) -> None:
    content = pickle.dumps(Exploit(tmp_path / "harm"), protocol=protocol)
    pickle.loads(content)
    (tmp_path / "harm").unlink()  # so it works, if it is let
    path.write_bytes(content)
    # The first two protocols have no mark of their own.
    refuse(path, "is a pickle" if protocol >= 2 else "is not a whole safetensors file")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("write", [torch_zip, torch_legacy])
def test_torch_save_runs_no_code(write: Callable[[object], bytes], path: Path, tmp_path: Path) -> None:
    path.write_bytes(write({"w": torch.ones(2), "x": Exploit(tmp_path / "harm")}))
    refuse(path, r"is a pickle \(torch\.save\), which could run code; it was not opened\. .*`cifarnets import`")
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("write", [torch_zip, torch_legacy, pickle.dumps])
@pytest.mark.usefixtures("no_unpickling")
def test_no_pickle_is_opened(write: Callable[[object], bytes], path: Path) -> None:
    path.write_bytes(write({"w": torch.ones(2)}))
    refuse(path, "is a pickle")


# --- headers that lie


def rewrite(path: Path, change: Callable[[dict[str, Any]], None], *, data: bytes = b"\0" * 24) -> None:
    """A file of one float32 tensor [2, 3], with a header changed by hand."""
    header = {
        "__metadata__": {"cifarnets": "1", "format": "pt"},
        "w": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    }
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def test_the_file_made_by_hand_is_read(path: Path) -> None:
    rewrite(path, lambda header: None)
    assert read_weights(path)[0]["w"].shape == (2, 3)


@pytest.mark.parametrize("text", ["{", "nonsense", "", "[" * 100_000, "1" * 5000])
def test_damaged_metadata(text: str, path: Path) -> None:
    rewrite(path, lambda header: header["__metadata__"].update(config=text))
    refuse(path, "the header of .* is damaged: ")


@pytest.mark.parametrize(
    "layout", ["5", "null", '"w"', '{"w": 1}', '["w"]', '["other"]', "[[1], {}]"]
)  # ["w"] has but two dimensions
def test_a_layout_that_does_not_fit_is_no_matter(layout: str, path: Path) -> None:
    rewrite(path, lambda header: header["__metadata__"].update(channels_last=layout))
    tensors, header = read_weights(path)
    assert same(tensors["w"], torch.zeros(2, 3))
    assert header == {"cifarnets": "1"}


@pytest.mark.parametrize(
    "entry",
    [
        {"shape": [2**40, 2**40]},
        {"shape": [2**62, 3]},
        {"shape": [-2, -3]},
        {"shape": [2, 4]},
        {"data_offsets": [0, 2**63]},
        {"data_offsets": [24, 48]},
        {"data_offsets": [24, 0]},
        {"shape": [2**60], "data_offsets": [0, 2**62]},
        {"dtype": "F1024"},
        {"dtype": None},
    ],
    ids=str,
)
def test_sizes_that_cannot_be(entry: dict[str, Any], path: Path) -> None:
    rewrite(path, lambda header: header["w"].update(entry))
    refuse(path, "is not a whole safetensors file: ")


def test_tensors_that_overlap(path: Path) -> None:
    rewrite(path, lambda header: header.update(v=header["w"]))
    refuse(path, "is not a whole safetensors file: ")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 200_000_000, 10**6])
def test_a_header_longer_than_the_file(length: int, path: Path) -> None:
    """Refused before any memory is taken for it."""
    path.write_bytes(struct.pack("<Q", length) + b"{" + b" " * 100)
    refuse(path, "is not a whole safetensors file: ")


def test_what_is_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    path = write_weights(tmp_path / "a.safetensors", {"a": torch.ones(1000)}, {}, "1")
    tensors, _ = read_weights(path)
    size = path.stat().st_size
    with path.open("r+b") as file:  # as cp does, in place
        file.write(b"\0" * size)
    assert torch.equal(tensors["a"], torch.ones(1000))


def test_halved_numbers_take_half_the_room_and_come_back_as_float32(tmp_path: Path) -> None:
    tensors = {
        "weight": torch.randn(40, 8, 5, 5).to(memory_format=torch.channels_last),
        "double": torch.randn(3, dtype=torch.float64),
        "steps": torch.tensor(7),
    }
    whole = write_weights(tmp_path / "whole.safetensors", tensors, {}, "1")
    half = write_weights(tmp_path / "half.safetensors", tensors, {}, "1", halved=tensors)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    read, _ = read_weights(half)
    assert torch.equal(read["weight"], tensors["weight"].half().float())
    assert read["weight"].is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(read["double"], tensors["double"])
    assert torch.equal(read["steps"], tensors["steps"])
    assert load_file(half)["weight"].dtype == torch.float16  # as any program sees it
    again = write_weights(tmp_path / "again.safetensors", read, {}, "1", halved=read)
    assert torch.equal(read_weights(again)[0]["weight"], read["weight"])


def test_numbers_too_large_for_float16_are_not_halved(tmp_path: Path) -> None:
    tensors = {"weight": torch.tensor([1.0, 7e4])}
    with pytest.raises(WeightsError, match="weight has numbers that are too large for float16"):
        write_weights(tmp_path / "half.safetensors", tensors, {}, "1", halved=tensors)
    assert list(tmp_path.iterdir()) == []


# --- every byte counts


def test_every_flipped_bit_is_refused(path: Path) -> None:
    tensors = {"weight": torch.rand(2, 2), "count": torch.tensor(7)}
    content = write_weights(path, tensors, {"architecture": "größe", "config": {"a": [1, 2]}}, "1").read_bytes()
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            with pytest.raises(WeightsError):
                parse_weights(bytes(changed), "flipped")


def test_a_flipped_bit_of_a_model_is_named(path: Path) -> None:
    content = bytearray(save(models.create("fcnet", widths=(2,)), path).read_bytes())
    content[-1] ^= 0x40
    path.write_bytes(content)
    refuse(path, "is damaged: its bytes are not those that were written")


SAVE = """
import sys, torch, cifarnets
torch.manual_seed(0)
model = cifarnets.models.create("convnet", num_classes=3)
cifarnets.models.annotate(model, classes=["a", "b", "c"], training={"epochs": 3, "lr": 0.1})
cifarnets.save(model, sys.argv[1])
"""


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    """The order of a hash map would change from process to process."""
    files = [tmp_path / f"{seed}.safetensors" for seed in ("0", "1", "2")]
    for file in files:
        subprocess.run([sys.executable, "-c", SAVE, file], env={**os.environ, "PYTHONHASHSEED": file.stem}, check=True)
    assert len({file.read_bytes() for file in files}) == 1
    again = tmp_path / "again.safetensors"
    assert save(load(files[0]), again).read_bytes() == files[0].read_bytes()


def test_a_file_from_before_digests_is_read_and_any_other_without_one_is_not(path: Path) -> None:
    stored = {"w": torch.ones(2)}
    save_file(stored, path, {"cifarnets": "0.1.0", "format": "pt", "config": "{}"})
    assert same(read_weights(path)[0]["w"], stored["w"])
    save_file(stored, path, {"cifarnets": "0.1.0", "format": "pt", "config": "{}", "sha257": "0" * 64})
    refuse(path, "is damaged: it has no digest, though it has the entry 'sha257'")


def test_a_file_that_is_rewritten_while_it_is_read_is_one_or_the_other_or_refused(path: Path) -> None:
    """Were it mapped into memory, the process would end with a bus error."""
    versions = [write_weights(path, {"w": torch.full((50_000,), value)}, {}, "1").read_bytes() for value in (1.0, 2.0)]
    stop = threading.Event()

    def rewrite_in_place() -> None:
        while not stop.is_set():
            for content in versions:
                path.write_bytes(content)

    writer = threading.Thread(target=rewrite_in_place)
    writer.start()
    try:
        for _ in range(200):
            try:
                tensors, _ = read_weights(path)
            except WeightsError:
                continue
            assert tensors["w"].unique().tolist() in ([1.0], [2.0])
    finally:
        stop.set()
        writer.join()


# --- nothing without bounds


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such files")
def test_pipes_and_devices_are_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        refuse(path, "cannot read the weights .* is no regular file")


def raw(path: Path, text: str, data: bytes = b"") -> None:
    path.write_bytes(struct.pack("<Q", len(text.encode())) + text.encode() + data)


def entry(shape: list[int], begin: int = 0, end: int = 0) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


OURS = {"cifarnets": "1", "format": "pt"}


@pytest.mark.parametrize(
    "header",
    [
        {f"empty{i}": entry([0]) for i in range(60_000)},
        {"w": entry([0, 2**47, 2**47])},
        {"w": {**entry([0]), "shape": [False]}},
        {"w": {**entry([0]), "shape": "0"}},
        {"w": {**entry([0]), "dtype": ["F32"]}},
        {"w": 5},
        {"w": None},
        {"__metadata__": {"cifarnets": 1}},
        {"__metadata__": ["cifarnets"]},
    ],
    ids=lambda header: str(header)[:60],
)
def test_headers_out_of_bounds(header: dict[str, Any], path: Path) -> None:
    raw(path, json.dumps({"__metadata__": OURS, **header}))
    refuse(path, "is not a whole safetensors file: ")


@pytest.mark.parametrize(
    "text",
    [
        '{"w": ' + "[" * 200 + "]" * 200 + "}",
        '{"w": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"w": ' + "9" * 5000 + "}",
        '{"__metadata__": {"cifarnets": "1", "cifarnets": "2"}}',
        '{"__metadata__": {"cifarnets": "1"}, "__metadata__": {"cifarnets": "1"}}',
        "{" + " " * 11_000_000 + "}",
    ],
    ids=["deep", "too deep for json", "digits", "twice", "twice outside", "long"],
)
def test_texts_out_of_bounds(text: str, path: Path) -> None:
    raw(path, text)
    for read in READERS:
        with pytest.raises(WeightsError) as info:
            read(path)
        assert len(str(info.value)) < 1000


def test_what_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    deep: Any = None
    for _ in range(150):
        deep = [deep]
    for header in ({"training": deep}, {"training": 10**2000}):
        with pytest.raises(WeightsError, match=r"must be plain values \(JSON\)"):
            write_weights(tmp_path / "file", {}, header, "1")
    with pytest.raises(WeightsError, match="would have 12,000,"):
        write_weights(tmp_path / "file", {}, {"note": "x" * 12_000_000}, "1")
    with pytest.raises(WeightsError, match=r"w is .*meta.*convert it first|'w' is .*meta"):
        write_weights(tmp_path / "file", {"w": torch.ones(2, device="meta")}, {}, "1")
    for name in ("\ud800", "__metadata__"):
        with pytest.raises(WeightsError, match="cannot be written"):
            write_weights(tmp_path / "file", {name: torch.ones(2)}, {}, "1")
    assert list(tmp_path.iterdir()) == []


def test_a_name_cannot_write_on_the_terminal(path: Path) -> None:
    for header in ({"a\x1b[31m": entry([3])}, {"a\x1b[31m" * 10_000: entry([3])}):
        raw(path, json.dumps({"__metadata__": OURS, **header}))
        with pytest.raises(WeightsError) as info:
            read_weights(path)
        assert "\x1b" not in str(info.value)
        assert len(str(info.value)) < 1000


# --- paths


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "x" * 300, "~nobody-of-this-name/x", "a/" * 3000])
def test_paths_that_cannot_be(path: str) -> None:
    for call in (read_weights, load, lambda p: write_weights(p, {}, {}, "1")):
        with pytest.raises(CifarNetsError, match="cannot be used"):
            call(path)


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert save(models.create("fcnet", widths=(2,)), "~/mine.safetensors") == tmp_path / "mine.safetensors"
    assert load("~/mine.safetensors").meta.architecture == "fcnet"
