"""Files are whole or untouched, whatever goes wrong."""

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cifarnets._files import as_path, clear_leftovers, is_leftover, open_regular, write_atomic
from cifarnets.errors import InputError, OutputError

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


@posix
def test_other_threads_files_keep_their_permissions(tmp_path: Path) -> None:
    """Nobody touches the umask, not even for a moment, for it is the whole process's."""
    before = os.umask(0o077)
    stop = threading.Event()

    def save() -> None:
        while not stop.is_set():
            write_atomic(tmp_path / "saved", "content")

    savers = [threading.Thread(target=save) for _ in range(4)]
    try:
        for saver in savers:
            saver.start()
        for number in range(3000):
            os.close(os.open(tmp_path / f"other{number % 10}", os.O_CREAT | os.O_WRONLY, 0o666))
            assert (tmp_path / f"other{number % 10}").stat().st_mode & 0o777 == 0o600
            (tmp_path / f"other{number % 10}").unlink()
    finally:
        stop.set()
        for saver in savers:
            saver.join()
        os.umask(before)


@posix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path: Path, mode: int) -> None:
    path = write_atomic(tmp_path / "file", "old")
    path.chmod(mode)
    write_atomic(path, "new")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("new", mode)


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


def leave_behind(folder: Path) -> None:
    """What a process leaves that is killed while it writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        patch.setattr(Path, "unlink", full_disk)  # the process has no time to clean up
        with pytest.raises(OutputError):
            write_atomic(folder / "last.ckpt", "new")


def test_what_a_killed_process_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    kept = {
        "last.ckpt": b"old",
        "mine.tmp": b"mine",
        ".hidden": b"hidden",
        ".report.docx.tmp": b"the user's",
        ".run.json.abcdefgh.tmp": b"another program's",
    }
    for name, content in kept.items():
        (tmp_path / name).write_bytes(content)
    leave_behind(tmp_path)
    (left,) = (path for path in tmp_path.iterdir() if path.name not in kept)
    assert is_leftover(left)
    assert not any(is_leftover(tmp_path / name) for name in kept)
    clear_leftovers(tmp_path)
    assert contents(tmp_path) == kept
    clear_leftovers(tmp_path / "no such folder")


@posix
def test_folders_links_and_pipes_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".cifarnets-folder.tmp").mkdir()
    (tmp_path / "target").write_text("mine")
    (tmp_path / ".cifarnets-link.tmp").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / ".cifarnets-pipe.tmp")
    clear_leftovers(tmp_path)
    assert (tmp_path / ".cifarnets-folder.tmp").is_dir()
    assert (tmp_path / ".cifarnets-pipe.tmp").is_fifo()
    assert (tmp_path / "target").read_text() == "mine"


@posix
def test_the_file_of_a_living_writer_is_left_alone_and_that_of_a_dead_one_cleared(tmp_path: Path) -> None:
    program = """
import os, sys, time
from cifarnets import _files
def wait(handle):
    print("writing", flush=True)
    time.sleep(60)
os.fsync = wait
_files.write_atomic(sys.argv[1], "content")
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path / "file")], stdout=subprocess.PIPE, text=True
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        clear_leftovers(tmp_path)
        assert len(contents(tmp_path)) == 1
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        if writer.stdout is not None:
            writer.stdout.close()
    clear_leftovers(tmp_path)
    assert contents(tmp_path) == {}


@posix
def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/a/b") == as_path(Path("~/a/b")) == tmp_path / "a" / "b"
    assert write_atomic("~/file", "content") == tmp_path / "file"
    assert contents(tmp_path) == {"file": b"content"}
    assert as_path("a/~") == Path("a/~")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("a\0b", r"the path 'a\\x00b' cannot be used: it contains the character NUL"),
        ("x" * 256, r"the path 'x{80}'… \(256 characters\) cannot be used: a name may have 255 bytes"),
        ("ä" * 128, "a name may have 255 bytes"),
        ("x/" * 2500, "and a path 4,096"),
        ("\ud800", "this system cannot encode it"),
        ("~nobody-of-this-name/x", r"For a file whose name begins with '~', write '\./~…'"),
        (5, "a path must be text or a pathlib.Path, not int"),
        (b"name", "not bytes"),
        (None, "not NoneType"),
    ],
)
def test_paths_that_no_system_can_have(path: object, message: str) -> None:
    for use in (as_path, lambda wrong: write_atomic(wrong, "")):
        with pytest.raises(InputError, match=message):
            use(path)  # type: ignore[arg-type]


def test_names_as_long_as_they_may_be(tmp_path: Path) -> None:
    write_atomic(tmp_path / ("x" * 255), "content")
    assert contents(tmp_path) == {"x" * 255: b"content"}


@posix
def test_only_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is no regular file"):
        open_regular(tmp_path / "pipe")
    (tmp_path / "file").write_text("content")
    with open_regular(tmp_path / "file") as file:
        assert file.read() == b"content"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_a_pipe_or_a_device_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="it is no regular file"):
        write_atomic(tmp_path / "pipe", "text")
    assert (tmp_path / "pipe").is_fifo()
    assert len(list(tmp_path.iterdir())) == 1
