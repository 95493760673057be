"""Models on the Hugging Face Hub: `push` publishes one with its card, and `pull` fetches what was published."""

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cifarnets._checked import checked
from cifarnets._files import as_path, write_atomic
from cifarnets.errors import CifarNetsError, DownloadError, InputError, OutputError, UploadError, WeightsError, brief
from cifarnets.models.metadata import ModelMeta, get_meta
from cifarnets.models.storage import find_weights, load, save
from cifarnets.sharing.card import EVAL_FILE, eval_file, model_card, name_of
from cifarnets.version import __version__
from cifarnets.weights.hub import (
    ANSWER_SECONDS,
    DEFAULT_FILE,
    SCHEME,
    STALL_SECONDS,
    ask,
    fetch,
    parse_address,
    reason_of,
    status_of,
)
from cifarnets.weights.index import find_release, read_release, sha256

CARD_FILE = "README.md"
CONFIG_FILE = "config.json"

SLOWEST = 50_000
"""Bytes a second; an upload that is slower than this is given up."""


@dataclass(frozen=True)
class Pushed:
    """What `push` published.

    Examples:
        >>> from cifarnets.sharing import Pushed
        >>> Pushed("me/nets", "0f" * 20, "https://huggingface.co/me/nets", "a" * 64).address
        'hf://me/nets@0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f'

    Attributes:
        repo: The repository: `owner/name`.
        commit: The commit on the Hub that holds the files.
        url: The page of the repository.
        sha256: The SHA-256 of the weight file.
    """

    repo: str
    commit: str
    url: str
    sha256: str

    @property
    def address(self) -> str:
        """What `load` and `pull` take. It names the commit, so it means these files for ever."""
        return f"{SCHEME}{self.repo}@{self.commit}"


@checked
def push(
    model: nn.Module | str | os.PathLike[str],
    repo: str,
    *,
    revision: str | None = None,
    private: bool = False,
    license: str | None = None,  # noqa: A002 (the Hub's word)
) -> Pushed:
    """Publish a model on the Hugging Face Hub, with a card. `load("hf://owner/repo")` loads it anywhere.

    The repository is made if there is none. It then holds `model.safetensors`, `config.json` (the header of the weight
    file), the card `README.md`, and for a model that was measured on CIFAR-10 `.eval_results/cifar10.yaml`. They go
    into one commit. A second push of the same files changes nothing.

    Log in first, with `hf auth login` or the environment variable `HF_TOKEN`.

    Examples:
        >>> from cifarnets import create, load
        >>> from cifarnets.sharing import push
        >>> pushed = push(create("convnet"), "me/nets", license="mit")  # doctest: +SKIP
        >>> model = load(pushed.address, expected_sha256=pushed.sha256)  # doctest: +SKIP

    Args:
        model: A model; or a weight file, the folder of a run, or a name of released weights, whose bytes are published
            as they are.
        repo: `owner/name`.
        revision: The branch, which is made if there is none; or a pull request, as `refs/pr/1`. None means `main`.
        private: Make a new repository that only its owner can see.
        license: The licence of the weights, as the Hub abbreviates it: `"mit"`, `"cc-by-4.0"` … None takes the one in
            `model.meta`.

    Raises:
        InputError: The repository or the branch has another form of name; or `private` was asked for, and the
            repository is there and public.
        WeightsError: The model could not be loaded again, or the file cannot be read.
        UploadError: The Hub cannot be reached, or does not take the files. The message says why.
    """
    repo = _repository(repo)
    if revision is not None and not re.fullmatch(r"\w[\w./+-]{0,200}", revision, re.ASCII):
        raise InputError(f"revision must be the name of a branch, or refs/pr/1 and the like, not {brief(revision)}.")
    content, meta, card = prepare(model, repo, license)
    files = {
        DEFAULT_FILE: content,
        CONFIG_FILE: _config(meta, sha256(content)),
        CARD_FILE: card.encode(),
        EVAL_FILE: eval_file(meta),
    }
    with _explained(repo, revision):
        commit = _commit(files, repo, revision, private, f"Push {name_of(meta)} with cifarnets {__version__}")
    from huggingface_hub import constants

    return Pushed(repo, commit, f"{constants.ENDPOINT}/{repo}", sha256(content))


