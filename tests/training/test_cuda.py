"""On a GPU a fit is that of the CPU."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.helpers import MakeNet, StopAt

from cifarnets import Trainer
from cifarnets.datasets import BatchLoader, ImageDataset
from cifarnets.errors import InputError
from cifarnets.training import EMA, Callback, Checkpoint


@pytest.fixture
def _exact_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 as the CPU has it: TensorFloat-32 rounds inputs to 10 bits."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


@pytest.mark.gpu
@pytest.mark.usefixtures("_exact_cuda")
@pytest.mark.parametrize("channels_last", [False, True])
def test_on_cuda_a_short_fit_is_that_of_the_cpu(net: MakeNet, train: ImageDataset, channels_last: bool) -> None:
    histories = []
    for device in ("cpu", "cuda"):
        loader = BatchLoader(train, 16, shuffle=True, device=device, seed=0, channels_last=channels_last)
        trainer = Trainer(net(), lr=0.05, device=device, channels_last=channels_last, progress=False)
        histories.append(trainer.fit(loader, epochs=2))
    on_cpu, on_cuda = histories
    assert on_cuda.column("loss") == pytest.approx(on_cpu.column("loss"), rel=1e-4)
    assert on_cuda.column("accuracy") == pytest.approx(on_cpu.column("accuracy"), abs=0.02)


@pytest.mark.gpu
def test_on_cuda_a_resumed_fit_ends_as_if_never_stopped(net: MakeNet, train: ImageDataset, tmp_path: Path) -> None:
    def fit(*callbacks: Callback, resume: Path | None = None) -> Trainer:
        loader = BatchLoader(train, 16, shuffle=True, device="cuda", seed=0)
        trainer = Trainer(
            net(), lr=0.05, device="cuda", deterministic=True, seed=0, callbacks=callbacks, progress=False
        )
        trainer.fit(loader, epochs=3, resume=resume)
        return trainer

    whole = fit()
    fit(Checkpoint(tmp_path, every_batches=1), StopAt(2, epoch=1))
    resumed = fit(Checkpoint(tmp_path), resume=tmp_path)
    assert resumed.history.column("loss") == whole.history.column("loss")
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name


@pytest.mark.gpu
@pytest.mark.usefixtures("_exact_cuda")
@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "convmuon"])
def test_on_cuda_every_option_at_once_is_that_of_the_cpu(net: MakeNet, train: ImageDataset, optimizer: str) -> None:
    options: dict[str, Any] = {"optimizer": optimizer, "accumulate": 2, "clip_norm": 0.5, "label_smoothing": 0.1}
    if optimizer == "convmuon":
        options["optimizer_options"] = {"bias_lr": 0.05, "head_lr": 0.05}
    else:
        options["optimizer_options"] = {"fused": True, **({"momentum": 0.9} if optimizer == "sgd" else {})}
    weights = []
    for device in ("cpu", "cuda"):
        loader = BatchLoader(train, 9, shuffle=True, device=device, seed=0)
        average = EMA(0.5)
        Trainer(net(), lr=0.01, device=device, callbacks=[average], progress=False, **options).fit(loader, epochs=2)
        assert average.average is not None
        weights.append({name: tensor.cpu() for name, tensor in average.average.module.state_dict().items()})
    tolerance = 0.05 if optimizer == "convmuon" else 1e-3  # its iteration is in bfloat16 there
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=0, atol=tolerance)


@pytest.mark.gpu
def test_on_cuda_a_label_that_no_output_means_is_named_in_any_batch(net: MakeNet) -> None:
    images = torch.randn(4, 3, 32, 32)
    batches = [(images, torch.zeros(4, dtype=torch.int64)), (images, torch.full((4,), 7))]
    with pytest.raises(InputError, match=r"batch 2: labels run from 7 to 7, but the model has 3 outputs"):
        Trainer(net(), device="cuda", progress=False).fit(batches, epochs=1)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")  # which are off on purpose
@pytest.mark.usefixtures("_exact_cuda")
def test_on_cuda_a_compiled_fit_learns_the_same(net: MakeNet, train: ImageDataset) -> None:
    losses = []
    for compiled in (False, True):
        loader = BatchLoader(train, 16, shuffle=True, device="cuda", seed=0)
        losses.append(Trainer(net(), lr=0.05, device="cuda", compile=compiled, progress=False).fit(loader, epochs=2))
    assert losses[1].column("loss") == pytest.approx(losses[0].column("loss"), rel=1e-3)
