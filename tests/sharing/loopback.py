"""A small Hub on the loopback: what huggingface_hub asks to create, commit, describe and resolve; and faults."""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml
from huggingface_hub import constants, file_download

TOKENS = {"hf_me": "me", "hf_other": "other"}
LICENSES = {"mit", "apache-2.0", "cc-by-4.0", "unknown", "other"}


@dataclass
class Repo:
    """Commits by name, each with its files; and what the branches mean."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {".gitattributes": b""}})
    refs: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})


@dataclass
class Hub:
    """The repositories, what was asked for, and what is to go wrong: what is asked, how, and how many times."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    faults: list[list[Any]] = field(default_factory=list)

    def fail(self, pattern: str, how: int | str, times: int = 1000) -> None:
        """Let what matches `METHOD /path` go wrong: a status, or cut, html, drop."""
        self.faults.append([pattern, how, times])

    def fault(self, line: str) -> int | str | None:
        for fault in self.faults:
            if fault[2] and re.search(fault[0], line):
                fault[2] -= 1
                how: int | str = fault[1]
                return how
        return None

    def put(self, repo: str, files: dict[str, bytes], *, gated: bool = False, private: bool = False) -> str:
        """Publish files without a dialogue."""
        found = self.repos.setdefault(repo, Repo())
        found.gated, found.private = gated, private
        return commit(found, "main", files, ())

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        found = self.repos[repo]
        return found.commits[found.refs.get(revision, revision)]


def commit(repo: Repo, branch: str, added: dict[str, bytes], deleted: Sequence[str]) -> str:
    files = {name: content for name, content in repo.commits[repo.refs[branch]].items() if name not in deleted}
    name = hashlib.sha1(f"{len(repo.commits)} {sorted(added)}".encode()).hexdigest()
    repo.commits[name] = {**files, **added}
    repo.refs[branch] = name
    return name


