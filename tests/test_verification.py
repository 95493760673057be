"""`verify`: passes on what was released, and says what differs otherwise."""

import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cifarnets import models
from cifarnets.errors import DataNotFoundError, UnknownNameError
from cifarnets.verification import Check, verify
from cifarnets.weights import index
from cifarnets.weights.files import read_weights, write_weights

NAME = "convnet.cifar3"
Edit = Callable[[Callable[[dict[str, Any]], object]], None]


@pytest.fixture
def _no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIFARNETS_DATA", str(tmp_path / "nothing"))


def by_what(checks: list[Check]) -> dict[str, Check]:
    assert {check.name for check in checks} == {NAME}
    return {check.what: check for check in checks}


@pytest.mark.usefixtures("_no_data")
@pytest.mark.parametrize("name", models.list_models(pretrained=True))
def test_files_and_logits_pass_anywhere_and_missing_data_is_said(name: str) -> None:
    file, golden, images = verify([name])
    assert (file.passed, golden.passed, images.passed) == (True, True, None)
    assert file.detail.startswith("SHA-256 ")
    assert "of 12 pictures within" in golden.detail
    assert "CIFAR-10 is not here" in images.detail


@pytest.mark.cifar10
@pytest.mark.parametrize("name", models.list_models(pretrained=True))
def test_the_accuracy_of_every_release_is_what_the_index_says(name: str, real_root: Path) -> None:
    checks = verify([name], real_root)
    assert [check.passed for check in checks] == [True, True, True], checks
    assert f"(index: {models.info(name).release.file_accuracy:.4f})" in checks[-1].detail


@pytest.mark.usefixtures("_no_data")
def test_all_weights_are_checked_unless_some_are_named() -> None:
    assert {check.name for check in verify()} == set(models.list_models(pretrained=True))


def test_unknown_weights_are_refused_before_anything_is_computed() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown weights 'convnet\.cifar4'"):
        verify([NAME, "convnet.cifar4"])


@pytest.mark.usefixtures("_no_data")
def test_a_spoilt_file_ends_the_checks_of_its_weights(weights_folder: Path) -> None:
    path = weights_folder / f"{NAME}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    (check,) = verify([NAME])
    assert (check.what, check.passed) == ("file", False)
    assert "its SHA-256 is" in check.detail


@pytest.mark.usefixtures("_no_data")
def test_logits_that_moved_fail(weights_folder: Path) -> None:
    tensors, header = read_weights(weights_folder / index.GOLDEN_FILE)
    tensors[f"{NAME}.logits"][3, 1] += 2e-3
    write_weights(weights_folder / index.GOLDEN_FILE, tensors, {}, header["cifarnets"])
    checks = by_what(verify([NAME]))
    assert checks["file"].passed is True
    assert checks["golden logits"].passed is False
    assert "within 2.0e-03 (allowed: 1e-03)" in checks["golden logits"].detail


@pytest.mark.usefixtures("_no_data")
def test_a_zipped_package_is_checked_too(weights_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = shutil.make_archive(str(weights_folder), "zip", weights_folder)
    monkeypatch.setattr(index, "FOLDER", zipfile.Path(archive))
    index.releases.cache_clear()
    assert [check.passed for check in verify([NAME])] == [True, True, None]


@pytest.mark.usefixtures("_no_data")
def test_missing_and_damaged_golden_logits_fail(weights_folder: Path) -> None:
    path = weights_folder / index.GOLDEN_FILE
    tensors, header = read_weights(path)
    del tensors[f"{NAME}.logits"]
    write_weights(path, tensors, {}, header["cifarnets"])
    found = by_what(verify([NAME]))["golden logits"]
    assert (found.passed, found.detail) == (False, f"golden.safetensors lacks '{NAME}.logits'.")
    path.write_bytes(path.read_bytes()[:100])
    found = by_what(verify([NAME]))["golden logits"]
    assert found.passed is False
    assert "is not a whole safetensors file" in found.detail


@pytest.mark.usefixtures("_no_data")
@pytest.mark.parametrize("key", ["images", f"{NAME}.logits", f"{NAME}.predictions"])
def test_golden_tensors_of_another_shape_fail(weights_folder: Path, key: str) -> None:
    path = weights_folder / index.GOLDEN_FILE
    tensors, header = read_weights(path)
    tensors[key] = tensors[key][1:]
    write_weights(path, tensors, {}, header["cifarnets"])
    found = by_what(verify(NAME))["golden logits"]
    assert (found.passed, found.detail) == (False, "golden.safetensors has tensors of other shapes.")


def test_a_folder_without_data_that_was_named_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataNotFoundError, match="there is no CIFAR-10 in"):
        verify(NAME, tmp_path)


def test_damaged_data_fails_the_check(tiny_root: Path) -> None:
    for file in (tiny_root / "cifar-10-batches-py").iterdir():
        file.write_bytes(b"damaged")
    checks = by_what(verify(NAME, tiny_root))
    assert checks["golden logits"].passed is True
    assert checks["test images"].passed is False


@pytest.mark.cifar10
def test_an_accuracy_beside_the_index_fails(edit_index: Edit, real_root: Path) -> None:
    edit_index(lambda rows: rows[NAME].update(file_accuracy=rows[NAME]["file_accuracy"] + 0.0006))
    found = by_what(verify([NAME], real_root))["test images"]
    assert found.passed is False
    assert "all 3,000 predictions as at the release" in found.detail


@pytest.mark.cifar10
def test_predictions_that_differ_are_counted(edit_index: Edit, weights_folder: Path, real_root: Path) -> None:
    edit_index(lambda rows: rows[NAME].update(predictions_sha256="0" * 64))
    tensors, header = read_weights(weights_folder / index.GOLDEN_FILE)
    tensors[f"{NAME}.predictions"][:2] = (tensors[f"{NAME}.predictions"][:2] + 1) % 3
    write_weights(weights_folder / index.GOLDEN_FILE, tensors, {}, header["cifarnets"])
    found = by_what(verify([NAME], real_root))["test images"]
    assert found.passed is True  # the accuracy is what it was
    assert "2 of 3,000 predictions differ from those at the release" in found.detail
