"""Several processes: real ones, under torchrun, talking over the loopback."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from cifarnets.datasets import BatchLoader, ImageDataset
from cifarnets.errors import InputError
from cifarnets.training.distributed import World, join, leave
from cifarnets.training.feed import EpochFeed
from cifarnets.weights.state import read_state

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="torchrun needs libuv on Windows")

# The very same lines run in one process and in two. 300 images in batches of 47: the shards of a batch differ in size,
# and the last batch (18) is smaller.
SCRIPT = """
import atexit, json, os, sys
from pathlib import Path

def threads():
    names = (entry.read_text().strip() for entry in Path("/proc/self/task").glob("*/comm"))
    Path(out, f"threads-{os.environ['RANK']}.json").write_text(json.dumps([n for n in names if "gloo" in n]))

atexit.register(threads)  # what is registered first runs last

from cifarnets import Trainer, seed_everything
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10, cifar_subset
from cifarnets.models import create
from cifarnets.training import Callback, Checkpoint, CSVLog, EMA

out, kind, die = sys.argv[1], sys.argv[2], int(sys.argv[3])
drawn = SyntheticCIFAR10(size=1000, seed=1)
images = cifar_subset(drawn, drawn.classes[:3])
seed_everything(0)
loader = BatchLoader(images, 47, shuffle=True)
if kind == "DataLoader":
    from torch.utils.data import DataLoader
    loader = DataLoader(images, 47, shuffle=True)

class Die(Callback):
    every_process = True
    def on_batch_end(self, trainer):
        if die and trainer.epoch == 1 and trainer.batches_done == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
            if trainer.world.rank == 1:
                os.kill(os.getpid(), 9)

trainer = Trainer(
    create("convnet", num_classes=3), lr=0.05, optimizer_options={"momentum": 0.9}, schedule="one_cycle", accumulate=2,
    callbacks=[EMA(0.9), CSVLog(f"{out}/history.csv"), Checkpoint(out, every_batches=2), Die()], progress=False,
)
history = trainer.fit(loader, BatchLoader(images, 101), epochs=3, resume=out)
if trainer.world.is_main:
    with open(f"{out}/result.json", "w") as file:
        json.dump([{k: v for k, v in row.items() if "second" not in k} for row in history], file)
"""


def _launch(tmp_path: Path, processes: int, *arguments: str, options: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [*launcher, *options, str(script), *arguments]
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _train(tmp_path: Path, processes: int, name: str, kind: str, **how: Any) -> list[dict[str, float]]:
    folder = tmp_path / name
    process = _launch(tmp_path, processes, str(folder), kind, how.pop("die", "0"), **how)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    found: list[dict[str, float]] = json.loads((folder / "result.json").read_text())
    return found


@pytest.mark.parametrize("kind", ["BatchLoader", "DataLoader"])
def test_two_processes_do_what_one_does(tmp_path: Path, kind: str) -> None:
    one, two = (_train(tmp_path, n, str(n), kind) for n in (1, 2))
    assert len(one) == 3
    for a, b in zip(one, two, strict=True):
        assert b["loss"] == pytest.approx(a["loss"], abs=1e-5)
        assert b["val_loss"] == pytest.approx(a["val_loss"], abs=1e-5)
        assert b["accuracy"] == pytest.approx(a["accuracy"], abs=1e-9)
    history = (tmp_path / "2" / "history.csv").read_text().splitlines()
    assert len(history) == 4, "one process writes, not each"
    if sys.platform == "linux":
        # A thread of gloo's that lets go of a tensor while the interpreter ends aborts the process, now and then.
        for rank in range(2):
            assert json.loads((tmp_path / "2" / f"threads-{rank}.json").read_text()) == []


def test_a_process_that_dies_is_restarted_and_the_fit_resumes(tmp_path: Path) -> None:
    whole = _train(tmp_path, 2, "whole", "BatchLoader")
    again = _train(tmp_path, 2, "again", "BatchLoader", die="1", options=("--max-restarts", "1"))
    assert again == whole, "bit for bit"


def test_a_process_that_dies_ends_the_job_with_an_error_soon(tmp_path: Path) -> None:
    process = _launch(tmp_path, 2, str(tmp_path / "out"), "BatchLoader", "1")
    checkpoint = tmp_path / "out" / "checkpoint.safetensors"
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.05)
    started = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - started < 60
    assert process.returncode != 0
    assert f"exitcode  : -{signal.SIGKILL.value}" in output


# Runs long enough to be stopped: the processes ask each other every fifty batches.
LONG = """
import os, sys, time
from pathlib import Path
from cifarnets import Trainer, create, seed_everything
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
from cifarnets.training import Callback, Checkpoint

