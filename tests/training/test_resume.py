"""A resumed fit ends as if it had never stopped, from every batch and every moment, and after every kill."""

import csv
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.helpers import (
    AnySizeNet,
    BatchNormNet,
    MakeNet,
    OnEveryHook,
    StopAt,
    assert_same_weights,
    batches_of,
    random_numbers,
    weights_of,
    without_times,
)
from torch import Tensor, nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader, RandomSampler

import cifarnets
from cifarnets import Trainer, load
from cifarnets.cli import main
from cifarnets.datasets import Augment, BatchLoader, ImageDataset, SyntheticCIFAR10
from cifarnets.errors import DivergedError, InputError, WeightsError
from cifarnets.models import create
from cifarnets.training import EMA, Callback, Checkpoint, EarlyStopping, History
from cifarnets.training.checkpoint import CHECKPOINT_FILE
from cifarnets.training.optimizers import optimizer_names
from cifarnets.weights.state import read_state, write_state


class Archive(Checkpoint):
    """Keeps every state that it writes, each in its own folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, every_batches=1)
        self.kept: list[Path] = []

    def on_batch_end(self, trainer: Trainer) -> None:
        super().on_batch_end(trainer)
        self.keep()

    def on_epoch_end(self, trainer: Trainer) -> None:
        super().on_epoch_end(trainer)
        self.keep()

    def keep(self) -> None:
        self.kept.append(self.folder / f"{len(self.kept):03}")
        self.kept[-1].mkdir()
        shutil.copy(self.folder / CHECKPOINT_FILE, self.kept[-1] / CHECKPOINT_FILE)


class Noisy:
    """Batches with noise from every global generator, as augmentations of users may draw it."""

    def __init__(self, dataset: ImageDataset) -> None:
        self.batches = list(BatchLoader(dataset, 16, device="cpu"))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.batches:
            yield images + torch.randn_like(images) + sum(random_numbers()), labels


@dataclass(frozen=True)
class Setup:
    """What a fit is made of: a net, a loader, the Trainer's arguments, callbacks."""

    net: type[nn.Module] | None  # None for the fixture's
    loader: Callable[[ImageDataset], Any]
    options: dict[str, Any]
    callbacks: Callable[[], list[Callback]] = list


SETUPS = {
    "BatchLoader": Setup(
        None,
        lambda data: BatchLoader(data, 16, shuffle=True, device="cpu", seed=3),
        {"lr": 0.05, "optimizer_options": {"momentum": 0.9}, "schedule": "one_cycle"},
    ),
    "DataLoader": Setup(None, lambda data: DataLoader(data, 16, shuffle=True), {"lr": 0.05}),
    "DataLoader with its own numbers": Setup(
        None,
        lambda data: DataLoader(data, 16, shuffle=True, generator=torch.Generator().manual_seed(1)),
        {"lr": 0.05, "schedule": lambda optimizer: ExponentialLR(optimizer, 0.9)},
    ),
    "small images first": Setup(
        AnySizeNet,
        lambda data: BatchLoader(
            data, 16, shuffle=True, device="cpu", seed=3, augment=Augment(mixup=0.2, curriculum=((16, 1), (24, 1)))
        ),
        {"lr": 0.05, "schedule": "triangular"},
    ),
    "numbers from everywhere": Setup(BatchNormNet, Noisy, {"seed": 4, "accumulate": 3}),
    "all callbacks": Setup(
        BatchNormNet,
        lambda data: BatchLoader(data, 9, shuffle=True, device="cpu", seed=3),  # five batches, three steps
        {
            "optimizer": "adam",
            "accumulate": 2,
            "clip_norm": 1.0,
            "lr": 0.03,
            "schedule": "cosine",
            "schedule_options": {"warmup": 0.2},
        },
        lambda: [EMA(0.8), EarlyStopping("val_loss", patience=1, min_delta=0.2)],
    ),
}


def set_up(name: str, net: MakeNet, data: ImageDataset, folder: Path, *more: Callback) -> tuple[Trainer, Any]:
    setup = SETUPS[name]
    cifarnets.seed_everything(1)
    torch.manual_seed(1)
    built = setup.net() if setup.net else net()
    cifarnets.seed_everything(2)
    # The checkpoint is named first, as users may: what it holds must not depend on that.
    trainer = Trainer(built, **setup.options, callbacks=[Archive(folder), *setup.callbacks(), *more], device="cpu")
    return trainer, setup.loader(data)


