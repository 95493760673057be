"""The layers of a net as plain data, for a page that computes them itself."""

import copy
import itertools
import math
import operator
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from cifarnets.errors import InputError, brief
from cifarnets.models.metadata import unwrap

KNOWN = (
    "convolution, linear, BatchNorm, tanh, ReLU, ReLU6, GELU, SiLU, sigmoid, max and average pooling, the mean of "
    "each map, add, subtract, multiply, flatten, pad, slices, concatenation"
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
    name = type(unwrap(model)).__name__
    try:
        # A copy, since the model may be in use, on another device, in another mode, or of half precision.
        model = copy.deepcopy(unwrap(model)).cpu().float().eval()
        image = torch.zeros(1, *shape, dtype=torch.float32, device="cpu")  # whatever the defaults are
        with torch.device("cpu"), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what torch thinks of a layer was said when it was used
            program = torch.export.export(model, (image,), strict=False)
    except Exception as error:  # the forward pass is anyone's code, and so is what a copy meets
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
        parts = [part.flatten() for part in self._weights]
        weights = torch.cat(parts) if parts else torch.zeros(0, device="cpu")
        # What no logit depends on is no part of the net.
        needed = _needed(self._layers, last)
        order = {old: new for new, old in enumerate(needed)}
        layers = [{**self._layers[old], "from": [order[i] for i in self._layers[old]["from"]]} for old in needed]
        return Graph(layers, weights.numpy())

    def _add(self, node: Any) -> None:
        value = node.meta.get("val")
        kind = str(node.target).removeprefix("aten.").split(".")[0].rstrip("_")
        if node.target is operator.getitem and node.args[0] in self._numbers:  # of the ops in _WITH_PLACES
            if node.args[1] == 0:
                self._numbers[node] = self._numbers[node.args[0]]
                return
            if not node.users:
                return
        name = self._name(node, kind)
        build = _OPS.get(kind)
        if kind in _WITH_PLACES:
            value = value[0]
        if build is None or not isinstance(value, Tensor) or value.ndim not in (2, 3, 4) or value.shape[0] != 1:
            raise self._unknown(name, str(node.target))
        schema = node.target._schema.arguments
        arguments = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
        arguments |= dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
        try:
            layer = build(_Call(self, arguments, list(value.shape[1:])))
        except _Unknown as reason:
            raise self._unknown(name, f"{node.target}: {reason}") from None
        if isinstance(layer, int):  # it changes nothing
            self._numbers[node] = layer
            return
        self._numbers[node] = len(self._layers)
        self._layers.append({**layer, "name": self._title(name, kind), "shape": list(value.shape[1:])})

    def _unknown(self, name: str, kind: str) -> InputError:
        return InputError(
            f"the explorer does not know the layer {name!r} of {self._model} ({kind}). It knows {KNOWN}; the first "
            "dimension must stay the batch."
        )

    def _name(self, node: Any, kind: str) -> str:
        """The name of the module, or of the function after that of the module that calls it."""
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        path, owner = stack[-1] if stack else ("", "")
        leaf = str(owner if isinstance(owner, str) else owner.__module__).startswith("torch.nn.") and path
        return path if leaf else ".".join(filter(None, (path, _WORDS.get(kind, kind))))

    def _title(self, name: str, kind: str) -> str:
        """What the page calls a layer: its name, with a word where that is a number; no title comes twice."""
        title = f"{_WORDS.get(kind, kind)} {name}" if name.rpartition(".")[2].isdigit() else name
        taken = {layer["name"] for layer in self._layers}
        more = (f"{title} ({count})" for count in itertools.count(2))
        return title if title not in taken else next(other for other in more if other not in taken)

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
        self._weights.append(weights.float())
        self._size += weights.numel()
        return place

    def shape(self, number: int) -> list[int]:
        shape: list[int] = self._layers[number]["shape"]
        return shape


class _Unknown(Exception):  # noqa: N818 (it never leaves this module)
    """Why a page does not know an op with these arguments."""


class _Call:
    """One call of an op: its arguments by name, and the shape of what it gives, without the batch."""

    def __init__(self, tracer: _Tracer, arguments: dict[str, Any], shape: list[int]) -> None:
        self.tracer, self.arguments, self.shape = tracer, arguments, shape

    def __getitem__(self, name: str) -> Any:
        return self.arguments.get(name)

    @property
    def input(self) -> int:
        """The number of the layer that it takes."""
        return self.tracer.number(self["input"] if "input" in self.arguments else self["self"])

    @property
    def source(self) -> list[int]:
        """The shape of that layer."""
        return self.tracer.shape(self.input)

    def tensor(self, name: str, missing: float | None = None) -> Tensor:
        """Weights; where there are none, `missing` for each map or number that it gives."""
        found = self.tracer.tensor(self[name])
        if found is None:
            self.need(missing is not None, f"it has no {name}")
            found = torch.full(self.shape[:1], missing or 0.0, dtype=torch.float32, device="cpu")
        return found

    def pair(self, name: str, default: Any = 0) -> list[int]:
        value = self[name]
        value = default if value is None or value == [] else value
        value = [value] if isinstance(value, int) else list(value)
        return value * 2 if len(value) == 1 else value

    def need(self, condition: Any, reason: str) -> None:
        if not condition:
            raise _Unknown(reason)

    def layer(self, op: str, words: str, **facts: Any) -> dict[str, Any]:
        return {"op": op, "words": words, "from": [self.input], **facts}

    def store(self, weight: Tensor, bias: Tensor) -> dict[str, int]:
        return {"weight": self.tracer.store(weight), "bias": self.tracer.store(bias)}


Build: TypeAlias = "Callable[[_Call], dict[str, Any] | int]"
"""Makes a layer of a call, or names the layer that it does not change."""


def _conv(call: _Call) -> dict[str, Any]:
    # Without a bias there is one of 0, so that a kernel set by hand can have one.
    weight, bias, source = call.tensor("weight"), call.tensor("bias", 0.0), call.source
    call.need(len(source) == 3 and weight.ndim == 4, "its images have no height and width")
    call.need(not call["transposed"], "it is transposed")
    kernel, stride, dilation = list(weight.shape[2:]), call.pair("stride", 1), call.pair("dilation", 1)
    padding, groups = call["padding"], call["groups"] or 1
    if isinstance(padding, str):
        spans = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        call.need(padding == "valid" or not any(span % 2 for span in spans), "it pads one side more than the other")
        padding = [span // 2 if padding == "same" else 0 for span in spans]
    else:
        padding = call.pair("padding")
    words = f"Convolution {_sides(kernel)}, {source[0]:,} → {len(weight):,} maps"
    usual = {"stride": (stride, [1, 1]), "padding": (padding, [0, 0]), "dilation": (dilation, [1, 1])}
    words += "".join(f", {key} {_short(value)}" for key, (value, plain) in usual.items() if value != plain)
    words += f", {groups} groups" if groups > 1 else ""
    facts = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return call.layer("conv", words, **facts, **call.store(weight, bias))


def _linear(call: _Call) -> dict[str, Any]:
    call.need(len(call.source) == 1, "its input is no vector")
    weight = call.tensor("weight")
    words = f"Linear, {weight.shape[1]:,} → {len(weight):,} numbers"
    return call.layer("linear", words, **call.store(weight, call.tensor("bias", 0.0)))


def _norm(call: _Call) -> dict[str, Any]:
    """BatchNorm of trained statistics: each map times a factor, plus a shift."""
    mean, variance = call.tensor("running_mean").double(), call.tensor("running_var").double()
    factor = (variance + call["eps"]).rsqrt() * call.tensor("weight", 1.0)
    shift = call.tensor("bias", 0.0) - mean * factor
    return call.layer("scale", "BatchNorm: each map times a factor, plus a shift", **call.store(factor, shift))


def _function(name: str, words: str) -> Build:
    def build(call: _Call) -> dict[str, Any]:
        approximate = call["approximate"] not in (None, "none")
        return call.layer("function", words, function=f"{name}_tanh" if approximate else name)

    return build


def _relu6(call: _Call) -> dict[str, Any]:
    bounds = (call["min_val"], call["max_val"])
    call.need(bounds in ((None, None), (0, 6)), f"it cuts off at {bounds[0]} and {bounds[1]}")
    return call.layer("function", "ReLU6: below 0 becomes 0, above 6 becomes 6", function="relu6")


def _pool(op: str) -> Build:
    word = "Max" if op == "maxpool" else "Average"

    def build(call: _Call) -> dict[str, Any]:
        kernel, padding = call.pair("kernel_size"), call.pair("padding")
        stride = call.pair("stride", kernel)
        call.need(len(call.source) == 3, "its images have no height and width")
        call.need(call.pair("dilation", 1) == [1, 1], "it is dilated")
        if op == "avgpool":
            call.need(call["divisor_override"] is None, "it divides by a number of its own")
            call.need(call["count_include_pad"] is not False or padding == [0, 0], "it leaves padding out of its mean")
            call.need(not call["ceil_mode"], "it rounds sizes up")
        words = f"{word} pooling {_sides(kernel)}" + (f", stride {_short(stride)}" if stride != kernel else "")
        return call.layer(op, words, kernel=kernel, stride=stride, padding=padding)

    return build


def _adaptive(op: str) -> Build:
    word = "Max" if op == "maxpool" else "Average"

    def build(call: _Call) -> dict[str, Any]:
        sides = list(zip(call.source[1:], call.shape[1:], strict=True))
        call.need(len(sides) == 2 and not any(a % b for a, b in sides), "its windows differ in size")
        kernel = [a // b for a, b in sides]
        return call.layer(op, f"{word} pooling {_sides(kernel)}", kernel=kernel, stride=kernel, padding=[0, 0])

    return build


def _mean(call: _Call) -> dict[str, Any]:
    axes = len(call.source) + 1
    call.need(axes == 4 and sorted(d % axes for d in call["dim"] or []) == [2, 3], "it is not the mean of each map")
    return call.layer("mean", "Mean of each map")


def _binary(op: str, words: str) -> Build:
    def build(call: _Call) -> dict[str, Any]:
        other, alpha = call["other"], 1 if call["alpha"] is None else call["alpha"]
        if not isinstance(other, (int, float)):
            call.need(op != "div" and alpha == 1, "it divides by maps, or weights them")
            return {"op": op, "words": words, "from": [call.input, call.tracer.number(other)]}
        call.need(math.isfinite(other * alpha) and (op != "div" or abs(other) > 1e-300), f"it computes with {other}")
        shown = f"{other * alpha:.4g}".replace("-", "−")
        if op == "mul":
            return call.layer("affine", f"Times {shown}", factor=other, shift=0)
        if op == "div":
            return call.layer("affine", f"Divided by {shown}", factor=1 / other, shift=0)
        if op == "add":
            return call.layer("affine", f"Plus {shown}", factor=1, shift=other * alpha)
        return call.layer("affine", f"Minus {shown}", factor=1, shift=-other * alpha)

    return build


def _reshape(call: _Call) -> dict[str, Any] | int:
    if call.source == call.shape:
        return call.input
    call.need(math.prod(call.source) == math.prod(call.shape), "it changes the number of values")
    flat = f"Flatten: {_sides(call.source)} → {math.prod(call.source):,} numbers"
    return call.layer("reshape", flat if len(call.shape) == 1 else "The same numbers, in another shape")


def _same(call: _Call) -> int:
    call.need(not call["train"], "it is in training mode")
    return call.input


def _slice(call: _Call) -> dict[str, Any] | int:
    if call.shape == call.source:
        return call.input
    dim, step, start = (call["dim"] or 0) % (len(call.source) + 1), call["step"] or 1, call["start"] or 0
    call.need(dim > 0, "it takes a part of the batch")
    size = call.source[dim - 1]
    start = max(0, min(start + size if start < 0 else start, size))
    words = "A part of it" if step == 1 else f"One of {step} {('maps', 'rows', 'columns')[dim - 1]}"
    return call.layer("slice", words, dim=dim - 1, start=start, step=step)


def _pad(call: _Call) -> dict[str, Any]:
    pad, axes, value = list(call["pad"]), len(call.source), float(call["value"] or 0)
    call.need(call["mode"] in (None, "constant"), f"it pads by {call['mode']}")
    call.need(math.isfinite(value), f"it pads with {value}")
    call.need(len(pad) <= 2 * axes and min(pad) >= 0, "it cuts off, or pads the batch")
    before = [0] * axes
    for index in range(len(pad) // 2):  # the last axis comes first
        before[axes - 1 - index] = pad[2 * index]
    what = "maps" if call.shape[0] != call.source[0] else "borders"
    return call.layer("pad", f"Padded with {what} of {value:g}", before=before, value=value)


def _cat(call: _Call) -> dict[str, Any]:
    call.need((call["dim"] or 0) % (len(call.shape) + 1) == 1, "it does not join maps")
    numbers = [call.tracer.number(part) for part in call["tensors"]]
    return {"op": "cat", "words": "Maps of several layers, one after the other", "from": numbers}


_WORDS = {"conv2d": "conv", "max_pool2d": "pool", "avg_pool2d": "pool", "batch_norm": "norm"}
"""Short names of ops that are no modules, or have numbers for names."""

_OPS: dict[str, Build] = {
    "conv2d": _conv,
    "convolution": _conv,
    "linear": _linear,
    "batch_norm": _norm,
    "tanh": _function("tanh", "tanh of each number"),
    "relu": _function("relu", "ReLU: negative numbers become 0"),
    **dict.fromkeys(("relu6", "hardtanh"), _relu6),
    "gelu": _function("gelu", "GELU of each number"),
    "silu": _function("silu", "SiLU of each number"),
    "sigmoid": _function("sigmoid", "Sigmoid of each number"),
    **dict.fromkeys(("max_pool2d", "max_pool2d_with_indices"), _pool("maxpool")),
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

_WITH_PLACES = ("adaptive_max_pool2d", "max_pool2d_with_indices")
"""Ops that also give the places of the largest numbers, which no page needs."""


def _needed(layers: list[dict[str, Any]], last: int) -> list[int]:
    needed, waiting = {0}, [last]
    while waiting:
        number = waiting.pop()
        if number not in needed:
            needed.add(number)
            waiting += layers[number]["from"]
    return sorted(needed)


def _sides(values: list[int]) -> str:
    """`3×3` for a kernel, `8×8×8` for a shape."""
    return "×".join(map(str, values))


def _short(values: list[int]) -> str:
    """`2` for `[2, 2]`, and `2×1` where the two differ."""
    return str(values[0]) if values[0] == values[1] else _sides(values)
