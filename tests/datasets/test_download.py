"""The download, from a small server on the loopback that misbehaves as asked."""

import contextlib
import errno
import hashlib
import http.server
import io
import os
import re
import shutil
import socket
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock

from cifarnets.cli import main
from cifarnets.datasets import CIFAR10Normalized, download
from cifarnets.datasets.download import download_cifar10
from cifarnets.datasets.files import FOLDER, is_complete
from cifarnets.errors import DataCorruptError, DownloadError, InputError, OutputError

posix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such thing")


@dataclass
class Source:
    """One address, and how it answers."""

    content: bytes
    status: int = 200
    later: int | None = None
    """The status of every answer but the first, if that is another."""
    ranges: bool = True
    """Whether it can go on from the middle."""
    cut: int | None = None
    """After how many bytes of an answer's body it hangs up."""
    pause: float = 0
    """Seconds before each byte of the body, which it then sends one by one."""
    linger: float = 0
    """Seconds that it keeps the connection open after the body."""
    before: float = 0
    """Seconds before it answers."""
    redirect: str | None = None
    """Where it sends whoever asks."""
    length: bool | int = True
    """Whether it says how long the body is, or what it says."""
    content_range: str | None = None
    """What it says of the range that it sends, if not the truth; empty for nothing."""
    shift: int = 0
    """How many bytes before the asked ones it begins, in answer to a range."""
    asked: list[str | None] = field(default_factory=list)
    """The `Range` of each request."""


