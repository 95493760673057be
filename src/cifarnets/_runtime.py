"""What the library changes in the process it runs in, all of it in this one place.

`import cifarnets` sets two environment variables, unless they are set already:

- `THP_MEM_ALLOC_ENABLE=1`: on Linux, torch then asks for the memory of large tensors in pages of 2 MB instead of 4 kB,
  which fill faster. torch reads it when it makes its first tensor.
- `CUBLAS_WORKSPACE_CONFIG=:4096:8`: cuBLAS needs it for deterministic algorithms, and may read it only once.

While a fit runs on the CPU of a Linux system, glibc keeps freed memory for the next batch instead of giving it back,
unless `MALLOC_…` or `GLIBC_TUNABLES` say otherwise. After the fit the memory goes back to the system.

`CIFARNETS_TUNE=0` in the environment switches all of it off.
"""

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

SWITCH = "CIFARNETS_TUNE"
DEFAULTS = {"THP_MEM_ALLOC_ENABLE": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of mallopt(3)'s options."""
_KEPT = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: -1}
_USUAL = {M_MMAP_MAX: 65_536, M_TRIM_THRESHOLD: 128 * 1024}

_lock = threading.Lock()
_fits = 0


def is_tuned() -> bool:
    """Whether the library may change the process: `CIFARNETS_TUNE` is not 0."""
    return os.environ.get(SWITCH, "1") != "0"


def set_environment() -> None:
    """Set the two environment variables; a value that is there already stays."""
    if is_tuned():
        for name, value in DEFAULTS.items():
            os.environ.setdefault(name, value)


@contextlib.contextmanager
def kept_memory(device: "torch.device") -> Iterator[None]:
    """Keep freed memory for the next batch until the block ends (CPU of a Linux system with glibc)."""
    libc = _libc() if device.type == "cpu" and is_tuned() else None
    if libc is None:
        yield
        return
    _count_fit(libc, 1)
    try:
        yield
    finally:
        _count_fit(libc, -1)


def _count_fit(libc: Any, change: int) -> None:
    """Of several fits at once, the first one in sets the options, and the last one out puts them back."""
    global _fits
    with _lock:
        before, _fits = _fits, _fits + change
        if not (before and _fits):
            for option, value in (_KEPT if _fits else _USUAL).items():
                libc.mallopt(option, value)
        if not _fits:
            libc.malloc_trim(0)


@functools.cache
def _libc() -> Any:
    """glibc, unless the environment has settings for it; None where there is none, such as with musl."""
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if sys.platform != "linux" or chosen:
        return None
    import ctypes

    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None


def source_commit() -> str | None:
    """The git commit of this library's source, with `-dirty` after it where files were changed; None if unknown.

    A checkout is asked. pip notes the commit of what it installs from a repository. A wheel has only its version.
    """
    import json
    import subprocess
    from importlib.metadata import PackageNotFoundError, distribution

    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists() and (root / "src" / "cifarnets").is_dir():
        command = ["git", "-C", str(root), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603
            return done.stdout.strip()
        return None
    with contextlib.suppress(PackageNotFoundError, ValueError, KeyError):
        commit = json.loads(distribution("cifarnets").read_text("direct_url.json") or "{}")["vcs_info"]["commit_id"]
        return str(commit)
    return None


def machine(device: "torch.device") -> dict[str, Any]:
    """Describe the machine that a run is on, for its folder."""
    import platform

    import torch

    return {"platform": platform.platform(), "device": str(device), "threads": torch.get_num_threads()}


def describe_machine() -> str:
    """One line with what a reader needs to compare speeds with another machine's."""
    import platform
    from importlib.metadata import version

    import torch

    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_processor()}, {threads}"
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "cifarnets"))
    return f"{device}, {platform.system()} {platform.machine()}, Python {platform.python_version()}, {packages}"


def _processor() -> str:
    """The CPU's own name where the system has it, its widest vectors, and bf16 where it computes in that."""
    import platform

    import torch

    from cifarnets._device import cpu_has_bf16

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    bf16 = ", bf16" if cpu_has_bf16() else ""
    return f"{(names or [platform.processor() or 'CPU'])[0]} ({torch.backends.cpu.get_cpu_capability()}{bf16})"