out, epochs = Path(sys.argv[1]), int(sys.argv[2])

class Say(Callback):
    every_process = True
    def on_batch_end(self, trainer):
        if trainer.batches_done == 3:
            (out / f"pid-{trainer.world.rank}").write_text(str(os.getpid()))

out.mkdir(exist_ok=True)
seed_everything(0)
loader = BatchLoader(SyntheticCIFAR10(size=1200), 8, shuffle=True)
trainer = Trainer(create("convnet"), lr=0.05, callbacks=[Say(), Checkpoint(out)], progress=False)
try:
    history = trainer.fit(loader, epochs=epochs, resume=out)
except SystemExit as end:
    (out / f"status-{trainer.world.rank}").write_text(str(end.code))
    raise
if trainer.world.is_main:
    (out / "losses").write_text(str(history.column("loss")))
"""


@pytest.mark.parametrize("to", ["one", "both"])
def test_sigterm_to_one_process_or_to_both_ends_both_cleanly(tmp_path: Path, to: str) -> None:
    script, folder = tmp_path / "long.py", tmp_path / "out"
    script.write_text(LONG)
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]

    def start(epochs: int) -> "subprocess.Popen[str]":
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*words, str(folder), str(epochs)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    process = start(1000)
    notes = [folder / "pid-0", folder / "pid-1"]
    while process.poll() is None and not all(note.exists() and note.read_text() for note in notes):
        time.sleep(0.05)
    for note in notes if to == "both" else notes[1:]:
        os.kill(int(note.read_text()), signal.SIGTERM)
    output, _ = process.communicate(timeout=240)
    assert [(folder / f"status-{rank}").read_text() for rank in (0, 1)] == ["143", "143"], output
    assert "[rank" not in output, "no process ends with a traceback"
    assert "SIGABRT" not in output
    assert output.count("stopping after this batch") <= 1, "one process talks"
    state = read_state(folder / "checkpoint.safetensors")
    assert state["progress"]["batch"] or state["progress"]["epoch"]
    assert len(state["rng"]) == 2, "the state of both was saved"


UNEQUAL = """
import os, sys
import torch
from cifarnets import Trainer, create
from cifarnets.datasets import BatchLoader, SyntheticCIFAR10
from torch.utils.data import DataLoader

rank, kind = int(os.environ["RANK"]), sys.argv[1]
data = SyntheticCIFAR10(size=100)
if kind == "number":
    loader = BatchLoader(data.select(range(70 if rank else 100)), 10)
elif kind == "size":
    loader = DataLoader(data, 10 if rank else 20)
elif kind == "list":
    loader = list(BatchLoader(data, 10))[: 7 if rank else 10]
elif kind == "stream":
    batches = list(BatchLoader(data, 10))[: 7 if rank else 10]
    class Stream:
        def __iter__(self):
            return iter(batches)
    loader = Stream()
elif kind == "sizes":
    loader = list(BatchLoader(data, 5 if rank else 10))[:5]
else:
    val = BatchLoader(data.select(range(50 if rank else 60)), 10)
    Trainer(create("convnet"), progress=False).fit(BatchLoader(data, 10), val, epochs=1)
