"""What the library changes in the process it runs in, and the switch that leaves the process alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cifarnets import _runtime

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="large pages and glibc are Linux's")
OURS = ("THP_MEM_ALLOC_ENABLE", "CUBLAS_WORKSPACE_CONFIG", _runtime.SWITCH)


def run(code: str, **settings: str) -> str:
    """What a program prints in a fresh process, whose environment has no settings of memory but these."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if name not in OURS and not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))
    }
    environment = {**clean, "OMP_NUM_THREADS": "1", **settings}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


SHOW = "import os, cifarnets; print(os.environ.get('THP_MEM_ALLOC_ENABLE'), os.environ.get('CUBLAS_WORKSPACE_CONFIG'))"


def test_the_environment_is_set_unless_the_user_has_or_says_no() -> None:
    assert run(SHOW) == "1 :4096:8\n"
    assert run(SHOW, THP_MEM_ALLOC_ENABLE="0", CUBLAS_WORKSPACE_CONFIG=":16:8") == "0 :16:8\n"
    assert run(SHOW, CIFARNETS_TUNE="0") == "None None\n"


FILL = """
import resource, torch, cifarnets
torch.ones(1)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(32 * 2**20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@linux_only
def test_large_tensors_lie_in_large_pages_unless_told_otherwise() -> None:
    if "[madvise]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("this system has large pages always, or never")
    small_pages = int(run(FILL, THP_MEM_ALLOC_ENABLE="0"))
    assert small_pages > 20 * int(run(FILL))
    assert small_pages < 2 * int(run(FILL, CIFARNETS_TUNE="0"))


# Faults of 4 kB pages tell how often 64 MB that were let go had to be taken from the system again, of eight times.
KEEPS = """
import resource, torch
from cifarnets import Trainer, create
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
from cifarnets.training import Callback

def taken_again():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.zeros(2**24)
    return round((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 2**14)

class Look(Callback):
    def on_batch_end(self, trainer):
        found.append(taken_again())

found = []
trainer = Trainer(create("convnet"), device="cpu", callbacks=[Look()], progress=False)
found.append(taken_again())
trainer.fit(BatchLoader(SyntheticCIFAR10(size=20), 20, device="cpu"), epochs=1)
found.append(taken_again())
print(*found)
"""


@linux_only
@pytest.mark.parametrize(
    ("settings", "keeps"),
    [({}, True), ({"CIFARNETS_TUNE": "0"}, False), ({"MALLOC_TRIM_THRESHOLD_": "131072"}, False)],
)
def test_freed_memory_is_kept_during_a_fit_alone(settings: dict[str, str], keeps: bool) -> None:
    before, during, after = map(int, run(KEEPS, THP_MEM_ALLOC_ENABLE="0", **settings).split())
    assert before >= 7, "a Trainer alone must change nothing"
    # Now and then memory must be taken again, where something small has taken a bit of the place.
    assert during < 6 if keeps else during >= 7
    assert after >= 7, "after the fit everything must be as it was"


RESIDENT = """
import torch
from cifarnets import Trainer, create
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
from cifarnets.training import Callback

def megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 // 2**20

class Fill(Callback):
    def on_batch_end(self, trainer):
        torch.ones(2**27)  # 512 MB, freed at once

trainer = Trainer(create("convnet"), device="cpu", callbacks=[Fill()], progress=False)
before = megabytes()
trainer.fit(BatchLoader(SyntheticCIFAR10(size=20), 20, device="cpu"), epochs=1)
print(megabytes() - before)
"""


@linux_only
def test_memory_goes_back_to_the_system_after_a_fit() -> None:
    assert int(run(RESIDENT)) < 256


class Libc:
    """Notes what it is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, ...]] = []

    def mallopt(self, option: int, value: int) -> None:
        self.calls.append(("mallopt", str(option), str(value)))

    def malloc_trim(self, pad: int) -> None:
        self.calls.append(("malloc_trim",))


def test_two_fits_at_once_change_the_process_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    libc = Libc()
    monkeypatch.setattr(_runtime, "_libc", lambda: libc)
    monkeypatch.delenv(_runtime.SWITCH, raising=False)
    with _runtime.kept_memory(torch.device("cpu")):
        first = list(libc.calls)
        with _runtime.kept_memory(torch.device("cpu")):
            pass
        assert libc.calls == first
    assert libc.calls[-1] == ("malloc_trim",)
    assert len(libc.calls) == 5
    libc.calls.clear()
    with _runtime.kept_memory(torch.device("meta")):
        pass
    monkeypatch.setenv(_runtime.SWITCH, "0")
    with _runtime.kept_memory(torch.device("cpu")):
        pass
    assert libc.calls == []


def test_the_commit_is_that_of_the_checkout_and_of_no_other_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git = [
        "git",
        "-C",
        str(tmp_path),
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b.example",
        "-c",
        "commit.gpgsign=false",
    ]
    source = tmp_path / "src" / "cifarnets" / "_runtime.py"
    source.parent.mkdir(parents=True)
    source.write_text("")
    try:
        for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
            subprocess.run([*git, *words], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    monkeypatch.setattr(_runtime, "__file__", str(source))
    assert _runtime.source_commit() == head
    source.write_text("changed")
    assert _runtime.source_commit() == f"{head}-dirty"
    # An environment within somebody's repository: its commit says nothing about this library.
    monkeypatch.setattr(_runtime, "__file__", str(tmp_path / "lib" / "site-packages" / "cifarnets" / "_runtime.py"))
    assert head not in str(_runtime.source_commit())
