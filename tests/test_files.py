"""Files are whole or untouched, whatever goes wrong."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cifarnets._files import clear_leftovers, write_atomic
from cifarnets.errors import OutputError

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such thing")


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, hidden ones too, so that nothing left over escapes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def full_disk(handle: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(("content", "expected"), [(b"\r\n\x00", b"\r\n\x00"), ("größe\n", "größe\n".encode())])
def test_writes_what_it_is_given(tmp_path: Path, content: bytes | str, expected: bytes) -> None:
    path = write_atomic(str(tmp_path / "file"), content)
    assert path == tmp_path / "file"
    assert contents(tmp_path) == {"file": expected}


def test_replaces_and_makes_folders(tmp_path: Path) -> None:
    write_atomic(tmp_path / "new" / "folder" / "file", "old and longer")
    write_atomic(tmp_path / "new" / "folder" / "file", "new")
    assert contents(tmp_path / "new" / "folder") == {"file": b"new"}


@posix
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_permissions_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        path = write_atomic(tmp_path / "file", "content")
    finally:
        after = os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    assert after == umask, "the process's own umask must come out as it went in"


def test_full_disk_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomic(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match=r"No space left on device\. The file that was there is unchanged\.$") as info:
        write_atomic(path, "new")
    assert str(path) in str(info.value)
    assert contents(tmp_path) == {"file": b"old"}


def test_full_disk_leaves_nothing_where_nothing_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match=r"No space left on device\.$"):
        write_atomic(tmp_path / "file", "new")
    assert contents(tmp_path) == {}


@posix
def test_saving_a_model_on_a_disk_that_fills_up(tmp_path: Path) -> None:
    """The real thing: the system refuses to let any file grow beyond 10 KB; the model needs 73 KB."""
    program = """
import resource, sys
import cifarnets
from cifarnets.errors import OutputError
path = sys.argv[1]
model = cifarnets.models.create("convnet", num_classes=3)
cifarnets.save(model, path)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
before = open(path, "rb").read()
for parameter in model.parameters():
    parameter.data.zero_()
try:
    cifarnets.save(model, path)
except OutputError as error:
    print(error)
assert open(path, "rb").read() == before, "the old file is damaged"
assert any(parameter.any() for parameter in cifarnets.load(path).parameters())
"""
    path = tmp_path / "model.safetensors"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"cannot write {str(path)!r}: File too large. The file that was there is unchanged.\n"
    assert list(contents(tmp_path)) == ["model.safetensors"]


def test_an_interrupt_leaves_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(handle: int) -> None:
        raise KeyboardInterrupt

    path = write_atomic(tmp_path / "file", "old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert contents(tmp_path) == {"file": b"old"}


def test_a_folder_in_the_place_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(OutputError, match=r"cannot write '.*model'"):
        write_atomic(tmp_path / "model", "content")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", "content")
    with pytest.raises(OutputError, match=r"cannot write '.*out\.csv'"):
        write_atomic(tmp_path / "file" / "out.csv", "lost")
    assert contents(tmp_path) == {"file": b"content"}


@posix  # Windows lets nobody replace a file that is open
def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    whole = {b"a" * 200_000, b"b" * 100_000}
    path = tmp_path / "file"
    write_atomic(path, b"a" * 200_000)
    seen = []
    stop = threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.append(path.read_bytes() in whole)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        for content in whole:
            write_atomic(path, content)
    stop.set()
    reader.join()
    assert len(seen) > 1
    assert all(seen)


def test_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    kept = {"last.ckpt": b"old", "mine.tmp": b"mine", ".hidden": b"hidden"}
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        patch.setattr(Path, "unlink", full_disk)  # the process has no time to clean up
        with pytest.raises(OutputError):
            write_atomic(tmp_path / "last.ckpt", "new")
    assert len(contents(tmp_path)) == 4
    clear_leftovers(tmp_path)
    assert contents(tmp_path) == kept
