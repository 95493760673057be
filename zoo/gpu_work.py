"""What the items of `zoo.on_gpu` do, each in a process of its own."""

import contextlib
import functools
import importlib.util
import json
import math
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
import warnings
import xml.etree.ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cifarnets
from cifarnets import Trainer, create, load, predict, save, seed_everything
from cifarnets._files import write_atomic
from cifarnets._runtime import describe_machine
from cifarnets.datasets import Augment, BatchLoader, ImageDataset, SyntheticCIFAR10, cifar_subset
from cifarnets.inference import collect_logits
from cifarnets.models import annotate
from cifarnets.models.metadata import get_meta
from cifarnets.recipes import Recipe, Run, list_recipes, load_recipe, run_recipe
from cifarnets.recipes import recipe as recipes
from cifarnets.training import EMA, Callback, Checkpoint
from cifarnets.training.muon import orthogonalise, orthogonalise_all
from cifarnets.training.pooling import compiled
from cifarnets.training.precision import compiler_options
from cifarnets.weights.index import mean_and_std

ROOT = Path(__file__).resolve().parents[1]
TEACHER = "airbench96"
LIKE = "wide_resnet16_4"
"""A net without a recipe trains as this one does."""
CHECKPOINT_RATE = 4e8
"""Bytes a second at which a run writes its checkpoint after every epoch."""
SAFETY = 0.85
"""The part of the time left that a training may plan with, for other processes change its speed."""


@dataclass(frozen=True)
class Alternative:
    """A way to take the same steps.

    Attributes:
        changes: To the recipe.
        benchmark: Whether cuDNN measures its algorithms before it chooses.
        graphs: Whether the compiled code runs as CUDA graphs.
        is_eligible: Whether trainings may take it; others are only measured.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    benchmark: bool = True
    graphs: bool = False
    is_eligible: bool = True


PLAIN = "as the recipe"
ALTERNATIVES = {
    PLAIN: Alternative(benchmark=False),
    "contiguous": Alternative({"channels_last": False}, is_eligible=False),
    "fp16": Alternative({"precision": "fp16"}, is_eligible=False),
    "cuDNN measures": Alternative(),
    "compiled": Alternative({"compile": True}),
    "compiled, CUDA graphs": Alternative({"compile": True}, graphs=True),
}


@dataclass(frozen=True)
class Size:
    """How much the items do: all of it, or two steps of everything.

    Attributes:
        images: Drawn pictures a split, with which a dry run works; None for CIFAR-10.
        recipe: Changes to every recipe.
        configs: Arguments of some models, which make them thin.
        seeds: Runs of each contender against the clock.
        warm_steps: Steps that no clock sees.
        seconds: Of one measurement; 0 for two steps.
        rounds: Measurements of each alternative.
        lanes: Numbers of processes to try side by side.
        alternatives: What is measured.
        tests: The part of the tests to run; None for every file that has tests for a GPU.
        compiles: Whether parity of compiled code is checked.
    """

    images: int | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: int = 12
    warm_steps: int = 20
    seconds: float = 1.0
    rounds: int = 3
    lanes: tuple[int, ...] = (1, 2, 4, 6)
    alternatives: tuple[str, ...] = tuple(ALTERNATIVES)
    tests: str | None = None
    compiles: bool = True


FULL = Size()
DRY = Size(
    images=4,
    recipe={"synthetic": True, "classes": (), "epochs": 1, "batch_size": 2, "compile": False},
    configs={
        **{name: {"widths": (8, 16, 16)} for name in ("airbench94", "airbench96")},
        "mobilenet_v2": {"width": 0.25},
        "resnet18": {"widths": (8, 8, 16, 16)},
        "vgg16_bn": {"widths": (8, 8, 16, 16, 16)},
    },
    seeds=1,
    warm_steps=1,
    seconds=0,
    rounds=1,
    lanes=(1, 2),
    alternatives=("as the recipe", "contiguous"),
    tests="tests/test_seeding.py",
    compiles=False,
)


@dataclass(frozen=True)
class Job:
    """What a process is given.

    Attributes:
        name: Of the item.
        folder: For what it writes: `log.txt`, `result.json`, and in `keep` what travels home.
        size: How much to do.
        until: When it must be done, in seconds since the epoch.
        found: Results of the items that are done.
        options: The item's own.
    """

    name: str
    folder: Path
    size: Size
    until: float
    found: dict[str, Any]
    options: dict[str, Any]

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.until - time.time()

    def note(self, result: dict[str, Any]) -> None:
        """Write the result as far as it is known; it stays if the process is killed."""
        write_atomic(self.folder / "result.json", json.dumps(result))

    def keep(self, name: str, content: str) -> None:
        """Keep a text that travels home."""
        write_atomic(self.folder / "keep" / name, content)


Work = Callable[[Job], dict[str, Any]]


def context_for_processes() -> Any:
    """How to start processes: from a server that has imported torch, for that takes no time, if a GPU works there."""
    if "forkserver" in multiprocessing.get_all_start_methods():
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch._dynamo", "zoo.gpu_work"])
        if not torch.cuda.is_available():
            return context
        process = context.Process(target=_use_cuda)
        process.start()
        process.join(60)
        if process.exitcode == 0:
            return context
        process.kill()
    return multiprocessing.get_context("spawn")


def _use_cuda() -> None:
    """Fails where the GPU cannot be used in a process that was started so."""
    assert torch.ones(2, device="cuda").sum().item() == 2


def start(work: Work, job: Job) -> None:
    """Do the work of an item in this process, whose output goes into the log."""
    with contextlib.suppress(AttributeError, OSError):
        os.setsid()  # so that its own processes can be ended with it
    log = os.open(job.folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        prepare(job)
        job.note({**work(job), "machine": describe_machine(), "cpu_seconds": round(time.process_time(), 1)})
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def prepare(job: Job) -> None:
    """Make this process ready for the items' work."""
    os.chdir(job.folder.parent)  # where the teacher lies
    torch.set_num_threads(2 if job.size.images is None else 1)
    if job.size.images is not None:
        vars(recipes)["SyntheticCIFAR10"] = functools.partial(SyntheticCIFAR10, size=job.size.images)


