"""What is around the library: make targets, workflows, hooks, the citation, and the page on the package index."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import cifarnets

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = "https://github.com/cifarnets/cifarnets"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

checkout = pytest.mark.skipif(
    not (ROOT / ".github").is_dir(), reason="not a checkout: .github is not part of the source distribution"
)


def read_yaml(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def targets() -> dict[str, str]:
    """Each make target, with what follows its colon: prerequisites and help text."""
    return dict(re.findall(r"^([a-z-]+):(?!=)(.*)$", MAKEFILE, re.MULTILINE))


def jobs() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{path.name}: {name}", job) for path in WORKFLOWS for name, job in read_yaml(path)["jobs"].items()]


def steps() -> list[tuple[str, dict[str, Any]]]:
    return [(name, step) for name, job in jobs() for step in job.get("steps", [])]


def prerequisites_of_check() -> list[str]:
    return targets()["check"].split("##")[0].split()


def test_every_make_target_has_a_help_text_and_is_phony() -> None:
    phony = re.search(r"^\.PHONY:((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    assert phony
    assert set(phony[1].replace("\\", " ").split()) == set(targets())
    assert [name for name, rest in targets().items() if not re.search(r"## \S", rest)] == []


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
@pytest.mark.parametrize("words", [[], ["help"]], ids=["make", "make help"])
def test_make_lists_every_target(words: list[str]) -> None:
    shown = subprocess.run(
        ["make", "-C", ROOT, "--no-print-directory", *words], capture_output=True, text=True, check=True
    )
    lines = {tuple(line.split(maxsplit=2)) for line in shown.stdout.splitlines()}
    assert lines == {("make", name, rest.split("## ")[1]) for name, rest in targets().items()}


def test_contributing_names_every_make_target() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`make ([a-z-]+)`", text)) == set(targets())


@checkout
def test_workflows_run_make_targets_and_nothing_else() -> None:
    runs = [(name, step["run"].strip()) for name, step in steps() if "run" in step]
    assert runs
    for name, command in runs:
        target = re.fullmatch(r"make ([a-z-]+)", command)
        assert target, f"{name} runs {command!r}"
        assert target[1] in targets(), f"{name}: there is no make target {target[1]!r}"


@checkout
def test_workflows_may_do_no_more_than_they_must() -> None:
    for path in WORKFLOWS:
        workflow = read_yaml(path)
        assert workflow["permissions"] == {"contents": "read"}, path.name
        assert "concurrency" in workflow, path.name
    granted = {name: job["permissions"] for name, job in jobs() if "permissions" in job}
    assert granted == {
        "release.yml: publish": {"id-token": "write"},
        "release.yml: docs": {"pages": "write", "id-token": "write"},
    }
    for name, step in steps():
        if "uses" in step:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", step["uses"]), f"{name}: {step['uses']} is not a commit"
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False, name


@checkout
def test_ci_runs_on_every_system_and_every_python_of_the_classifiers() -> None:
    matrix = read_yaml(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["os"] == ["ubuntu-latest", "macos-latest", "windows-latest"]
    classifiers = PROJECT["project"]["classifiers"]
    promised = [line.rsplit(" ", 1)[1] for line in classifiers if re.search(r"Python :: 3\.\d+$", line)]
    assert matrix["python"] == promised
    assert PROJECT["project"]["requires-python"] == f">={promised[0]}"
    assert f"python{promised[0]} -m venv .venv-lowest" in MAKEFILE


@checkout
def test_a_release_runs_ci_before_it_publishes() -> None:
    release = read_yaml(ROOT / ".github" / "workflows" / "release.yml")
    found = release["jobs"]
    assert release[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key `on` as true
    assert found["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert "workflow_call" in read_yaml(ROOT / ".github" / "workflows" / "ci.yml")[True]
    assert [found[name]["needs"] for name in ("build", "publish", "docs")] == ["ci", "build", "publish"]
    assert found["publish"]["environment"] == "pypi"


@checkout
def test_pre_commit_hooks_are_the_checks_of_make_check() -> None:
    repos = read_yaml(ROOT / ".pre-commit-config.yaml")["repos"]
    assert [repo["repo"] for repo in repos] == ["local"]  # the versions are those of the virtual environment
    hooks = repos[0]["hooks"]
    assert [hook["entry"] for hook in hooks] == [f"make {name}" for name in prerequisites_of_check()]
    assert {(hook["language"], hook["pass_filenames"]) for hook in hooks} == {("system", False)}


@checkout
def test_ci_on_a_bare_machine_runs_what_the_workflow_runs() -> None:
    if not (ROOT / ".ci").is_dir():
        pytest.skip("not a checkout: .ci is not part of the source distribution")
    here = re.findall(r"^make ([a-z-]+)$", (ROOT / ".ci" / "run").read_text(encoding="utf-8"), re.MULTILINE)
    assert here == ["setup", "check", "docs", "test"]
    there = {step["run"].removeprefix("make ") for name, step in steps() if name.startswith("ci.yml") and "run" in step}
    assert set(here) <= there


def test_the_citation_is_of_this_version() -> None:
    citation = read_yaml(ROOT / "CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == cifarnets.__version__
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["repository-code"] == REPOSITORY
    assert citation["url"] == PROJECT["project"]["urls"]["Documentation"]
    assert all(citation[name] for name in ("title", "message", "authors", "abstract"))


def test_the_addresses_of_the_project_agree() -> None:
    urls = PROJECT["project"]["urls"]
    assert set(urls) == {"Homepage", "Documentation", "Repository", "Issues", "Changelog"}
    assert urls["Repository"] == urls["Homepage"] == REPOSITORY
    assert urls["Issues"] == f"{REPOSITORY}/issues"
    assert urls["Changelog"] == f"{REPOSITORY}/blob/main/CHANGELOG.md"
    site = dict(re.findall(r"^(site_url|repo_url): (\S+)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.M))
    assert site == {"site_url": urls["Documentation"], "repo_url": REPOSITORY}


def test_the_page_on_the_package_index_has_no_relative_link() -> None:
    pytest.importorskip("hatchling", reason="the extra `dev` is not installed")
    pytest.importorskip("hatch_fancy_pypi_readme", reason="the extra `dev` is not installed")
    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "metadata", "readme"],
        cwd=ROOT,
        env={**os.environ, "PYTHONUTF8": "1"},
        capture_output=True,
        check=True,
        encoding="utf-8",
    ).stdout
    links = re.findall(r"\]\(([^)]+)\)", built)
    assert f"{REPOSITORY}/blob/v{cifarnets.__version__}/docs/index.md" in links
    assert [link for link in links if not link.startswith("https://")] == []
    pictures = [link for link in links if link.endswith(".png")]
    assert pictures
    assert all(link.startswith("https://raw.githubusercontent.com/cifarnets/cifarnets/v") for link in pictures)
    assert not re.search(r"^\[[^\]]+\]: (?!https://)|(?:src|href)=\"(?!https://)", built, re.MULTILINE)


def test_the_links_of_the_project_files_lead_somewhere() -> None:
    for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / name).read_text(encoding="utf-8")):
            assert link.startswith("https://") or (ROOT / link).exists(), f"{name} links to {link}"
