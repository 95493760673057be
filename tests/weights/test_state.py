"""A state on disk: what comes back is what went in, and nothing else is taken for one."""

import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from torch import Tensor

import cifarnets
from cifarnets.errors import OutputError, WeightsError
from cifarnets.training.checkpoint import CHECKPOINT_FILE
from cifarnets.weights.files import write_weights
from cifarnets.weights.state import read_state, write_state

DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Any shape from none to three dimensions, empty ones too; any bytes, so NaN and infinity are among them."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    count = math.prod(shape)
    if dtype is torch.bool:
        return torch.tensor(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=dtype).view(shape)
    raw = draw(st.binary(min_size=count * dtype.itemsize, max_size=count * dtype.itemsize))
    return torch.tensor(list(raw), dtype=torch.uint8).view(dtype).view(shape)


plain = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text()
keys = st.text() | st.integers() | st.booleans() | st.none() | st.tuples(st.integers(), st.text())
states = st.recursive(
    plain | tensors(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=12,
)


def same(one: Any, other: Any) -> bool:
    """Equal in type and value at every level; NaN is equal to itself, and True is not 1."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor):
        return (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(
            one.contiguous().view(-1).view(torch.uint8), other.contiguous().view(-1).view(torch.uint8)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one.items()), list(other.items()))  # in the same order too
    if isinstance(one, float):
        return repr(one) == repr(other)
    return bool(one == other)


@given(states)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_nesting_comes_back_as_it_was(tmp_path: Path, state: Any) -> None:
    path = write_state(tmp_path / CHECKPOINT_FILE, state)
    assert same(read_state(path), state)


def test_what_is_shared_or_laid_out_otherwise_comes_back(tmp_path: Path) -> None:
    weight = torch.randn(4, 3, 5, 5)
    state = {
        "whole": weight,
        "same": weight,
        "part": weight[1:3, ::2],
        "turned": weight.permute(3, 2, 1, 0),
        "channels_last": weight.to(memory_format=torch.channels_last),
        "learning": torch.nn.Parameter(weight),
    }
    found = read_state(write_state(tmp_path / CHECKPOINT_FILE, state))
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
    assert found["channels_last"].is_contiguous(memory_format=torch.channels_last)
    assert not found["learning"].requires_grad


def test_the_state_of_an_optimizer_can_be_loaded_again(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([weight], lr=0.1)
    weight.grad = torch.tensor([1.0, 2.0, 3.0])
    optimizer.step()
    again = torch.optim.Adam([torch.nn.Parameter(torch.ones(3))], lr=9.0)
    again.load_state_dict(read_state(write_state(tmp_path / CHECKPOINT_FILE, optimizer.state_dict())))
    assert str(again.state_dict()) == str(optimizer.state_dict())


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, torch.float32, torch.device("cpu"), print])
def test_what_is_no_plain_value_is_refused(tmp_path: Path, value: Any) -> None:
    path = write_state(tmp_path / CHECKPOINT_FILE, {"whole": True})
    with pytest.raises(WeightsError, match=r"must be plain values \(JSON\)"):
        write_state(path, {"deep": [(value,)]})
    assert read_state(path) == {"whole": True}, "the old file survives"


def test_where_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"):
        write_state(tmp_path / "file" / CHECKPOINT_FILE, {})


@pytest.mark.parametrize("left", [0, 7, 100, -1])
def test_a_file_that_was_cut_short_is_refused(tmp_path: Path, left: int) -> None:
    path = write_state(tmp_path / CHECKPOINT_FILE, {"weights": torch.randn(100), "step": 3})
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(WeightsError, match="is not a whole safetensors file"):
        read_state(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"cannot read the weights .*No such file"):
        read_state(tmp_path / CHECKPOINT_FILE)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    torch.save({"step": 3}, tmp_path / CHECKPOINT_FILE)
    with pytest.raises(WeightsError, match=r"is a pickle .*it was not opened"):
        read_state(tmp_path / CHECKPOINT_FILE)


def test_a_model_is_no_state_and_a_state_no_model(tmp_path: Path) -> None:
    model = cifarnets.save(cifarnets.models.create("convnet"), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"holds a model, not the state of a fit; cifarnets.load reads it"):
        read_state(model)
    with pytest.raises(WeightsError):
        cifarnets.load(write_state(tmp_path / CHECKPOINT_FILE, {}))


@pytest.mark.parametrize(
    "content",
    [
        {"tensor": "7"},
        {"tensor": []},
        {"tuple": 3},
        {"dict": [["key"]]},
        {"dict": [[[1], 2]]},
        {"dict": 3},
        {"set": [1]},
        {},
        {"tuple": [], "dict": []},
        [{"tensor": "7"}],
    ],
)
def test_a_state_that_refers_to_nothing_is_damaged(tmp_path: Path, content: Any) -> None:
    path = write_weights(tmp_path / CHECKPOINT_FILE, {"0": torch.zeros(2)}, {"state": content}, "0.1.0")
    with pytest.raises(WeightsError, match=r"the state in .* is damaged"):
        read_state(path)


def test_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    content = write_state(tmp_path / CHECKPOINT_FILE, {"step": 3, "momentum": torch.rand(50)}).read_bytes()
    for place in range(0, len(content), 7):
        changed = bytearray(content)
        changed[place] ^= 1 << place % 8
        (tmp_path / CHECKPOINT_FILE).write_bytes(changed)
        with pytest.raises(WeightsError):
            read_state(tmp_path / CHECKPOINT_FILE)


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    state = {"b": torch.ones(2), "a": {"z": 1, "y": [2.5, None]}}
    files = [write_state(tmp_path / name, state) for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("depth", [200, 100_000])
def test_a_state_that_is_too_deep_is_not_written(depth: int, tmp_path: Path) -> None:
    state: Any = None
    for _ in range(depth):
        state = [state]
    with pytest.raises(WeightsError, match=r"too deep|nested more than 100 levels"):
        write_state(tmp_path / CHECKPOINT_FILE, state)
    assert list(tmp_path.iterdir()) == []
