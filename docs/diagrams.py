"""Diagrams of the article's page, as SVG whose numbers are computed: a kernel that slides, padding, pooling, the net.

python docs/diagrams.py

An SVG image follows the light or dark scheme of the page around it, and stands still where the reader wants no motion.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cifarnets.models import create, summary

FOLDER = Path(__file__).resolve().parent / "img"
SIDE = 40
"""Side of a cell, in units of the drawing."""
EDGE = torch.tensor([[-1.0, 0.0, 1.0]] * 3)

STYLE = """
  .paper { fill: #ffffff } .ink { fill: #222222 } .faint { fill: #5c5c5c } .cell { fill: none; stroke: #8a8a8a }
  .line { stroke: #5c5c5c; stroke-width: 2; fill: none }
  .blue { fill: #56b4e9; fill-opacity: .45 } .orange { fill: #e69f00; fill-opacity: .45 }
  .green { fill: #009e73; fill-opacity: .35 } .purple { fill: #cc79a7; fill-opacity: .45 }
  .frame { fill: none; stroke: #d55e00; stroke-width: 5 }
  text { font: 20px system-ui, sans-serif; text-anchor: middle; dominant-baseline: central }
  .small { font-size: 17px } .left { text-anchor: start } .bold { font-weight: 600 }
  @media (prefers-color-scheme: dark) {
    .paper { fill: #1e2129 } .ink { fill: #f0f0f0 } .faint { fill: #b8b8b8 } .line { stroke: #b8b8b8 }
    .frame { stroke: #ff8c3a }
  }
  @media (prefers-reduced-motion: reduce) { * { animation: none !important } }
"""


def drawing(width: float, height: float, parts: Iterable[str], style: str = "") -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}">\n'
        f'<style>{STYLE}{style}</style>\n<rect class="paper" width="{width:g}" height="{height:g}" rx="12"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def write(words: object, x: float, y: float, style: str = "ink") -> str:
    return f'<text class="{style}" x="{x:g}" y="{y:g}">{words}</text>'


def box(x: float, y: float, width: float, height: float, style: str, more: str = "") -> str:
    return f'<rect class="{style}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"{more}/>'


def arrow(x: float, y: float, to: float) -> str:
    return f'<path class="line" d="M{x:g} {y:g}H{to:g}m-9 -7l9 7l-9 7"/>'


def number(value: float) -> str:
    return f"{value:g}".replace("-", "−")


def grid(values: Tensor, x: float, y: float, fills: Sequence[Sequence[str]] = ()) -> list[str]:
    """A table of numbers, each in a cell of the style that `fills` names."""
    parts = []
    for row, line in enumerate(values.tolist()):
        for column, value in enumerate(line):
            left, top = x + column * SIDE, y + row * SIDE
            if fills and fills[row][column]:
                parts.append(box(left, top, SIDE, SIDE, fills[row][column]))
            parts.append(box(left, top, SIDE, SIDE, "cell"))
            parts.append(write(number(value), left + SIDE / 2, top + SIDE / 2, "ink"))
    return parts


def kernel() -> str:
    """The edge kernel on a small picture, a place at a time."""
    picture = torch.zeros(6, 6)
    picture[:, 3:] = 1
    picture[4:, 1:3] = 1
    output = F.conv2d(picture[None, None], EDGE[None, None])[0, 0]
    places = [(row, column) for row in range(4) for column in range(4)]
    frames = " ".join(
        f"{100 * step / len(places):g}% {{ transform: translate({column * SIDE}px, {row * SIDE}px) }}"
        for step, (row, column) in enumerate(places)
    )
    style = f"  @keyframes slide {{ {frames} }}\n"
    style += f"  .slide {{ transform: translate({SIDE}px, 0); animation: slide {len(places)}s step-end infinite }}\n"
    tops = 60
    parts = [
        write("picture", 20 + 3 * SIDE, 30, "faint"),
        *grid(picture, 20, tops, [["blue" if v else "" for v in line] for line in picture.tolist()]),
        write("∗", 285, tops + 3 * SIDE),
        write("kernel", 310 + 1.5 * SIDE, 30, "faint"),
        *grid(EDGE, 310, tops + 1.5 * SIDE, [["orange"] * 3] * 3),
        write("=", 455, tops + 3 * SIDE),
        write("output", 480 + 2 * SIDE, 30, "faint"),
        *grid(output, 480, tops + SIDE, [["green"] * 4] * 4),
        box(20, tops, 3 * SIDE, 3 * SIDE, "frame slide"),
        box(480, tops + SIDE, SIDE, SIDE, "frame slide"),
    ]
    return drawing(660, 320, parts, style)


def padding() -> str:
    """A ring of zeros, and the output that is as large as the picture."""
    picture = torch.tensor([[2.0, 2, 1, 1]] * 4)
    ring = F.pad(picture, (1, 1, 1, 1))
    inside = [[("blue" if 0 < r < 5 and 0 < c < 5 else "") for c in range(6)] for r in range(6)]
    output = F.conv2d(ring[None, None], EDGE[None, None])[0, 0]
    parts = [
        write("4×4, with a ring of zeros", 20 + 3 * SIDE, 30, "faint"),
        *grid(ring, 20, 60, inside),
        write("∗", 285, 180),
        write("kernel", 310 + 1.5 * SIDE, 30, "faint"),
        *grid(EDGE, 310, 120, [["orange"] * 3] * 3),
        write("=", 455, 180),
        write("output: 4×4", 480 + 2 * SIDE, 30, "faint"),
        *grid(output, 480, 100, [["green"] * 4] * 4),
        box(20, 60, 3 * SIDE, 3 * SIDE, "frame"),
        box(480, 100, SIDE, SIDE, "frame"),
    ]
    return drawing(660, 320, parts)


def pooling() -> str:
    """The same numbers by maximum and by average."""
    values = torch.tensor([[1.0, 3, 2, 4], [5, 7, 0, 2], [8, 2, 1, 1], [0, 6, 3, 3]])
    quarters = [["blue", "blue", "orange", "orange"]] * 2 + [["green", "green", "purple", "purple"]] * 2
    small = [["blue", "orange"], ["green", "purple"]]
    parts = [
        write("4×4", 20 + 2 * SIDE, 30, "faint"),
        *grid(values, 20, 55, quarters),
        arrow(195, 135, 270),
        write("maximum", 300 + SIDE, 30, "faint"),
        *grid(F.max_pool2d(values[None], 2)[0], 300, 95, small),
        write("or", 430, 135, "faint"),
        write("average", 480 + SIDE, 30, "faint"),
        *grid(F.avg_pool2d(values[None], 2)[0], 480, 95, small),
    ]
    return drawing(600, 240, parts)


def net() -> str:
    """The convolutional net: a box for each array of numbers, the layer and its parameters on the way to it."""
    counts = {layer.name: layer.parameters for layer in summary(create("convnet")).layers}
    rows = [
        [
            ("image", "3×32×32", "blue", 78, ""),
            ("conv1 + tanh", "16×32×32", "orange", 78, f"{counts['conv1']:,}"),
            ("pool1", "16×16×16", "green", 56, "0"),
            ("conv2 + tanh", "8×16×16", "orange", 56, f"{counts['conv2']:,}"),
        ],
        [
            ("pool2", "8×8×8", "green", 40, "0"),
            ("flatten", "512", "blue", 24, "0"),
            ("fc1 + tanh", "32", "purple", 24, f"{counts['fc1']:,}"),
            ("fc2", "10 logits", "purple", 24, f"{counts['fc2']:,}"),
        ],
    ]
    parts = []
    for line, stages in enumerate(rows):
        middle = 110 + line * 225
        for place, (layer, shape, style, side, parameters) in enumerate(stages):
            x = 90 + place * 170
            if place or line:
                parts.append(arrow(max(10, x - 105), middle, x - 52))
            width = side if "×" in shape else 22
            height = side if "×" in shape else {"512": 110, "32": 70, "10 logits": 46}[shape]
            for shift in (12, 6, 0) if "×" in shape else (0,):  # several channels
                parts.append(box(x - width / 2 + shift - 6, middle - height / 2 - shift + 6, width, height, style))
                parts.append(box(x - width / 2 + shift - 6, middle - height / 2 - shift + 6, width, height, "cell"))
            parts.append(write(layer, x, middle - 78, "ink bold small"))
            parts.append(write(shape, x, middle + 72, "ink small"))
            if parameters:
                parts.append(write(f"{parameters} parameters", x, middle + 94, "faint small"))
    return drawing(700, 455, parts)


def field() -> str:
    """What one number of each layer sees of the image."""
    cell, left, top = 11, 20, 20
    parts = [
        f'<path class="cell" d="M{left + n * cell} {top}v{32 * cell}M{left} {top + n * cell}h{32 * cell}"/>'
        for n in range(33)
    ]
    size, step = 1, 1
    rows = []
    for name, window, stride in (("conv1", 3, 1), ("pool1", 2, 2), ("conv2", 3, 1), ("pool2", 2, 2)):
        size, step = size + (window - 1) * step, step * stride
        rows.append((name, size))
    corner = 11
    styles = ("orange", "green", "purple", "blue")
    for (_, size), style in reversed(list(zip(rows, styles, strict=True))):
        start, side = (corner + (rows[-1][1] - size) // 2) * cell, size * cell
        # Paper below, so that the colours do not mix.
        parts += [box(left + start, top + start, side, side, look) for look in ("paper", style, "line")]
    parts.append(write("One number of", 400, 80, "faint left"))
    for place, (name, size) in enumerate(rows):
        parts.append(box(400, 110 + place * 52, 26, 26, styles[place]))
        parts.append(box(400, 110 + place * 52, 26, 26, "line"))
        parts.append(write(f"{name} sees {size}×{size} pixels", 440, 123 + place * 52, "ink left"))
    return drawing(690, 392, parts)


DIAGRAMS = {"kernel": kernel, "padding": padding, "pooling": pooling, "net": net, "field": field}


def main() -> None:
    for name, draw in DIAGRAMS.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
