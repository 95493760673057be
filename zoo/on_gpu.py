"""A quarter of an hour of a GPU, used to the last second: tests, timings and weights, in order of worth.

    PYTHONPATH=src python3 -m zoo.on_gpu results --seconds 840
    python -m zoo.on_gpu results --plan                  what would be done, in which order, and why
    python -m zoo.on_gpu results --only tests,speed      a part of it; the next call does what is left
    python -m zoo.on_gpu results --dry                   two steps of everything on drawn pictures, on any machine

Needs CIFAR-10. Each item has a process of its own, which is ended when its time is over. An item starts if it fits into
the time that is left. Timings run alone; tests, probes and trainings run side by side. A training first measures its
speed, then takes as many epochs as fit.

After every item, `results` has `results.md`, `results.json`, and an archive of all files, which is cut into parts.
`cat results/runs.tar.* | tar x` gives each item a folder: its log, and of a training the run, with weights in float16,
as `zoo.release` takes it.
"""

import argparse
import contextlib
import io
import json
import os
import signal
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifarnets._files import write_atomic
from cifarnets.datasets import find_cifar10
from cifarnets.models import list_models
from cifarnets.recipes import list_recipes
from zoo import gpu_work
from zoo.gpu_work import DRY, FULL, ROOT, TEACHER, Job, Size, Work, start

PART = 15 * 2**20
"""Bytes of a part of the archive."""
PARTS = 4
"""The most parts; weights that no longer fit are left out, and their logs stay."""
LANES = 8
"""Items side by side, until it is measured how many are best."""
RESERVE = 6.0
"""Seconds at the end for the last files."""


@dataclass(frozen=True)
class Item:
    """One thing to do.

    Attributes:
        name: A training's begins with `weights.`, a measurement's of alternatives with `probe.`.
        why: In a few words.
        work: What its process does.
        seconds: Expected; for a training, those of all its epochs.
        limit: Seconds after which it is ended; None for the end of all.
        least: Seconds without which it does not start; None for those expected.
        is_alone: Whether nothing may run beside it.
        options: For the work.
    """

    name: str
    why: str
    work: Work
    seconds: float
    limit: float | None = None
    least: float | None = None
    is_alone: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)


def _probe(net: str, why: str) -> Item:
    return Item(f"probe.{net}", why, gpu_work.probe, 60, 120, options={"recipe": net})


def _training(net: str, why: str, seconds: float, least_seconds: float, seed: int = 0, **options: Any) -> Item:
    name = f"weights.{net}" + f".seed{seed}" * bool(seed)
    return Item(
        name, why, gpu_work.train, seconds, None, least_seconds, options={"recipe": net, "seed": seed, **options}
    )


ITEMS = (
    Item("parity", "whether CUDA computes what the CPU does; needs no pytest", gpu_work.check_parity, 45, 100),
    Item("tests", "every test that is marked for a GPU", gpu_work.run_tests, 75, 120),
    _training(TEACHER, "96 %, and the best teacher of all that follow", 60, 45, least_epochs=37),
    _probe("airbench94", "the fastest way to take its steps, for the race"),
    _probe("resnet20", "the same for the small ResNets"),
    _probe("quarternet48", "the same for the small depthwise nets"),
    _probe("resnet18", "the same for the large nets"),
    Item(
        "speed",
        "time to 94 % beside plain PyTorch, 12 seeds",
        gpu_work.race,
        100,
        170,
        None,
        True,
        {"recipe": "airbench94"},
    ),
    Item(
        "lanes",
        "how many small nets train best side by side",
        gpu_work.find_lanes,
        40,
        75,
        None,
        True,
        {"recipe": "resnet20"},
    ),
    Item(
        "profile",
        "where the time of a step goes",
        gpu_work.profile,
        25,
        60,
        is_alone=True,
        options={"recipes": ("airbench94", "resnet20")},
    ),
    _training("quarternet48", "94.4 % is the best known at 98 k", 250, 90, epochs=200, least_epochs=60),
    _training(
        "quarternet16",
        "nothing stands above 75 % at the article's own size",
        200,
        70,
        epochs=200,
        least_epochs=60,
        probe="quarternet48",
    ),
    _training(
        "resnet20", "asked for most; ours stands 1.2 points below the best known", 200, 70, epochs=200, least_epochs=60
    ),
    _training("resnet18", "asked for most", 150, 60, epochs=40, least_epochs=12),
    _training("wide_resnet16_4", "the strongest at 2.7 M", 150, 60, epochs=60, least_epochs=15, probe="resnet18"),
    _training("resnet56", "the next of the classic ones", 150, 60, epochs=100, least_epochs=30, probe="resnet20"),
    _training("mobilenet_v2", "asked for by name", 150, 60, epochs=40, least_epochs=15, probe="resnet18"),
    _training("quarternet16", "its spread", 200, 70, 1, epochs=200, least_epochs=60, probe="quarternet48"),
    _training("quarternet48", "its spread", 250, 90, 1, epochs=200, least_epochs=60),
    _training("resnet20", "its spread", 200, 70, 1, epochs=200, least_epochs=60),
    _training(
        "vgg16_bn",
        "asked for by name; its weights may not fit into what travels",
        120,
        50,
        epochs=40,
        least_epochs=15,
        probe="resnet18",
    ),
)


