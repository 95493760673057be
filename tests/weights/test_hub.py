"""Weights from the Hub: the real `huggingface_hub` against a small server on the loopback."""

import contextlib
import errno
import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors as hub_errors
from hypothesis import given
from hypothesis import strategies as st

import cifarnets
from cifarnets.errors import DownloadError, InputError, WeightsError
from cifarnets.weights import hub

COMMITS = {"main": "1" * 40, "v1": "2" * 40}


# --- addresses

owners = st.from_regex(r"[A-Za-z0-9._-]+", fullmatch=True)
revisions = st.from_regex(r"[A-Za-z0-9._-]+", fullmatch=True)
paths = st.lists(st.from_regex(r"[A-Za-z0-9._@ -]+", fullmatch=True), min_size=1, max_size=3).map("/".join)


@given(owners, owners, st.none() | revisions, st.none() | paths)
def test_an_address_is_taken_apart(owner: str, name: str, revision: str | None, path: str | None) -> None:
    address = f"hf://{owner}/{name}" + (f"@{revision}" if revision else "") + (f"/{path}" if path else "")
    assert hub.parse_address(address) == (f"{owner}/{name}", revision, path or "model.safetensors")


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("hf://o/r@refs/pr/1", ("o/r", "refs/pr/1", "model.safetensors")),
        ("hf://o/r@refs/pr/1/nets/a.safetensors", ("o/r", "refs/pr/1", "nets/a.safetensors")),
        ("hf://o/r@refs/convert/parquet/a", ("o/r", "refs/convert/parquet", "a")),
    ],
)
def test_a_pull_request_is_a_revision(address: str, parts: tuple[str, str, str]) -> None:
    assert hub.parse_address(address) == parts


def test_what_is_left_open_is_the_default() -> None:
    assert hub.parse_address("hf://owner/repo@/") == ("owner/repo", None, "model.safetensors")


@pytest.mark.parametrize(
    "address", ["", "hf://", "hf://owner", "hf://owner/", "hf:///repo", "hf://owner/@v1", "owner/repo", "hf:owner/repo"]
)
def test_another_form_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"reads hf://owner/repo, hf://owner/repo@revision or .*, not '") as info:
        hub.fetch(address)
    assert str(info.value).endswith(f"not {address!r}.")


# --- the Hub


@dataclass
class Hub:
    """Files by commit and path of the one repository, `me/nets`; and what was asked for. It cuts `cut.safetensors`."""

    files: dict[tuple[str, str], bytes]
    asked: list[str] = field(default_factory=list)
    url: str = ""


def handler_of(served: Hub) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            served.asked.append(f"{self.command} {self.path}")
            repo, _, rest = self.path.partition("/resolve/")
            revision, _, path = rest.partition("/")
            commit = COMMITS.get(revision, revision)
            if repo != "/me/nets":
                return self.fail("RepoNotFound")
            if commit not in COMMITS.values():
                return self.fail("RevisionNotFound")
            content = served.files.get((commit, path))
            if content is None:
                return self.fail("EntryNotFound")
            self.send_response(200)
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body and path == "cut.safetensors":
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            elif body:
                self.wfile.write(content)
            return None

        def fail(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    return Handler


# huggingface_hub reads its environment when it is imported, so that each case needs a process of its own. It tries
# again and again where nobody answers, and waits half a minute in all between the tries: here it does not wait.
PROGRAM = """
import json, os, sys, time
import cifarnets
from cifarnets.weights import hub
hub.ANSWER_SECONDS, hub.STALL_SECONDS = (float(text) for text in os.environ.get("LIMITS", "8 30").split())
if "LIMITS" not in os.environ:
    time.sleep = lambda seconds: None
results = {}
for address in json.loads(sys.argv[1]):
    start = time.perf_counter()
    try:
        model = cifarnets.load(address)
        results[address] = {"sum": sum(tensor.double().sum().item() for tensor in model.state_dict().values())}
    except Exception as error:
        results[address] = {"error": type(error).__name__, "message": str(error)}
        if "LIMITS" in os.environ:
            results[address]["seconds"] = time.perf_counter() - start
print(json.dumps(results))
"""

Results = dict[str, dict[str, Any]]


class Process:
    """A process that loads addresses, in order, with a cache folder and a Hub of its own."""

    def __init__(self, endpoint: str, cache: Path, addresses: list[str], **environment: str) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(cache),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "no_proxy": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(addresses)],
            env={**clean, **settings, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def results(self) -> Results:
        out, self.noise = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, self.noise
        results: Results = json.loads(out)
        return results


@dataclass
class Story:
    """What came of loading: while the Hub was there, and afterwards from the same cache without it."""

    served: Hub
    sums: dict[str, float]
    online: Results
    offline: Results
    unreachable: Results


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("hub")
    files, sums = {}, {}
    for commit, path, classes in [
        ("main", "model.safetensors", 3),
        ("main", "nets/small.safetensors", 4),
        ("v1", "model.safetensors", 5),
    ]:
        model = cifarnets.models.create("convnet", num_classes=classes)
        content = cifarnets.save(model, folder / "model.safetensors").read_bytes()
        files[COMMITS[commit], path] = content
        sums[f"{commit} {path}"] = sum(tensor.double().sum().item() for tensor in model.state_dict().values())
    files[COMMITS["main"], "cut.safetensors"] = b"x" * 1000
    files[COMMITS["main"], "notes.txt"] = b"no weights at all"
    served = Hub(files)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler_of(served))
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    cache = folder / "cache"
    try:
        online = Process(
            served.url,
            cache,
            [
                "hf://me/nets",
                "hf://me/nets@v1",
                f"hf://me/nets@{COMMITS['v1']}/model.safetensors",
                "hf://me/nets/nets/small.safetensors",
                "hf://me/nets/notes.txt",
                "hf://me/nets/cut.safetensors",
                "hf://me/nobody",
                "hf://me/nets@v9",
                "hf://me/nets/absent.safetensors",
                "hf://m e/nets",
                "hf://me/nets/../../../etc/passwd",
            ],
        ).results()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    cached_or_not = ["hf://me/nets", "hf://me/nets@v1", "hf://me/nets/other.safetensors", "hf://me/nobody"]
    offline = Process(served.url, cache, cached_or_not, HF_HUB_OFFLINE="1")
    unreachable = Process(served.url, cache, cached_or_not)
    return Story(served, sums, online, offline.results(), unreachable.results())


