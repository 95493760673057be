"""Fixtures: the real CIFAR-10 where it is found, a tiny one on disk, and a small set in memory."""

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from cifarnets.datasets import ImageDataset, SyntheticCIFAR10, cifar10, cifar_subset, files, find_cifar10
from cifarnets.weights import index


def _find_real() -> Path | None:
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    found = find_cifar10() or find_cifar10(beside)
    return found.resolve() if found else None


REAL_CIFAR10 = _find_real()
# A shell starts its background jobs deaf to Ctrl-C, and tests of it would be too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# One thread: batches here are small, and two would wait for each other on a busy machine.
torch.set_num_threads(1)
# The same examples in every run, and none saved: a failure is there for everyone, or for no one.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, max_examples=50, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = {
        "cifar10": REAL_CIFAR10 is None
        and "CIFAR-10 is not here: set CIFARNETS_DATA to the folder that holds cifar-10-batches-py",
        "gpu": not torch.cuda.is_available() and "there is no CUDA device",
    }
    for item in items:
        for name, reason in missing.items():
            if reason and item.get_closest_marker(name):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def real_root(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the real CIFAR-10, also as $CIFARNETS_DATA; the test must carry the mark `cifar10`."""
    assert REAL_CIFAR10 is not None
    monkeypatch.setenv("CIFARNETS_DATA", str(REAL_CIFAR10))
    return REAL_CIFAR10


@pytest.fixture
def tiny_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A CIFAR-10 of 20 random images a file, in torchvision's layout; the expected MD5s are those of its files."""
    root = tmp_path / "data"
    folder = root / files.FOLDER
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for names in (files.TRAIN_FILES, files.TEST_FILES, files.META_FILES):
        for name in names:
            if names is files.META_FILES:
                batch: dict[bytes, object] = {b"label_names": [c.encode() for c in cifar10.CLASSES]}
            else:
                pixels = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
                batch = {b"data": pixels, b"labels": [i % 10 for i in range(20)]}
            content = pickle.dumps(batch, protocol=2)
            (folder / name).write_bytes(content)
            monkeypatch.setitem(names, name, hashlib.md5(content, usedforsecurity=False).hexdigest())
    monkeypatch.delenv("CIFARNETS_DATA", raising=False)
    return root


@pytest.fixture
def weights_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The released weights in a folder of their own, that may be spoilt."""
    copy = tmp_path / "weights"
    shutil.copytree(index.FOLDER, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setattr(index, "FOLDER", copy)
    index.releases.cache_clear()
    yield copy
    index.releases.cache_clear()


@pytest.fixture
def edit_index(weights_folder: Path) -> Callable[[Callable[[dict[str, Any]], object]], None]:
    """Change the rows of that folder's index."""

    def edit(change: Callable[[dict[str, Any]], object]) -> None:
        rows = json.loads((weights_folder / index.INDEX_FILE).read_text())
        change(rows)
        (weights_folder / index.INDEX_FILE).write_text(json.dumps(rows))
        index.releases.cache_clear()

    return edit


@pytest.fixture(scope="session")
def synthetic3() -> ImageDataset:
    """300 drawn training images of three classes: enough to learn a little, quickly."""
    drawn = SyntheticCIFAR10(train=True, size=1000, seed=1)
    return cifar_subset(drawn, drawn.classes[:3])


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation, built strictly."""
    pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
    folder = tmp_path_factory.mktemp("docs") / "site"
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=Path(__file__).resolve().parents[1],
        check=True,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    return folder


@pytest.fixture(scope="session", autouse=True)
def _offline() -> None:
    """No test asks the real Hub, and no thread pool outgrows a small machine."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
