"""The layers of a model with their sizes, parameters and multiply-adds."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cifarnets._checked import checked
from cifarnets.errors import InputError
from cifarnets.models.metadata import get_meta, unwrap


@dataclass(frozen=True)
class Layer:
    """One row of a `Summary`: a module without children.

    Examples:
        >>> from cifarnets.models import create, summary
        >>> summary(create("convnet")).layers[0]
        Layer(name='conv1', kind='Conv2d', output=(16, 32, 32), parameters=448, macs=442368)

    Attributes:
        name: Name of the module in the model.
        kind: Name of its class.
        output: Shape of the output for one image.
        parameters: Number of parameters.
        macs: Multiply-adds for one image.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True)
class Summary:
    """The layers of a model and the totals for one image; it prints as a table.

    Examples:
        >>> from cifarnets.models import create, summary
        >>> found = summary(create("convnet"))
        >>> found.parameters, found.macs
        (18354, 753984)

    Attributes:
        layers: The layers, in the order in which they run.
        parameters: Number of parameters of the model.
        macs: Multiply-adds of convolutions and linear layers for one image, those of the functional API included.
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


@checked
def summary(model: nn.Module, size: int = 32) -> Summary:
    """Count the parameters and multiply-adds of each layer, with one blank image.

    Examples:
        >>> from cifarnets.models import create, summary
        >>> print(summary(create("fcnet", widths=(8,))))
        layer  kind     output  parameters  multiply-adds
        0      Flatten  3072             0              0
        1      Linear   8           24,584         24,576
        2      Tanh     8                0              0
        3      Linear   10              90             80
        total                       24,674         24,656

    Args:
        model: Any module. One that does not know its number of channels gets an image of three.
        size: Side of the image.

    Raises:
        InputError: The model cannot take such an image.
    """
    from torch.utils.flop_counter import FlopCounterMode

    if not 1 <= size <= 4096:
        raise InputError(f"size must be the side of an image, 1 to 4096 pixels, not {size}.")
    meta = get_meta(model)
    model = _twin(unwrap(model)).eval()
    channels = meta.config.get("in_channels", 3) if meta else 3
    example = next(model.parameters(), torch.empty(0))
    counter = FlopCounterMode(display=False)
    layers: list[Layer] = []
    before = 0

    def start(*_: object) -> None:
        # Operations of the functional API since the last layer belong to no layer.
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
    try:
        blank = torch.zeros(1, channels, size, size, dtype=example.dtype, device=example.device)
        with counter, torch.no_grad():
            model(blank)
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise InputError(
            f"the model cannot take an image of {size}×{size} with {channels} channels: {reason}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return Summary(tuple(layers), sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def _twin(model: nn.Module) -> nn.Module:
    """A copy of the modules around the same tensors: its mode and its hooks are its own, whoever uses the model."""
    tensors = [value for module in model.modules() for value in vars(module).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers(), *tensors)})
