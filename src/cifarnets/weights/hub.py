"""Weights on the Hugging Face Hub: an address in, a local file out."""

from pathlib import Path

from cifarnets.errors import DownloadError, InputError, WeightsError

SCHEME = "hf://"
DEFAULT_FILE = "model.safetensors"


def fetch(address: str) -> Path:
    """The local path of `hf://owner/repo[@revision][/file]`, downloaded once and cached.

    Everything that `huggingface_hub` understands applies: `HF_HOME`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_HUB_OFFLINE`.

    Args:
        address: The file is `model.safetensors` unless named; the revision is a branch, tag or commit.

    Raises:
        InputError: The address is not of that form.
        WeightsError: The repository has no such file or revision, or does not exist.
        DownloadError: The Hub cannot be reached, and the file is not in the cache.
    """
    repo, revision, filename = parse_address(address)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        return Path(hf_hub_download(repo, filename, revision=revision, library_name="cifarnets"))
    except LocalEntryNotFoundError as error:  # before EntryNotFoundError, which it derives from
        raise DownloadError(
            f"{address} is not in the cache, and the Hub cannot be reached (offline, or HF_HUB_OFFLINE is set)."
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"the Hub has nothing at {address}: no repository {repo!r}, or a private one (set HF_TOKEN)."
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"the Hub has nothing at {address}: {repo!r} has no revision {revision!r}.") from error
    except EntryNotFoundError as error:
        raise WeightsError(f"the Hub has nothing at {address}: {repo!r} has no file {filename!r}.") from error
    except ValueError as error:  # a name that the Hub allows nobody, or a path that leads out of the repository
        raise InputError(f"{address!r} cannot be an address on the Hub: {_first_line(error)}") from error
    except Exception as error:  # the network's own: of which library depends on the version of huggingface_hub
        raise DownloadError(f"cannot download {address}: {_first_line(error)}") from error


def parse_address(address: str) -> tuple[str, str | None, str]:
    """`(repo, revision, filename)` of an `hf://` address.

    Raises:
        InputError: It has another form.
    """
    owner, _, rest = address.removeprefix(SCHEME).partition("/")
    name, _, filename = rest.partition("/")
    name, _, revision = name.partition("@")
    if not address.startswith(SCHEME) or not owner or not name:
        raise InputError(
            f"a Hub address reads hf://owner/repo, hf://owner/repo@revision or hf://owner/repo/file, not {address!r}."
        )
    return f"{owner}/{name}", revision or None, filename or DEFAULT_FILE


def _first_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
