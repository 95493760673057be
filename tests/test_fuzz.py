"""A few thousand damaged and hostile files: each reader holds. (`python -m fuzz` makes as many as one likes.)"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="limits of memory are set as on Unix")


@pytest.mark.parametrize(
    ("target", "cases"),
    [
        *(("load", 1200), ("resume", 200), ("foreign", 500), ("recipe", 500)),
        *(("run.json", 500), ("report", 100), ("index.json", 200), ("picture", 500)),
    ],
)
def test_no_file_gets_through(target: str, cases: int, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "fuzz", "--cases", str(cases), "--target", target]
    done = subprocess.run(
        [*command, "--keep", str(tmp_path)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{target}: {cases:,} cases" in done.stdout
    assert ", 0 escapes" in done.stdout