Trainer(create("convnet"), progress=False).fit(loader, epochs=1)
"""


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("number", "every process needs the same loader, and process 1 has batches 7, not 10; images 70, not 100 as"),
        ("size", "every process needs the same loader, and process 1 has batches 10, not 5; batch_size 10, not 20 as"),
        ("list", "every process needs the same loader, and process 1 has batches 7, not 10 as process 0."),
        ("sizes", "epoch 1, batch 1: every process needs the same batches, and theirs have [10, 5] images"),
        ("stream", "epoch 1, batch 8: every process needs the same batches, and theirs have [10, None] images"),
        ("validation", "every process needs the same loader, and process 1 has batches 5, not 6; images 50, not 60 as"),
    ],
)
def test_unequal_batches_are_refused_in_every_process(tmp_path: Path, kind: str, message: str) -> None:
    script = tmp_path / "unequal.py"
    script.write_text(UNEQUAL)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(script), kind],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode != 0
    assert f"InputError: {message}" in done.stderr
    assert "SIGABRT" not in done.stderr
    assert "exitcode  : 1 " in done.stderr


@pytest.mark.cifar10
def test_the_command_trains_on_two_processes_too(real_root: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "convnet",
        "--classes",
        "airplane,automobile,ship",
        "--epochs",
        "1",
        "--batch-size",
        "500",
        "--quiet",
    ]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    losses = []
    for n in (1, 2):
        done = subprocess.run(
            [*launcher, str(n), "-m", "cifarnets", *words, "--out", str(tmp_path / str(n))],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Accuracy test") == 1
        row = (tmp_path / str(n) / "history.csv").read_text().splitlines()[1].split(",")
        losses.append(float(row[1]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


class TestOneProcess:
    def test_alone_nothing_is_asked_of_others(self) -> None:
        world = join(torch.device("cpu"))
        assert world == World(0, 1)
        assert world.is_main
        values = torch.ones(3)
        assert world.sum(values) is values
        assert world.gather("a") == ["a"]
        assert world.first("a") == "a"
        assert world.any(True, values.device)
        leave()

    def test_without_torch_distributed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
        assert join(torch.device("cpu")) == World()
        leave()

    def test_devices_that_torch_cannot_connect(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        monkeypatch.setenv("RANK", "0")
        with pytest.raises(InputError, match="several processes cannot train together on mps"):
            join(torch.device("mps"))

    def test_a_torch_that_lacks_it_is_imported_all_the_same(self) -> None:
        program = "import sys, torch; sys.modules['torch.distributed.rendezvous'] = None; import cifarnets.training"
        subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


class TestShards:
    """Which images are whose."""

    def test_the_shards_of_any_loader_are_disjoint_and_complete(self, synthetic3: ImageDataset) -> None:
        loaders: list[Any] = [
            BatchLoader(synthetic3, 47, shuffle=True, device="cpu", seed=1),
            list(BatchLoader(synthetic3, 47, device="cpu")),
        ]
        for loader in loaders:
            state = loader.state_dict() if isinstance(loader, BatchLoader) else None
            parts = []
            for rank in range(3):
                if isinstance(loader, BatchLoader) and state:
                    loader.load_state_dict(state)
                parts.append(list(EpochFeed(loader, World(rank, 3)).shards()))
            for pieces in zip(*parts, strict=True):
                sizes = [len(labels) for _, labels, _ in pieces]
                assert sum(sizes) == pieces[0][2]
                assert max(sizes) - min(sizes) <= 1
            seen = torch.cat([images for part in parts for images, _, _ in part])
            assert sorted(seen.sum((1, 2, 3)).tolist()) == pytest.approx(
                sorted(torch.cat([x for x, _ in loaders[1]]).sum((1, 2, 3)).tolist()), abs=1e-3
            )

    def test_a_distributed_sampler_has_sharded_already(self, synthetic3: ImageDataset) -> None:
        sampler: Any = DistributedSampler(synthetic3, num_replicas=2, rank=1, shuffle=False)
        loader = DataLoader(synthetic3, 50, sampler=sampler)
        for images, labels, whole in EpochFeed(loader, World(1, 2)).shards():
            assert len(images) == len(labels) == 50
            assert whole == 100
