"""`load` believes nothing of a header that is not of its type, and says what a path or an address lacks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save as to_safetensors
from torch.nn.utils import parametrizations, prune

import cifarnets
from cifarnets import load, models, predict, save
from cifarnets.errors import CifarNetsError, InputError, WeightsError
from cifarnets.weights import index
from cifarnets.weights.files import write_weights


def old_header(model: Any) -> dict[str, Any]:
    """The header of a file from before there were digests; a file with any other entry must have one."""
    return {key: value for key, value in vars(model.meta).items() if key not in ("size", "provenance")}


def small(**config: Any) -> torch.nn.Module:
    return models.create("convnet", widths=(2, 2), hidden=2, num_classes=3, **config)


def write(path: Path, model: torch.nn.Module, **entries: Any) -> Path:
    """A file without a digest, as of an earlier version, whose header may lie."""
    header = {**old_header(model), **entries}
    texts = {key: json.dumps(value) for key, value in header.items()}
    path.write_bytes(to_safetensors(dict(model.state_dict()), {"format": "pt", "cifarnets": "0.1.0", **texts}))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


# --- the header


def test_a_file_of_an_earlier_version_is_read(path: Path) -> None:
    assert load(write(path, small(), classes=["a", "b", "c"])).meta.classes == ("a", "b", "c")


@pytest.mark.parametrize(
    "entries",
    [
        {"mean": "123", "std": "123"},
        {"mean": {"1": 0, "2": 0, "3": 0}},
        {"mean": [True, True, True]},
        {"mean": [0.5, 0.5, float("inf")]},
        {"mean": [0.5, 0.5, None]},
        {"mean": [0.5] * 3, "std": None},
        {"mean": [], "std": []},
        {"mean": [0.5] * 3, "std": [1, 1, 0]},
        {"classes": "abc"},
        {"classes": {"a": 1, "b": 2, "c": 3}},
        {"classes": [1, 2, 3]},
        {"classes": []},
        {"classes": ["a", "b", "\x1b]0;taken\x07"]},
        {"classes": ["x" * 100] * 100_000},
        {"architecture": ["convnet"]},
        {"architecture": "\x1b[31m"},
        {"config": "convnet"},
        {"config": {"hidden": 10**300}},
        {"config": {"widths": [2] * 100_000}},
        {"training": [["a", 1]]},
        {"results": "none"},
    ],
    ids=lambda entries: str(entries)[:40],
)
def test_entries_of_another_kind_are_refused(entries: dict[str, Any], path: Path) -> None:
    write(path, small(), **entries)
    with pytest.raises(WeightsError) as info:
        load(path)
    message = str(info.value)
    assert path.name in message
    assert len(message) < 1500
    assert message.isprintable()


def test_classes_with_control_characters_are_not_saved(path: Path) -> None:
    model = small()
    models.annotate(model, classes=["a", "b", "c\x07"])
    with pytest.raises(WeightsError, match="without control characters"):
        save(model, path)
    assert not path.exists()


# --- dtypes


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("conv1.bias", torch.float64),
        ("conv1.bias", torch.bfloat16),
        ("fc1.weight", torch.float8_e4m3fn),
        ("fc1.weight", torch.int64),
    ],
)
def test_tensors_that_a_model_cannot_compute_with(name: str, dtype: torch.dtype, path: Path) -> None:
    model = small()
    state = {key: value.to(dtype) if key == name else value for key, value in model.state_dict().items()}
    texts = {key: json.dumps(value) for key, value in old_header(model).items()}
    path.write_bytes(to_safetensors(state, {"cifarnets": "0.1.0", **texts}))
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        load(path)


def test_a_model_that_is_float8_whole_is_refused(path: Path) -> None:
    model = small()
    state = {key: value.to(torch.float8_e5m2) for key, value in model.state_dict().items()}
    texts = {key: json.dumps(value) for key, value in old_header(model).items()}
    path.write_bytes(to_safetensors(state, {"cifarnets": "0.1.0", **texts}))
    with pytest.raises(WeightsError, match=r"conv1\.bias is torch\.float8_e5m2 instead of torch\.float32"):
        load(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_what_is_loaded_computes(dtype: torch.dtype, path: Path) -> None:
    model = load(save(small().to(dtype), path))
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert len(predict(model, torch.zeros(3, 32, 32), mean=[0] * 3, std=[1] * 3, device="cpu")) == 1


# --- paths and addresses


def test_the_folder_of_a_run_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(small(), tmp_path / "run" / "model.safetensors")
    assert load(tmp_path / "run").meta.architecture == "convnet"
    monkeypatch.chdir(tmp_path)
    assert load("./run").meta.architecture == "convnet"


def test_another_folder_says_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no model\.safetensors; the folder of a finished run has one"):
        load(tmp_path)
    save(small(), tmp_path / "best.safetensors")
    with pytest.raises(WeightsError, match=r"has no model\.safetensors; name one of its files: best\.safetensors"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("https://huggingface.co/owner/repo", "'hf://owner/repo'"),
        ("https://huggingface.co/owner/repo/", "'hf://owner/repo'"),
        ("https://hf.co/owner/repo/tree/v1", "'hf://owner/repo@v1'"),
        (
            "https://huggingface.co/owner/repo/resolve/main/a/b.safetensors?download=true",
            "'hf://owner/repo@main/a/b.safe",
        ),
        ("http://example.com/model.safetensors", "download the file"),
    ],
)
def test_a_web_address_is_answered_with_what_to_write(url: str, hint: str) -> None:
    with pytest.raises(InputError) as info:
        load(url)
    assert url in str(info.value)
    assert hint in str(info.value)


@pytest.mark.parametrize("source", [None, 5, b"model", ["model"], object()])
def test_what_is_no_path_is_refused(source: Any) -> None:
    with pytest.raises(CifarNetsError):
        load(source)


# --- released weights


class OpenedOnce:
    """A folder whose files become others once they were opened."""

    def __init__(self, folder: Any, opened: bool = False) -> None:
        self.folder, self.opened = folder, opened

    def __truediv__(self, name: str) -> "OpenedOnce":
        return OpenedOnce(self.folder / name)

    def open(self, mode: str) -> Any:
        assert not self.opened, "a file that was checked was opened again"
        self.opened = True
        return self.folder.open(mode)

    def read_text(self, encoding: str) -> str:
        return str(self.folder.read_text(encoding=encoding))


def test_the_bytes_that_were_checked_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "FOLDER", OpenedOnce(index.FOLDER))
    index.releases.cache_clear()
    assert load("convnet.cifar3").meta.classes == ("airplane", "automobile", "ship")
    index.releases.cache_clear()


# --- models that torch's tools have changed


def pruned(model: Any) -> None:
    prune.l1_unstructured(model.conv1, "weight", 0.5)


def weight_normed(model: Any) -> None:
    parametrizations.weight_norm(model.fc1)


@pytest.mark.parametrize(
    ("change", "advice"), [(pruned, r"prune\.remove\("), (weight_normed, r"parametrize\.remove_parametrizations\(")]
)
def test_the_advice_for_a_changed_model(change: Callable[[Any], None], advice: str, path: Path) -> None:
    model = small()
    change(model)
    with pytest.raises(WeightsError, match=advice):
        save(model, path)
    assert not path.exists()


def test_a_pruned_model_is_saved_after_prune_remove(path: Path) -> None:
    model: Any = small()
    pruned(model)
    prune.remove(model.conv1, "weight")
    assert load(save(model, path)).conv1.weight.eq(0).float().mean() >= 0.5


def test_a_lazy_model_says_what_it_lacks(path: Path) -> None:
    model: Any = cifarnets.models.create("fcnet", widths=(2,))
    model[1] = torch.nn.LazyLinear(2)
    with pytest.raises(WeightsError, match="has no shape before the first batch"):
        save(model, path)


# --- where a file comes from


def test_provenance_travels_with_the_weights_and_is_a_table(path: Path) -> None:
    model = small()
    models.annotate(model, provenance={"license": "mit", "versions": {"torch": "2.6"}})
    assert load(save(model, path)).meta.provenance == {"license": "mit", "versions": {"torch": "2.6"}}
    write_weights(path, model.state_dict(), {**vars(model.meta), "provenance": ["mit"]}, "0.1.0")
    with pytest.raises(WeightsError, match="provenance must be a table, not \\['mit'\\]"):
        load(path)


def test_a_file_may_be_expected_to_have_a_digest(path: Path) -> None:
    content = save(small(), path).read_bytes()
    digest = index.sha256(content)
    assert load(path, expected_sha256=digest.upper()).meta.architecture == "convnet"
    assert load("convnet", expected_sha256=index.releases()["convnet"].sha256).meta.architecture == "convnet"
    for source in (path, "convnet"):
        with pytest.raises(
            WeightsError, match=f"is not the expected file: its SHA-256 is [0-9a-f]{{64}}, not {'0' * 64}"
        ):
            load(source, expected_sha256="0" * 64)
    with pytest.raises(InputError, match="expected_sha256 must be 64 hexadecimal digits, not 'abc'"):
        load(path, expected_sha256="abc")