class Host:
    """A server of several sources."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self.now = ""
        """The source that was asked last."""
        host = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.removeprefix("/")
                host.now = name
                answer(self, host.sources[name])

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()

    def add(self, name: str, content: bytes, **behaviour: object) -> str:
        self.sources[name] = Source(content, **behaviour)  # type: ignore[arg-type]
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def answer(handler: http.server.BaseHTTPRequestHandler, source: Source) -> None:
    asked = handler.headers["Range"]
    source.asked.append(asked)
    start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and source.ranges else 0
    status = source.later if source.later and len(source.asked) > 1 else source.status
    if status == 200 and start:
        status = 206 if start < len(source.content) else 416
    time.sleep(source.before)
    if source.redirect is not None:
        handler.send_response(302)
        handler.send_header("Location", source.redirect)
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return
    if status not in (200, 206):
        handler.send_error(status)
        return
    body = source.content[start:]
    if start:
        body = source.content[start - source.shift : len(source.content) - source.shift]
    handler.send_response(status)
    truth = f"bytes {start}-{len(source.content) - 1}/{len(source.content)}"
    if status == 206 and (said := truth if source.content_range is None else source.content_range):
        handler.send_header("Content-Range", said)
    if source.length:
        handler.send_header("Content-Length", str(len(body) if source.length is True else source.length))
    handler.end_headers()
    try:
        if source.pause:
            for byte in body[: source.cut]:
                time.sleep(source.pause)
                handler.wfile.write(bytes([byte]))
        else:
            handler.wfile.write(body[: source.cut])
            time.sleep(source.linger)
    except OSError:
        pass  # the reader has had enough


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("CIFARNETS_DATA_URL", raising=False)
    host = Host()
    yield host
    host.close()


def pack(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture
def files(tiny_root: Path) -> dict[str, bytes]:
    """The files of the tiny set, under their names in the archive."""
    return {f"{FOLDER}/{path.name}": path.read_bytes() for path in (tiny_root / FOLDER).iterdir()}


Publish = Callable[[bytes], bytes]


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Publish:
    """Makes an archive the one that is expected."""

    def publish(archive: bytes) -> bytes:
        monkeypatch.setattr(download, "ARCHIVE_MD5", hashlib.md5(archive, usedforsecurity=False).hexdigest())
        monkeypatch.setattr(download, "ARCHIVE_BYTES", len(archive))
        return archive

    return publish


@pytest.fixture
def archive(files: dict[str, bytes], publish: Publish) -> bytes:
    return publish(pack(files))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "new" / "root"


def part_of(root: Path) -> Path:
    return root / "cifar-10-python.tar.gz.part"


def assert_complete(root: Path, files: dict[str, bytes]) -> None:
    """Every file is there, and nothing else."""
    assert {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()} == files


# --- when all goes well


def test_a_dataset_downloads_itself(
    host: Host, archive: bytes, files: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch, capfd: object
) -> None:
    monkeypatch.setattr(download, "SOURCES", (host.add("good", archive),))
    train = CIFAR10Normalized(root, download=True)
    assert len(train) == 100
    assert_complete(root, files)
    assert host.sources["good"].asked == ["bytes=0-"]
    assert len(CIFAR10Normalized(root, train=False, download=True)) == 20
    assert len(host.sources["good"].asked) == 1, "what is there is not asked for again"
    assert capfd.readouterr() == ("", ""), "the progress bar is for terminals"  # type: ignore[attr-defined]


def test_what_is_there_is_left_alone(tiny_root: Path, host: Host, archive: bytes) -> None:
    assert download_cifar10(tiny_root, sources=[host.add("good", archive)]) == tiny_root
    assert host.sources["good"].asked == []


def test_two_that_ask_at_once_do_not_disturb_each_other(
    host: Host, archive: bytes, files: dict[str, bytes], root: Path
) -> None:
    source = host.add("good", archive, linger=0.3, length=False)
    together = [threading.Thread(target=download_cifar10, args=(root,), kwargs={"sources": [source]}) for _ in "ab"]
    for thread in together:
        thread.start()
    for thread in together:
        thread.join()
    assert host.sources["good"].asked == ["bytes=0-"], "the other found it there"
    assert_complete(root, files)


def test_waiting_for_another_process_ends_with_the_time_limit(host: Host, archive: bytes, root: Path) -> None:
    root.mkdir(parents=True)
    waiting = pytest.raises(DownloadError, match="another process is still downloading CIFAR-10 into")
    with FileLock(f"{part_of(root)}.lock"), waiting:
        download_cifar10(root, sources=[host.add("good", archive)], time_limit=0.1)
    assert host.sources["good"].asked == []


def test_root_none_is_the_environments(
    host: Host, archive: bytes, files: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIFARNETS_DATA", str(root))
    assert download_cifar10(sources=[host.add("good", archive)]) == root
    assert_complete(root, files)


def test_the_author_is_asked_first() -> None:
    assert download.SOURCES[0].startswith("https://www.cs.toronto.edu/")
    assert all(source.startswith("https://") and source.endswith(download.ARCHIVE) for source in download.SOURCES)


def test_a_source_that_does_not_say_how_long(host: Host, archive: bytes, files: dict[str, bytes], root: Path) -> None:
    download_cifar10(root, sources=[host.add("vague", archive, length=False)])
    assert_complete(root, files)


def test_a_source_that_does_not_hang_up(host: Host, archive: bytes, files: dict[str, bytes], root: Path) -> None:
    started = time.monotonic()
    download_cifar10(root, sources=[host.add("lingering", archive, linger=3)])
    assert time.monotonic() - started < 2, "all has arrived: there is nothing to wait for"
    assert_complete(root, files)


# --- interruptions


def test_a_cut_connection_is_gone_on_from(host: Host, archive: bytes, files: dict[str, bytes], root: Path) -> None:
    cut = host.add("cut", archive, cut=100_000)
    with pytest.raises(DownloadError) as info:
        download_cifar10(root, sources=[cut])
    message = str(info.value)
    assert f"{cut}: the connection ended {len(archive) - 100_000:,} bytes early" in message
    assert f"100,000 of {len(archive):,} bytes are kept in {str(part_of(root))!r}; call again to resume" in message
    assert part_of(root).read_bytes() == archive[:100_000]
    # The second call goes on, even with another source.
    download_cifar10(root, sources=[host.add("good", archive)])
    assert host.sources["good"].asked == ["bytes=100000-"]
    assert_complete(root, files)


def test_the_next_source_goes_on_within_one_call(
    host: Host, archive: bytes, files: dict[str, bytes], root: Path
) -> None:
    sources = [host.add("cut", archive, cut=70_000), host.add("gone", b"", status=404), host.add("good", archive)]
    download_cifar10(root, sources=sources)
    assert [source.asked for source in host.sources.values()] == [["bytes=0-"], ["bytes=70000-"], ["bytes=70000-"]]
    assert_complete(root, files)


def test_a_source_that_cannot_go_on_starts_anew(
    host: Host, archive: bytes, files: dict[str, bytes], root: Path
) -> None:
    root.mkdir(parents=True)
    part_of(root).write_bytes(archive[:1000])
    download_cifar10(root, sources=[host.add("whole", archive, ranges=False)])
    assert host.sources["whole"].asked == ["bytes=1000-"]
    assert_complete(root, files)


def test_a_whole_archive_is_not_fetched_again(host: Host, archive: bytes, files: dict[str, bytes], root: Path) -> None:
    """As after a disk that was full while unpacking."""
    root.mkdir(parents=True)
    part_of(root).write_bytes(archive)
    download_cifar10(root, sources=[host.add("good", archive)])
    assert host.sources["good"].asked == []
    assert_complete(root, files)


def test_416_with_nothing_at_hand_is_an_error(host: Host, archive: bytes, root: Path) -> None:
    with pytest.raises(DownloadError, match="Range Not Satisfiable"):
        download_cifar10(root, sources=[host.add("odd", archive, status=416)])


# --- slow sources, and the time limit


@pytest.fixture
def slow_clock(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which a source named slow takes six seconds for each piece, and any other no time."""
    clock = SimpleNamespace(seconds=0.0)

    def monotonic() -> float:
        clock.seconds += 6 * host.now.startswith("slow")
        return clock.seconds

    monkeypatch.setattr(download, "time", SimpleNamespace(monotonic=monotonic))