def assert_same_end(ours: Trainer, theirs: Trainer, numbers: tuple[float, float, float]) -> None:
    assert without_times(ours.history) == without_times(theirs.history)
    assert_same_weights(ours.model, theirs.model)
    assert_same_weights(ours.eval_model, theirs.eval_model)
    assert (ours.epoch, ours.global_step, ours.lr) == (theirs.epoch, theirs.global_step, theirs.lr)
    assert str(ours.optimizer.state_dict()) == str(theirs.optimizer.state_dict())
    assert random_numbers() == numbers


@pytest.mark.parametrize("name", SETUPS)
def test_resumed_from_any_batch_it_ends_as_if_never_stopped(
    net: MakeNet, train: ImageDataset, val_loader: BatchLoader, tmp_path: Path, name: str
) -> None:
    whole, loader = set_up(name, net, train, tmp_path / "whole")
    whole.fit(loader, val_loader, epochs=3)
    numbers = random_numbers()
    stopped_early = name == "all callbacks"
    assert (len(whole.history) < 3) == stopped_early, "early stopping must have had its say"
    (archive,) = (callback for callback in whole.callbacks if isinstance(callback, Archive))
    assert len(archive.kept) == len(whole.history) * (len(loader) + 1)

    for number, folder in enumerate(archive.kept):
        resumed, loader = set_up(name, net, train, tmp_path / f"resumed{number}")
        cifarnets.seed_everything(number)  # which must not matter
        resumed.fit(loader, val_loader, epochs=3, resume=folder)
        if number == len(archive.kept) - 1:  # nothing was left to do
            assert without_times(resumed.history) == without_times(whole.history)
            assert_same_weights(resumed.eval_model, whole.eval_model)
        else:
            assert_same_end(resumed, whole, numbers)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows cannot send itself these signals")
@pytest.mark.parametrize("name", ["DataLoader", "all callbacks"])
def test_interrupted_at_any_moment_it_resumes_from_the_very_batch(
    net: MakeNet, train: ImageDataset, val_loader: BatchLoader, tmp_path: Path, name: str
) -> None:
    moments: list[str] = []
    whole, loader = set_up(name, net, train, tmp_path / "whole", OnEveryHook(lambda hook, _: moments.append(hook)))
    whole.fit(loader, val_loader, epochs=2)
    numbers = random_numbers()

    for moment in range(len(moments) - 1):  # the last is on_fit_end, after which there is nothing to stop
        folder = tmp_path / str(moment)
        passed = iter(range(len(moments)))

        def kill(_hook: str, _trainer: Trainer, moment: int = moment, passed: Iterator[int] = passed) -> None:
            if next(passed) == moment:
                os.kill(os.getpid(), signal.SIGTERM)

        killed, loader = set_up(name, net, train, folder, OnEveryHook(kill))
        # What is saved when the signal has come must do, whatever was saved before.
        killed.callbacks[:] = [callback for callback in killed.callbacks if not isinstance(callback, Archive)]
        killed.callbacks.append(Checkpoint(folder))
        with pytest.raises(SystemExit):
            killed.fit(loader, val_loader, epochs=2)
        assert killed.interrupted
        random_numbers()
        resumed, loader = set_up(name, net, train, tmp_path / f"resumed{moment}", OnEveryHook(lambda *_: None))
        resumed.fit(loader, val_loader, epochs=2, resume=folder)
        assert resumed.global_step == whole.global_step
        if killed.epoch < whole.epoch:
            assert_same_end(resumed, whole, numbers)
        else:
            assert without_times(resumed.history) == without_times(whole.history)


@pytest.mark.parametrize("name", sorted(optimizer_names().keys() - {"muon"}))  # which takes matrices only
def test_resumed_again_and_again_it_ends_as_if_never_stopped(
    net: MakeNet, train: ImageDataset, tmp_path: Path, name: str
) -> None:
    def fit(folder: Path, *more: Callback, **options: Any) -> Trainer:
        trainer = Trainer(net(), optimizer=name, device="cpu", callbacks=[Checkpoint(folder), *more])
        trainer.fit(BatchLoader(train, 16, device="cpu"), epochs=4, **options)
        return trainer

    whole = fit(tmp_path / "whole")
    for epoch in range(3):
        stopped = fit(tmp_path / "parts", StopAt(batch=1, epoch=epoch), resume=tmp_path / "parts")
        assert (stopped.epoch, stopped.batches_done) == (epoch, 1)
    assert_same_weights(fit(tmp_path / "parts", resume=tmp_path / "parts").model, whole.model)


