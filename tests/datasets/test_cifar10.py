"""CIFAR-10 from its files: found, checked before anything is unpickled, and laid out as torchvision has it."""

import os
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
import torchvision

from cifarnets.datasets import CIFAR10Normalized, cifar10, download, files, find_cifar10
from cifarnets.errors import DataCorruptError, DataNotFoundError, InputError

BATCH = f"{files.FOLDER}/data_batch_3"


@pytest.fixture
def no_unpickling(monkeypatch: pytest.MonkeyPatch) -> None:
    def unpickle(*args: object, **options: object) -> None:
        pytest.fail("a file that is not the published one was unpickled")

    monkeypatch.setattr(pickle, "load", unpickle)
    monkeypatch.setattr(pickle, "loads", unpickle)


def raw(path: Path) -> dict[bytes, np.ndarray]:
    return pickle.loads(path.read_bytes(), encoding="bytes")


def test_training_set_is_the_five_files_in_order(tiny_root: Path) -> None:
    train = CIFAR10Normalized(tiny_root)
    batches = [raw(tiny_root / files.FOLDER / f"data_batch_{i}") for i in range(1, 6)]
    assert (train.images.dtype, train.images.shape) == (torch.uint8, (100, 3, 32, 32))
    assert torch.equal(train.images.flatten(1), torch.cat([torch.from_numpy(batch[b"data"]) for batch in batches]))
    assert train.targets == [label for batch in batches for label in batch[b"labels"]]
    assert (train.classes, train.split, train.root) == (cifar10.CLASSES, "train", tiny_root)
    assert repr(train) == "CIFAR10Normalized(100 images, 10 classes, view='normalized', split='train')"


def test_test_set_is_the_sixth(tiny_root: Path) -> None:
    test = CIFAR10Normalized(str(tiny_root), train=False)
    batch = raw(tiny_root / files.FOLDER / "test_batch")
    assert torch.equal(test.images.flatten(1), torch.from_numpy(batch[b"data"]))
    assert test.split == "test"


def test_what_an_item_is_can_be_chosen(tiny_root: Path) -> None:
    image = CIFAR10Normalized(tiny_root).images[7]
    half = (0.5, 0.5, 0.5)
    normalized, label = CIFAR10Normalized(tiny_root, mean=half, std=half)[7]
    assert torch.equal(normalized, (image / 255 - 0.5) / 0.5)
    assert label == 7
    assert torch.equal(CIFAR10Normalized(tiny_root, view="unit")[7][0], image / 255)
    picture, label = CIFAR10Normalized(tiny_root, view="pil", transform=lambda picture: picture.rotate(180))[7]
    assert np.array_equal(np.asarray(picture), image.flip(1, 2).permute(1, 2, 0).numpy())


# --- where it is looked for


def test_the_environment_names_the_folder(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFARNETS_DATA", str(tiny_root))
    assert len(CIFAR10Normalized()) == 100
    assert files.data_root("elsewhere") == Path("elsewhere")


@pytest.mark.parametrize("value", [None, ""])
def test_else_the_users_cache(value: str | None, tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if value is not None:
        monkeypatch.setenv("CIFARNETS_DATA", value)
    assert files.data_root() == platformdirs.user_cache_path("cifarnets", appauthor=False)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name, appauthor: tiny_root)
    assert len(CIFAR10Normalized(train=False)) == 20


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not go by HOME")
def test_home_is_expanded(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny_root.parent))
    assert len(CIFAR10Normalized("~/data")) == 100
    monkeypatch.setenv("CIFARNETS_DATA", "~/data")
    assert len(CIFAR10Normalized()) == 100


def test_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as info:
        CIFAR10Normalized(tmp_path / "nowhere")
    assert isinstance(info.value, DataNotFoundError)
    message = str(info.value)
    assert repr(str(tmp_path / "nowhere" / files.FOLDER / "data_batch_1")) in message
    assert "No such file or directory" in message
    assert all(way in message for way in ("root=", "CIFARNETS_DATA", "download=True", "`cifarnets download`"))
    assert not (tmp_path / "nowhere").exists(), "looking must not make folders"


def test_one_missing_file_is_named(tiny_root: Path) -> None:
    (tiny_root / BATCH).unlink()
    with pytest.raises(DataNotFoundError, match="data_batch_3"):
        CIFAR10Normalized(tiny_root)
    assert len(CIFAR10Normalized(tiny_root, train=False)) == 20, "which does not need that file"


def test_is_complete(tiny_root: Path) -> None:
    assert files.is_complete(tiny_root)
    (tiny_root / BATCH).unlink()
    assert not files.is_complete(tiny_root)
    (tiny_root / BATCH).mkdir()
    assert not files.is_complete(tiny_root)