@pytest.mark.usefixtures("slow_clock")
def test_a_slow_source_is_left_for_the_next(host: Host, archive: bytes, files: dict[str, bytes], root: Path) -> None:
    download_cifar10(root, sources=[host.add("slow", archive), host.add("fast", archive)])
    assert host.sources["slow"].asked == ["bytes=0-"]
    (asked,) = host.sources["fast"].asked
    assert 0 < int(str(asked)[6:-1]) < len(archive), "what the slow source sent is kept"
    assert_complete(root, files)


@pytest.mark.usefixtures("slow_clock")
def test_a_slow_source_is_better_than_none(host: Host, archive: bytes, files: dict[str, bytes], root: Path) -> None:
    sources = [host.add("slow", archive), host.add("gone", b"", status=404)]
    download_cifar10(root, sources=sources)
    assert len(host.sources["slow"].asked) == 2
    assert len(host.sources["gone"].asked) == 1
    assert_complete(root, files)


@pytest.mark.usefixtures("slow_clock")
def test_a_slow_source_may_fail_the_second_time(host: Host, archive: bytes, root: Path) -> None:
    slow, gone = host.add("slow", archive, later=503), host.add("gone", b"", status=404)
    with pytest.raises(DownloadError) as info:
        download_cifar10(root, sources=[slow, gone])
    assert f"{gone}: Not Found; {slow}: Service Unavailable" in str(info.value)
    assert part_of(root).stat().st_size > 0


def test_a_trickle_cannot_outlast_the_time_limit(host: Host, archive: bytes, root: Path) -> None:
    trickle = host.add("trickle", archive, pause=0.02, cut=150)
    started = time.monotonic()
    with pytest.raises(DownloadError) as info:
        download_cifar10(root, sources=[trickle], time_limit=0.3)
    assert time.monotonic() - started < 5
    assert f"{trickle}: the time limit is over" in str(info.value)
    kept = part_of(root).read_bytes()
    assert 0 < len(kept) < 100
    assert archive.startswith(kept)


def test_silence_cannot_outlast_the_time_limit(host: Host, archive: bytes, root: Path) -> None:
    """Nor do several silent sources each take their time."""
    sources = [host.add(f"silent-{i}", archive, pause=2, cut=2) for i in range(3)]
    started = time.monotonic()
    with pytest.raises(DownloadError) as info:
        download_cifar10(root, sources=sources, time_limit=0.3)
    assert time.monotonic() - started < 1.5
    assert f"{sources[0]}: the time limit is over" in str(info.value)
    assert f"{sources[2]}: the time limit is over" in str(info.value)