def blob(content: bytes) -> str:
    """The name that git has for a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.answer()

    do_GET = do_POST = do_PUT = do_HEAD

    def answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.chunks()
        path = unquote(self.path.partition("?")[0])
        line = f"{self.command} {path}"
        self.hub.asked.append(line)
        how = self.hub.fault(line)
        if how == "drop":
            self.close_connection = True
        elif how == "html":
            self.reply(200, b"<!DOCTYPE html><html><body>Please log in to the network</body></html>", {"ETag": '"web"'})
        elif isinstance(how, int):
            how_long = "3600" if self.hub.fault(line) else "1"
            self.reply(how, b'{"error": "not now"}', {"Retry-After": how_long} if how == 429 else {})
        else:
            self.route(path, cut=how == "cut")

    def chunks(self) -> bytes:
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def route(self, path: str, cut: bool) -> None:
        for pattern, method in {
            r"/api/repos/create": self.create,
            r"/api/validate-yaml": self.validate,
            r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?": self.describe,
            r"/api/models/([^/]+/[^/]+)/branch/(.+)": self.branch,
            r"/api/models/([^/]+/[^/]+)/preupload/(.+)": self.preupload,
            r"/api/models/([^/]+/[^/]+)/commit/(.+)": self.commit,
            r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch": self.batch,
            r"/lfs/([^/]+/[^/]+)/(\w+)": self.store,
            r"/verify/([^/]+/[^/]+)": self.verify,
            r"/([^/]+/[^/]+)/resolve/((?:refs/pr/)?[^/]+)/(.+)": self.resolve,
            r"/cdn/([^/]+/[^/]+)/(\w+)": lambda repo, oid: self.deliver(self.hub.stored[oid], oid, {}, cut=cut),
        }.items():
            if found := re.fullmatch(pattern, path):
                return method(*found.groups())  # type: ignore[operator]
        return self.json(404, {"error": f"no such page: {path}"})

    # --- who, and what of

    def user(self) -> str | None:
        return TOKENS.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def may_write(self, repo: str) -> bool:
        if self.user() is None:
            self.json(401, {"error": "Invalid username or password."})
        elif self.user() != repo.partition("/")[0]:
            self.json(403, {"error": "You don't have the rights to create a model under this namespace"})
        return self.user() == repo.partition("/")[0]

    def visible(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.user() != name.partition("/")[0]):
            self.fail(404 if self.user() else 401, "RepoNotFound")
            return None
        return repo

    # --- pages

    def create(self) -> None:
        wanted = json.loads(self.body)
        repo = f"{wanted['organization']}/{wanted['name']}"
        if not self.may_write(repo):
            return
        made = repo not in self.hub.repos
        if made:
            self.hub.repos[repo] = Repo(wanted.get("private") is True or wanted.get("visibility") == "private")
        self.json(200 if made else 409, {"url": f"{self.hub.url}/{repo}", **({} if made else {"error": "is there"})})

    def validate(self) -> None:
        data = yaml.safe_load(json.loads(self.body)["content"].split("---\n")[1])
        errors = [f'"license" must be one of {sorted(LICENSES)}'] if data.get("license") not in LICENSES else []
        errors += [f'"{key}" must be a string' for key in ("library_name", "pipeline_tag") if key not in data]
        results = [result for entry in data.get("model-index", []) for result in entry["results"]]
        if not all({"task", "dataset", "metrics"} <= result.keys() for result in results):
            errors.append('"model-index" is incomplete')
        self.json(400 if errors else 200, {"errors": [{"message": error} for error in errors], "warnings": []})

    def describe(self, name: str, revision: str | None) -> None:
        if (repo := self.visible(name)) is None:
            return
        sha = repo.refs.get(revision or "main", revision)
        if sha not in repo.commits:
            self.fail(404, "RevisionNotFound")
            return
        files = [{"rfilename": path} for path in repo.commits[str(sha)]]
        self.json(200, {"_id": "1", "id": name, "sha": sha, "private": repo.private, "tags": [], "siblings": files})

    def branch(self, name: str, branch: str) -> None:
        if not self.may_write(name):
            return
        refs = self.hub.repos[name].refs
        known = branch in refs
        refs.setdefault(branch, refs["main"])
        self.json(409 if known else 201, {"error": "Reference already exists"} if known else {})

    def preupload(self, name: str, revision: str) -> None:
        if not self.may_write(name) or (repo := self.visible(name)) is None:
            return
        if revision not in repo.refs:
            self.fail(404, "RevisionNotFound")
            return
        before = self.hub.files(name, revision)
        answers = []
        for file in json.loads(self.body)["files"]:
            path, answer = file["path"], {"path": file["path"], "shouldIgnore": False}
            answer["uploadMode"] = "lfs" if is_large(path) else "regular"
            if path in before:
                old = before[path]
                answer["oid"] = hashlib.sha256(old).hexdigest() if is_large(path) else blob(old)
            answers.append(answer)
        self.json(200, {"files": answers})

    def batch(self, name: str) -> None:
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            links = {
                "upload": {"href": f"{self.hub.url}/lfs/{name}/{wanted['oid']}"},
                "verify": {"href": f"{self.hub.url}/verify/{name}"},
            }
            objects.append({**wanted, **({} if wanted["oid"] in self.hub.stored else {"actions": links})})
        self.json(200, {"transfer": "basic", "objects": objects})

    def store(self, name: str, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.json(400, {"error": "not the announced bytes"})
        self.hub.stored[oid] = self.body
        return self.reply(200, b"", {})

    def verify(self, name: str) -> None:
        wanted = json.loads(self.body)
        right = len(self.hub.stored.get(wanted["oid"], b"")) == wanted["size"]
        self.json(200 if right else 404, {})

    def commit(self, name: str, revision: str) -> None:
        if not self.may_write(name):
            return
        added, deleted = {}, []
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                added[value["path"]] = self.hub.stored[value["oid"]]
            elif entry["key"] == "deletedFile":
                deleted.append(value["path"])
        oid = commit(self.hub.repos[name], revision, added, deleted)
        self.json(200, {"success": True, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}", "commitOid": oid})

    def resolve(self, name: str, revision: str, path: str) -> None:
        if (repo := self.visible(name)) is None:
            return
        if repo.gated:
            self.fail(403, "GatedRepo")
            return
        sha = repo.refs.get(revision, revision)
        if sha not in repo.commits:
            self.fail(404, "RevisionNotFound")
            return
        content = repo.commits[sha].get(path)
        if content is None:
            self.fail(404, "EntryNotFound")
            return
        oid = hashlib.sha256(content).hexdigest()
        if is_large(path):  # lies elsewhere, as on the Hub
            self.hub.stored[oid] = content
            linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{oid}"', "X-Repo-Commit": sha}
            elsewhere = self.hub.url.replace("127.0.0.1", "localhost")
            self.reply(302, b"", {"Location": f"{elsewhere}/cdn/{name}/{oid}", **linked})
        else:
            self.deliver(content, blob(content), {"X-Repo-Commit": sha})

    def deliver(self, content: bytes, etag: str, headers: Mapping[str, str], *, cut: bool = False) -> None:
        start = int((re.match(r"bytes=(\d+)-", self.headers.get("Range", "")) or [0, 0])[1])
        part = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        self.reply(206 if start else 200, content[start:], {"ETag": f'"{etag}"', **part, **headers}, cut=cut)

    # --- answers

    def fail(self, status: int, code: str) -> None:
        self.reply(status, b"", {"X-Error-Code": code, "X-Error-Message": code})

    def json(self, status: int, content: Any) -> None:
        self.reply(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, content: bytes, headers: Mapping[str, str], *, cut: bool = False) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection = self.close_connection or cut

    def log_message(self, *args: object) -> None:
        pass


@contextlib.contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def published(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[Hub]:
    """A Hub for this very process, and a token for `me`."""
    with serving(Hub()) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (constants, file_download):  # earlier versions have a copy there
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "hub-cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
        monkeypatch.setenv("HF_TOKEN", "hf_me")
        monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        with warnings.catch_warnings():
            # How huggingface_hub uploads a file is deprecated by the network library beneath it.
            warnings.filterwarnings("ignore", "Use 'content=", DeprecationWarning)
            yield hub


# huggingface_hub reads its environment when it is imported, so each set of steps has a process of its own. What waits
# between two tries does not wait here.
PROGRAM = """
import hashlib, json, os, sys, time
from pathlib import Path
import torch
import cifarnets
from cifarnets import create, load
from cifarnets.sharing import model_card, pull, push

torch.set_num_threads(1)
time.sleep = lambda seconds: None

def logits(model):
    images = torch.linspace(-2, 2, 4 * 3072).view(4, 3, 32, 32)
    with torch.no_grad():
        return hashlib.sha256(model.eval()(images).numpy().tobytes()).hexdigest()

results = {}
for step in json.loads(sys.stdin.read()):
    try:
        results[step] = eval(step)
    except Exception as error:
        results[step] = {"error": type(error).__name__, "message": str(error)}
sys.stdout.write("\\n" + json.dumps(results, default=vars))
"""

Results = dict[str, Any]


def run(url: str, home: Path, steps: Sequence[str], **environment: str) -> Results:
    """What the steps, which are expressions, give in a new process that knows this Hub only."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    settings = {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_XET": "1",  # its storage speaks no HTTP that one could imitate
        "no_proxy": "127.0.0.1,localhost",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        input=json.dumps(steps),
        env={**clean, **settings, **environment},
        cwd=home.parent,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: Results = json.loads(done.stdout.splitlines()[-1])
    return found