def device() -> torch.device:
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def wait() -> None:
    """Let the GPU come to the end of its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def recipe_of(job: Job) -> Recipe:
    """The recipe of an item: its own, or that of a similar net; with the teacher that was trained here."""
    name = job.options["recipe"]
    found = load_recipe(name) if name in list_recipes() else replace(load_recipe(LIKE), model=name)
    changes = {"seed": job.options.get("seed", 0), **job.size.recipe}
    if "epochs" in changes and (sizes := found.augment.get("curriculum")):  # one of each size, and one of whole images
        shorter = {**found.augment, "curriculum": [[side, 1] for side, _ in sizes]}
        changes |= {"epochs": len(sizes) + 1, "augment": shorter}
    found = replace(found, config={**found.config, **job.size.configs.get(found.model, {})}, **changes)
    teacher = job.folder.parent / f"{TEACHER}.safetensors"
    if found.distill and teacher.is_file():
        return replace(found, distill={**found.distill, "teacher": teacher.name})
    return replace(found, distill={}) if found.synthetic else found


def take_to(chosen: Alternative) -> None:
    """Make an alternative that of the whole process; a new shape is compiled for itself, not for any shape."""
    torch.backends.cudnn.benchmark = chosen.benchmark
    if not chosen.changes.get("compile"):
        return
    from torch._dynamo import config as dynamo
    from torch._inductor import config as inductor

    dynamo.automatic_dynamic_shapes = False
    inductor.triton.cudagraphs = chosen.graphs


class Steps:
    """Training steps of a recipe, for a clock."""

    def __init__(self, found: Recipe, train: ImageDataset, chosen: Alternative = ALTERNATIVES[PLAIN]) -> None:
        take_to(chosen)
        found = replace(found, **chosen.changes)
        self.chosen = chosen
        seed_everything(found.seed)
        model: Any = create(found.model, **{"num_classes": len(train.classes), **found.config})
        if hasattr(model, "init_from_images"):
            model.init_from_images(next(iter(BatchLoader(train, 5000, device="cpu")))[0])
        average = [] if found.ema is None else [EMA(found.ema)]
        options = {**found.trainer_options(), "seed": None}
        self.trainer = Trainer(model, **options, device=device(), callbacks=average, progress=False)
        if chosen.graphs:  # beside the same code without them: the compiler tells the two apart by their options
            self.trainer._forward = compiled(
                self.trainer.model, {**compiler_options(self.trainer.dtype), "triton.cudagraphs": True}
            )
        self.batch_size = min(found.batch_size, len(train))
        loader = BatchLoader(
            train,
            self.batch_size,
            shuffle=True,
            drop_last=True,
            device=device(),
            seed=found.seed,
            augment=found.augmentation(),
            channels_last=found.channels_last,
            labels=_labels(found, train),
        )
        self.trainer.plan(loader, epochs=1_000_000)  # the rate stays where the schedule starts
        for callback in average:
            callback.on_fit_start(self.trainer)
        self.trainer.model.train()
        self.batches = self.trainer.feed.endless()

    def take(self, count: int) -> float:
        """Take some steps; returns their seconds."""
        torch.backends.cudnn.benchmark = self.chosen.benchmark
        wait()
        started = time.perf_counter()
        for _ in range(count):
            self.trainer.train_step(next(self.batches))
        wait()
        return time.perf_counter() - started

    def measure(self, seconds: float) -> float:
        """Seconds a step, over about so many seconds."""
        count = 2 if not seconds else max(2, round(seconds / (self.take(5) / 5)))
        return self.take(count) / count


def _labels(found: Recipe, train: ImageDataset) -> Tensor | None:
    """The labels of a recipe's teacher, which all alternatives of a process share."""
    key = json.dumps(dict(found.distill), sort_keys=True)
    if key not in _known_labels:
        _known_labels[key] = found.labels(train, device())
    return _known_labels[key]


