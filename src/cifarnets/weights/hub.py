"""Weights on the Hugging Face Hub: an address in, a local file out."""

import contextlib
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cifarnets.errors import DownloadError, InputError, WeightsError, brief

SCHEME = "hf://"
DEFAULT_FILE = "model.safetensors"

ANSWER_SECONDS = 8.0
"""Seconds within which the Hub must say what a file is."""

STALL_SECONDS = 30.0
"""Seconds after which a download that does not grow is given up."""

PAUSES = (1.0, 2.0, 4.0)
"""Seconds before each further try, after the Hub has said that it is busy (429) or broken (5xx)."""

LONGEST_PAUSE = 30.0
"""Seconds that the Hub may ask to wait; if it asks for more, the user is told instead."""

T = TypeVar("T")
_ADDRESS = re.compile(r"hf://([^/@]+)/([^/@]+)(?:@(refs/(?:pr|convert)/[^/]+|[^/]*))?(?:/(.*))?", re.DOTALL)
_WEB_ADDRESS = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)(?:/(?:blob|resolve|tree)/([^/?#]+)(/[^?#]*)?)?/?(?:[?#].*)?"
)


def fetch(address: str) -> Path:
    """Return the local path of `hf://owner/repo[@revision][/file]`, which is downloaded once and cached.

    The environment variables of `huggingface_hub` apply: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`.
    A Hub that does not answer within 8 seconds is taken for unreachable, and a download that has not grown for 30
    seconds for dead. Where the Hub says that it is busy or broken (429, 5xx), it is asked three more times.

    Examples:
        >>> from cifarnets.weights.hub import fetch
        >>> path = fetch("hf://owner/repo@v1.0")  # doctest: +SKIP

    Args:
        address: The file is `model.safetensors` unless named; the revision is a branch, a tag, a commit, or a pull
            request as `refs/pr/1`.

    Raises:
        InputError: The address has another form.
        WeightsError: The repository has no such file or revision, or does not exist.
        DownloadError: The Hub cannot be reached, and the file is not in the cache; or the download failed.
    """
    repo, revision, filename = parse_address(address)
    from huggingface_hub import errors, hf_hub_download

    try:
        if reason := _why_unreachable(repo, revision, filename):
            try:
                return Path(hf_hub_download(repo, filename, revision=revision, local_files_only=True))
            except errors.LocalEntryNotFoundError:
                if isinstance(reason, errors.RepositoryNotFoundError):
                    raise reason from None
                raise DownloadError(
                    f"{address} is not in the cache, and the Hub cannot be reached: {reason_of(reason)}"
                ) from reason
        return ask(
            lambda: Path(hf_hub_download(repo, filename, revision=revision, library_name="cifarnets")),
            STALL_SECONDS,
            lambda: _cached_bytes(repo),
            is_near=True,
        )
    except DownloadError:
        raise
    except errors.LocalEntryNotFoundError as error:  # before EntryNotFoundError, which it derives from
        raise DownloadError(f"cannot download {address}: the Hub cannot be reached any more.") from error
    except errors.GatedRepoError as error:  # before RepositoryNotFoundError, which it derives from
        raise WeightsError(
            f"the Hub does not give {address} to everyone: {repo!r} is gated. Ask for access on its page, and set "
            "HF_TOKEN."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"the Hub has nothing at {address}: no repository {repo!r}, or a private one (set HF_TOKEN)."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"the Hub has nothing at {address}: {repo!r} has no revision {revision!r}.") from error
    except errors.EntryNotFoundError as error:
        raise WeightsError(f"the Hub has nothing at {address}: {repo!r} has no file {filename!r}.") from error
    except ValueError as error:  # a name that the Hub allows nobody, or a path that leads out of the repository
        raise InputError(f"{address!r} cannot be an address on the Hub: {reason_of(error)}") from error
    except Exception as error:  # the network's own: of which library depends on the version of huggingface_hub
        raise DownloadError(f"cannot download {address}: {reason_of(error)}") from error


def parse_address(address: str) -> tuple[str, str | None, str]:
    """Split an `hf://` address into repository, revision and file name.

    Examples:
        >>> from cifarnets.weights.hub import parse_address
        >>> parse_address("hf://owner/repo@refs/pr/1")
        ('owner/repo', 'refs/pr/1', 'model.safetensors')
        >>> parse_address("hf://owner/repo/nets/small.safetensors")
        ('owner/repo', None, 'nets/small.safetensors')

    Raises:
        InputError: It has another form.
    """
    found = _ADDRESS.fullmatch(address)
    if found is None or len(address) > 1000 or not address.isprintable():
        raise InputError(
            "a Hub address reads hf://owner/repo, hf://owner/repo@revision or hf://owner/repo/file, not "
            f"{brief(address)}."
        )
    owner, name, revision, filename = found.groups()
    return f"{owner}/{name}", revision or None, filename or DEFAULT_FILE


def address_of(url: str) -> str | None:
    """Return the `hf://` address of a page of the Hub; None for another web address.

    Examples:
        >>> from cifarnets.weights.hub import address_of
        >>> address_of("https://huggingface.co/owner/repo/blob/main/nets/small.safetensors")
        'hf://owner/repo@main/nets/small.safetensors'
    """
    found = _WEB_ADDRESS.fullmatch(url)
    if found is None:
        return None
    repo, revision, filename = found.groups()
    return f"{SCHEME}{repo}" + (f"@{revision}" if revision else "") + (filename or "").rstrip("/")


def _why_unreachable(repo: str, revision: str | None, filename: str) -> Exception | None:
    """Ask the Hub once for a file, and return what went wrong; None if the file is there.

    `hf_hub_download` would ask for half a minute where nobody answers, and log each attempt.
    """
    from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url, try_to_load_from_cache

    if (
        revision
        and re.fullmatch("[0-9a-f]{40}", revision)
        and try_to_load_from_cache(repo, filename, revision=revision)
    ):
        return None  # a commit never changes, so that hf_hub_download asks nobody
    url = hf_hub_url(repo, filename, revision=revision)
    try:
        ask(lambda: get_hf_file_metadata(url, timeout=ANSWER_SECONDS), ANSWER_SECONDS)
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError, ValueError):
        raise
    except Exception as error:
        return error
    return None


def ask(call: Callable[[], T], patience: float, progress: Callable[[], int] = lambda: 0, *, is_near: bool = False) -> T:
    """Make a call to the Hub, and make it again where the Hub says that it is busy or broken.

    Args:
        call: Asks the Hub.
        patience: Seconds without progress after which the call is given up.
        progress: A number that grows while the call makes progress.
        is_near: The Hub has answered just now, so a connection that breaks is worth another try.

    Raises:
        Exception: What the call raises, in the end.
        TimeoutError: It made no progress.
    """
    for pause in PAUSES:
        try:
            return _watch(call, patience, progress)
        except TimeoutError:
            raise
        except Exception as error:
            status, wanted = status_of(error), _wanted_pause(error)
            has_broken = is_near and not status and not isinstance(error, (ValueError, FileNotFoundError))
            is_passing = status == 429 or 500 <= status < 600 or has_broken
            if not is_passing or wanted > LONGEST_PAUSE:
                raise
            time.sleep(max(pause, wanted))
    return _watch(call, patience, progress)


def status_of(error: BaseException) -> int:
    """The status of the Hub's answer that an error is about; 0 if it is about none."""
    return int(getattr(getattr(_unwrapped(error), "response", None), "status_code", None) or 0)


def _wanted_pause(error: BaseException) -> float:
    """The seconds that the Hub asks to wait."""
    text = str((getattr(getattr(_unwrapped(error), "response", None), "headers", None) or {}).get("Retry-After", ""))
    return float(text) if re.fullmatch(r"\d{1,6}", text) else 0.0


def _unwrapped(error: BaseException) -> BaseException:
    """The error that huggingface_hub wraps into one that says only what was uploaded."""
    return error.__cause__ if type(error) is RuntimeError and error.__cause__ is not None else error


def _watch(call: Callable[[], T], patience: float, progress: Callable[[], int] = lambda: 0) -> T:
    """Wait for a call in a thread of its own, as long as it makes progress.

    The timeouts of network libraries are for a single byte, so that a server can keep them for ever.
    """
    outcome: list[T] = []
    failure: list[BaseException] = []
    done = threading.Event()

    def run() -> None:
        try:
            outcome.append(call())
        except BaseException as error:
            failure.append(error)
        finally:
            done.set()

    threading.Thread(target=run, name="cifarnets-hub", daemon=True).start()
    before = progress()
    while not done.wait(patience):
        now = progress()
        if now == before:
            raise TimeoutError(f"no answer within {patience:g} seconds")
        before = now
    if failure:
        raise failure[0]
    return outcome[0]


def _cached_bytes(repo: str) -> int:
    """The bytes of a repository in the cache, which grow while it is downloaded."""
    from huggingface_hub import constants

    total = 0
    for path in (Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}" / "blobs").glob("*"):
        with contextlib.suppress(OSError):  # renamed, once it is whole
            total += path.stat().st_size
    return total


def reason_of(error: BaseException) -> str:
    """What went wrong, in a line: network libraries wrap the system's own words several times."""
    error = _unwrapped(error)
    status = status_of(error)
    if status == 429:
        return (
            "the Hub has had too many requests from here (429): wait some minutes, or set HF_TOKEN, which allows more"
        )
    if 500 <= status < 600:
        return f"the Hub is out of order (status {status}): try again later"
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, OSError) and inner.strerror:
            return brief(inner.strerror, 300, quotes=False)
        inner = inner.__cause__ or inner.__context__
    line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return brief(line.strip(), 300, quotes=False)