def plan(items: Sequence[Item]) -> str:
    """The items as a table in Markdown."""
    lines = ["| item | seconds | at least | beside others | why |", "|---|--:|--:|---|---|"]
    for item in items:
        least = f"{item.least or item.seconds:.0f}"
        lines.append(
            f"| {item.name} | {item.seconds:.0f} | {least} | {'no' if item.is_alone else 'yes'} | {item.why} |"
        )
    return "\n".join(lines)


@dataclass
class Running:
    """An item whose process is at work."""

    item: Item
    process: Any
    started: float
    ends: float

    def note(self, folder: Path) -> dict[str, Any]:
        """What the process has written so far."""
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((folder / self.item.name / "result.json").read_text(encoding="utf-8"))
            return found
        return {}

    def kill(self) -> None:
        """End the process and all that it started."""
        with contextlib.suppress(OSError, AttributeError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.join()


class Session:
    """Runs items until the time is over, and writes what comes of them.

    Args:
        items: In order of worth.
        out: For the results.
        work: For everything else; what it holds of earlier calls counts as done.
        size: How much each item does.
        until: When all must be over, in seconds since the epoch.
    """

    def __init__(self, items: Sequence[Item], out: Path, work: Path, size: Size, until: float) -> None:
        self.items, self.out, self.work, self.size, self.until = items, out, work, size, until
        self.state_file = work / "state.json"
        self.state: dict[str, dict[str, Any]] = {}
        if self.state_file.is_file():
            self.state = json.loads(self.state_file.read_text(encoding="utf-8"))
        self.context = gpu_work.context_for_processes()
        self.running: list[Running] = []
        self.patient_until = 0.0

    @property
    def left(self) -> float:
        """Seconds left."""
        return self.until - time.time()

    @property
    def lanes(self) -> int:
        """How many items may run side by side."""
        return int(self._results().get("lanes", {}).get("lanes", LANES))

    def run(self) -> None:
        """Do the items that are not done yet."""
        waiting = [item for item in self.items if self.state.get(item.name, {}).get("status") != "done"]
        try:
            while waiting or self.running:
                self._reap()
                while waiting and self._may_start(waiting[0]):
                    self._start(waiting.pop(0))
                self._favour_the_first()
                time.sleep(0.05)
        finally:
            for one in self.running:
                one.kill()
            self._write()

    def _may_start(self, item: Item) -> bool:
        if not self.running:
            return True
        return not item.is_alone and not self.running[0].item.is_alone and len(self.running) < self.lanes

    def _start(self, item: Item) -> None:
        net, least = item.options.get("recipe"), item.least or item.seconds
        if net is not None and net not in {*list_recipes(), *list_models()}:
            return self._end(item, "left out", f"there is neither a recipe nor a model {net}", 0)
        if (least if self.size.images is None else 1) > self.left:
            return self._end(item, "left out", f"{self.left:.0f} s were left, and it needs {least:.0f}", 0)
        folder = self.work / item.name
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("log.txt", "result.json"):
            (folder / name).unlink(missing_ok=True)
        ends = min(self.until, time.time() + (item.limit or self.left))
        job = Job(item.name, folder, self.size, ends - 4, self._results(), dict(item.options))
        process = self.context.Process(target=start, args=(item.work, job))
        process.start()
        self.running.append(Running(item, process, time.time(), ends))
        return print(f"{self.left:4.0f} s left: {item.name} starts", flush=True)

    def _reap(self) -> None:
        for one in list(self.running):
            is_late = time.time() > one.ends
            if one.process.is_alive() and not is_late:
                continue
            if one.process.is_alive():
                one.kill()
            one.process.join()
            self.running.remove(one)
            status = "ended" if is_late else "failed" if one.process.exitcode else "done"
            self._end(one.item, status, "its time was over" if is_late else "", time.time() - one.started)

    def _favour_the_first(self) -> None:
        """End the training of least worth where one of more worth would not be ready in time."""
        if time.time() < self.patient_until:
            return
        trainings = [one for one in self.running if one.item.work is gpu_work.train]
        trainings.sort(key=lambda one: self.items.index(one.item))
        for one in trainings[:-1]:
            if one.note(self.work).get("ends", 0) > one.ends:
                last = trainings[-1]
                last.kill()
                self.running.remove(last)
                self.patient_until = time.time() + 20  # until it shows
                self._end(last.item, "ended", f"{one.item.name} would not have been ready", time.time() - last.started)
                return

    def _end(self, item: Item, status: str, reason: str, seconds: float) -> None:
        folder = self.work / item.name
        result = Running(item, None, 0, 0).note(self.work)
        log = folder / "log.txt"
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() and seconds else ""
        self.state[item.name] = {
            "status": status,
            "reason": reason,
            "seconds": round(seconds, 1),
            "result": result if seconds else {},
            "log": "" if status == "done" else "\n".join(text.splitlines()[-30:]),
        }
        print(
            f"{self.left:4.0f} s left: {item.name} {status} after {seconds:.0f} s{reason and ': ' + reason}", flush=True
        )
        self._write()

    def _results(self) -> dict[str, Any]:
        return {name: row["result"] for name, row in self.state.items() if row["status"] in ("done", "ended")}

    def _write(self) -> None:
        """Write all that is known so far."""
        content = json.dumps(self.state, indent=2) + "\n"
        write_atomic(self.state_file, content)
        write_atomic(self.out / "results.json", content)
        write_atomic(self.out / "results.md", report(self.items, self.state))
        archive, left_out = pack(self.work, [name for name in self.state if (self.work / name).is_dir()])
        for number, first in enumerate(range(0, len(archive), PART)):
            part, path = archive[first : first + PART], self.out / f"runs.tar.{number}"
            if not path.is_file() or path.read_bytes() != part:
                write_atomic(path, part)
        for name in left_out:
            self.state[name]["reason"] = "its weights did not fit into the archive"


def pack(work: Path, names: Sequence[str]) -> tuple[bytes, list[str]]:
    """Put logs and kept files of items into an archive; returns the names of those whose weights did not fit."""
    buffer, left_out = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            files = [work / name / "log.txt", *sorted((work / name / "keep").glob("*"))]
            for file in (file for file in files if file.is_file()):
                size = file.stat().st_size
                if buffer.tell() + size > PARTS * PART - 2**20 and file.suffix == ".safetensors":
                    left_out.append(name)
                    continue
                entry = tarfile.TarInfo(f"{name}/{file.name}")
                entry.size = size
                with file.open("rb") as content:
                    archive.addfile(entry, content)
    return buffer.getvalue(), left_out


def report(items: Sequence[Item], state: Mapping[str, Mapping[str, Any]]) -> str:
    """All results as Markdown."""
    rows = {item.name: state[item.name] for item in items if item.name in state}
    rows |= {name: row for name, row in state.items() if name not in rows}
    results = {name: row["result"] for name, row in rows.items()}
    machines = dict.fromkeys(result["machine"] for result in results.values() if "machine" in result)
    lines = ["# On a GPU", "", *machines, "", "| item | | seconds | |", "|---|---|--:|---|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['status']} | {row['seconds']} | {row['reason'] or _in_short(row['result'])} |")
    for name in ("parity", "tests"):
        if result := results.get(name):
            lines += ["", f"## {name}: {result.get('summary', '')}", ""]
            lines += [f"- {check}: {outcome}" for check, outcome in result.get("outcomes", {}).items()]
    for name, result in results.items():
        if name.startswith("probe.") and result:
            lines += [
                "",
                f"## {name}: {result['winner']}",
                "",
                "| | images/s | first steps, s | loss |",
                "|---|--:|--:|--:|",
            ]
            for kind, found in result["alternatives"].items():
                speed = f"{found['images_per_second']:,}" if "images_per_second" in found else found.get("error", "")
                lines.append(f"| {kind} | {speed} | {found.get('first_seconds', '')} | {found.get('loss', '')} |")
    if result := results.get("speed"):
        heading = "| | seconds (median) | fastest … slowest | ratio | test accuracy | with TTA | seeds | first run, s |"
        lines += ["", f"## speed: {result['recipe']}", "", heading, f"|---|{'--:|' * 7}"]
        lines += [f"| {' | '.join(row)} |" for row in result.get("summary", [])]
        lines += ["", f"The fast ones run {result['alternative']}."]
    if result := results.get("lanes"):
        lines += ["", f"## lanes: {result['lanes']}", "", "| processes | images/s of all |", "|--:|--:|"]
        lines += [f"| {count} | {speed:,} |" for count, speed in result["images_per_second"].items()]
    trained = {name: result for name, result in results.items() if "accuracy" in result}
    if trained:
        heading = "| | parameters | epochs | test accuracy | with TTA | ECE | seconds | command |"
        lines += ["", "## weights", "", heading, "|---|--:|--:|--:|--:|--:|--:|---|"]
        for name, found in trained.items():
            tta = f"{found['tta_accuracy']:.4f} ({found['tta']})" if found["tta"] else ""
            figures = (
                f"{found['parameters']:,} | {found['epochs']} | {found['accuracy']:.4f} | {tta} | {found['ece']:.3f}"
            )
            lines.append(f"| {name} | {figures} | {found['seconds']} | `{found['command']}` ({found['alternative']}) |")
    for name, text in results.get("profile", {}).get("tables", {}).items():
        lines += ["", f"## profile of a step: {name}", "", "```", text, "```"]
    for name, row in rows.items():
        if row["log"]:
            lines += ["", f"## the last lines of {name}", "", "```", row["log"], "```"]
    return "\n".join(lines) + "\n"


def _in_short(result: Mapping[str, Any]) -> str:
    """The one figure of an item that matters most."""
    if "accuracy" in result:
        return f"{result['accuracy']:.4f}"
    summary = result.get("winner", result.get("lanes", result.get("summary", "")))
    return str(summary) if not isinstance(summary, list) else ""


def main(arguments: Sequence[str] | None = None) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m zoo.on_gpu", description=__doc__, formatter_class=style)
    parser.add_argument("out", type=Path, help="the folder for the results")
    parser.add_argument("--seconds", type=float, default=840, help="until all must be over (default: 840)")
    parser.add_argument("--only", default="", help="items whose names begin so, with commas between")
    parser.add_argument("--plan", action="store_true", help="print the items and stop")
    parser.add_argument("--dry", action="store_true", help="two steps of everything on drawn pictures")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "on_gpu", help="for what is not a result")
    options = parser.parse_args(arguments)
    until = time.time() + options.seconds - RESERVE
    prefixes = tuple(filter(None, options.only.split(",")))
    items = [item for item in ITEMS if not prefixes or item.name.startswith(prefixes)]
    if options.plan:
        print(plan(items))
        return 0
    if not items:
        print(f"zoo.on_gpu: no item begins with {options.only}", file=sys.stderr)
        return 1
    data = find_cifar10()
    if data is not None:
        os.environ["CIFARNETS_DATA"] = str(data.absolute())  # for processes that work in another folder
    elif not options.dry:
        print("zoo.on_gpu: set CIFARNETS_DATA to the folder that holds cifar-10-batches-py", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends the processes of the items too
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    Session(items, options.out.absolute(), work, DRY if options.dry else FULL, until).run()
    print((options.out / "results.md").read_text(encoding="utf-8"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