_known_labels: dict[str, Tensor | None] = {}


def check_parity(job: Job) -> dict[str, Any]:
    """Compare CPU and GPU in all that a fit does, without pytest."""
    outcomes: dict[str, str] = {}
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for name, check in parity_checks(job).items():
        started = time.perf_counter()
        try:
            detail = check()
            outcomes[name] = f"passed: {detail} ({time.perf_counter() - started:.1f} s)"
        except Exception as error:
            traceback.print_exc()
            outcomes[name] = f"FAILED: {type(error).__name__}: {error}"
        job.note({"outcomes": outcomes})
    passed = sum(outcome.startswith("passed") for outcome in outcomes.values())
    return {"outcomes": outcomes, "summary": f"{passed} of {len(outcomes)} checks passed"}


def parity_checks(job: Job) -> dict[str, Callable[[], str]]:
    """The checks by name; each says what it found, or raises."""
    drawn = SyntheticCIFAR10(size=150, seed=1)
    data, few = cifar_subset(drawn, drawn.classes[:3]), drawn.select(range(20))
    here, cpu = device(), torch.device("cpu")

    def fit(on: torch.device, epochs: int = 2, **options: Any) -> Trainer:
        seed_everything(0)
        model = create("convnet", num_classes=3, widths=(4, 4), hidden=8)
        last = options.get("channels_last", False)
        augment = Augment(translate=2, cutout=6)
        loader = BatchLoader(data, 16, True, device=on, seed=0, channels_last=last, augment=augment)
        resume = options.pop("resume", None)
        trainer = Trainer(model, **{"lr": 0.05, **options}, device=on, progress=False)
        trainer.fit(loader, epochs=epochs, resume=resume)
        return trainer

    def near(one: Any, other: Any, tolerance: float) -> str:
        one, other = (torch.as_tensor(value).double().cpu() for value in (one, other))
        gap = ((one - other).abs() / other.abs().clamp_min(1)).max().item()
        assert gap <= tolerance, f"they differ by {gap:.1e}, and {tolerance:.0e} is allowed"
        return f"differ by {gap:.0e}"

    def losses(one: Trainer, other: Trainer, tolerance: float) -> str:
        return near(one.history.column("loss"), other.history.column("loss"), tolerance)

    def precision(name: Any) -> str:
        if name == "fp16" and here.type != "cuda":
            return "not on this device"
        return losses(fit(here, 4, precision=name, lr=0.1), fit(here, 4, lr=0.1), 0.1)

    def augmentation(**options: Any) -> str:
        augment, gaps = Augment(**options), []
        for last in (False, True):
            passes = [
                BatchLoader(data, 16, True, device=on, seed=1, augment=augment, channels_last=last)
                for on in (cpu, here)
            ]
            for (images, labels), (others, their_labels) in zip(*passes, strict=True):
                gaps += [(images - others.cpu()).abs().max().item(), (labels - their_labels.cpu()).abs().max().item()]
        return near(max(gaps), 0.0, 2e-3)

    def resume() -> str:
        class StopAt(Callback):
            def on_batch_end(self, trainer: Trainer) -> None:
                if (trainer.epoch, trainer.batches_done) == (1, 2):
                    trainer.stop()

        folder = job.folder / "resume"
        options: dict[str, Any] = {"deterministic": True, "seed": 0}
        whole = fit(here, 3, callbacks=[EMA(0.9)], **options)
        fit(here, 3, callbacks=[EMA(0.9), Checkpoint(folder, every_batches=1), StopAt()], **options)
        resumed = fit(here, 3, callbacks=[EMA(0.9), Checkpoint(folder)], resume=folder, **options)
        for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values(), strict=True):
            assert torch.equal(one, other)
        return "equal bit for bit"

    def released(tta: Any) -> str:
        model = load("resnet20")
        logits = [collect_logits(model, BatchLoader(few, 20, device=on), on, tta)[0] for on in (cpu, here)]
        return near(logits[1], logits[0], 1e-3)

    def predictions() -> str:
        model, pictures = load("convnet.cifar3"), torch.rand(5, 3, 32, 32)
        found: list[Any] = [predict(model, pictures, topk=3, device=on) for on in (cpu, here)]
        names = [[[name for name, _ in row] for row in each] for each in found]
        assert names[0] == names[1], names
        return "the same classes"

    def exported() -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = load("convnet.cifar3").to(here)
            written = cifarnets.sharing.export(model, job.folder / "exported.pt2")
            images = torch.rand(1, 3, 32, 32)
            program: Any = torch.export.load(written.path).module()
        return near(program(images), model(images.to(here)), 1e-3)

    def muon() -> str:
        matrices = torch.randn(3, 8, 27, device=here)
        together = orthogonalise_all(matrices, 3)
        each = torch.stack([orthogonalise(matrix, 3) for matrix in matrices])
        return near(together, each, 0.05)  # in bfloat16 on CUDA

    muon_options: dict[str, Any] = {"optimizer": "convmuon", "optimizer_options": {"bias_lr": 0.05, "head_lr": 0.05}}
    checks: dict[str, Callable[[], str]] = {
        "fp32": lambda: losses(fit(here), fit(cpu), 1e-3),
        "fp32, channels_last": lambda: losses(fit(here, channels_last=True), fit(cpu, channels_last=True), 1e-3),
        "bf16": lambda: precision("bf16"),
        "fp16 with a scaler": lambda: precision("fp16"),
        "accumulated, clipped": lambda: losses(
            fit(here, accumulate=2, clip_norm=0.5), fit(cpu, accumulate=2, clip_norm=0.5), 1e-3
        ),
        "Muon": lambda: losses(fit(here, **muon_options), fit(cpu, **muon_options), 0.05),
        "Muon, filters together": muon,
        "flips, shifts, cutout": lambda: augmentation(flip="alternating", translate=4, cutout=8),
        "mixup": lambda: augmentation(translate=2, mixup=0.5),
        "colours, rotation, erasing": lambda: augmentation(
            rotate=15, sharpness=1, brightness=0.1, contrast=0.1, saturation=0.5, hue=0.05, erase=0.5
        ),
        "resumed in mid-epoch": resume,
        "released weights": lambda: released(None),
        "released weights, TTA": lambda: released("mirror_shift"),
        "predict": predictions,
        "exported": exported,
    }
    if job.size.compiles:
        checks["compiled"] = lambda: losses(fit(here, compile=True), fit(here), 1e-3)
    return checks


