"""A real run on real data, killed ten times, against one that nobody touched."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from cifarnets import load
from cifarnets.cli import main

RUN = ["train", "convnet", "--classes", "airplane,automobile,ship", "--epochs", "5", "--val", "1500", "--ema", "0.99"]
HOW = [
    "--option",
    "momentum=0.9",
    "--schedule",
    "one_cycle",
    "--accumulate",
    "3",
    "--checkpoint-every",
    "20",
    "--quiet",
]

# Dies in the middle of a checkpoint: its bytes are in the temporary file, which is not yet renamed.
DIES_IN_CHECKPOINT = """
import os, signal, sys
from cifarnets.cli import main
left = int(sys.argv.pop(1))
flush = os.fsync
def die(file):
    global left
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    flush(file)
os.fsync = die
main()
"""


def _history(folder: Path) -> list[dict[str, str]]:
    with (folder / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{key: value for key, value in row.items() if "second" not in key} for row in rows]


def _start(folder: Path, root: Path, *before: str) -> "subprocess.Popen[str]":
    words = [sys.executable, *(before or ("-m", "cifarnets")), *RUN, *HOW, "--resume", str(folder)]
    environment = {**os.environ, "CIFARNETS_DATA": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.cifar10
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_killed_ten_times_ends_as_one_that_was_not(real_root: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    untouched = _start(whole, real_root)
    output, _ = untouched.communicate(timeout=300)
    assert untouched.returncode == 0, output

    chance = random.Random(0)
    state = killed / "checkpoint.safetensors"
    cut_in_checkpoint = 0
    for attempt in range(10):
        if attempt % 3 == 2:
            # Every start writes run.json first; from then on each write is a checkpoint, a model or the history.
            process = _start(killed, real_root, "-c", DIES_IN_CHECKPOINT, str(chance.randint(2, 6)))
            process.communicate(timeout=120)
            cut_in_checkpoint += any(killed.glob(".*.tmp"))
        else:
            before = state.stat().st_mtime_ns if state.exists() else 0
            process = _start(killed, real_root)
            while process.poll() is None and (not state.exists() or state.stat().st_mtime_ns == before):
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
            process.communicate(timeout=120)
        assert process.returncode == -signal.SIGKILL
    assert cut_in_checkpoint, "no kill hit a file half written"

    last = _start(killed, real_root)
    output, _ = last.communicate(timeout=300)
    assert last.returncode == 0, output
    assert _history(killed) == _history(whole)
    assert len(_history(whole)) == 5
    ours, theirs = (load(folder / "model.safetensors").state_dict() for folder in (killed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    states = [(folder / "checkpoint.safetensors").stat().st_size for folder in (killed, whole)]
    assert states[0] == pytest.approx(states[1], rel=0.02)
    assert not list(killed.glob(".*.tmp")), "leftovers of killed writes are cleared away"


DRAWN = ["train", "convnet", "--synthetic", "--classes", "disc,cross,stripes", "--epochs", "3", "--batch-size", "50"]
DRAWN += ["--option", "momentum=0.9", "--checkpoint-every", "1", "--quiet"]

# Imports once, and forks a process for each kill: inside the writes of the state, the history and the models.
DIES_AGAIN_AND_AGAIN = """
import os, signal, sys
from cifarnets.cli import main
flush = os.fsync
def start(last):
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    left = last
    def die(file):
        nonlocal left
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(file)
    os.fsync = die
    os._exit(main(sys.argv[1:]))
for last in (2, 3, 9, 17):
    assert os.WTERMSIG(start(last)) == signal.SIGKILL
    assert any(name.endswith(".tmp") for name in os.listdir(sys.argv[-1])), last
sys.exit(os.waitstatus_to_exitcode(start(-1)))
"""


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the drawn pictures that nobody stopped."""
    folder = tmp_path_factory.mktemp("untouched") / "run"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the others have it: more would add in another order
    assert main([*DRAWN, "--out", str(folder)]) == 0
    torch.set_num_threads(threads)
    return folder


def _assert_same_run(one: Path, other: Path) -> None:
    assert _history(one) == _history(other)
    ours, theirs = (load(folder / "model.safetensors").state_dict() for folder in (one, other))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not list(one.glob(".*.tmp"))


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_run_killed_inside_its_writes_ends_as_one_that_was_not(untouched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = [sys.executable, "-c", DIES_AGAIN_AND_AGAIN, *DRAWN, "--resume", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    _assert_same_run(folder, untouched)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send these signals to one process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_first_and_says_how_to_go_on(number: signal.Signals, untouched: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "cifarnets", *DRAWN, "--out", str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    while process.poll() is None and not (folder / "checkpoint.safetensors").exists():
        time.sleep(0.005)
    process.send_signal(number)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert errors == "\nstopping after this batch (once more: at once)\n"
    assert output == f"Stopped. Resume from the very batch with:\n  cifarnets train --resume {folder}\n"
    assert main(["train", "--resume", str(folder), "--quiet"]) == 0
    _assert_same_run(folder, untouched)
