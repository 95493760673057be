"""Where the work runs: on this machine whatever it has, and with a pretended CUDA or MPS."""

import os
import subprocess
import sys
from pathlib import Path

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


def pages_of_a_large_tensor(**settings: str) -> int:
    """Pages that the system hands out while a tensor of 128 MB is filled, in a process of its own."""
    code = (
        "import resource, torch, cifarnets; torch.ones(1); "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt; torch.ones(32 * 2**20); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    environment = {key: value for key, value in os.environ.items() if key != "THP_MEM_ALLOC_ENABLE"} | settings
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has transparent huge pages")
def test_large_tensors_lie_in_large_pages_unless_told_otherwise() -> None:
    if "[madvise]" not in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text():
        pytest.skip("this system has large pages always, or never")
    assert pages_of_a_large_tensor(THP_MEM_ALLOC_ENABLE="0") > 20 * pages_of_a_large_tensor()


@pytest.mark.skipif(sys.platform != "linux", reason="the allocator is glibc's")
@pytest.mark.parametrize("outside", [{}, {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}])
def test_a_trainer_has_memory_kept_unless_the_user_says_otherwise(outside: dict[str, str]) -> None:
    """Faults of 4 kB pages tell how often 64 MB that were let go had to be taken from the system again, of eight times.

    Now and then they must be, where something small has taken a bit of the place.
    """
    code = """
import resource, torch
from cifarnets import Trainer
from cifarnets.models import create

Trainer(create("convnet"), device="cpu", progress=False)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    torch.zeros(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    names = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    environment = {**names, "THP_MEM_ALLOC_ENABLE": "0", **outside}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert (int(done.stdout) / 2**14 > 6) == bool(outside), done.stdout