def run_tests(job: Job) -> dict[str, Any]:
    """Run the tests that are marked for a GPU, where pytest is installed."""
    if importlib.util.find_spec("pytest") is None:
        return {"summary": "pytest is not installed; the item `parity` checks the same"}
    files = [job.size.tests] if job.size.tests else _files_with_gpu_tests()
    several = ["-n", "4"] if job.size.tests is None and importlib.util.find_spec("xdist") else []
    report = job.folder / "tests.xml"
    # The project's own options need plugins that nothing here uses.
    options = ["-q", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", f"--junitxml={report}"]
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *options, *several, *files]
    code = subprocess.run(command, cwd=ROOT, check=False).returncode  # noqa: S603
    outcomes = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):  # noqa: S314 (pytest has just written it)
        bad = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        outcomes[f"{case.get('classname', '')}::{case.get('name', '')}"] = bad
    counts = {outcome: list(outcomes.values()).count(outcome) for outcome in sorted(set(outcomes.values()))}
    words = ", ".join(f"{count} {outcome}" for outcome, count in counts.items())
    return {"outcomes": outcomes, "summary": f"{words or 'no test'} (exit {code})"}


def _files_with_gpu_tests() -> list[str]:
    tests = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(path.relative_to(ROOT)) for path in tests if "mark.gpu\n" in path.read_text(encoding="utf-8")]


