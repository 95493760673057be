"""Mixed precision: dtype, scaler, compiler options. Weights and optimizer stay in float32."""

from typing import Any, Literal

import torch

from cifarnets._device import cpu_has_bf16
from cifarnets.errors import InputError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def autocast_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """What to autocast to on a device; None for plain float32.

    `"auto"` is bf16 where the hardware computes in it (CUDA from Ampere on, CPUs with AVX-512 BF16 or AMX), fp16 on
    older CUDA devices, and fp32 elsewhere.

    Raises:
        InputError: There is no such precision, or fp16 is asked of a device without CUDA.
    """
    if precision == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        return torch.bfloat16 if device.type == "cpu" and cpu_has_bf16() else None
    if precision not in ("fp32", "bf16", "fp16"):
        raise InputError(f"precision must be 'auto', 'fp32', 'bf16' or 'fp16', not {precision!r}.")
    if precision == "fp16" and device.type != "cuda":
        raise InputError(f"fp16 training needs CUDA, and this is {device.type}; use 'bf16', or 'auto' for what it can.")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def grad_scaler(dtype: torch.dtype | None, optimizer: torch.optim.Optimizer) -> torch.amp.GradScaler:
    """Scales gradients in fp16, and leaves out the steps for which they overflow; in all else it does nothing."""
    if dtype is torch.float16:
        # A fused optimizer would look after overflows itself, but its first step keeps memory that was never filled.
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    return torch.amp.GradScaler("cuda", enabled=dtype is torch.float16)


def compiler_options(dtype: torch.dtype | None) -> dict[str, Any]:
    """What `torch.compile` may do besides when a step computes in `dtype`.

    In half precision a CPU's tanh is made of one exponential: off by 1e-7, it is as exact as a bfloat16 can tell.
    Versions of torch without the choice are left as they are.
    """
    if dtype is None:
        return {}
    import torch._inductor  # not before something is compiled: it takes long

    tanh = "cpp.use_decompose_tanh"
    return {tanh: True} if tanh in torch._inductor.list_options() else {}
