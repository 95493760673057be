"""What a model is made of."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cifarnets.models.metadata import get_meta, unwrap


@dataclass(frozen=True)
class Layer:
    """One row of a summary: a module without children.

    Attributes:
        name: Its name in the model.
        kind: Its class.
        output: The shape of its output for one image.
        parameters: How many numbers it holds.
        macs: Multiply-adds for one image.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """A model's layers and totals for one image; prints as a table.

    Attributes:
        layers: In the order in which they run.
        parameters: Of the whole model.
        macs: Multiply-adds of convolutions and linear layers, those of the functional API included.
    """

    layers: tuple[Layer, ...]
    parameters: int
    macs: int

    def __str__(self) -> str:
        heading = ("layer", "kind", "output", "parameters", "multiply-adds")
        rows = [
            (layer.name, layer.kind, "×".join(map(str, layer.output)), f"{layer.parameters:,}", f"{layer.macs:,}")
            for layer in self.layers
        ]
        rows.append(("total", "", "", f"{self.parameters:,}", f"{self.macs:,}"))
        widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
        lines = [
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}  {e:>{widths[4]}}"
            for a, b, c, d, e in [heading, *rows]
        ]
        return "\n".join(line.rstrip() for line in lines)


def summary(model: nn.Module, size: int = 32) -> Summary:
    """Run one blank image through a model and note what each layer does with it.

    Args:
        model: Any module; a registered one tells its number of channels, others are given three.
        size: Side of the image.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model = unwrap(model)
    meta = get_meta(model)
    channels = meta.config.get("in_channels", 3) if meta else 3
    example = next(model.parameters(), torch.empty(0))
    counter = FlopCounterMode(display=False)
    layers: list[Layer] = []
    before = 0

    def start(*_: object) -> None:
        # What was done since the last layer, through the functional API, is no layer's.
        nonlocal before
        before = counter.get_total_flops()

    def note(name: str) -> Any:
        def hook(module: nn.Module, _: object, output: Any) -> None:
            while isinstance(output, (tuple, list)):  # of an LSTM, say
                output = output[0]
            parameters = sum(p.numel() for p in module.parameters())
            macs = (counter.get_total_flops() - before) // 2
            layers.append(Layer(name, type(module).__name__, tuple(output.shape[1:]), parameters, macs))

        return hook

    leaves = [(name, module) for name, module in model.named_modules() if not list(module.children())]
    handles = [module.register_forward_pre_hook(start) for _, module in leaves]
    handles += [module.register_forward_hook(note(name)) for name, module in leaves]
    modes = {module: module.training for module in model.modules()}
    try:
        with counter, torch.no_grad():
            model.eval()(torch.zeros(1, channels, size, size, dtype=example.dtype, device=example.device))
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    return Summary(tuple(layers), sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)
