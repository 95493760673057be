"""Models that go to the Hub and come back: the real `huggingface_hub` against a small Hub on the loopback."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import yaml
from tests.sharing.loopback import Hub, Results, published, run, serving

import cifarnets
from cifarnets.cli import main
from cifarnets.errors import InputError, WeightsError
from cifarnets.models import annotate
from cifarnets.sharing import pull, push
from cifarnets.weights.index import read_release, releases

KNOWS_EVAL_FILES = hasattr(huggingface_hub, "EvalResultEntry")
WEB_PAGE = b"<!DOCTYPE html><html><body>no weights here</body></html>"


def logits(model: torch.nn.Module) -> str:
    """As the steps of a process compute them: the logits of four images, bit for bit."""
    images = torch.linspace(-2, 2, 4 * 3072).view(4, 3, 32, 32)
    with torch.no_grad():
        return hashlib.sha256(model.eval()(images).numpy().tobytes()).hexdigest()


def message(found: Any, error: str) -> str:
    """The message of a step that failed, which has one line."""
    assert found["error"] == error, found
    assert "\n" not in found["message"]
    return str(found["message"])


# --- what is pushed comes back


@dataclass
class Story:
    """A model that one process pushed, and what other processes made of it."""

    hub: Hub
    home: Path
    model: torch.nn.Module
    pushed: Results
    pulled: Results
    offline: Results
    unreachable: Results


OFFLINE = ["logits(load('hf://me/nets'))", "logits(load('hf://me/absent'))", "push('convnet', 'me/nets')"]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    folder = tmp_path_factory.mktemp("story")
    torch.manual_seed(1)
    model = cifarnets.create("resnet20", num_classes=3)
    annotate(model, classes=("a", "b", "c"), mean=(0.5,) * 3, std=(0.25,) * 3, provenance={"license": "cc-by-4.0"})
    cifarnets.save(model, folder / "mine.safetensors")
    with serving(Hub()) as hub:
        pushed = run(
            hub.url,
            folder / "first",
            [
                "push(load('mine.safetensors'), 'me/nets')",
                "push('mine.safetensors', 'me/nets', license='apache-2.0')",
                "push('mine.safetensors', 'me/nets', license='apache-2.0').commit",
                "push('convnet', 'me/nets', revision='small').address",
                "push('convnet', 'me/released').sha256",
                "push('convnet.cifar3', 'me/released', revision='three').sha256",
                "push('convnet.cifar3', 'me/released').sha256",
                "push('fcnet', 'me/hidden', private=True).sha256",
                "push('fcnet', 'me/nets', private=True)",
                "push('convnet', 'hf://me/other').repo",
            ],
            HF_TOKEN="hf_me",
        )
        address = "hf://me/nets@" + pushed["push('mine.safetensors', 'me/nets', license='apache-2.0').commit"]
        digest = hashlib.sha256((folder / "mine.safetensors").read_bytes()).hexdigest()
        home = folder / "second"
        pulled = run(
            hub.url,
            home,
            [
                "logits(load('hf://me/nets'))",
                "load('hf://me/nets').meta.provenance",
                f"logits(load({address!r}, expected_sha256={digest!r}))",
                f"logits(load({address!r}, expected_sha256={'0' * 64!r}))",
                "load('hf://me/nets', expected_sha256='12')",
                "load('hf://me/nets@small').meta.architecture",
                "str(pull('me/nets'))",
                "str(pull('hf://me/nets@small', 'small'))",
                "logits(load('nets'))",
                "pull('hf://me/nets@small', 'nets')",
                f"pull('me/nets', 'wrong', expected_sha256={'0' * 64!r})",
                "Path('wrong').exists()",
                "load('hf://me/hidden')",
            ],
        )
        offline = run(hub.url, home, [*OFFLINE, "str(pull('me/nets', 'offline'))"], HF_HUB_OFFLINE="1")
    unreachable = run(hub.url, home, OFFLINE)
    return Story(hub, folder, model, pushed, pulled, offline, unreachable)


def test_a_new_process_computes_the_same_logits_bit_for_bit(story: Story) -> None:
    assert story.pulled["logits(load('hf://me/nets'))"] == logits(story.model)
    assert story.pulled["logits(load('nets'))"] == logits(story.model)


def test_the_repository_holds_weights_header_and_card(story: Story) -> None:
    files = story.hub.files("me/nets")
    assert files.keys() == {".gitattributes", "model.safetensors", "config.json", "README.md"}
    assert files["model.safetensors"] == (story.home / "mine.safetensors").read_bytes()
    config = json.loads(files["config.json"])
    assert (config["architecture"], config["classes"], config["mean"]) == ("resnet20", ["a", "b", "c"], [0.5] * 3)
    assert config["sha256"] == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert f'cifarnets.load("hf://me/nets", expected_sha256="{config["sha256"]}")' in files["README.md"].decode()


def test_a_model_and_its_file_are_published_as_the_same_bytes(story: Story) -> None:
    first = story.pushed["push(load('mine.safetensors'), 'me/nets')"]
    assert first["sha256"] == hashlib.sha256((story.home / "mine.safetensors").read_bytes()).hexdigest()
    assert (
        story.hub.files("me/nets", first["commit"])["model.safetensors"]
        == story.hub.files("me/nets")["model.safetensors"]
    )
    assert first["url"] == f"{story.hub.url}/me/nets"


def test_a_licence_is_taken_from_the_call_or_else_from_the_model(story: Story) -> None:
    first = story.pushed["push(load('mine.safetensors'), 'me/nets')"]["commit"]
    cards = [story.hub.files("me/nets", revision)["README.md"].decode() for revision in (first, "main")]
    assert [yaml.safe_load(card.split("---")[1])["license"] for card in cards] == ["cc-by-4.0", "apache-2.0"]
    assert story.pulled["load('hf://me/nets').meta.provenance"] == {"license": "cc-by-4.0"}


def test_a_second_push_of_the_same_changes_nothing(story: Story) -> None:
    again = story.pushed["push('mine.safetensors', 'me/nets', license='apache-2.0').commit"]
    assert again == story.pushed["push('mine.safetensors', 'me/nets', license='apache-2.0')"]["commit"]


def test_a_revision_is_a_branch_that_is_made(story: Story) -> None:
    address = story.pushed["push('convnet', 'me/nets', revision='small').address"]
    assert address == f"hf://me/nets@{story.hub.repos['me/nets'].refs['small']}"
    assert story.pulled["load('hf://me/nets@small').meta.architecture"] == "convnet"
    assert story.pulled["load('hf://me/nets').meta.provenance"] != {}, "main has changed"


def test_released_weights_are_published_byte_by_byte(story: Story) -> None:
    release = releases()["convnet.cifar3"]
    assert story.pushed["push('convnet.cifar3', 'me/released').sha256"] == release.sha256
    assert story.hub.files("me/released")["model.safetensors"] == read_release(release)
    config = json.loads(story.hub.files("me/released")["config.json"])
    assert config["provenance"]["commit"] == release.provenance["commit"]


@pytest.mark.skipif(not KNOWS_EVAL_FILES, reason="this huggingface_hub does not know the format")
def test_the_accuracy_on_cifar10_is_for_machines_and_goes_with_the_model(story: Story) -> None:
    before = [content for content in story.hub.repos["me/released"].commits.values() if "README.md" in content]
    entries = huggingface_hub.parse_eval_result_entries(yaml.safe_load(before[0][".eval_results/cifar10.yaml"]))
    assert [(entry.dataset_id, entry.value) for entry in entries] == [("uoft-cs/cifar10", 0.719)]
    assert ".eval_results/cifar10.yaml" not in story.hub.files("me/released"), "three classes are not CIFAR-10"


def test_a_private_repository_is_made_and_never_mistaken(story: Story) -> None:
    assert story.hub.repos["me/hidden"].private
    assert not story.hub.repos["me/nets"].private
    found = message(story.pushed["push('fcnet', 'me/nets', private=True)"], "InputError")
    assert found == ("'me/nets' is there already, and public, so private=True cannot hide the model: name another.")
    assert "no repository 'me/hidden', or a private one" in message(
        story.pulled["load('hf://me/hidden')"], "WeightsError"
    )


def test_a_commit_and_a_digest_pin_a_model(story: Story) -> None:
    right, wrong = [step for step in story.pulled if "expected_sha256='" in step and step.startswith("logits")]
    assert story.pulled[right] == logits(story.model)
    digest = hashlib.sha256((story.home / "mine.safetensors").read_bytes()).hexdigest()
    words = f"is not the expected file: its SHA-256 is {digest}, not {'0' * 64}."
    assert words in message(story.pulled[wrong], "WeightsError")
    found = message(story.pulled["load('hf://me/nets', expected_sha256='12')"], "InputError")
    assert found == "expected_sha256 must be 64 hexadecimal digits, not '12'."


def test_pull_gives_the_files_of_one_commit_in_a_folder(story: Story) -> None:
    assert Path(story.pulled["str(pull('me/nets'))"]) == Path("nets/model.safetensors")
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (story.home / "nets" / name).read_bytes() == story.hub.files("me/nets")[name]
        assert (story.home / "small" / name).read_bytes() == story.hub.files("me/nets", "small")[name]


def test_pull_overwrites_no_other_file(story: Story) -> None:
    found = message(story.pulled["pull('hf://me/nets@small', 'nets')"], "OutputError")
    assert "is there already, and another file: name another folder" in found


def test_pull_keeps_nothing_that_is_not_expected(story: Story) -> None:
    step = next(step for step in story.pulled if step.startswith("pull('me/nets', 'wrong'"))
    assert "is not the expected file" in message(story.pulled[step], "WeightsError")
    assert story.pulled["Path('wrong').exists()"] is False


# --- without a network


def test_offline_the_cache_is_enough(story: Story) -> None:
    assert story.offline["logits(load('hf://me/nets'))"] == logits(story.model)
    assert story.unreachable["logits(load('hf://me/nets'))"] == logits(story.model)
    assert (story.home / "offline" / "README.md").read_bytes() == story.hub.files("me/nets")["README.md"]


@pytest.mark.parametrize(("way", "reason"), [("offline", "HF_HUB_OFFLINE"), ("unreachable", "refused")])
def test_without_a_network_one_line_says_why(story: Story, way: str, reason: str) -> None:
    results: Results = getattr(story, way)
    found = message(results["logits(load('hf://me/absent'))"], "DownloadError")
    assert found.startswith("hf://me/absent is not in the cache, and the Hub cannot be reached: ")
    assert reason in found
    found = message(results["push('convnet', 'me/nets')"], "UploadError")
    assert found.startswith("cannot push to 'me/nets': ")
    assert reason in found


# --- faults


PULLS = [
    "load('hf://me/nobody')",
    "load('hf://me/good@v9')",
    "load('hf://me/good/absent.safetensors')",
    "load('hf://me/gated')",
    "logits(load('hf://me/weak'))",
    "load('hf://me/broken')",
    "load('hf://me/busy')",
    "logits(load('hf://me/cutonce'))",
    "load('hf://me/cut')",
    "load('hf://me/page')",
    "load('hf://me/portal')",
    "load('hf://me/portal2')",
    "logits(load('hf://me/good'))",
    "push('fcnet', 'me/nets')",
]


@dataclass
class Faults:
    hub: Hub
    good: str
    pulled: Results
    pushed: Results


@pytest.fixture(scope="module")
def faults(tmp_path_factory: pytest.TempPathFactory) -> Faults:
    folder = tmp_path_factory.mktemp("faults")
    content = read_release(releases()["convnet"])
    with serving(Hub()) as hub:
        for name in ("good", "gated", "weak", "broken", "busy", "cutonce", "cut", "portal", "portal2"):
            hub.put(f"me/{name}", {"model.safetensors": content}, gated=name == "gated")
        hub.put("me/page", {"model.safetensors": WEB_PAGE})
        # Each repository has bytes of its own in the cache, but the server keeps the same ones once.
        hub.fail("/me/weak/resolve", 503, 2)
        hub.fail("/cdn/me/weak", 500, 1)
        hub.fail("/me/broken/", 500)
        hub.fail("/me/busy/", 429)
        hub.fail("GET /cdn/me/cutonce", "cut", 1)
        hub.fail("GET /cdn/me/cut/", "cut")
        hub.fail("GET /cdn/me/portal/", "html")
        hub.fail("/me/portal2/", "html")
        pulled = run(hub.url, folder / "pulls", PULLS)

        hub.fail("PUT /lfs/me/weak", 500, 2)
        hub.fail("POST /api/models/me/weak/preupload", 429, 1)
        hub.fail("POST /api/models/me/weak/commit", 503, 1)
        hub.fail("PUT /lfs/me/cutput", "drop")
        hub.fail("POST /api/models/me/refuse/commit", 500)
        hub.fail("POST /api/models/me/toomany/preupload", 429)
        hub.fail("POST /api/models/me/portal/preupload", "html")
        pushes = [
            "push('fcnet', 'me/weak').sha256",
            "push('airbench94', 'me/cutput')",
            "push('fcnet', 'me/refuse')",
            "push('fcnet', 'me/toomany')",
            "push('fcnet', 'me/invalid', license='do what you want')",
            "push('fcnet', 'me/good', revision='refs/pr/7')",
            "push('fcnet', 'me/portal')",
            "push('fcnet', 'you/nets')",
            "push('absent.safetensors', 'me/nets')",
        ]
        pushed = run(hub.url, folder / "pushes", pushes, HF_TOKEN="hf_me")
    return Faults(hub, logits(cifarnets.load("convnet")), pulled, pushed)


@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        (
            PULLS[0],
            "WeightsError",
            "the Hub has nothing at hf://me/nobody: no repository 'me/nobody', or a private one",
        ),
        (PULLS[1], "WeightsError", "the Hub has nothing at hf://me/good@v9: 'me/good' has no revision 'v9'."),
        (PULLS[2], "WeightsError", "'me/good' has no file 'absent.safetensors'."),
        (PULLS[3], "WeightsError", "'me/gated' is gated. Ask for access on its page, and set HF_TOKEN."),
        (PULLS[5], "DownloadError", "the Hub is out of order (status 500): try again later"),
        (PULLS[6], "DownloadError", "too many requests from here (429): wait some minutes, or set HF_TOKEN"),
        (PULLS[8], "DownloadError", "cannot download hf://me/cut: "),
        (PULLS[9], "WeightsError", "is not a whole safetensors file: it begins like a web page"),
        (PULLS[10], "DownloadError", "cannot download hf://me/portal: "),
        (PULLS[11], "DownloadError", "hf://me/portal2"),
    ],
)
def test_what_is_wrong_with_a_download_is_said_in_a_line(faults: Faults, step: str, error: str, words: str) -> None:
    assert words in message(faults.pulled[step], error)


def test_a_hub_that_is_weak_for_a_moment_is_asked_again(faults: Faults) -> None:
    assert faults.pulled["logits(load('hf://me/weak'))"] == faults.good


def test_a_download_that_is_cut_once_goes_on(faults: Faults) -> None:
    assert faults.pulled["logits(load('hf://me/cutonce'))"] == faults.good
    assert faults.pulled["logits(load('hf://me/good'))"] == faults.good


def test_a_push_goes_on_after_a_weak_moment_of_the_hub(faults: Faults) -> None:
    release = releases()["fcnet"]
    assert faults.pushed["push('fcnet', 'me/weak').sha256"] == release.sha256
    assert faults.hub.files("me/weak")["model.safetensors"] == read_release(release)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ("push('airbench94', 'me/cutput')", "cannot push to 'me/cutput': "),
        ("push('fcnet', 'me/refuse')", "the Hub is out of order (status 500): try again later"),
        ("push('fcnet', 'me/toomany')", "too many requests from here (429)"),
        (
            "push('fcnet', 'me/invalid', license='do what you want')",
            'Invalid metadata in README.md. - "license" must be',
        ),
        ("push('fcnet', 'me/good', revision='refs/pr/7')", "it has no revision 'refs/pr/7'."),
        ("push('fcnet', 'me/portal')", "what answers is not the Hub: look at HF_ENDPOINT"),
        ("push('fcnet', 'you/nets')", "your token may not write there"),
    ],
)
def test_what_is_wrong_with_a_push_is_said_in_a_line(faults: Faults, step: str, words: str) -> None:
    found = message(faults.pushed[step], "UploadError")
    assert found.startswith("cannot push to '")
    assert words in found


def test_a_push_that_failed_leaves_the_repository_as_it_was(faults: Faults) -> None:
    for name in ("me/cutput", "me/refuse", "me/toomany", "me/invalid"):
        assert list(faults.hub.files(name)) == [".gitattributes"]


def test_a_push_without_a_token_is_told_to_log_in(faults: Faults) -> None:
    found = message(faults.pulled["push('fcnet', 'me/nets')"], "UploadError")
    assert "log in with `hf auth login`, or set HF_TOKEN" in found


def test_a_push_of_no_file(faults: Faults) -> None:
    assert "cannot read 'absent.safetensors'" in message(
        faults.pushed["push('absent.safetensors', 'me/nets')"], "WeightsError"
    )


# --- the commands


def test_the_commands_publish_and_fetch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    release = releases()["convnet.cifar3"]
    with published(monkeypatch, tmp_path) as hub:
        assert main(["push", "convnet.cifar3", "me/nets", "--json"]) == 0
        pushed = json.loads(capsys.readouterr().out)
        assert pushed["address"] == f"hf://me/nets@{pushed['commit']}"
        assert main(["push", "convnet.cifar3", "me/nets", "--license", "cc-by-4.0"]) == 0
        printed = capsys.readouterr().out
        assert f"Published: {hub.url}/me/nets\n" in printed
        assert f'expected_sha256="{release.sha256}")' in printed
        assert main(["pull", pushed["address"], "mine", "--sha256", release.sha256]) == 0
        assert capsys.readouterr().out == f"{Path('mine/model.safetensors')}\n"
        assert main(["pull", "me/nets", "--sha256", "0" * 64]) == 1
        assert "is not the expected file" in capsys.readouterr().err
    assert Path("mine/model.safetensors").read_bytes() == read_release(release)
    assert "license: mit" in Path("mine/README.md").read_text(encoding="utf-8")


# --- before anybody is asked


@pytest.mark.parametrize(
    "repo", ["", "nets", "me/", "/nets", "me/nets/more", "hf://", "me/ne ts", "me/nets@v1", "m\0e/nets"]
)
def test_a_repository_has_an_owner_and_a_name(repo: str) -> None:
    with pytest.raises(InputError, match="a repository on the Hub reads owner/name, not "):
        push(cifarnets.create("convnet"), repo)


def test_a_model_that_could_not_be_loaded_again_is_not_published() -> None:
    with pytest.raises(WeightsError, match="Linear is not registered"):
        push(torch.nn.Linear(2, 2), "me/nets")


def test_pull_takes_no_web_address() -> None:
    with pytest.raises(InputError, match="a repository on the Hub reads owner/name"):
        pull("https://huggingface.co/me/nets")
