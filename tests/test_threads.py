"""One model used by several threads at once: right answers, and the model is left as it was."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cifarnets import create, evaluate, features, load, predict
from cifarnets.inference import eval_mode
from cifarnets.models import annotate

THREADS = 8


def make(name: str, *, train: bool) -> nn.Module:
    torch.manual_seed(0)
    model = create(name)
    annotate(model, mean=(0.5,) * 3, std=(0.25,) * 3)
    return model.train(train)


def pictures(count: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=generator))


def all_at_once(work: Callable[[Tensor], Any], items: list[Tensor]) -> list[Any]:
    """Do the work in eight threads that start together."""
    barrier = threading.Barrier(THREADS)

    def share(rank: int) -> list[Any]:
        barrier.wait()
        return [work(item) for item in items[rank::THREADS]]

    with ThreadPoolExecutor(THREADS) as pool:
        parts = list(pool.map(share, range(THREADS)))
    return [parts[index % THREADS][index // THREADS] for index in range(len(items))]


@pytest.mark.parametrize("train", [True, False], ids=["train mode", "eval mode"])
@pytest.mark.parametrize("name", ["convnet", "resnet20", "vgg11_bn"])
def test_predict(name: str, train: bool) -> None:
    model, some = make(name, train=train), pictures(24)
    expected = [predict(model, picture, 10, device="cpu") for picture in some]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert all_at_once(lambda picture: predict(model, picture, 10, device="cpu"), some) == expected
    assert all(module.training is train for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("layer", ["conv2", None, ["conv1", "conv2"]], ids=str)
def test_features(layer: Any) -> None:
    model, some = load("convnet"), pictures(48)
    expected = [features(model, picture, layer) for picture in some]
    found = all_at_once(lambda picture: features(model, picture, layer), some)
    for ours, theirs in zip(found, expected, strict=True):
        if isinstance(layer, list):
            assert all(torch.equal(ours[name], theirs[name]) for name in layer)
        else:
            assert torch.equal(ours, theirs)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_predict_features_and_evaluate_together() -> None:
    model, some = make("resnet20", train=True), pictures(16)
    batch = [(torch.stack(some).float() / 255, torch.arange(16) % 10)]
    expected = evaluate(model, batch, device="cpu"), predict(model, some[0], 10), features(model, some[0])
    jobs: list[Callable[[], Any]] = [
        lambda: evaluate(model, batch, device="cpu"),
        lambda: predict(model, some[0], 10),
        lambda: features(model, some[0]),
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        found = [future.result() for future in [pool.submit(jobs[index % 3]) for index in range(24)]]
    for index, value in enumerate(found):
        wanted: Any = expected[index % 3]
        assert torch.equal(value, wanted) if isinstance(wanted, Tensor) else value == wanted
    assert all(module.training for module in model.modules())


def test_the_first_to_leave_does_not_wake_dropout_for_the_others() -> None:
    """A fit leaves a model in train mode; here one thread comes while another is still in the net."""
    model = make("resnet20", train=True)
    picture = torch.zeros(3, 32, 32)
    right = predict(model, picture)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.get_submodule("conv").register_forward_hook(lambda *_: time.sleep(0.1))  # a slower net

    def later(delay: float) -> Any:
        time.sleep(delay)
        return predict(model, picture)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(later, (0, 0.05))) == [right, right]
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_an_error_in_one_thread_leaves_the_model_to_the_others() -> None:
    model = make("convnet", train=True)
    entered, leave = threading.Event(), threading.Event()

    def stay() -> bool:
        with eval_mode(model, torch.device("cpu")):
            entered.set()
            leave.wait(10)
            return model.training

    with ThreadPoolExecutor(1) as pool:
        inside = pool.submit(stay)
        entered.wait(10)
        with pytest.raises(RuntimeError, match="broken"), eval_mode(model, torch.device("cpu")):
            raise RuntimeError("broken")
        assert not model.training, "the other thread still needs it"
        leave.set()
        assert inside.result() is False
    assert model.training


def test_a_thread_that_wants_another_device_waits() -> None:
    model = make("convnet", train=False)
    entered, leave, order = threading.Event(), threading.Event(), []

    def first() -> None:
        with eval_mode(model, torch.device("cpu")):
            entered.set()
            leave.wait(10)
            order.append("first")

    def second() -> None:
        with eval_mode(model, torch.device("cpu", 0)):  # the same place under another name
            order.append("second")

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(first)
        entered.wait(10)
        other = pool.submit(second)
        time.sleep(0.1)
        leave.set()
        one.result(10)
        other.result(10)
    assert order == ["first", "second"]