def test_resume_without_a_checkpoint_starts_from_the_beginning(
    net: MakeNet, loader: BatchLoader, tmp_path: Path
) -> None:
    assert len(Trainer(net(), device="cpu").fit(loader, epochs=1, resume=tmp_path / "none")) == 1


def test_resume_counts_the_epochs_of_its_fit(net: MakeNet, loader: BatchLoader, tmp_path: Path) -> None:
    first = Trainer(net(), callbacks=[Checkpoint(tmp_path)], device="cpu")
    first.fit(loader, epochs=1)
    first.fit(loader, epochs=2)
    done = Trainer(net(), device="cpu")
    assert without_times(done.fit(loader, epochs=2, resume=tmp_path)) == without_times(first.history)
    more = Trainer(net(), device="cpu")
    more.fit(loader, epochs=3, resume=tmp_path)
    assert [row["epoch"] for row in more.history] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"num_classes": 4}, "another model: size mismatch for fc2.weight"),
        ({"decay_biases": False}, r"parameter_groups \[8\], not \[4, 4\]"),
        ({"schedule": "step"}, "another schedule: 'cosine', not 'step'"),
        ({"schedule": "triangular"}, "another schedule: 'cosine', not 'triangular'"),
        ({"schedule": None}, "another schedule: 'cosine', not None"),
        ({"schedule_options": {"warmup": 0.5}}, r"schedule_options {}, not {'warmup': 0.5}"),
        ({"epochs": 2}, "a fit of 1 epochs"),
        ({"optimizer": "adam", "optimizer_options": {}}, "optimizer 'SGD', not 'Adam'"),
        ({"optimizer_options": {"momentum": 0.5}}, "optimizer_options .*0.9.*, not .*0.5"),
        ({"lr": 0.5}, r"lr \[0.01\], not \[0.5\]"),
        ({"loss": nn.CrossEntropyLoss()}, r"loss 'cross_entropy\(label_smoothing=0.0\)', not 'CrossEntropyLoss\("),
        ({"label_smoothing": 0.1}, r"label_smoothing=0.0\)', not .*0.1"),
        ({"accumulate": 2}, "accumulate 1, not 2"),
        ({"clip_norm": 1.0}, "clip_norm None, not 1.0"),
        ({"loader": lambda data: BatchLoader(data, 8, device="cpu")}, "batch_size 16, not 8"),
        ({"loader": lambda data: BatchLoader(data.select(range(39)), 16, device="cpu")}, "images 40, not 39"),
        ({"loader": lambda data: BatchLoader(data, 16, shuffle=True, device="cpu")}, "shuffle False, not True"),
        ({"loader": lambda data: DataLoader(data, 16, shuffle=True)}, "sampler 'NoneType', not 'RandomSampler'"),
        ({"loader": lambda data: DataLoader(data, 16, num_workers=1)}, "workers False, not True"),
        ({"loader": lambda data: list(BatchLoader(data, 16, device="cpu"))}, "batch_size 16, not None"),
        ({"loader": lambda data: list(BatchLoader(data, 8, device="cpu"))}, "batch_size 16, not None"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_checkpoint_of_another_fit_is_refused_and_leaves_all_as_it_was(
    net: MakeNet, train: ImageDataset, tmp_path: Path, other: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {"schedule": "cosine", "optimizer_options": {"momentum": 0.9}, "device": "cpu"}
    Trainer(net(), **options, callbacks=[Checkpoint(tmp_path)]).fit(BatchLoader(train, 16, device="cpu"), epochs=1)
    good = (tmp_path / CHECKPOINT_FILE).read_bytes()
    options |= other
    make_loader = options.pop("loader", lambda data: BatchLoader(data, 16, device="cpu"))
    epochs = options.pop("epochs", 1)
    model: Any = cifarnets.models.create("convnet", num_classes=options.pop("num_classes", 3), widths=(4, 4), hidden=8)
    meta, before = model.meta, weights_of(model)
    trainer = Trainer(model, **options, seed=5, callbacks=[Checkpoint(tmp_path)])
    loader, numbers = make_loader(train), torch.get_rng_state()
    with pytest.raises(InputError, match=f"the checkpoint is .*(?s:.*){message}"):
        trainer.fit(loader, epochs=epochs, resume=tmp_path)
    assert (trainer.epoch, trainer.end_epoch, trainer.batches_done, trainer.history) == (0, 0, 0, [])
    assert trainer.schedule is None
    assert trainer.optimizer.state_dict()["state"] == {}
    assert model.meta is meta
    assert torch.equal(torch.get_rng_state(), numbers)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was loaded all the same"
    assert (tmp_path / CHECKPOINT_FILE).read_bytes() == good
    trainer.callbacks.clear()
    assert len(trainer.fit(BatchLoader(train, 16, device="cpu"), epochs=1)) == 1, "it can still train"


def test_a_plan_that_is_refused_leaves_all_as_it_was(net: MakeNet, loader: BatchLoader, train: ImageDataset) -> None:
    model: Any = net()
    trainer = Trainer(model, lr=0.1, schedule="cosine", device="cpu", progress=False)
    trainer.fit(loader, epochs=1)
    meta, schedule, groups = model.meta, trainer.schedule, str(trainer.optimizer.state_dict())
    other = ImageDataset(train.images, train.labels, ["a", "b", "c"])
    for wrong in (
        lambda: trainer.plan(BatchLoader(other, 16, device="cpu"), loader, 2),
        lambda: trainer.plan(loader, BatchLoader(other, 16, device="cpu"), 2),
        lambda: trainer.plan(iter([]), None, 2),
        lambda: trainer.plan(loader, None, 0),
    ):
        with pytest.raises(InputError):
            wrong()
        assert model.meta is meta
        assert trainer.schedule is schedule
        assert trainer.loader is loader
        assert (trainer.epoch, trainer.end_epoch) == (1, 1)
        assert str(trainer.optimizer.state_dict()) == groups


def test_persistent_workers_cannot_resume(net: MakeNet, train: ImageDataset, tmp_path: Path) -> None:
    Trainer(net(), callbacks=[Checkpoint(tmp_path)], device="cpu").fit(DataLoader(train, 16), epochs=1)
    loader = DataLoader(train, 16, num_workers=1, persistent_workers=True)
    with pytest.raises(InputError, match=r"workers False, not True"):
        Trainer(net(), device="cpu").fit(loader, epochs=2, resume=tmp_path)
    state = read_state(tmp_path / CHECKPOINT_FILE)
    state["progress"]["settings"]["workers"] = True
    trainer = Trainer(net(), device="cpu")
    trainer.plan(loader, epochs=2)
    with pytest.raises(InputError, match="persistent_workers=True cannot repeat its order in a new process"):
        trainer.load_state_dict(state)


def test_resume_takes_the_folder_or_the_file(net: MakeNet, loader: BatchLoader, tmp_path: Path) -> None:
    Trainer(net(), callbacks=[Checkpoint(tmp_path)], device="cpu").fit(loader, epochs=1)
    for path in (tmp_path, str(tmp_path), tmp_path / CHECKPOINT_FILE, str(tmp_path / CHECKPOINT_FILE)):
        epochs: list[int] = []
        note = OnEveryHook(lambda hook, t, epochs=epochs: epochs.append(t.epoch) if hook == "on_epoch_end" else None)  # type: ignore[misc]
        trainer = Trainer(net(), callbacks=[note], device="cpu")
        trainer.fit(loader, epochs=2, resume=path)
        assert epochs == [2], path
        assert [row["epoch"] for row in trainer.history] == [1, 2]


def test_resume_refuses_what_is_no_checkpoint(net: MakeNet, loader: BatchLoader, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    cifarnets.save(net(), tmp_path / "model.safetensors")
    for path, error, message in (
        (True, InputError, "resume of Trainer.fit must be .*, not True"),
        (5, InputError, "not 5"),
        (tmp_path / "none.safetensors", InputError, "there is no checkpoint '.*none.safetensors' to resume from"),
        ("a\0b", InputError, "contains the character NUL"),
        (tmp_path / "model.safetensors", WeightsError, "holds a model, not the state of a fit"),
        (tmp_path / "notes.txt", WeightsError, "notes.txt"),
    ):
        with pytest.raises(error, match=message):
            Trainer(net(), device="cpu").fit(loader, epochs=1, resume=path)  # type: ignore[arg-type]


def test_a_checkpoint_of_version_0_still_resumes(net: MakeNet, loader: BatchLoader, tmp_path: Path) -> None:
    """Earlier versions kept no settings, and a number of images in the place of sizes."""
    Trainer(net(), callbacks=[Checkpoint(tmp_path, every_batches=1), StopAt(2)], device="cpu").fit(loader, epochs=1)
    state = read_state(tmp_path / CHECKPOINT_FILE)
    del state["progress"]["settings"], state["tally"]["sizes"]
    state["tally"]["images"] = 32
    write_state(tmp_path / CHECKPOINT_FILE, state)
    loader.epoch = 0
    whole = Trainer(net(), device="cpu").fit(loader, epochs=1)
    loader.epoch = 0
    resumed = Trainer(net(), device="cpu").fit(loader, epochs=1, resume=tmp_path)
    assert without_times(resumed) == [pytest.approx(row) for row in without_times(whole)]


def test_what_an_epoch_has_seen_is_resumed_on_the_device(net: MakeNet, loader: BatchLoader, tmp_path: Path) -> None:
    stop = OnEveryHook(
        lambda hook, trainer: trainer.stop() if hook == "on_batch_end" and trainer.batches_done == 2 else None
    )
    Trainer(net(), callbacks=[Checkpoint(tmp_path, every_batches=1), stop], device="cpu").fit(loader, epochs=1)
    trainer = Trainer(net(), device="cpu")
    trainer.plan(loader, epochs=1)
    trainer.device = torch.device("meta")  # one that is not the CPU, where the file is read
    trainer.load_state_dict(read_state(tmp_path / CHECKPOINT_FILE))
    assert [tensor.device.type for tensor in (*trainer.metrics.losses, trainer.metrics.correct)] == ["meta"] * 3


def test_a_samplers_own_generator_is_resumed(net: MakeNet, train: ImageDataset, tmp_path: Path) -> None:
    def setup(*more: Callback) -> tuple[Trainer, Any]:
        sampler = RandomSampler(train, generator=torch.Generator().manual_seed(5))
        return Trainer(net(), callbacks=more, device="cpu"), DataLoader(train, 8, sampler=sampler)

    whole, loader = setup()
    whole.fit(loader, epochs=2)
    first, loader = setup(
        Checkpoint(tmp_path), OnEveryHook(lambda hook, trainer: trainer.stop() if hook == "on_epoch_end" else None)
    )
    first.fit(loader, epochs=2)
    resumed, loader = setup()
    resumed.fit(loader, epochs=2, resume=tmp_path)
    assert without_times(resumed.history) == without_times(whole.history)


NAN = torch.full((2, 3, 32, 32), math.nan)


def test_a_good_checkpoint_is_not_lost_to_nan(net: MakeNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(math, "isfinite", lambda _: True)  # as on a GPU, where to look at each loss is to wait for it
    batches = batches_of(*[(None, None)] * 12, (NAN, None), *[(None, None)] * 20)
    trainer = Trainer(net(), callbacks=[Checkpoint(tmp_path, every_batches=10)], device="cpu")
    with pytest.raises(DivergedError, match="epoch 1, batch 13: the loss is nan"):
        trainer.fit(batches, epochs=1)
    state = read_state(tmp_path / CHECKPOINT_FILE)
    assert state["progress"]["batch"] == 10
    assert all(value.isfinite().all() for value in state["model"].values())


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


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ({"seed": 5}, {"seed": 0}, "data '[0-9a-f]{8}', not '[0-9a-f]{8}'"),
        ({"mean": (0.1,) * 3, "std": (0.1,) * 3}, {"seed": 0}, "constants .*0.4915.*, not .*0.1, 0.1, 0.1"),
        ({}, {"seed": 4}, "seed 0, not 4"),
        ({}, {"seed": 0, "precision": "bf16"}, "precision 'fp32', not 'bf16'"),
    ],
    ids=["data", "constants", "seed", "precision"],
)
def test_other_data_another_seed_or_precision_is_another_fit(
    data: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    def fit(data: dict[str, Any], options: dict[str, Any], epochs: int, **more: Any) -> History:
        loader = BatchLoader(SyntheticCIFAR10(size=100, **data), 50, device="cpu")
        trainer = Trainer(create("convnet"), progress=False, device="cpu", callbacks=[Checkpoint(tmp_path)], **options)
        return trainer.fit(loader, epochs=epochs, **more)

    fit({}, {"seed": 0}, 1)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(InputError, match=f"the checkpoint is of a fit with {message}"):
        fit(data, options, 2, resume=tmp_path)
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before
    assert len(fit({}, {"seed": 0}, 2, resume=tmp_path)) == 2
