"""The card of a model: valid metadata, and words that come from the header."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results
from packaging.version import Version
from PIL import Image
from tests.sharing.loopback import Hub, run, serving

import cifarnets
from cifarnets import create, load
from cifarnets.cli import main
from cifarnets.errors import InputError
from cifarnets.models import annotate
from cifarnets.recipes import Recipe, run_recipe
from cifarnets.sharing import model_card
from cifarnets.weights.index import read_release, releases

NAMES = sorted(releases())


def metadata(text: str) -> dict[str, Any]:
    """The metadata as the Hub reads them: everything between the first two lines of dashes."""
    assert text.startswith("---\n")
    found: dict[str, Any] = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    return found


def block(text: str, language: str, number: int = 0) -> str:
    return text.split(f"```{language}\n")[number + 1].split("\n```")[0]


@pytest.mark.parametrize("name", NAMES)
def test_the_metadata_are_those_of_the_hub(name: str) -> None:
    release = releases()[name]
    text = str(model_card(load(name), "me/nets"))
    found = metadata(text)
    assert found["license"] == "mit"
    assert found["library_name"] == "cifarnets"
    assert found["pipeline_tag"] == "image-classification"
    assert found["datasets"] == ["uoft-cs/cifar10"]
    title, results = model_index_to_eval_results(found["model-index"])  # the client's own reader
    assert title == name
    figures = {result.metric_name: result.metric_value for result in results}
    assert figures["Accuracy"] == round(release.file_accuracy, 4)
    assert figures[f"Accuracy, mean over several views ({release.tta})"] == round(release.file_tta_accuracy or 0, 4)
    assert figures["Expected calibration error (15 bins)"] == round(release.file_ece, 4)
    assert {result.task_type for result in results} == {"image-classification"}
    assert ModelCard(text).content == text, "read and written again, it is the same"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_says_what_a_reader_wants_to_know(name: str) -> None:
    release, text = releases()[name], str(model_card(load(name), "me/nets"))
    assert f"# {name}\n" in text
    assert f"{release.accuracy:.4f}" in text
    assert f"{release.tta_accuracy:.4f}" in text
    assert ("± " in text) == (release.accuracy_std is not None)
    assert f"cifarnets train --recipe {name} --seed {release.seed}" in text
    assert all(word in text for word in release.classes)
    assert ", ".join(f"{number:.6g}" for number in release.mean) in text
    for heading in ("Use", "Results", "Training", "Preprocessing", "Limits", "Licences", "Citation"):
        assert f"\n## {heading}\n" in text
    for key in ("commit", "paper", "version"):
        assert release.provenance[key] in text
    assert "Krizhevsky" in text
    assert "cifarnets export hf://me/nets model.onnx" in text


def test_a_card_of_some_classes_says_that_the_figures_are_theirs() -> None:
    text = str(model_card(load("convnet.cifar3")))
    assert "on the test images of CIFAR-10 of these 3 classes" in text
    dataset = metadata(text)["model-index"][0]["results"][0]["dataset"]
    assert dataset["name"] == "CIFAR-10 (airplane, automobile, ship only)"
    assert dataset["args"] == {"classes": ["airplane", "automobile", "ship"]}


def test_a_card_claims_nothing_that_nobody_measured() -> None:
    found = metadata(str(card := model_card(create("convnet"))))
    assert found == {
        "library_name": "cifarnets",
        "license": "unknown",
        "pipeline_tag": "image-classification",
        "tags": ["cifar10", "pytorch", "safetensors"],
    }
    for word in ("## Results", "## Training", "trained on", "Krizhevsky"):
        assert word not in card.text
    assert "their author states no licence" in card.text


def test_a_header_cannot_write_into_the_page() -> None:
    model = create("convnet", num_classes=2)
    annotate(
        model,
        classes=["<script>alert(1)</script>", "a`b|c"],
        results={
            "accuracy": "<b>1</b>",
            "file_accuracy": 7,
            "seeds": 3,
            "file_ece": True,
            "tta_accuracy": float("inf"),
        },
        training={"note": "mine"},
        provenance={
            "license": "mit\nevil: true",
            "recipe": "[x](http://x)",
            "paper": ["x"],
            "versions": 3,
            "data": "\x1b[2J",
        },
    )
    text = str(model_card(model))
    assert "<" not in text.split("## Use")[0].split("---")[2]
    assert "\x1b" not in text
    assert metadata(text)["license"] == "mit evil: true"
    assert "## Results" not in text
    assert "evil" not in metadata(text)


def test_a_run_writes_what_its_card_needs(tmp_path: Path) -> None:
    recipe = Recipe(
        "convnet", epochs=1, batch_size=500, synthetic=True, seed=3, tta="mirror", augment={"flip": "random"}
    )
    done = run_recipe(recipe, tmp_path / "run", progress=False)
    model = load(tmp_path / "run")
    meta: Any = model.meta
    assert meta.results["file_accuracy"] == done.evaluations["test"].accuracy
    assert meta.results["file_ece"] == done.evaluations["test"].ece
    assert meta.results["tta_accuracy"] == done.evaluations["test (mirror)"].accuracy
    starts = json.loads((tmp_path / "run" / "run.json").read_text())["starts"]
    assert meta.provenance["versions"] == starts[0]["versions"]
    assert meta.provenance["machine"] == starts[0]["machine"]
    assert meta.provenance["data"] == "drawn pictures"
    assert meta.provenance["paper"].startswith("https://medium.com/")
    text = str(model_card(model))
    assert f"{meta.results['file_accuracy']:.4f}" in text
    assert "datasets" not in metadata(text)
    (tmp_path / "recipe.toml").write_text(block(text, "toml"))
    assert cifarnets.recipes.load_recipe(tmp_path / "recipe.toml") == recipe


@pytest.mark.parametrize("name", ["resnet20", "convnet.cifar3"])
def test_the_command_prints_the_card_that_would_be_pushed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", name, "--repo", "me/nets", "--license", "cc-by-4.0"]) == 0
    text = capsys.readouterr().out
    assert metadata(text)["license"] == "cc-by-4.0"
    assert f'cifarnets.load("hf://me/nets", expected_sha256="{releases()[name].sha256}")' in text


def test_a_model_of_another_library_has_no_card() -> None:
    with pytest.raises(InputError, match="Linear has no meta to write a card from: register its class"):
        model_card(torch.nn.Linear(2, 2))


def test_where_released_weights_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "resnet20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["release"]["provenance"]
    assert found == {
        "license": "mit",
        "version": "1.0",
        "recipe": "resnet20",
        "commit": "abe0da0fc262901d7832f01e0bd14acd1598d8d4",
        "paper": "https://arxiv.org/abs/1512.03385",
        "machine": "two cores of an Intel Xeon with AMX",
        "data": "CIFAR-10",
        "data_license": found["data_license"],
    }
    assert load("resnet20").meta.provenance == found


def test_the_snippets_run_as_they_stand(tmp_path: Path) -> None:
    """Those for cifarnets, and for safetensors and torch alone, in a process that has only what the page says."""
    picture = tmp_path / "picture.png"
    Image.new("RGB", (48, 32), "navy").save(picture)
    with serving(Hub()) as hub:
        hub.put("me/nets", {"model.safetensors": read_release(releases()["convnet"])})
        text = str(model_card(load("convnet"), "me/nets", sha256=releases()["convnet"].sha256))
        ours, plain = block(text, "python"), block(text, "python", 1)
        program = "import io, contextlib\nout = io.StringIO()\nwith contextlib.redirect_stdout(out):\n"
        program += f"  exec({ours!r})\n  exec({plain!r})\n"
        step = f"exec({program!r}, globals()) or out.getvalue()"
        found = run(hub.url, tmp_path / "home", [step])[step]
    lines = found.splitlines()
    assert len(lines) == 2
    assert "convnet" in lines[1]
    assert "0.4915" in lines[1]
    assert len([name for name in releases()["convnet"].classes if f"'{name}'" in lines[0]]) == 3


def test_the_hub_itself_validates_the_card(tmp_path: Path) -> None:
    if Version(huggingface_hub.__version__) < Version("1.0"):
        pytest.skip("it asks huggingface.co, whatever HF_ENDPOINT says")
    steps = [
        "model_card(load('resnet20')).validate()",
        "model_card(load('resnet20'), license='none of yours').validate()",
    ]
    with serving(Hub()) as hub:
        right, wrong = run(hub.url, tmp_path / "home", steps).values()
    assert right is None
    assert wrong["error"] == "ValueError"
    assert "license" in wrong["message"]
    assert hub.asked == ["POST /api/validate-yaml"] * 2


@pytest.mark.parametrize(("command", "word"), [("push", "HF_TOKEN"), ("pull", "--sha256"), ("card", "--repo")])
def test_the_help_of_a_command_is_there_at_once(command: str, word: str) -> None:
    program = (
        f"import sys; from cifarnets.cli import main\ntry: main(['{command}', '--help'])\nexcept SystemExit: pass\n"
        "assert not {'torch', 'huggingface_hub'} & sys.modules.keys()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert word in done.stdout