# --- nothing to be had


def test_each_dead_source_is_named_with_its_reason(host: Host, root: Path) -> None:
    gone, broken = host.add("gone", b"", status=404), host.add("broken", b"", status=500)
    closed = Host()
    refused = closed.add("refused", b"")
    closed.close()
    with pytest.raises(DownloadError) as info:
        download_cifar10(root, sources=[gone, broken, refused])
    message = str(info.value)
    assert f"({gone}: Not Found; {broken}: Internal Server Error; {refused}: " in message
    assert "Connection refused" in message
    assert f"get cifar-10-python.tar.gz elsewhere and unpack it into {str(root)!r}" in message
    assert isinstance(info.value, OSError)


def test_a_folder_that_cannot_be_written(host: Host, archive: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match=r"cannot write into '.*file.*'"):
        download_cifar10(tmp_path / "file" / "data", sources=[host.add("good", archive)])
    assert host.sources["good"].asked == [], "170 MB are not fetched in vain"
    assert (tmp_path / "file").read_text() == "in the way"


# --- not what it should be


def test_other_bytes_are_refused_and_removed(host: Host, archive: bytes, files: dict[str, bytes], root: Path) -> None:
    other = archive[:-1] + bytes([archive[-1] ^ 1])
    with pytest.raises(DataCorruptError, match=r"cifar-10-python\.tar\.gz is damaged: its MD5 is .* not opened"):
        download_cifar10(root, sources=[host.add("other", other)])
    assert list(root.rglob("*")) == []
    # So that the next call does not go on from there.
    download_cifar10(root, sources=[host.add("good", archive)])
    assert_complete(root, files)


def everything_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


# The hostile archives have the MD5 that is expected, as if that check were not there.


def test_members_that_lead_outside_are_not_written(
    host: Host, files: dict[str, bytes], publish: Publish, root: Path, tmp_path: Path
) -> None:
    hostile = {
        "../evil": b"evil",
        f"{FOLDER}/../../evil": b"evil",
        str(tmp_path / "evil"): b"evil",
        f"{FOLDER}/evil.py": b"evil",
    }
    before = everything_below(tmp_path)
    download_cifar10(root, sources=[host.add("hostile", publish(pack({**hostile, **files, **hostile})))])
    assert_complete(root, files)
    assert not [path for path in everything_below(tmp_path) - before if "evil" in path]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE])