def test_loads_what_was_published(story: Story) -> None:
    assert story.online["hf://me/nets"] == {"sum": story.sums["main model.safetensors"]}


def test_a_revision_may_be_named(story: Story) -> None:
    for revision in ("v1", COMMITS["v1"] + "/model.safetensors"):
        assert story.online[f"hf://me/nets@{revision}"]["sum"] == story.sums["v1 model.safetensors"]


def test_a_file_may_be_named(story: Story) -> None:
    found = story.online["hf://me/nets/nets/small.safetensors"]
    assert found["sum"] == story.sums["main nets/small.safetensors"]


def test_each_file_is_fetched_once(story: Story) -> None:
    fetched = [request for request in story.served.asked if request.startswith("GET ") and "cut" not in request]
    assert len(fetched) == len(set(fetched))
    assert sum(COMMITS["v1"] in request or "/v1/" in request for request in fetched) == 1


@pytest.mark.parametrize("way", ["offline", "unreachable"])
def test_the_second_time_it_comes_from_the_cache(story: Story, way: str) -> None:
    results: Results = getattr(story, way)
    for address in ("hf://me/nets", "hf://me/nets@v1"):
        assert results[address] == story.online[address]


@pytest.mark.parametrize("way", ["offline", "unreachable"])
@pytest.mark.parametrize("address", ["hf://me/nets/other.safetensors", "hf://me/nobody"])
def test_without_the_hub_and_without_a_copy(story: Story, way: str, address: str) -> None:
    found = getattr(story, way)[address]
    assert found == {
        "error": "DownloadError",
        "message": found["message"],
    }
    assert found["message"].startswith(f"{address} is not in the cache, and the Hub cannot be reached: ")
    assert {"offline": "HF_HUB_OFFLINE", "unreachable": "refused"}[way] in found["message"]
    assert "\n" not in found["message"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("hf://me/nobody", "no repository 'me/nobody', or a private one (set HF_TOKEN)."),
        ("hf://me/nets@v9", "'me/nets' has no revision 'v9'."),
        ("hf://me/nets/absent.safetensors", "'me/nets' has no file 'absent.safetensors'."),
    ],
)
def test_what_the_hub_does_not_have(story: Story, address: str, reason: str) -> None:
    message = f"the Hub has nothing at {address}: {reason}"
    assert story.online[address] == {"error": "WeightsError", "message": message}


@pytest.mark.parametrize("address", ["hf://m e/nets", "hf://me/nets/../../../etc/passwd"])
def test_what_no_hub_can_have(story: Story, address: str) -> None:
    found = story.online[address]
    assert (found["error"], found["message"].partition(":")[0]) == ("InputError", "'hf")


