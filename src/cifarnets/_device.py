"""Where the work runs."""

import ctypes
import os
import sys

import torch

from cifarnets.errors import InputError

# On Linux, memory for large tensors comes in pages of 2 MB instead of 4 kB, which are filled faster.
# torch reads this when it makes its first tensor; another setting stands.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# cuBLAS wants this for deterministic algorithms, and may look for it once only, when it is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of mallopt(3)'s options."""


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device for a name; `"auto"` is the first at hand of CUDA, MPS and CPU.

    Under `torchrun` each process takes the CUDA device of its local rank.

    Raises:
        InputError: torch does not know the name, or this machine has no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", _cuda_index())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {str(device)!r} cannot be used here ({reason}); try 'auto' or 'cpu'.") from error
    if resolved.type == "cuda" and resolved.index is None:
        return torch.device("cuda", _cuda_index())
    return resolved


def _cuda_index() -> int:
    local_rank = int(os.environ.get("LOCAL_RANK", -1))
    return local_rank if 0 <= local_rank < torch.cuda.device_count() else torch.cuda.current_device()


def keep_memory(device: torch.device) -> None:
    """Have freed memory kept for the next batch, where that is on the CPU of a Linux system.

    glibc gives large pieces back to the system, which then has to clear every page again. Settings from outside
    (`MALLOC_…`, `GLIBC_TUNABLES`) stand.
    """
    chosen = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    if device.type != "cpu" or sys.platform != "linux" or chosen:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
            mallopt(option, value)
