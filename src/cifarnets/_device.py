"""Devices by name."""

import os

import torch

from cifarnets.errors import InputError, brief


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device for a name; `"auto"` is the first at hand of CUDA, MPS and CPU.

    Under `torchrun` each process takes the CUDA device of its local rank.

    Raises:
        InputError: torch does not know the name, or this machine has no such device.
    """
    if not isinstance(device, (str, torch.device)):
        raise InputError(f"device must be a name, such as 'auto' or 'cpu', or a torch.device, not {brief(device)}.")
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", _cuda_index())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if device == "cpu":  # is always here
        return torch.device("cpu")
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


def cpu_has_bf16() -> bool:
    """Whether this CPU computes in bfloat16 (AVX-512 BF16 or AMX); others imitate it, many times slower."""
    # torch has no public question for this; a missing private one means no.
    questions = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, question, lambda: False)() for question in questions)