def test_a_file_that_holds_no_weights(story: Story) -> None:
    found = story.online["hf://me/nets/notes.txt"]
    assert found["error"] == "WeightsError"
    assert "is not a whole safetensors file" in found["message"]


def test_a_connection_that_is_always_cut(story: Story) -> None:
    found = story.online["hf://me/nets/cut.safetensors"]
    assert found["error"] == "DownloadError"
    assert found["message"].startswith("cannot download hf://me/nets/cut.safetensors: ")


# --- a Hub that is away, or never ends its answer


def test_a_hub_that_is_away_is_left_at_once_and_without_noise(tmp_path: Path) -> None:
    process = Process("http://127.0.0.1:9", tmp_path, ["hf://me/nets"], LIMITS="8 30")
    found = process.results()["hf://me/nets"]
    assert found["error"] == "DownloadError"
    assert "refused" in found["message"]
    assert found["seconds"] < 20  # huggingface_hub alone takes 23 s
    assert process.noise == ""


class Endless(http.server.BaseHTTPRequestHandler):
    """Answers the question for `trickle` and `continue` without end, and the download of `stall` with one byte."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        if "stall" not in self.path:
            return self.go_on(b"HTTP/1.1 100 Continue\r\n\r\n" if "continue" in self.path else b"H")
        self.send_response(200)
        self.send_header("X-Repo-Commit", COMMITS["main"])
        self.send_header("ETag", '"abc"')
        self.send_header("Content-Length", "1000")
        return self.end_headers()

    def do_GET(self) -> None:
        self.do_HEAD()
        self.wfile.write(b"x")
        self.go_on(b"")

    def go_on(self, content: bytes) -> None:
        with contextlib.suppress(OSError):
            while not self.server.over.wait(0.2):  # type: ignore[attr-defined]
                self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass


def test_an_answer_that_never_ends_is_left(tmp_path: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    server.over = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    addresses = ["hf://me/trickle", "hf://me/continue", "hf://me/stall"]
    try:
        results = Process(f"http://127.0.0.1:{server.server_port}", tmp_path, addresses, LIMITS="1.5 1.5").results()
    finally:
        server.over.set()  # type: ignore[attr-defined]
        server.shutdown()
        server.server_close()
        thread.join()
    for address in addresses:
        assert results[address]["error"] == "DownloadError"
        assert "no answer within 1.5 seconds" in results[address]["message"]
        assert results[address]["seconds"] < 45


# --- errors of huggingface_hub, told apart


class NetworkError(Exception):
    """As those of the network libraries are: of no class that cifarnets could name."""


def answered(kind: type[Exception]) -> Exception:
    """An error of the server, whose `__init__` wants an answer of whichever network library is in use."""
    return kind.__new__(kind, "404")


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (answered(hub_errors.RepositoryNotFoundError), WeightsError, "nothing at hf://me/nets: no repository"),
        (answered(hub_errors.GatedRepoError), WeightsError, "'me/nets' is gated. Ask for access on its page"),
        (answered(hub_errors.RevisionNotFoundError), WeightsError, "nothing at hf://me/nets: .*no revision"),
        (answered(hub_errors.HfHubHTTPError), DownloadError, "cannot download hf://me/nets: "),
        (hub_errors.LocalEntryNotFoundError("away"), DownloadError, "cannot be reached any more"),
        (hub_errors.EntryNotFoundError("404\n\nlong"), WeightsError, "nothing at hf://me/nets: .*no file"),
        (hub_errors.HFValidationError("bad name"), InputError, "cannot be an address on the Hub: bad name$"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            DownloadError,
            "cannot download .*No space left",
        ),
        (NetworkError("\n\nthe connection broke\nand more"), DownloadError, "me/nets: the connection broke$"),
        (NetworkError(), DownloadError, "cannot download hf://me/nets: NetworkError$"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_becomes_one_of_ours(
    raised: Exception, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*args: object, **options: object) -> str:
        raise raised

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    monkeypatch.setattr(hub, "PAUSES", ())
    with pytest.raises(error, match=message) as info:
        hub.fetch("hf://me/nets")
    assert info.value.__cause__ is raised


def test_what_is_asked_of_huggingface_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[Any, ...]] = []

    def download(repo: str, filename: str, *, revision: str | None, library_name: str) -> str:
        asked.append((repo, filename, revision, library_name))
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", lambda url, timeout: None)
    assert hub.fetch("hf://me/nets@v1") == tmp_path / "model.safetensors"
    assert asked == [("me/nets", "model.safetensors", "v1", "cifarnets")]
