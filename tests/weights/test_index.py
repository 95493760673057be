"""Released weights: nothing but what was released is loaded, and whatever is wrong is said."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cifarnets
from cifarnets import load, models
from cifarnets.errors import InputError, UnknownNameError, WeightsError
from cifarnets.recipes.recipe import read_recipe
from cifarnets.weights import index
from cifarnets.weights.index import find_release, releases

Edit = Callable[[Callable[[dict[str, Any]], object]], None]


def test_every_release_has_a_recipe_and_a_registered_model() -> None:
    assert {release.recipe for release in releases().values()} <= set(cifarnets.recipes.list_recipes())
    assert {release.architecture for release in releases().values()} <= set(models.list_models())
    for name, release in releases().items():
        recipe, runs = cifarnets.recipes.load_recipe(release.recipe), read_recipe(release.recipe)["release"]
        assert release.name == name
        assert recipe.model == release.architecture
        assert tuple(runs["seeds"]) == release.seeds
        assert release.seed == release.seeds[0] or name.endswith(f".seed{release.seed}")  # the first, not the best
        assert release.version == int(float(runs["version"]))
        assert recipe.tta == release.tta
        assert runs["minutes"]
        if "." not in name:  # so that create(name) and info(name) speak of the same model
            assert models.create(name).meta.config == models.load(name).meta.config


def test_all_weights_together_stay_below_what_a_wheel_should_weigh() -> None:
    assert sum(path.stat().st_size for path in index.FOLDER.iterdir() if path.is_file()) < 55e6


def test_a_single_wrong_byte_is_refused(weights_folder: Path) -> None:
    path = weights_folder / "convnet.cifar3.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    for call in (lambda: load("convnet.cifar3"), lambda: models.create("convnet.cifar3", pretrained=True)):
        with pytest.raises(WeightsError, match=r"is not the file that was released as 'convnet\.cifar3': its SHA-256"):
            call()


def test_a_truncated_and_a_missing_file_are_refused(weights_folder: Path) -> None:
    path = weights_folder / "convnet.cifar3.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(WeightsError, match="is not the file that was released"):
        load("convnet.cifar3")
    path.unlink()
    with pytest.raises(WeightsError, match=r"cannot read the released weights 'convnet\.cifar3'.*Install"):
        load("convnet.cifar3")


def test_a_wrong_hash_in_the_index_is_refused(edit_index: Edit) -> None:
    edit_index(lambda rows: rows["convnet.cifar3"].update(sha256="0" * 64))
    with pytest.raises(WeightsError, match=f"and the index says {'0' * 64}"):
        load("convnet.cifar3")


@pytest.mark.parametrize(
    ("key", "lie"),
    [
        ("parameters", 18_122),
        ("architecture", "convnet_functional"),
        ("classes", ["ship", "automobile", "airplane"]),
        ("mean", [0.5, 0.5, 0.5]),
        ("config", {"num_classes": 3}),
    ],
)
def test_an_index_that_lies_is_found_out(edit_index: Edit, key: str, lie: object) -> None:
    edit_index(lambda rows: rows["convnet.cifar3"].update({key: lie}))
    with pytest.raises(WeightsError, match=f"the index of released weights says {key} .*; its file has"):
        load("convnet.cifar3")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"convnet": {"file": "x"}}', "'convnet' lacks, or has too much of: accuracy"),
    ],
)
def test_a_damaged_index_is_refused(weights_folder: Path, content: str, message: str) -> None:
    (weights_folder / "index.json").write_text(content)
    releases.cache_clear()
    with pytest.raises(WeightsError, match=message):
        load("convnet.cifar3")


@pytest.mark.parametrize(
    ("key", "value"),
    [("parameters", "18,123"), ("classes", "airplane"), ("seeds", [0, "1"]), ("accuracy", None), ("config", [])],
)
def test_a_value_of_the_wrong_type_is_refused(edit_index: Edit, key: str, value: object) -> None:
    edit_index(lambda rows: rows["convnet.cifar3"].update({key: value}))
    with pytest.raises(WeightsError, match=f"cannot be read: {key} of 'convnet.cifar3' cannot be "):
        models.list_models(pretrained=True)


def test_a_missing_index_is_refused(weights_folder: Path) -> None:
    (weights_folder / "index.json").unlink()
    releases.cache_clear()
    with pytest.raises(WeightsError, match=r"the index of released weights .* cannot be read"):
        models.list_models(pretrained=True)


def test_an_unknown_tag_gets_a_suggestion() -> None:
    for call in (
        lambda: load("convnet.cifar4"),
        lambda: models.create("convnet.cifar4", pretrained=True),
        lambda: cifarnets.verify(["convnet.cifar4"]),
    ):
        with pytest.raises(
            UnknownNameError, match=r"unknown weights 'convnet\.cifar4'\. Did you mean 'convnet\.cifar3'"
        ):
            call()


def test_a_model_without_weights_says_which_have_some() -> None:
    with pytest.raises(
        UnknownNameError, match=r"no released weights for 'wide_resnet28_10'.* create\('wide_.* convnet\.cifar3"
    ):
        models.create("wide_resnet28_10", pretrained=True)
    with pytest.raises(UnknownNameError, match=r"unknown model 'convnett'\. Did you mean 'convnet'"):
        models.create("convnett.cifar3", pretrained=True)


def test_a_file_beside_us_of_such_a_name_is_reached_as_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cifarnets.save(models.create("fcnet", widths=(4,)), "convnet.cifar3")
    with pytest.raises(WeightsError, match=r"write '\./convnet\.cifar3'"):
        load("convnet.cifar3")
    assert load("./convnet.cifar3").meta.architecture == "fcnet"
    assert load(Path("convnet.cifar3")).meta.architecture == "fcnet"
    cifarnets.save(models.create("fcnet", widths=(4,)), "convnet.mine")
    assert load("convnet.mine").meta.architecture == "fcnet"


def test_a_fresh_model_needs_no_index(weights_folder: Path, tmp_path: Path) -> None:
    (weights_folder / "index.json").unlink()
    releases.cache_clear()
    model = models.create("fcnet", widths=(4,))
    assert load(cifarnets.save(model, tmp_path / "mine.safetensors")).meta == model.meta
    assert load(str(tmp_path / "mine.safetensors")).meta == model.meta


@pytest.mark.parametrize("version", [None, "", "one", "1." * 200])
def test_a_release_of_no_version_is_refused(edit_index: Edit, version: object) -> None:
    edit_index(lambda rows: rows["convnet"].update(provenance={"version": version}))
    with pytest.raises(WeightsError, match="'convnet' cannot be of the version"):
        load("convnet")


def test_names_pin_versions_and_seeds(edit_index: Edit) -> None:
    def add(rows: dict[str, Any]) -> None:
        rows["convnet.v1"] = rows["convnet"]
        rows["convnet"] = {**rows["convnet"], "provenance": {**rows["convnet"]["provenance"], "version": "2.0"}}
        rows["convnet.seed1"] = {**rows["convnet"], "seed": 1}

    edit_index(add)
    for name, seed, found in (
        ("convnet", None, "convnet"),
        ("convnet.v2", None, "convnet"),
        ("convnet.v1", None, "convnet.v1"),
        ("convnet", 1, "convnet.seed1"),
        ("convnet.v2", 1, "convnet.seed1"),
        ("convnet.seed1", None, "convnet.seed1"),
        ("convnet.seed1", 0, "convnet"),
        ("convnet.v1", 0, "convnet.v1"),
    ):
        release = find_release(name, seed)
        assert release is not None, (name, seed)
        assert release.name == found
    for name, seed in (
        ("convnet.v3", None),
        ("convnet", 3),
        ("convnet.v1", 1),
        ("convnet.seed7", None),
        ("nothing", 0),
    ):
        assert find_release(name, seed) is None
    with pytest.raises(UnknownNameError, match=r"unknown weights 'convnet\.seed7'"):
        load("convnet", seed=7)
    with pytest.raises(InputError, match="only released weights have several seeds"):
        load(Path("mine.safetensors"), seed=1)
