"""Where the work runs."""

import contextlib
import ctypes
import os
import sys
import threading
from collections.abc import Iterator

import torch

from cifarnets.errors import InputError


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


@contextlib.contextmanager
def reusing_memory(device: torch.device) -> Iterator[None]:
    """Until the block ends, keep the memory of large tensors that are freed for those that come after them.

    On Linux, the C library gives each block of more than 32 MB back to the system as soon as it is freed, and the next
    one is then filled with zeros page by page. In the steps of a large batch on the CPU, that is a fifth of the time.
    Elsewhere, on other devices, in other threads than the main one, and where the environment has settings for the C
    library's memory already, this does nothing.
    """
    settled = {"MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"}
    main = threading.current_thread() is threading.main_thread()
    library = ctypes.CDLL(None) if sys.platform == "linux" and device.type == "cpu" and main else None
    mallopt, malloc_trim = (getattr(library, name, None) for name in ("mallopt", "malloc_trim"))
    if mallopt is None or malloc_trim is None or settled & os.environ.keys():
        yield
        return
    trim_threshold, mmap_threshold, mmap_max = -1, -3, -4  # malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, -1)
    try:
        yield
    finally:
        mallopt(mmap_max, 65536)
        # What the C library's thresholds grow to by themselves, which they do no longer once they have been set.
        mallopt(mmap_threshold, 32 * 2**20)
        mallopt(trim_threshold, 64 * 2**20)
        malloc_trim(0)


def _cuda_index() -> int:
    local_rank = int(os.environ.get("LOCAL_RANK", -1))
    return local_rank if 0 <= local_rank < torch.cuda.device_count() else torch.cuda.current_device()