def probe(job: Job) -> dict[str, Any]:
    """Measure the alternatives of a net in turns."""
    found = recipe_of(job)
    train = found.dataset(train=True)
    built: dict[str, Steps] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name in job.size.alternatives:
        chosen = ALTERNATIVES[name]
        if device().type != "cuda" and (chosen.graphs or chosen.changes.get("precision") == "fp16"):
            continue
        try:
            steps = Steps(found, train, chosen)
            first = steps.take(job.size.warm_steps)
            rows[name] = {"first_seconds": round(first, 2), "loss": steps.trainer.last_loss.item(), "steps": []}
            built[name] = steps
        except Exception as error:
            traceback.print_exc()
            rows[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
        job.note({"recipe": job.options["recipe"], "alternatives": rows, "winner": _winner(rows)})
    order = list(built)
    for _ in range(job.size.rounds):
        for name in order:
            rows[name]["steps"].append(built[name].measure(job.size.seconds))
            median = statistics.median(rows[name]["steps"])
            rows[name]["images_per_second"] = round(built[name].batch_size / median)
        order.reverse()
        job.note({"recipe": job.options["recipe"], "alternatives": rows, "winner": _winner(rows)})
    return {"recipe": job.options["recipe"], "alternatives": rows, "winner": _winner(rows)}


def _winner(rows: dict[str, dict[str, Any]]) -> str:
    """The fastest eligible alternative that has learnt as the recipe does."""
    loss = rows.get(PLAIN, {}).get("loss", math.nan)
    speeds = {
        name: row["images_per_second"]
        for name, row in rows.items()
        if "images_per_second" in row
        and ALTERNATIVES[name].is_eligible
        and abs(row["loss"] - loss) <= 0.1 * abs(loss) + 0.05
    }
    return max(speeds, key=lambda name: speeds[name], default=PLAIN)


def winner_for(job: Job, net: str) -> str:
    """The winner among the alternatives of a net that was measured."""
    return str(job.found.get(f"probe.{net}", {}).get("winner", PLAIN))


def race(job: Job) -> dict[str, Any]:
    """Whole runs against the clock: plain PyTorch and ours in turns, seed by seed."""
    from benchmarks.speedrun import Ours, Plain

    found = recipe_of(job)
    train, test = found.dataset(train=True), found.dataset(train=False)
    winner = winner_for(job, job.options["recipe"])
    chosen = ALTERNATIVES[winner]
    take_to(chosen)  # cuDNN measures for both, or for none
    fast = replace(found, **chosen.changes)
    contenders: dict[str, Any] = {"plain PyTorch": Plain(found, train, test), "Trainer": Ours(found, train, test)}
    if fast != found:
        contenders["Trainer, compiled"] = Ours(fast, train, test)
    curriculum = f"{job.options['recipe']}.curriculum"
    if curriculum in list_recipes():
        other = recipe_of(replace(job, options={"recipe": curriculum}))
        other = replace(other, **chosen.changes)
        contenders["Trainer, with the curriculum"] = Ours(other, train, test)
    rows: dict[str, dict[str, Any]] = {name: {"outcomes": []} for name in contenders}
    result = {"recipe": job.options["recipe"], "alternative": winner, "contenders": rows}
    for seed in range(-1, job.size.seeds):
        left = job.left
        for name in list(contenders):
            started = time.perf_counter()
            try:
                outcome = contenders[name](max(seed, 0))
            except Exception as error:
                traceback.print_exc()
                rows[name]["error"] = f"{type(error).__name__}: {error}"[:300]
                del contenders[name]
                continue
            if seed < 0:  # it compiles, chooses algorithms and fills caches
                rows[name]["first_seconds"] = round(time.perf_counter() - started, 2)
            else:
                rows[name]["outcomes"].append(outcome)
        job.note({**result, "summary": _summarise(rows)})
        if seed >= 0 and job.left < 1.5 * (left - job.left):
            break
    return {**result, "summary": _summarise(rows)}


def _summarise(rows: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A row for each contender: seconds, relative to plain PyTorch, accuracy without and with TTA, seeds, first run."""
    table = []
    base = [outcome[0] for outcome in rows["plain PyTorch"]["outcomes"]]
    for name, row in rows.items():
        if not row["outcomes"]:
            continue
        seconds, plain, augmented = zip(*row["outcomes"], strict=True)
        ratios = [one / other for one, other in zip(seconds, base, strict=False)]
        table.append(
            [
                name,
                f"{statistics.median(seconds):.3f}",
                f"{min(seconds):.3f} … {max(seconds):.3f}",
                f"{statistics.median(ratios):.2f}" if ratios else "",
                *(
                    mean_and_std(statistics.mean(a), statistics.stdev(a) if len(a) > 1 else None)
                    for a in (plain, augmented)
                ),
                str(len(seconds)),
                f"{row['first_seconds']:.1f}",
            ]
        )
    return table


def find_lanes(job: Job) -> dict[str, Any]:
    """Measure how many small nets train best side by side, each in its own process."""
    # This process has not touched the GPU yet, so copies of it may.
    can_fork = "fork" in multiprocessing.get_all_start_methods() and sys.platform == "linux"
    context: Any = multiprocessing.get_context("fork" if can_fork else "spawn")
    counts, pipes = job.size.lanes, []
    for _ in range(max(counts)):
        ours, theirs = context.Pipe()
        context.Process(target=_lane, args=(theirs, job), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    for pipe in pipes:
        assert pipe.recv() == "ready"
    totals: dict[str, float] = {}
    for count in counts:
        for pipe in pipes[:count]:
            pipe.send(4 * job.size.seconds)
        totals[str(count)] = round(sum(pipe.recv() for pipe in pipes[:count]))
        job.note({"images_per_second": totals, "lanes": _best_lanes(totals)})
    return {"images_per_second": totals, "lanes": _best_lanes(totals), "recipe": job.options["recipe"]}


def _best_lanes(totals: dict[str, float]) -> int:
    """The smallest number that reaches 95 % of the best total."""
    return min(int(count) for count, total in totals.items() if total >= 0.95 * max(totals.values()))


def _lane(pipe: Any, job: Job) -> None:
    """Train for as long as the pipe says, and answer with images/s."""
    prepare(job)
    found = recipe_of(job)
    steps = Steps(found, found.dataset(train=True), ALTERNATIVES[winner_for(job, job.options["recipe"])])
    steps.take(job.size.warm_steps)
    pipe.send("ready")
    with contextlib.suppress(EOFError):  # the other end has gone
        while True:
            seconds, done, started = pipe.recv(), 0, time.perf_counter()
            while not done or time.perf_counter() - started < seconds:
                steps.take(2)
                done += 2
            pipe.send(steps.batch_size * done / (time.perf_counter() - started))


def profile(job: Job) -> dict[str, Any]:
    """Say where the time of one step goes, as text."""
    activities, column = [torch.profiler.ProfilerActivity.CPU], "cpu"
    if device().type == "cuda":
        activities, column = [*activities, torch.profiler.ProfilerActivity.CUDA], "device"
    tables = {}
    for name in job.options["recipes"]:
        found = recipe_of(replace(job, options={"recipe": name}))
        steps = Steps(found, found.dataset(train=True))
        steps.take(job.size.warm_steps)
        seconds = steps.measure(job.size.seconds)
        with torch.profiler.profile(activities=activities) as seen:
            steps.take(1)
        shown = seen.key_averages()
        launches = sum(event.count for event in shown if "LaunchKernel" in event.key)
        header = f"{name}: {seconds * 1000:.2f} ms a step of {steps.batch_size} images, {launches} kernels launched\n"
        tables[name] = header + str(shown.table(sort_by=f"self_{column}_time_total", row_limit=25))
        job.keep(f"profile.{name}.txt", tables[name])
        job.note({"tables": tables})
    return {"tables": tables}


class Report(Callback):
    """Notes after every epoch when the training will end."""

    def __init__(self, job: Job, facts: dict[str, Any]) -> None:
        self.job = job
        self.facts = facts
        self.first = 0.0

    def on_epoch_end(self, trainer: Trainer) -> None:
        now, done = time.time(), trainer.epoch - 1
        self.first = self.first or now  # the first epoch compiles
        if done < max(3, trainer.end_epoch // 20):
            return
        left = (now - self.first) / done * (trainer.end_epoch - trainer.epoch) + self.facts["finish_seconds"]
        self.job.note({**self.facts, "epoch": trainer.epoch, "ends": now + left})


def train(job: Job) -> dict[str, Any]:
    """Train a net for as many epochs as fit, and keep the weights in float16 with the log of the run."""
    winner = winner_for(job, job.options.get("probe", job.options["recipe"]))
    chosen = ALTERNATIVES[winner]
    take_to(chosen)
    found = replace(recipe_of(job), **chosen.changes)
    images = found.dataset(train=True)
    steps = Steps(found, images, chosen)
    steps.take(job.size.warm_steps)
    parameters = sum(parameter.numel() for parameter in steps.trainer.model.parameters())
    checkpoint = 16 * parameters / CHECKPOINT_RATE
    epoch = steps.measure(3 * job.size.seconds) * math.ceil(len(images) / found.batch_size) + checkpoint
    finish = 5 + 2 * epoch  # evaluation on all images, in float32
    del steps
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    wanted = job.size.recipe.get("epochs") or job.options.get("epochs") or found.epochs
    fits = int((job.left - finish) * SAFETY / epoch)
    facts = {
        "recipe": job.options["recipe"],
        "seed": found.seed,
        "epochs": min(wanted, fits),
        "wanted_epochs": wanted,
        "epoch_seconds": round(epoch, 3),
        "finish_seconds": finish,
        "alternative": winner,
    }
    job.note(facts)
    if fits < min(wanted, job.options.get("least_epochs", 1)):
        raise SystemExit(
            f"{fits} epochs of {epoch:.2f} s fit, and fewer than {job.options['least_epochs']} are worth little."
        )
    started = time.time()
    folder = job.folder / "run"
    shutil.rmtree(folder, ignore_errors=True)
    run = run_recipe(replace(found, epochs=facts["epochs"]), folder, device=device(), callbacks=[Report(job, facts)])
    keep_run(job, run)
    test = run.evaluations["test"]
    tta = run.evaluations.get(f"test ({run.recipe.tta})")
    return {
        **facts,
        "seconds": round(time.time() - started, 1),
        "parameters": parameters,
        "accuracy": test.accuracy,
        "tta": run.recipe.tta,
        "tta_accuracy": tta.accuracy if tta else None,
        "ece": test.ece,
        "distill": _renamed(dict(run.recipe.distill)),
        "command": _command(job, run.recipe),
    }


def _command(job: Job, found: Recipe) -> str:
    """The command that trains the same."""
    words = ["cifarnets train", f"--recipe {job.options['recipe']}", f"--epochs {found.epochs}", f"--seed {found.seed}"]
    if teacher := _renamed(dict(found.distill)).get("teacher"):
        words.append(f"--distill teacher={teacher}")
    return " ".join([*words, *(["--compile"] if found.compile else [])])


def keep_run(job: Job, run: Run) -> None:
    """Keep what `zoo.release` reads, with the weights in float16; the teacher has its name in place of its file's."""
    model = load(run.folder / "model.safetensors")
    meta = get_meta(model)
    assert meta is not None
    training = dict(meta.training)
    training["distill"] = _renamed(dict(training.get("distill") or {}))
    annotate(model, training=training)
    keep = job.folder / "keep"
    keep.mkdir(exist_ok=True)
    save(model, keep / "model.safetensors", half=True)
    content = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    content["recipe"]["distill"] = _renamed(content["recipe"]["distill"])
    job.keep("run.json", json.dumps(content, indent=2) + "\n")
    for name in ("history.csv", "evaluation.json"):
        shutil.copyfile(run.folder / name, keep / name)
    if job.options["recipe"] == TEACHER and (run.recipe.synthetic or run.evaluations["test"].accuracy > 0.94):
        shutil.copyfile(keep / "model.safetensors", job.folder.parent / f"{TEACHER}.safetensors")


def _renamed(distill: dict[str, Any]) -> dict[str, Any]:
    if distill.get("teacher") == f"{TEACHER}.safetensors":
        distill["teacher"] = TEACHER
    return distill
