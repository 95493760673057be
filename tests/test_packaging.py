"""What pyproject.toml promises."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_oldest_versions_are_those_that_are_tested() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    dependencies = text.split("dependencies = [", 1)[1].split("\n]", 1)[0]
    promised = dict(re.findall(r'"([\w-]+)>=([\d.]+)[";]', dependencies))
    extras = text.split("[project.optional-dependencies]", 1)[1].split("\ntest = ", 1)[0]  # those of users
    promised |= dict(re.findall(r'"([\w-]+)>=([\d.]+)"', extras))
    pinned = dict(re.findall(r"^([\w-]+)==([\d.]+)$", (ROOT / "tests" / "lowest.txt").read_text(), re.MULTILINE))
    assert {name: (version + ".0")[: len(pinned[name])] for name, version in promised.items()} == pinned


def test_types_are_shipped() -> None:
    assert (ROOT / "src" / "cifarnets" / "py.typed").is_file()