@checked
def pull(address: str, folder: str | os.PathLike[str] | None = None, *, expected_sha256: str | None = None) -> Path:
    """Fetch a model from the Hugging Face Hub into a folder: the weight file, and the card and tables beside it.

    Examples:
        >>> from cifarnets import load
        >>> from cifarnets.sharing import pull
        >>> model = load(pull("hf://owner/repo"))  # doctest: +SKIP

    Args:
        address: `hf://owner/repo[@revision][/file]`, or only `owner/repo`.
        folder: Made if missing. None means a folder here with the name of the repository.
        expected_sha256: The SHA-256 of the weight file, in hexadecimal. Another file is refused.

    Returns:
        The path of the weight file in the folder.

    Raises:
        WeightsError: There is nothing at the address, or no weights of this library, or not the expected ones.
        DownloadError: The Hub cannot be reached, and the file is not in the cache.
        OutputError: The folder cannot be written, or holds another file of such a name.
        InputError: The address or the SHA-256 has another form.
    """
    if not address.startswith(SCHEME):
        address = SCHEME + _repository(address)
    repo, _, filename = parse_address(address)
    folder = as_path(repo.partition("/")[2] if folder is None else folder)
    found = fetch(address)
    load(found, expected_sha256=expected_sha256)  # nothing is kept that could not be used
    commit = found.parents[filename.count("/")].name  # in the cache, files lie under their commit
    files = {filename: found.read_bytes()}
    for name in (CONFIG_FILE, CARD_FILE, EVAL_FILE):
        with contextlib.suppress(WeightsError, DownloadError):  # not every repository has them, nor every cache
            files[name] = fetch(f"{SCHEME}{repo}@{commit}/{name}").read_bytes()
    for name, content in files.items():
        path = folder / name
        if path.exists() and not (path.is_file() and path.read_bytes() == content):
            raise OutputError(f"{str(path)!r} is there already, and another file: name another folder.")
    for name, content in files.items():
        write_atomic(folder / name, content)
    return folder / filename


def _repository(repo: str) -> str:
    """A repository as `owner/name`; its `hf://` address will do."""
    found = repo.removeprefix(SCHEME)
    if not re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", found, re.ASCII):
        raise InputError(f"a repository on the Hub reads owner/name, not {brief(repo)}.")
    return found


def prepare(model: nn.Module | str | os.PathLike[str], repo: str, licence: str | None) -> tuple[bytes, ModelMeta, str]:
    """The weight file to publish, what is known of the model, and its card."""
    if isinstance(model, nn.Module):
        with tempfile.TemporaryDirectory() as folder:
            content = save(model, Path(folder) / DEFAULT_FILE).read_bytes()
    elif isinstance(model, str) and (release := find_release(model)):
        content = read_release(release)
    elif isinstance(model, str) and model.startswith(SCHEME):
        content = fetch(model).read_bytes()
    else:
        try:
            content = find_weights(model).read_bytes()
        except OSError as error:
            raise WeightsError(f"cannot read {brief(str(model))}: {error.strerror or error}.") from error
    digest = sha256(content)
    whole = model if isinstance(model, nn.Module) else load(model, expected_sha256=digest)
    meta = get_meta(whole)
    assert meta is not None  # save and load take registered models only
    return content, meta, str(model_card(whole, repo, license=licence, sha256=digest))


def _config(meta: ModelMeta, digest: str) -> bytes:
    """The header of the weight file as JSON, for those who want to know it before they download."""
    facts = {"library_name": "cifarnets", "cifarnets": __version__, "sha256": digest, **vars(meta)}
    return (json.dumps(facts, indent=2) + "\n").encode()


def _commit(files: dict[str, bytes | None], repo: str, revision: str | None, private: bool, message: str) -> str:
    """Put files into one commit of a repository, which is made if there is none; a file that is None is removed."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="cifarnets", library_version=__version__)
    ask(lambda: api.create_repo(repo, private=private, exist_ok=True), STALL_SECONDS)
    if private and not ask(lambda: api.repo_info(repo), ANSWER_SECONDS).private:
        raise InputError(f"{repo!r} is there already, and public, so private=True cannot hide the model: name another.")
    if revision is not None and not revision.startswith("refs/"):
        ask(lambda: api.create_branch(repo, branch=revision, exist_ok=True), STALL_SECONDS)
    changes: list[Any] = []
    for name, content in files.items():
        if content is not None:
            changes.append(CommitOperationAdd(name, content))
        elif ask(lambda name=name: api.file_exists(repo, name, revision=revision), ANSWER_SECONDS):  # type: ignore[misc]
            changes.append(CommitOperationDelete(name))  # of another model
    size = sum(len(content) for content in files.values() if content is not None)
    # Where an earlier try has arrived, though its answer was lost, the client sees that there is nothing to change.
    done = ask(
        lambda: api.create_commit(repo, changes, commit_message=message, revision=revision),
        STALL_SECONDS + size / SLOWEST,
    )
    return done.oid


@contextlib.contextmanager
def _explained(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of huggingface_hub into those of this library."""
    from huggingface_hub import errors

    try:
        yield
    except CifarNetsError:
        raise
    except errors.HFValidationError as error:
        raise InputError(f"{repo!r} cannot be a repository on the Hub: {reason_of(error)}") from error
    except Exception as error:
        status = status_of(error)
        if isinstance(error, errors.RevisionNotFoundError):
            reason = f"it has no revision {revision!r}."
        elif status == 401:
            reason = (
                "the Hub does not know you: log in with `hf auth login`, or set HF_TOKEN to a token that may write."
            )
        elif status == 403:
            reason = "your token may not write there: choose another owner, or a token with the right to write."
        elif isinstance(error, json.JSONDecodeError):
            reason = "what answers is not the Hub: look at HF_ENDPOINT, and at your proxy."
        elif isinstance(error, ValueError) and not status:  # the Hub's answer about the card, in several lines
            reason = brief(" ".join(str(error).split()), 600, quotes=False)
        else:
            reason = reason_of(error)
        raise UploadError(f"cannot push to {repo!r}: {reason}") from error
