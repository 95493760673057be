"""`python -m fuzz`: change files at random, read them, and report every reader that does not hold.

A reader holds if it refuses the file with a CifarNetsError or accepts it, within 5 seconds and 1 GB. Each case is made
from the seed, the target and its number alone; the file of a case that escapes is kept.
"""

import argparse
import faulthandler
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

SECONDS = 5.0
BYTES = 10**9


def main(arguments: list[str] | None = None) -> int:
    """Run cases, or one that was kept; 1 if a reader does not hold."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=1000, help="how many for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="", help="one or several, with commas; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--keep", type=Path, default=Path("build/fuzz"), help="where the files of escapes are kept")
    parser.add_argument("--replay", type=Path, help="read one file that was kept: TARGET-SEED-CASE-NAME")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        return _work(json.loads(options.worker))
    if options.replay:
        return _replay(options.replay, options.target)
    names = options.target.split(",") if options.target else list(_targets())
    print(f"seed {options.seed}, {options.cases:,} cases for each of {', '.join(names)}", flush=True)
    failed = 0
    for name in names:
        failed += _run(name, options)
    return int(failed > 0)


def _targets() -> dict[str, Any]:
    from fuzz.targets import TARGETS

    return TARGETS


class _Worker:
    """A process that works on every so many-th case, and is started again after one that ended it."""

    def __init__(self, target: str, first: int, options: argparse.Namespace) -> None:
        self.target, self.next, self.options = target, first, options
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.start()

    def start(self) -> None:
        o = self.options
        order = {"target": self.target, "first": self.next, "cases": o.cases, "step": o.jobs, "seed": o.seed}
        command = [sys.executable, "-m", "fuzz", "--worker", json.dumps({**order, "keep": str(o.keep.resolve())})]
        self.log.seek(0)
        self.log.truncate()
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)

    def lines(self) -> list[str]:
        """All that it says until it ends; after a case that ended it, it goes on with the next one."""
        found = []
        while True:
            out = self.process.stdout
            assert out is not None
            last = None
            for line in out:
                if line.startswith("begin "):
                    last = int(line.split()[1])
                else:
                    found.append(line.rstrip("\n"))
            code = self.process.wait()
            if code == 0:
                return found
            self.log.seek(0)
            log = self.log.read()
            if last is None or (code == 1 and "Timeout" not in log):
                raise SystemExit(f"the worker of {self.target} failed at case {last}:\n{log}")
            trace = [line.strip() for line in log.splitlines() if "cifarnets" in line][:1]
            what = f"hang over {SECONDS:g} s" if code == 1 else f"process ended with {code}"
            found.append(f"escape {last} {what} {' '.join(trace)}")
            self.next = last + self.options.jobs
            if self.next >= self.options.cases:
                return found
            self.start()


def _run(target: str, options: argparse.Namespace) -> int:
    from concurrent.futures import ThreadPoolExecutor

    start = time.perf_counter()
    with ThreadPoolExecutor(options.jobs) as pool:
        parts = pool.map(lambda first: _Worker(target, first, options).lines(), range(min(options.jobs, options.cases)))
    lines = [line for part in parts for line in part]
    seconds = time.perf_counter() - start
    escapes = [line.split(" ", 2)[1:] for line in lines if line.startswith("escape ")]
    accepted = sum(int(line.split()[1]) for line in lines if line.startswith("accepted "))
    rate = options.cases / seconds
    print(
        f"{target}: {options.cases:,} cases, {rate:.0f}/s, {accepted:,} accepted, {len(escapes):,} escapes", flush=True
    )
    for what, count in Counter(what for _, what in escapes).most_common(20):
        first = min(int(number) for number, text in escapes if text == what)
        print(f"  {count:6,} × {what}\n           {_kept(options.keep, target, options.seed, first)}", flush=True)
    return len(escapes)


def _kept(folder: Path, target: str, seed: int, number: int) -> str:
    return next((str(path) for path in folder.glob(f"{target}-{seed}-{number}-*")), f"case {number}, not kept")


def _work(order: dict[str, Any]) -> int:
    """Run the cases of one worker, and say which escaped."""
    import resource
    import signal

    import torch

    from cifarnets.errors import CifarNetsError
    from fuzz.targets import AcceptedError, case

    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)
    name, target, seed = order["target"], _targets()[order["target"]], order["seed"]
    keep, accepted = Path(order["keep"]), 0
    keep.mkdir(parents=True, exist_ok=True)
    target.setup()
    with tempfile.TemporaryDirectory(prefix="cifarnets-fuzz-") as temporary:
        folder = Path(temporary)
        (folder / "sound").mkdir()
        files = target.sound(folder / "sound")
        folder = folder / "case"
        folder.mkdir()
        for name_of, content in files.items():  # what is sound must be read, or nothing is tested
            if name_of not in target.refused:
                _read(target, folder / name_of, content, ())
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        # The machine survives a case that would take all of its memory.
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if _on_linux() else 0
        if size:
            resource.setrlimit(resource.RLIMIT_AS, (size + 4 * BYTES, size + 4 * BYTES))
        for number in range(order["first"], order["cases"], order["step"]):
            print("begin", number, flush=True)
            file, content, refuse = case(target, files, Random(f"{seed} {name} {number}"))
            kept = keep / f"{name}-{seed}-{number}-{file}"
            kept.write_bytes(content)
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            try:
                taken = _read(target, folder / file, content, CifarNetsError)
                if taken and refuse:
                    raise AcceptedError("a flipped bit was accepted")
                accepted += taken
                now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                if (now - peak) * (1024 if _on_linux() else 1) > BYTES:
                    peak = now
                    raise MemoryError("over 1 GB")
            except BaseException as error:
                frames = [f for f in traceback.extract_tb(error.__traceback__) if "cifarnets" in f.filename]
                place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
                what = f"{type(error).__name__} in {place}: {str(error)[:100]!r}"
                print("escape", number, what, flush=True)
            else:
                kept.unlink()
            finally:
                faulthandler.cancel_dump_traceback_later()
    print("accepted", accepted)
    return 0


def _on_linux() -> bool:
    return sys.platform == "linux"


def _read(target: Any, path: Path, content: bytes, refusals: Any) -> bool:
    """Read the file; whether it was accepted."""
    path.write_bytes(content)
    try:
        target.call(path)
    except refusals as error:
        text = str(error)
        if len(text) > 5000 or any(ord(c) < 32 and c != "\n" for c in text):
            raise AssertionError(f"a message of {len(text):,} characters, or with control characters") from error
        if "Ghostscript" in text:
            raise AssertionError("another program was to be run") from error
        return False
    return True


def _replay(file: Path, name: str) -> int:
    target, _, rest = file.name.partition("-")
    target = name or target
    chosen = _targets()[target]
    chosen.setup()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / rest.split("-", 2)[-1]
        path.write_bytes(file.read_bytes())
        chosen.call(path)
    print(f"{file} was accepted")
    return 0


if __name__ == "__main__":
    sys.exit(main())
