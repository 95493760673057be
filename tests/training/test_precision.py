"""In which numbers a step computes."""

import copy
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor
from torch import Tensor, nn

from cifarnets import Trainer
from cifarnets.datasets import BatchLoader, ImageDataset
from cifarnets.errors import InputError
from cifarnets.training import Checkpoint
from cifarnets.training.precision import autocast_dtype, compiler_options, grad_scaler

Net = Callable[..., nn.Module]
CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.mark.parametrize(
    ("precision", "device", "expected"),
    [
        ("fp32", CPU, None),
        ("fp32", CUDA, None),
        ("bf16", CPU, torch.bfloat16),
        ("bf16", CUDA, torch.bfloat16),
        ("bf16", MPS, torch.bfloat16),
        ("fp16", CUDA, torch.float16),
        ("auto", MPS, None),
    ],
)
def test_what_is_asked_for(precision: str, device: torch.device, expected: torch.dtype | None) -> None:
    assert autocast_dtype(precision, device) is expected  # type: ignore[arg-type]


@pytest.mark.parametrize(("has_bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_on_cuda(has_bf16: bool, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    assert autocast_dtype("auto", CUDA) is expected


@pytest.mark.parametrize(
    ("avx512", "amx", "expected"),
    [(True, False, torch.bfloat16), (False, True, torch.bfloat16), (False, False, None), (None, None, None)],
)
def test_auto_on_a_cpu(
    avx512: bool | None, amx: bool | None, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for question, answer in (("_is_avx512_bf16_supported", avx512), ("_is_amx_tile_supported", amx)):
        if answer is None:  # a version of torch that does not know the question
            monkeypatch.delattr(torch.cpu, question, raising=False)
        else:
            monkeypatch.setattr(torch.cpu, question, lambda answer=answer: answer, raising=False)
    assert autocast_dtype("auto", CPU) is expected


@pytest.mark.parametrize("device", [CPU, MPS])
def test_fp16_needs_cuda(device: torch.device) -> None:
    with pytest.raises(InputError, match=f"fp16 training needs CUDA, and this is {device.type}; use 'bf16', or 'auto'"):
        autocast_dtype("fp16", device)


def test_a_trainer_refuses_it_before_anything_is_done(net: Net) -> None:
    with pytest.raises(InputError, match="fp16 training needs CUDA"):
        Trainer(net(), precision="fp16", device="cpu")


def test_an_unknown_precision() -> None:
    with pytest.raises(InputError, match="precision must be 'auto', 'fp32', 'bf16' or 'fp16', not 'half'"):
        autocast_dtype("half", CPU)  # type: ignore[arg-type]


def test_bf16_computes_in_bf16_and_keeps_weights_in_float32(net: Net, train: ImageDataset, tmp_path: Path) -> None:
    def fit(precision: str) -> tuple[Trainer, list[torch.dtype]]:
        model, seen = net(), []

        def note(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            seen.append(output.dtype)

        model.conv2.register_forward_hook(note)
        trainer = Trainer(model, precision=precision, lr=0.1, callbacks=[Checkpoint(tmp_path)], device="cpu")  # type: ignore[arg-type]
        trainer.fit(BatchLoader(train, 16, device="cpu"), epochs=4)
        return trainer, seen

    full, seen = fit("fp32")
    assert set(seen) == {torch.float32}
    half, seen = fit("bf16")
    assert set(seen) == {torch.bfloat16}
    assert {value.dtype for value in half.model.state_dict().values()} == {torch.float32}
    assert {
        value.dtype for state in half.optimizer.state.values() for value in state.values() if value is not None
    } <= {torch.float32}
    assert half.history.column("loss") == pytest.approx(full.history.column("loss"), rel=0.02)
    assert half.history.column("loss") != full.history.column("loss")


def test_fused_optimizers_leave_overflows_to_the_scaler(net: Net) -> None:
    optimizer = torch.optim.SGD(net().parameters(), lr=0.1, momentum=0.9, fused=True)
    assert optimizer._step_supports_amp_scaling
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no CUDA here
        grad_scaler(torch.float16, optimizer)
    assert not optimizer._step_supports_amp_scaling
    assert not grad_scaler(torch.bfloat16, optimizer).is_enabled()


@pytest.mark.gpu
def test_on_cuda_an_overflow_at_the_first_step_leaves_no_trace(net: Net, train: ImageDataset) -> None:
    options: dict[str, Any] = {"optimizer_options": {"momentum": 0.9, "fused": True}, "precision": "fp16"}
    trainer = Trainer(net(), lr=0.1, device="cuda", deterministic=True, progress=False, **options)
    trainer._scaler.scale(torch.zeros((), device="cuda"))  # makes its number
    trainer._scaler.update(2.0**40)
    trainer.fit(BatchLoader(train, 4, True, device="cuda", seed=0), epochs=4)
    assert 0 < trainer.global_step < 40, "some steps overflowed, and some did not"
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16", "auto"])
def test_on_cuda(net: Net, train: ImageDataset, tmp_path: Path, precision: str) -> None:
    def loader() -> BatchLoader:
        return BatchLoader(train, 16, shuffle=True, device="cuda", seed=0)

    model = net()
    reference = Trainer(copy.deepcopy(model), lr=0.1, device="cuda").fit(loader(), epochs=4)
    trainer = Trainer(model, precision=precision, lr=0.1, callbacks=[Checkpoint(tmp_path)], device="cuda")  # type: ignore[arg-type]
    seen = set()
    model.register_forward_hook(lambda _model, _images, logits: seen.add(logits.dtype))
    history = trainer.fit(loader(), epochs=4)
    assert seen == {trainer.dtype}
    assert trainer.global_step > 0
    # fp16 leaves out the first steps, until the scale of the gradients fits.
    assert history.column("loss") == pytest.approx(reference.column("loss"), rel=0.1)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    resumed = Trainer(net(1), precision=precision, lr=0.1, device="cuda")  # type: ignore[arg-type]
    resumed.fit(loader(), epochs=5, resume=tmp_path)
    assert resumed.history[:4] == history
    assert len(resumed.history) == 5


def test_compiled_in_float32_nothing_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    assert compiler_options(None) == {}
    monkeypatch.setattr(torch._inductor, "list_options", lambda: ["cpp.threads", "cpp.use_decompose_tanh"])
    assert compiler_options(None) == {}
    assert compiler_options(torch.bfloat16) == {"cpp.use_decompose_tanh": True}
    monkeypatch.setattr(torch._inductor, "list_options", lambda: ["cpp.threads"])  # torch before 2.8
    assert compiler_options(torch.bfloat16) == {}


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on a CPU")
def test_a_compiled_tanh_is_as_exact_as_bfloat16_can_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    numbers = torch.arange(-(2**15), 2**15).short().view(torch.bfloat16)  # all there are
    compiled = torch.compile(torch.tanh, options=compiler_options(torch.bfloat16), fullgraph=True)
    found, exact = compiled(numbers).double(), numbers.double().tanh()
    assert torch.equal(found.isnan(), exact.isnan())
    error = (found - exact).abs()[~exact.isnan()]
    assert (error <= exact[~exact.isnan()].abs() * 2**-8 + 1.2e-7).all()  # a rounding, and what is left out