def test_download_is_called_only_for_what_is_missing(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = (tiny_root / BATCH).read_bytes()
    asked: list[Path] = []

    def fetch(root: Path) -> None:
        asked.append(root)
        (root / BATCH).write_bytes(content)

    monkeypatch.setattr(download, "download_cifar10", fetch)
    CIFAR10Normalized(tiny_root, download=True)
    assert asked == []
    (tiny_root / BATCH).unlink()
    assert len(CIFAR10Normalized(tiny_root, download=True)) == 100
    assert asked == [tiny_root]


def test_a_transform_cannot_get_lost(tiny_root: Path) -> None:
    with pytest.raises(TypeError, match="positional"):
        CIFAR10Normalized(tiny_root, True, abs)
    for name in ("train", "download"):
        with pytest.raises(InputError, match=f"{name} must be True or False, not <built-in function abs>"):
            CIFAR10Normalized(tiny_root, **{name: abs})  # type: ignore[arg-type]
    with torch.device("meta"):
        assert CIFAR10Normalized(tiny_root, transform=abs)[0][0].min() >= 0


def test_find_cifar10(tiny_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_cifar10(tiny_root) == find_cifar10(str(tiny_root)) == tiny_root
    monkeypatch.setenv("CIFARNETS_DATA", str(tiny_root))
    assert find_cifar10() == tiny_root
    (tiny_root / BATCH).unlink()
    assert find_cifar10() is None


@pytest.mark.parametrize("root", ["a\0b", "x" * 300, "\ud800"])
def test_a_folder_that_cannot_be(root: str) -> None:
    for use in (CIFAR10Normalized, find_cifar10, download.download_cifar10):
        with pytest.raises(InputError, match="cannot be used"):
            use(root)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such thing")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tiny_root: Path) -> None:
    (tiny_root / BATCH).unlink()
    os.mkfifo(tiny_root / BATCH)
    with pytest.raises(DataNotFoundError, match="data_batch_3"):
        CIFAR10Normalized(tiny_root)


# --- damage


def truncate(content: bytes) -> bytes:
    return content[:-1000]


def flip_first_bit(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def flip_middle_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x80]) + content[middle + 1 :]


def empty(content: bytes) -> bytes:
    return b""


def append(content: bytes) -> bytes:
    # A pickle ends where it says, so that this one would be read without complaint.
    return content + b"\0"


@pytest.mark.parametrize("damage", [truncate, flip_first_bit, flip_middle_bit, empty, append])
@pytest.mark.parametrize("name", ["data_batch_1", "test_batch"])
@pytest.mark.usefixtures("no_unpickling")
def test_a_damaged_file_is_never_unpickled(name: str, damage: Callable[[bytes], bytes], tiny_root: Path) -> None:
    path = tiny_root / files.FOLDER / name
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises(DataCorruptError) as info:
        CIFAR10Normalized(tiny_root, train=name != "test_batch")
    message = str(info.value)
    assert message.startswith(f"{path} is damaged: its MD5 is ")
    assert f"({len(damaged):,} bytes). It was not opened; delete it and use download=True" in message
    assert isinstance(info.value, ValueError)
    assert path.read_bytes() == damaged, "what to do with it is the user's choice"


class Exploit:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.mkdir, (self.folder,)


def test_a_pickle_in_its_place_runs_no_code(tiny_root: Path, tmp_path: Path) -> None:
    exploit = pickle.dumps(Exploit(tmp_path / "harmed"))
    pickle.loads(exploit)
    (tmp_path / "harmed").rmdir()  # so it works, if it is let
    (tiny_root / BATCH).write_bytes(exploit)
    with pytest.raises(DataCorruptError, match="It was not opened"):
        CIFAR10Normalized(tiny_root)
    assert not (tmp_path / "harmed").exists()


# --- the published set


def test_expected_files_are_torchvisions() -> None:
    published = torchvision.datasets.CIFAR10
    assert list(files.TRAIN_FILES.items()) == [tuple(entry) for entry in published.train_list]
    assert list(files.TEST_FILES.items()) == [tuple(entry) for entry in published.test_list]
    assert {published.meta["filename"]: published.meta["md5"]} == files.META_FILES
    assert published.base_folder == files.FOLDER
    assert (published.filename, published.tgz_md5) == (download.ARCHIVE, download.ARCHIVE_MD5)


@pytest.mark.cifar10
def test_real_set(real_train: CIFAR10Normalized, real_test: CIFAR10Normalized, real_root: Path) -> None:
    meta = raw(real_root / files.FOLDER / "batches.meta")
    assert [name.decode() for name in meta[b"label_names"]] == list(cifar10.CLASSES)
    assert real_train.labels.bincount().tolist() == [5000] * 10
    assert real_test.labels.bincount().tolist() == [1000] * 10
    assert (real_train.root, real_test.split) == (real_root, "test")
