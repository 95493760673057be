"""The layers of a net as plain data, for a page that computes them itself."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifarnets.errors import InputError, brief
from cifarnets.models.metadata import unwrap

KNOWN = (
    "convolution, linear, BatchNorm, tanh, ReLU, GELU, SiLU, sigmoid, max and average pooling, mean over each map, add, "
    "subtract, multiply, flatten, pad with zeros, strided slices, concatenation"
)
"""What a page can compute, as a message says it."""


@dataclass(frozen=True)
class Graph:
    """A net as layers, each of which takes what earlier ones gave, and one array of all weights.

    Attributes:
        layers: Plain values, as JSON has them: `op`, `name`, `words`, `from` (numbers of layers), `shape` without the
            batch, and what the op needs. A tensor of weights is the place of its first number in `weights`.
        weights: float32 `[number of weights]`.
    """

    layers: list[dict[str, Any]]
    weights: "np.ndarray[Any, np.dtype[np.float32]]"


def graph_of(model: nn.Module, shape: tuple[int, int, int]) -> Graph:
    """Follow one image through a model, and note every layer that it passes.

    Examples:
        >>> from cifarnets.models import create
        >>> graph = graph_of(create("convnet"), (3, 32, 32))
        >>> [layer["name"] for layer in graph.layers]
        ['picture', 'conv1', 'pool1', 'act1', 'conv2', 'pool2', 'act2', 'flatten', 'fc1', 'act3', 'fc2']
        >>> len(graph.weights)
        18354

    Args:
        model: The model, which stays as it is.
        shape: Channels, height and width of the image.

    Raises:
        InputError: A layer is of a kind that pages do not know, or the forward pass cannot be followed.
    """
    # A copy, since the model may be in use, on another device, in another mode, or of half precision.
    model = copy.deepcopy(unwrap(model)).cpu().float().eval()
    name = type(model).__name__
    try:
        with torch.no_grad():
            program = torch.export.export(model, (torch.zeros(1, *shape),), strict=False)
    except Exception as error:  # the forward pass is anyone's code
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"cannot follow an image {list(shape)} through {name}: {brief(first, quotes=False)}"
        ) from error
    return _Tracer(name, shape).trace(program)


class _Tracer:
    """Turns the nodes of a program of torch.export into layers."""

    def __init__(self, model: str, shape: tuple[int, int, int]) -> None:
        self._model = model
        self._layers: list[dict[str, Any]] = [
            {"op": "input", "name": "picture", "words": "The picture, normalised", "from": [], "shape": list(shape)}
        ]
        self._numbers: dict[Any, int] = {}  # of the layer that a node became
        self._tensors: dict[Any, Tensor] = {}  # parameters and buffers
        self._weights: list[Tensor] = []
        self._size = 0

    def trace(self, program: torch.export.ExportedProgram) -> Graph:
        stored = {**program.state_dict, **program.constants}
        signature = program.graph_signature
        targets = {spec.arg.name: spec.target for spec in signature.input_specs if hasattr(spec.arg, "name")}
        result: Any = None
        for node in program.graph.nodes:
            if node.op == "placeholder":
                target = targets.get(node.name)
                if target is None:
                    self._numbers[node] = 0
                else:
                    self._tensors[node] = stored[target].detach().float()
            elif node.op == "call_function":
                self._add(node)
            elif node.op == "output":
                result = node.args[0]
        last = self._numbers.get(result[0]) if isinstance(result, (tuple, list)) and len(result) == 1 else None
        if last is None or len(self._layers[last]["shape"]) != 1:
            raise InputError(f"a model must give logits [N, K], one tensor; {self._model} gives something else.")
        weights = torch.cat([part.flatten() for part in self._weights]) if self._weights else torch.zeros(0)
        # What no logit depends on is no part of the net.
        needed = _needed(self._layers, last)
        order = {old: new for new, old in enumerate(needed)}
        layers = [{**self._layers[old], "from": [order[i] for i in self._layers[old]["from"]]} for old in needed]
        return Graph(layers, weights.numpy())

    def _add(self, node: Any) -> None:
        value = node.meta.get("val")
        kind = str(node.target).removeprefix("aten.").split(".")[0].rstrip("_")
        name = self._name(node, kind)
        build = _OPS.get(kind)
        if build is None or not isinstance(value, Tensor) or value.ndim not in (2, 3, 4) or value.shape[0] != 1:
            raise self._unknown(name, str(node.target))
        arguments = {
            argument.name: argument.default_value
            for argument in node.target._schema.arguments
            if argument.has_default_value()
        }
        names = [argument.name for argument in node.target._schema.arguments]
        arguments |= dict(zip(names, node.args, strict=False)) | node.kwargs
        try:
            layer = build(_Call(self, arguments, list(value.shape[1:])))
        except _Unknown as reason:
            raise self._unknown(name, f"{node.target}: {reason}") from None
        if isinstance(layer, int):  # it changes nothing
            self._numbers[node] = layer
            return
        self._numbers[node] = len(self._layers)
        self._layers.append({**layer, "name": name, "shape": list(value.shape[1:])})

    def _unknown(self, name: str, kind: str) -> InputError:
        return InputError(
            f"the explorer does not know the layer {name!r} of {self._model} ({kind}). It knows {KNOWN}; the batch must "
            "stay the first dimension."
        )

    def _name(self, node: Any, kind: str) -> str:
        """The name of the module, or of the function and the module that calls it; no name comes twice."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path, owner = stack[-1] if stack else ("", "")
        leaf = str(owner if isinstance(owner, str) else owner.__module__).startswith("torch.nn.") and path
        word = {"conv2d": "conv", "max_pool2d": "pool", "avg_pool2d": "pool", "batch_norm": "norm"}.get(kind, kind)
        name = path if leaf else ".".join(filter(None, (path, word)))
        taken = {layer["name"] for layer in self._layers}
        return (
            name if name not in taken else next(n for n in (f"{name} ({i})" for i in range(2, 9999)) if n not in taken)
        )

    def number(self, value: Any) -> int:
        if value not in self._numbers:
            raise _Unknown("it takes weights where a page expects maps")
        return self._numbers[value]

    def tensor(self, value: Any) -> Tensor | None:
        if value is not None and value not in self._tensors:
            raise _Unknown("its weights are computed")
        return None if value is None else self._tensors[value]

    def store(self, weights: Tensor) -> int:
        place = self._size
        self._weights.append(weights)
        self._size += weights.numel()
        return place

    def shape(self, number: int) -> list[int]:
        shape: list[int] = self._layers[number]["shape"]
        return shape


