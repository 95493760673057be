"""Where the work runs: on this machine whatever it has, and with a pretended CUDA or MPS."""

import pytest
import torch

from cifarnets._device import resolve_device
from cifarnets.errors import InputError


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with neither CUDA nor MPS; a test adds what it needs."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


def with_cuda(pretend: pytest.MonkeyPatch, *, count: int, current: int) -> None:
    pretend.setattr(torch.cuda, "is_available", lambda: True)
    pretend.setattr(torch.cuda, "device_count", lambda: count)
    pretend.setattr(torch.cuda, "current_device", lambda: current)
    pretend.setattr(torch, "empty", lambda *size, device: None)  # what tells whether the device is there


def test_auto_without_accelerator_is_the_cpu(pretend: pytest.MonkeyPatch) -> None:
    assert resolve_device() == torch.device("cpu")


def test_auto_takes_mps(pretend: pytest.MonkeyPatch) -> None:
    pretend.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("mps")


def test_auto_prefers_cuda_to_mps(pretend: pytest.MonkeyPatch) -> None:
    pretend.setattr(torch.backends.mps, "is_available", lambda: True)
    with_cuda(pretend, count=2, current=1)
    assert resolve_device("auto") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["auto", "cuda", torch.device("cuda")])
@pytest.mark.parametrize(
    ("local_rank", "index"),
    # A rank without a device of its own, as when the devices are hidden from each other, takes the current one.
    [("0", 0), ("2", 2), ("4", 1), (None, 1)],
)
def test_each_process_of_torchrun_takes_its_device(
    pretend: pytest.MonkeyPatch, name: str | torch.device, local_rank: str | None, index: int
) -> None:
    with_cuda(pretend, count=4, current=1)
    if local_rank is not None:
        pretend.setenv("LOCAL_RANK", local_rank)
    assert resolve_device(name) == torch.device("cuda", index)


def test_an_index_given_is_kept(pretend: pytest.MonkeyPatch) -> None:
    with_cuda(pretend, count=4, current=1)
    pretend.setenv("LOCAL_RANK", "2")
    assert resolve_device("cuda:3") == torch.device("cuda", 3)


@pytest.mark.parametrize("name", ["cpu", torch.device("cpu")])
def test_a_device_by_name_or_as_it_is(name: str | torch.device) -> None:
    assert resolve_device(name) == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:99", torch.device("cuda:99")])
def test_what_is_not_here_is_refused(name: str | torch.device) -> None:
    with pytest.raises(InputError, match=rf"^device '{name}' cannot be used here \(.+\); try 'auto' or 'cpu'\.$"):
        resolve_device(name)


def test_the_reason_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*size: int, device: torch.device) -> None:
        raise NotImplementedError("no kernel for it\nand a page of advice")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(InputError, match=r"^device 'mps' cannot be used here \(no kernel for it\); try"):
        resolve_device("mps")


@pytest.mark.gpu
def test_real_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for name in ("auto", "cuda"):
        # With its index, so that it compares equal to the device of a tensor that lies there.
        assert torch.zeros(1, device=resolve_device(name)).device == resolve_device(name)