def test_links_in_place_of_files_are_not_followed(
    kind: bytes, host: Host, publish: Publish, root: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        member = tarfile.TarInfo(f"{FOLDER}/data_batch_1")
        member.type, member.linkname = kind, str(secret)
        tar.addfile(member)
    with pytest.raises(DataCorruptError):
        download_cifar10(root, sources=[host.add("hostile", publish(file.getvalue()))])
    assert list(root.rglob("*")) == []
    assert secret.read_text() == "secret"


def test_a_file_that_is_not_the_published_one(
    host: Host, files: dict[str, bytes], publish: Publish, root: Path
) -> None:
    changed = {**files, f"{FOLDER}/test_batch": b"something else"}
    with pytest.raises(DataCorruptError, match="test_batch is damaged"):
        download_cifar10(root, sources=[host.add("changed", publish(pack(changed)))])
    assert not (root / FOLDER / "test_batch").exists()
    assert not part_of(root).exists()


@pytest.mark.parametrize("content", [b"\x1f\x8bnot an archive", b""])
def test_not_an_archive_at_all(content: bytes, host: Host, publish: Publish, root: Path) -> None:
    with pytest.raises(DataCorruptError, match=r"cifar-10-python\.tar\.gz cannot be unpacked"):
        download_cifar10(root, sources=[host.add("text", publish(content))])
    assert list(root.rglob("*")) == []


def test_an_archive_without_the_files(host: Host, publish: Publish, root: Path) -> None:
    with pytest.raises(DataCorruptError, match=r"cannot be unpacked: .*data_batch_1.* not found"):
        download_cifar10(root, sources=[host.add("other", publish(pack({"readme.html": b"hello"})))])
    assert list(root.rglob("*")) == []


def test_a_page_in_place_of_the_archive_is_that_sources_failure(host: Host, archive: bytes, root: Path) -> None:
    login = host.add("login", b"<html>please log in</html>")
    assert download_cifar10(root, sources=[login, host.add("good", archive)]) == root
    assert is_complete(root)


# --- bounds


def test_a_source_without_an_end_is_left(host: Host, archive: bytes, files: dict[str, bytes], root: Path) -> None:
    endless = host.add("endless", archive + bytes(10**7), length=False)
    boastful = host.add("boastful", archive + b"0")
    with pytest.raises(DataCorruptError, match=f"sends more than the {len(archive):,} bytes of"):
        download_cifar10(root, sources=[endless])
    with pytest.raises(DataCorruptError, match=f"has {len(archive):,} bytes, but .* offers {len(archive) + 1:,}"):
        download_cifar10(root, sources=[boastful])
    assert list(root.rglob("*")) == []
    download_cifar10(root, sources=[endless, boastful, host.add("good", archive)])
    assert_complete(root, files)
    assert host.sources["good"].asked == ["bytes=0-"]


@contextlib.contextmanager
def raw_server(monkeypatch: pytest.MonkeyPatch, send: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that speaks as it likes."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            with connection:
                try:
                    connection.recv(65536)
                    send(connection)
                except OSError:
                    pass  # the reader has had enough

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/raw"
    finally:
        server.close()


def trickle_header(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def continue_for_ever(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.01)


@posix
@pytest.mark.parametrize("send", [trickle_header, continue_for_ever])
def test_a_header_without_an_end_is_left(
    send: Callable[[socket.socket], None],
    host: Host,
    archive: bytes,
    files: dict[str, bytes],
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with raw_server(monkeypatch, send) as bad:
        started = time.monotonic()
        with pytest.raises(DownloadError, match=f"{bad}: the time limit is over"):
            download_cifar10(root, sources=[bad], time_limit=0.5)
        assert time.monotonic() - started < 3
        monkeypatch.setattr(download, "HEADER_SECONDS", 0.3)
        download_cifar10(root, sources=[bad, host.add("good", archive)])
        assert_complete(root, files)
        with pytest.raises(DownloadError, match="it takes too long to answer"):
            download_cifar10(root / "other", sources=[bad])


@pytest.mark.usefixtures("slow_clock")
def test_a_source_that_hardly_moves_is_given_up(
    host: Host, archive: bytes, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "STALLED", 200_000)
    slow = host.add("slow", archive)
    with pytest.raises(DownloadError, match="it sends less than 200,000 bytes a second"):
        download_cifar10(root, sources=[slow])
    assert len(host.sources["slow"].asked) == 2


# --- where sources lead to


@pytest.mark.parametrize(
    "address", ["http://[::1", "http://a..b/", "file:///etc/passwd", "ftp://127.0.0.1/x", "http:///"]
)
def test_a_bad_redirect_is_that_sources_failure(
    address: str, host: Host, archive: bytes, files: dict[str, bytes], root: Path
) -> None:
    lost = host.add("lost", b"", redirect=address)
    download_cifar10(root, sources=[lost, host.add("good", archive)])
    assert_complete(root, files)
    with pytest.raises(DownloadError, match=f"{lost}: "):
        download_cifar10(root / "other", sources=[lost])


def test_a_good_redirect_is_followed(host: Host, archive: bytes, files: dict[str, bytes], root: Path) -> None:
    download_cifar10(root, sources=[host.add("moved", b"", redirect=host.add("good", archive))])
    assert_complete(root, files)


@pytest.mark.parametrize(
    "source", ["nonsense", "file:///x", "http://", "ftp://host/x", "http://[::1", "http://a\nb/", 5]
)
def test_what_is_no_address(source: Any, root: Path) -> None:
    with pytest.raises(InputError, match="a source must be an address that begins with http:// or https://, not"):
        download_cifar10(root, sources=(source,))
    assert not root.exists()


@pytest.mark.parametrize("sources", ["http://host/x", (), []])
def test_sources_are_a_list(sources: Any, root: Path) -> None:
    with pytest.raises(InputError, match="sources must be a list of at least one address"):
        download_cifar10(root, sources=sources)


@pytest.mark.parametrize("limit", [0, -1, "5", float("nan")])
def test_a_time_limit_is_a_number(limit: Any, root: Path) -> None:
    with pytest.raises(InputError, match="time_limit must be a number of seconds above 0"):
        download_cifar10(root, time_limit=limit)


def test_what_a_server_says_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    def send(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 500 \x1b]0;pwned\x07" + b"x" * 1000 + b"\r\n\r\n")

    with raw_server(monkeypatch, send) as rude:
        with pytest.raises(DownloadError) as info:
            download_cifar10(root, sources=[rude])
        assert "?]0;pwned?" in str(info.value)
        assert str(info.value).isprintable()
        assert "x" * 300 not in str(info.value)


# --- what lies in the folder


@pytest.mark.parametrize("size", [300_000, None, 10**6])
def test_wrong_bytes_of_before_are_replaced_in_the_same_call(
    size: int | None, host: Host, archive: bytes, files: dict[str, bytes], root: Path
) -> None:
    root.mkdir(parents=True)
    part_of(root).write_bytes(bytes(len(archive) if size is None else size))
    download_cifar10(root, sources=[host.add("good", archive)])
    assert_complete(root, files)
    assert host.sources["good"].asked[-1] == "bytes=0-"


def test_what_arrived_of_an_unknown_length_is_kept(
    host: Host, archive: bytes, files: dict[str, bytes], root: Path
) -> None:
    cut = host.add("cut", archive, cut=50_000, length=False)
    with pytest.raises(DownloadError, match=r"the connection ended .* bytes early.*50,000 of"):
        download_cifar10(root, sources=[cut])
    assert part_of(root).read_bytes() == archive[:50_000]
    page = host.add("page", b"<html>please log in</html>", length=False)
    with pytest.raises(DataCorruptError, match="sends something else than cifar-10"):
        download_cifar10(root / "other", sources=[page])
    download_cifar10(root, sources=[host.add("good", archive)])
    assert host.sources["good"].asked == ["bytes=50000-"]


@posix
def test_a_link_and_a_pipe_are_not_followed(host: Host, archive: bytes, root: Path, tmp_path: Path) -> None:
    root.mkdir(parents=True)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    part_of(root).symlink_to(victim)
    with pytest.raises(OutputError, match=r"cannot write '.*\.part': it is a link"):
        download_cifar10(root, sources=[host.add("good", archive)])
    assert victim.read_text() == "precious"
    part_of(root).unlink()
    os.mkfifo(part_of(root))
    with pytest.raises(OutputError, match=r"cannot write '.*\.part': it is no regular file"):
        download_cifar10(root, sources=[host.add("good", archive)])


@posix
@pytest.mark.parametrize("whole_folder", [True, False])
def test_what_is_removed_meanwhile_is_missed(whole_folder: bool, host: Host, archive: bytes, root: Path) -> None:
    for source in (host.add("good", archive, linger=0.3), host.add("cut", archive, cut=1000, linger=0.3)):
        remover = threading.Timer(0.15, lambda: shutil.rmtree(root) if whole_folder else part_of(root).unlink())
        host.sources[source.rpartition("/")[2]].before = 0.3
        remover.start()
        with pytest.raises(OutputError, match=r"was removed while CIFAR-10 was being downloaded; call again"):
            download_cifar10(root, sources=[source])
        remover.join()


def test_a_full_disk_is_no_fault_of_the_source(
    host: Host, archive: bytes, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="No space left on device"):
        download_cifar10(root, sources=[host.add("good", archive), host.add("other", archive)])
    assert host.sources["other"].asked == []
    assert part_of(root).stat().st_size == len(archive), "it need not be fetched again"


# --- every fault, met alone and followed by a good source


HAVE = 1000
"""Bytes that an earlier download left."""
PAGE = b"<html>please log in</html>"
FAULTS: dict[str, tuple[dict[str, Any], str, int]] = {
    # what is wrong with the source, what the user is told if there is no other, and what the next one is asked for
    "it stalls before it answers": ({"before": 1.5}, "it is silent for 0.4 seconds", HAVE),
    "it stalls in mid-file": ({"cut": 500, "linger": 1.5}, "it is silent for 0.4 seconds", HAVE + 500),
    "it trickles": ({"pause": 0.005, "cut": 400}, "it sends less than 1,000 bytes a second", -1),
    "it cuts the connection": ({"cut": 700}, "the connection ended .* bytes early", HAVE + 700),
    "it cuts at once": ({"cut": 0}, "the connection ended .* bytes early", HAVE),
    "it says more than it sends": ({"length": 10**6}, r"has [\d,]+ bytes, but .* offers 1,001,000", HAVE),
    "it says less than it sends": ({"length": 9}, r"has [\d,]+ bytes, but .* offers 1,009", HAVE),
    "it sends too much": ({"length": False, "content": b"0" * 10}, "sends more than the", 0),
    "it sends another range": (
        {"content_range": "bytes 0-9/10"},
        "asked for the bytes from 1,000 on, .*'bytes 0-9/10'",
        HAVE,
    ),
    "it knows no such range": ({"status": 416}, "Range Not Satisfiable", HAVE),
    "it ignores the range and cuts": ({"ranges": False, "cut": 300}, "the connection ended .* early", HAVE),
    "it redirects to itself": ({"redirect": "/bad"}, "it redirects in circles", HAVE),
    "it redirects in a ring": ({"redirect": "/ring"}, "it redirects in circles", HAVE),
    "it sends a page with 200": ({"page": PAGE}, r"has [\d,]+ bytes, but .* offers 26", HAVE),
    "it sends a page of unknown length": ({"page": PAGE, "length": False}, "sends something else than cifar-10", HAVE),
    "it is forbidden": ({"status": 403}, "Forbidden", HAVE),
    "it is overloaded": ({"status": 503}, "Service Unavailable", HAVE),
}


@pytest.fixture
def bad(request: pytest.FixtureRequest, host: Host, archive: bytes, root: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A source with a fault, and the beginning of the archive in the folder."""
    monkeypatch.setattr(download, "PATIENCE", 0.4)
    monkeypatch.setattr(download, "SLOW", 10_000)  # which a good source is above on any machine
    host.add("ring", b"", redirect="/bad")
    behaviour = dict(FAULTS[request.param][0])
    content = behaviour.pop("page", None)
    if content is not None:
        behaviour["ranges"] = False
    root.mkdir(parents=True)
    part_of(root).write_bytes(archive[:HAVE])
    return host.add("bad", content or archive + behaviour.pop("content", b""), **behaviour)


@pytest.mark.parametrize(("bad", "asked"), [(name, fault[2]) for name, fault in FAULTS.items()], indirect=["bad"])
def test_a_bad_source_is_left_for_the_next_and_its_bytes_are_kept(
    bad: str, asked: int, host: Host, archive: bytes, files: dict[str, bytes], root: Path
) -> None:
    started = time.monotonic()
    download_cifar10(root, sources=[bad, host.add("good", archive)])
    assert time.monotonic() - started < 10
    assert_complete(root, files)
    (found,) = host.sources["good"].asked
    if asked >= 0:
        assert found == f"bytes={asked}-"
    else:
        assert int(str(found)[6:-1]) > HAVE


@pytest.mark.parametrize(("bad", "message"), [(name, fault[1]) for name, fault in FAULTS.items()], indirect=["bad"])
def test_a_bad_source_alone_is_an_error_that_says_why(bad: str, message: str, archive: bytes, root: Path) -> None:
    started = time.monotonic()
    with pytest.raises((DownloadError, DataCorruptError), match=message) as info:
        download_cifar10(root, sources=[bad])
    assert time.monotonic() - started < 10
    assert bad in str(info.value)
    assert "\n" not in str(info.value)
    if "more than" not in message:  # whoever sends too much has proved that the archive is none
        kept = part_of(root).read_bytes()
        assert len(kept) >= HAVE
        assert archive.startswith(kept), "what is kept can be resumed from"


def test_a_source_that_sends_other_bytes_than_the_asked_ones_is_found_out_by_md5(
    host: Host, archive: bytes, files: dict[str, bytes], root: Path
) -> None:
    root.mkdir(parents=True)
    part_of(root).write_bytes(archive[:HAVE])
    download_cifar10(root, sources=[host.add("shifted", archive, shift=10)])
    assert host.sources["shifted"].asked == [f"bytes={HAVE}-", "bytes=0-"]
    assert_complete(root, files)


def test_a_range_without_a_word_about_it_is_taken(
    host: Host, archive: bytes, files: dict[str, bytes], root: Path
) -> None:
    root.mkdir(parents=True)
    part_of(root).write_bytes(archive[:HAVE])
    download_cifar10(root, sources=[host.add("terse", archive, content_range="")])
    assert_complete(root, files)


def test_a_fast_beginning_does_not_excuse_a_trickle(
    host: Host, archive: bytes, files: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "PATIENCE", 0.4)
    monkeypatch.setattr(download, "SLOW", 10_000)

    def send(connection: socket.socket) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(archive)}\r\n\r\n".encode() + archive[:250_000])
        for place in range(250_000, 251_000):
            connection.sendall(archive[place : place + 1])
            time.sleep(0.02)

    with raw_server(monkeypatch, send) as tired:
        started = time.monotonic()
        download_cifar10(root, sources=[tired, host.add("good", archive)])
        assert time.monotonic() - started < 10
    (asked,) = host.sources["good"].asked
    assert 250_000 < int(str(asked)[6:-1]) < 250_200
    assert_complete(root, files)


def test_a_page_in_place_of_every_source_does_not_cost_what_came_before(
    host: Host, archive: bytes, files: dict[str, bytes], root: Path
) -> None:
    """As in a network that asks for a login, on the second day of a slow download."""
    root.mkdir(parents=True)
    part_of(root).write_bytes(archive[:100_000])
    pages = [host.add(name, PAGE, ranges=False) for name in ("page", "other")]
    with pytest.raises(DownloadError, match=r"offers 26.*100,000 of .* bytes are kept in .*; call again to resume"):
        download_cifar10(root, sources=pages)
    assert part_of(root).read_bytes() == archive[:100_000]
    download_cifar10(root, sources=[host.add("good", archive)])
    assert host.sources["good"].asked == ["bytes=100000-"]


# --- sources of the environment, and the progress bar


def test_sources_of_the_environment_come_first(
    host: Host, archive: bytes, files: dict[str, bytes], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone, mine, usual = (
        host.add("gone", b"", status=404),
        host.add("mine", archive, cut=5000),
        host.add("usual", archive),
    )
    monkeypatch.setattr(download, "SOURCES", (usual,))
    monkeypatch.setenv("CIFARNETS_DATA_URL", f" {gone}\n{mine}  ")
    download_cifar10(root)
    assert [host.sources[name].asked for name in ("gone", "mine", "usual")] == [
        ["bytes=0-"],
        ["bytes=0-"],
        ["bytes=5000-"],
    ]
    assert_complete(root, files)


def test_what_the_environment_says_is_checked(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFARNETS_DATA_URL", "/data/cifar-10-python.tar.gz")
    with pytest.raises(InputError, match=r"not '/data/cifar-10-python\.tar\.gz'"):
        download_cifar10(root)


def test_the_command_takes_sources_of_the_environment(
    host: Host, archive: bytes, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CIFARNETS_DATA_URL", host.add("mine", archive))
    assert main(["download", "--data-root", str(root)]) == 0
    assert "every batch is the published one" in capsys.readouterr().out


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_names_the_source_and_the_speed(
    host: Host, archive: bytes, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    download_cifar10(root, sources=[host.add("good", archive)])
    shown = terminal.getvalue()
    assert "CIFAR-10 from 127.0.0.1:" in shown
    assert re.search(r"100%.*\d[kM]?B/s", shown)