class _Unknown(Exception):  # noqa: N818 (it never leaves this module)
    """Why a page does not know an op with these arguments."""


class _Call:
    """One call of an op: its arguments by name, and what it gives."""

    def __init__(self, tracer: _Tracer, arguments: dict[str, Any], shape: list[int]) -> None:
        self.tracer, self.arguments, self.shape = tracer, arguments, shape

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    def input(self, name: str = "") -> int:
        return self.tracer.number(self[name or next(iter(key for key in ("input", "self") if key in self.arguments))])

    def source(self) -> list[int]:
        return self.tracer.shape(self.input())

    def pair(self, name: str, default: Any = 0) -> list[int]:
        value = self[name]
        value = default if value is None or value == [] else value
        value = [value, value] if isinstance(value, int) else list(value)
        return value * 2 if len(value) == 1 else value

    def need(self, condition: Any, reason: str) -> None:
        if not condition:
            raise _Unknown(reason)


Layer = "dict[str, Any] | int"


def _conv(call: _Call) -> Any:
    source = call.source()
    weight, bias = call.tracer.tensor(call["weight"]), call.tracer.tensor(call["bias"])
    assert weight is not None
    call.need(len(source) == 3 and weight.ndim == 4, "its images have no height and width")
    call.need(not call["transposed"], "it is transposed")
    (height, width), stride, dilation = weight.shape[2:], call.pair("stride", 1), call.pair("dilation", 1)
    padding = call["padding"]
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(dilation, (height, width), strict=True)]
        call.need(padding == "valid" or not any(span % 2 for span in spans), "it pads one side more than the other")
        padding = [span // 2 if padding == "same" else 0 for span in spans]
    else:
        padding = call.pair("padding")
    words = f"Convolution {height}×{width}, {_count(source[0])} → {_count(len(weight), 'map')}"
    groups = call["groups"] or 1
    extra = {"stride": stride if stride != [1, 1] else 0, "padding": padding if padding != [0, 0] else 0}
    extra |= {"dilation": dilation if dilation != [1, 1] else 0, "groups": groups if groups > 1 else 0}
    words += "".join(f", {key} {_short(value)}" for key, value in extra.items() if value)
    return {
        "op": "conv", "words": words, "from": [call.input()], "kernel": [height, width], "stride": stride,
        "padding": padding, "dilation": dilation, "groups": groups, "weight": call.tracer.store(weight),
        # Without a bias there is one of 0, so that a kernel set by hand can have one.
        "bias": call.tracer.store(torch.zeros(len(weight)) if bias is None else bias), "biased": bias is not None,
    }  # fmt: skip


def _linear(call: _Call) -> Any:
    weight, bias = call.tracer.tensor(call["weight"]), call.tracer.tensor(call["bias"])
    assert weight is not None
    call.need(len(call.source()) == 1, "its input is no vector")
    outputs, inputs = weight.shape
    stored = call.tracer.store(weight), call.tracer.store(torch.zeros(outputs) if bias is None else bias)
    words = f"Linear, {inputs:,} → {outputs:,} numbers"
    return {"op": "linear", "words": words, "from": [call.input()], "weight": stored[0], "bias": stored[1], "biased": bias is not None}  # fmt: skip


def _norm(call: _Call) -> Any:
    """BatchNorm of trained statistics: each map times a factor, plus a shift."""
    tensors = [call.tracer.tensor(call[name]) for name in ("weight", "bias", "running_mean", "running_var")]
    weight, bias, mean, variance = (None if tensor is None else tensor.double() for tensor in tensors)
    call.need(mean is not None and variance is not None, "it keeps no statistics")
    assert mean is not None
    assert variance is not None
    factor = (variance + call["eps"]).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * factor
    stored = call.tracer.store(factor.float()), call.tracer.store(shift.float())
    return {"op": "scale", "words": "BatchNorm: each map times a factor, plus a shift", "from": [call.input()], "weight": stored[0], "bias": stored[1]}  # fmt: skip


def _function(function: str, words: str) -> Callable[[_Call], Any]:
    def build(call: _Call) -> Any:
        exact = call["approximate"] in (None, "none")
        return {"op": "function", "function": function if exact else f"{function}_tanh", "words": words, "from": [call.input()]}  # fmt: skip

    return build


def _pool(op: str) -> Callable[[_Call], Any]:
    def build(call: _Call) -> Any:
        source = call.source()
        kernel, padding = call.pair("kernel_size"), call.pair("padding")
        stride = call.pair("stride", kernel)
        call.need(len(source) == 3, "its images have no height and width")
        call.need(call.pair("dilation", 1) == [1, 1], "it is dilated")
        call.need(call["divisor_override"] is None, "it divides by a number of its own")
        word = "Max" if op == "maxpool" else "Average"
        words = f"{word} pooling {kernel[0]}×{kernel[1]}" + (f", stride {_short(stride)}" if stride != kernel else "")
        counted = call["count_include_pad"] is not False and not call["ceil_mode"]
        call.need(op == "maxpool" or counted or padding == [0, 0], "it leaves padding out of its average")
        call.need(op == "maxpool" or not call["ceil_mode"], "it rounds sizes up")
        return {
            "op": op,
            "words": words,
            "from": [call.input()],
            "kernel": kernel,
            "stride": stride,
            "padding": padding,
        }

    return build


def _adaptive(op: str) -> Callable[[_Call], Any]:
    def build(call: _Call) -> Any:
        source = call.source()
        call.need(
            len(source) == 3 and not any(a % b for a, b in zip(source[1:], call.shape[1:], strict=True)),
            "its windows differ in size",
        )
        kernel = [a // b for a, b in zip(source[1:], call.shape[1:], strict=True)]
        word = "Max" if op == "maxpool" else "Average"
        return {"op": op, "words": f"{word} pooling {kernel[0]}×{kernel[1]}", "from": [call.input()], "kernel": kernel, "stride": kernel, "padding": [0, 0]}  # fmt: skip

    return build


def _mean(call: _Call) -> Any:
    source = call.source()
    dims = sorted(d % (len(source) + 1) for d in call["dim"] or [])
    call.need(len(source) == 3 and dims == [2, 3], "its mean is not that of each map")
    return {"op": "mean", "words": "Mean of each map", "from": [call.input()]}


def _binary(op: str, words: str) -> Callable[[_Call], Any]:
    def build(call: _Call) -> Any:
        other = call["other"]
        if isinstance(other, (int, float)):
            alpha = call["alpha"] if call["alpha"] is not None else 1
            factor, shift = {"add": (1, other * alpha), "sub": (1, -other * alpha), "mul": (other, 0), "div": (1 / other if other else 0, 0)}[op]  # fmt: skip
            shown = f"{other:.4g}".replace("-", "−")
            text = {"add": f"Plus {shown}", "sub": f"Minus {shown}", "mul": f"Times {shown}", "div": f"Divided by {shown}"}  # fmt: skip
            return {"op": "affine", "words": text[op], "from": [call.input()], "factor": factor, "shift": shift}
        call.need(op != "div" and call["alpha"] in (None, 1), "it divides by maps, or weights them")
        return {"op": op, "words": words, "from": [call.input(), call.input("other")]}

    return build


def _reshape(call: _Call) -> Any:
    source = call.source()
    if source == call.shape:
        return call.input()
    call.need(prod(source) == prod(call.shape), "it changes the number of values")
    words = (
        f"Flatten: {_short(source)} → {prod(source):,} numbers"
        if len(call.shape) == 1
        else "The same numbers, in another shape"
    )
    return {"op": "reshape", "words": words, "from": [call.input()]}


def _same(call: _Call) -> Any:
    call.need(not call["train"], "it is in training mode")
    return call.input()


def _slice(call: _Call) -> Any:
    source = call.source()
    dim, step = (call["dim"] or 0) % (len(source) + 1), call["step"] or 1
    if call.shape == source:
        return call.input()
    call.need(dim > 0, "it takes a part of the batch")
    size = source[dim - 1]
    start = call["start"] or 0
    start = max(0, min(start + size if start < 0 else start, size))
    words = (
        f"Every {['', '', 'second', 'third', 'fourth'][step] if step < 5 else f'{step}th'} {['map', 'row', 'column'][dim - 1]}"
        if step > 1
        else "A part of it"
    )
    return {"op": "slice", "words": words, "from": [call.input()], "dim": dim - 1, "start": start, "step": step}


def _pad(call: _Call) -> Any:
    source, pad = call.source(), list(call["pad"])
    call.need(call["mode"] in (None, "constant"), f"it pads by {call['mode']}")
    call.need(len(pad) <= 2 * len(source) and min(pad) >= 0, "it cuts off, or pads the batch")
    before = [0] * len(source)
    for index in range(len(pad) // 2):
        before[len(source) - 1 - index] = pad[2 * index]
    value = float(call["value"] or 0)
    what = "maps" if call.shape[0] != source[0] else "borders"
    return {
        "op": "pad",
        "words": f"Padded with {what} of {value:g}",
        "from": [call.input()],
        "before": before,
        "value": value,
    }


def _cat(call: _Call) -> Any:
    numbers = [call.tracer.number(part) for part in call["tensors"]]
    call.need((call["dim"] or 0) % (len(call.shape) + 1) == 1, "it does not join maps")
    return {"op": "cat", "words": "Maps of several layers, one after the other", "from": numbers}


_OPS: dict[str, Callable[[_Call], Any]] = {
    "conv2d": _conv,
    "convolution": _conv,
    "linear": _linear,
    "batch_norm": _norm,
    "tanh": _function("tanh", "tanh of each number"),
    "relu": _function("relu", "ReLU: negative numbers become 0"),
    "gelu": _function("gelu", "GELU of each number"),
    "silu": _function("silu", "SiLU of each number"),
    "sigmoid": _function("sigmoid", "Sigmoid of each number"),
    "max_pool2d": _pool("maxpool"),
    "avg_pool2d": _pool("avgpool"),
    "adaptive_max_pool2d": _adaptive("maxpool"),
    "adaptive_avg_pool2d": _adaptive("avgpool"),
    "mean": _mean,
    "add": _binary("add", "Sum of two layers"),
    "sub": _binary("sub", "Difference of two layers"),
    "mul": _binary("mul", "Product of two layers"),
    "div": _binary("div", ""),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("dropout", "feature_dropout", "contiguous", "clone", "alias", "detach"), _same),
    "slice": _slice,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "cat": _cat,
}
"""What becomes of each op of torch, by its name."""


def _needed(layers: list[dict[str, Any]], last: int) -> list[int]:
    needed, waiting = {0}, [last]
    while waiting:
        number = waiting.pop()
        if number not in needed:
            needed.add(number)
            waiting += layers[number]["from"]
    return sorted(needed)


def _count(number: int, word: str = "") -> str:
    return f"{number:,}" + (f" {word}{'s' if number != 1 else ''}" if word else "")


def _short(values: Any) -> str:
    """`2` for `[2, 2]`, `8×8×8` for a shape."""
    values = list(values) if isinstance(values, Iterable) else [values]
    return str(values[0]) if len(values) == 2 and values[0] == values[1] else "×".join(map(str, values))
