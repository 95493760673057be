"""Tables and charts as pieces of HTML: for notebooks, and for the pages of reports.

They bring their own colours, which are Okabe and Ito's (safe for colour-blind readers) and readable on white and on
black. A page may set others (`--c0` …) for its dark mode.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from markupsafe import Markup

COLORS = ("#0072b2", "#d55e00", "#009e73", "#b75f93", "#9a6a00", "#6b6b6b", "#3d8fc4", "#7f4a1e")
RIGHT, WRONG = "0 114 178", "213 94 0"
"""Blue and vermillion, as CSS writes red, green, blue."""
DEEPEST = 0.55
"""The opacity of the deepest tint; text on it stays readable in black and in white."""
WIDTH, LEFT, TOP, RIGHT_MARGIN, BELOW = 400, 42, 8, 10, 34
"""Of a chart, in units of its view box, in which its text has 12."""
MOST_POINTS = 400
"""Points of a line; a chart has fewer pixels."""
LARGEST = 1e300
"""A value as large as this is not drawn: the height of a chart would be infinite."""
MOST_PREDICTIONS = 50
"""Pictures whose predictions are shown."""


class Line(NamedTuple):
    """One line of a chart.

    Attributes:
        name: What the legend calls it.
        values: One for each place; None where there is none.
        color: The number of its colour.
        dashed: Whether it is drawn with dashes.
    """

    name: str
    values: Sequence[float | None]
    color: int = 0
    dashed: bool = False


def html(text: str, /, *values: object, **named: object) -> Markup:
    """Fill in a piece of HTML; what is no HTML itself is escaped.

    Examples:
        >>> html("<b>{}</b>", "1 < 2")
        Markup('<b>1 &lt; 2</b>')
    """
    return Markup(text).format(*values, **named)  # noqa: S704 (the pieces are this library's own)


def join(parts: Sequence[Markup]) -> Markup:
    """Write pieces of HTML one after the other."""
    return Markup("").join(parts)


def figures_line(figures: Mapping[str, str]) -> Markup:
    """Figures in one line, each with its name."""
    shown = [html("{} <b>{}</b>", name, value) for name, value in figures.items()]
    return html("<p>{}</p>", Markup(" &ensp; ").join(shown))


def bar(share: float | None, text: str | None = None, color: int = 0) -> Markup:
    """A share, 0..1, as a bar with its value."""
    if share is None or math.isnan(share):
        return Markup("–")
    return html(
        '<span style="display:inline-block;width:min(6em,11vw);vertical-align:middle;background:rgb(128 128 128/25%)">'
        '<span style="display:block;width:{:.1f}%;height:.7em;background:{}"></span></span> {}',
        100 * share,
        color_of(color),
        f"{share:.4f}" if text is None else text,
    )


def color_of(number: int) -> str:
    """The colour of a number, as CSS; the page may set its own."""
    number %= len(COLORS)
    return f"var(--c{number},{COLORS[number]})"


def confusion_table(confusion: Sequence[Sequence[int]], classes: Sequence[str]) -> Markup:
    """How often each class was taken for each other: a row for each true class, a column for each answer.

    Cells are tinted by the share of the images of their class: blue where the model is right, orange where it is wrong.
    The deepest orange is the largest mistake, since mistakes are few.
    """
    sums = [max(1, sum(row)) for row in confusion]
    shares = [[count / total for count in row] for row, total in zip(confusion, sums, strict=True)]
    largest = max((share for i, row in enumerate(shares) for j, share in enumerate(row) if i != j), default=0) or 1
    head = join([html('<th scope="col"><span>{}</span></th>', name) for name in classes])
    rows = []
    for i, name in enumerate(classes):
        cells = [html('<th scope="row">{}</th>', name)]
        for j, count in enumerate(confusion[i]):
            depth = DEEPEST * (shares[i][j] if i == j else shares[i][j] / largest)
            tint = RIGHT if i == j else WRONG
            cells.append(html('<td style="background:rgb({}/{:.0%})">{}</td>', tint, depth, count))
        cells.append(html("<td>{:.1%}</td>", shares[i][i]) if sum(confusion[i]) else Markup("<td>–</td>"))
        rows.append(html("<tr>{}</tr>", join(cells)))
    return html(
        '<table class="confusion">'
        '<thead><tr><th scope="col">class</th>{}<th scope="col"><span>right</span></th></tr></thead>'
        "<tbody>{}</tbody></table>",
        head,
        join(rows),
    )


def facts_table(facts: Mapping[str, object]) -> Markup:
    """Facts with their names, a row for each."""
    rows = [html('<tr><th scope="row">{}</th><td>{}</td></tr>', name, value) for name, value in facts.items()]
    return html("<table><tbody>{}</tbody></table>", join(rows))


def history_table(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Figures of epochs: a row for each epoch, a column for each figure."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    head = join([html('<th scope="col">{}</th>', key.replace("_", " ")) for key in keys])
    body = [join([html("<td>{}</td>", short(row.get(key))) for key in keys]) for row in rows]
    return html(
        "<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>",
        head,
        join([html("<tr>{}</tr>", cells) for cells in body]),
    )


def predictions_table(predictions: Sequence[Sequence[tuple[str, float]]]) -> Markup:
    """Classes with their probabilities as bars, a row for each picture."""
    rows = [
        html(
            '<tr><th scope="row">{}</th>{}</tr>',
            number,
            join([html("<td>{} {}</td>", name, bar(share, f"{share:.3f}")) for name, share in prediction]),
        )
        for number, prediction in enumerate(predictions[:MOST_PREDICTIONS])
    ]
    more = len(predictions) - len(rows)
    rest = html("<p>and {:,} more</p>", more) if more else Markup("")
    return html("<table><tbody>{}</tbody></table>{}", join(rows), rest)


def line_chart(title: str, x: Sequence[float], lines: Sequence[Line], *, x_name: str = "epoch") -> Markup:
    """Values over the epochs as a figure: an SVG with axes and ticks, and a legend with the last values.

    A script of the page can read all values from the attribute `data-plot`. Lines without a value are left out, and so
    is a chart without lines.
    """
    lines = [line for line in lines if any(map(_is_number, line.values))]
    if not lines:
        return Markup("")
    values = [value for line in lines for value in line.values if _is_number(value)]
    y_ticks = ticks(min(values), max(values))
    low, high = min(y_ticks[0], *values), max(y_ticks[-1], *values)
    first, last = x[0], x[-1] if x[-1] > x[0] else x[0] + 1
    height, bottom, right = 230, 230 - BELOW, WIDTH - RIGHT_MARGIN

    def across(place: float) -> float:
        return LEFT + (place - first) / (last - first) * (right - LEFT)

    def down(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - TOP)

    drawn = [_y_tick(down(tick), tick, right) for tick in y_ticks]
    drawn += [
        _x_tick(across(tick), tick, bottom)
        for tick in ticks(first, last)
        if first <= tick <= last and tick == round(tick)
    ]
    drawn.append(html('<text x="{}" y="{}" text-anchor="middle">{}</text>', (LEFT + right) / 2, height - 3, x_name))
    step = math.ceil(len(x) / MOST_POINTS)
    for line in lines:
        kept = [*range(0, len(x), step), len(x) - 1]
        points = [(x[i], value) for i in dict.fromkeys(kept) if _is_number(value := line.values[i])]
        path = " ".join(f"{across(place):.1f},{down(value):.1f}" for place, value in points)
        single = len(points) == 1  # a line of one point cannot be seen
        drawn.append(
            html(
                '<polyline points="{}{}" fill="none" stroke="{}" stroke-width="{}" stroke-linejoin="round" '
                'stroke-linecap="round"{}/>',
                path,
                f" {path}" if single else "",
                color_of(line.color),
                6 if single else 2,
                Markup(' stroke-dasharray="5 4"') if line.dashed else "",
            )
        )
    scale = {"left": LEFT, "right": right, "top": TOP, "bottom": bottom, "first": first, "last": last}
    digits = [{"name": line.name, "y": [_digits(value) for value in line.values]} for line in lines]
    plot = json.dumps({**scale, "low": low, "high": high, "x": list(x), "lines": digits}, separators=(",", ":"))
    ends = [html("<li>{} {} <b>{}</b></li>", _swatch(line), line.name, short(_last(line))) for line in lines]
    spoken = "; ".join(f"{line.name} ends at {short(_last(line))}" for line in lines)
    return html(
        '<figure class="chart" data-plot="{}"><figcaption>{}</figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{} by {}: {}" font-size="12" font-family="sans-serif" '
        'fill="currentColor" style="width:100%;max-width:36em">{}</svg>'
        '<ul style="list-style:none;padding:0;margin:0">{}</ul></figure>',
        plot,
        title,
        WIDTH,
        height,
        title,
        x_name,
        spoken,
        join(drawn),
        join(ends),
    )


def reliability_chart(bins: Sequence[tuple[int, float, float]], name: str) -> Markup:
    """How often the model is right, by how sure it is (bars), and how often it is that sure (the strip below)."""
    height, bottom, right, base = 280, 196, WIDTH - RIGHT_MARGIN, 244
    across = [LEFT + i / len(bins) * (right - LEFT) for i in range(len(bins) + 1)]
    most = max(images for images, _, _ in bins)
    drawn = [_y_tick(bottom - tick * (bottom - TOP), tick, right) for tick in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    drawn += [_x_tick(LEFT + tick * (right - LEFT), tick, base) for tick in (0, 0.2, 0.4, 0.6, 0.8, 1)]
    drawn.append(
        html('<text x="{}" y="{}" text-anchor="middle">confidence</text>', (LEFT + right) / 2, height - 3),
    )
    for i, (images, confidence, accuracy) in enumerate(bins):
        if not images:
            continue
        tall, deep = accuracy * (bottom - TOP), max(1, images / most * (base - bottom - 12))
        place = f'x="{across[i] + 1:.1f}" width="{across[i + 1] - across[i] - 2:.1f}"'
        drawn.append(
            html(
                "<g><title>confidence {:.2f}: right about {:.2f} of {:,} images</title>"
                '<rect {place} y="{:.1f}" height="{:.1f}" fill="{}"/>'
                '<rect {place} y="{:.1f}" height="{:.1f}" fill="currentColor" opacity=".55"/></g>',
                confidence,
                accuracy,
                images,
                bottom - tall,
                tall,
                color_of(0),
                base - deep,
                deep,
                place=Markup(place),  # noqa: S704 (numbers)
            )
        )
    drawn.append(
        html(
            '<line x1="{}" y1="{}" x2="{}" y2="{}" stroke="{}" stroke-width="2" stroke-dasharray="5 4"/>',
            *(LEFT, bottom, right, TOP),
            color_of(1),
        )
    )
    return html(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="Reliability of {}: accuracy by confidence" font-size="12" '
        'font-family="sans-serif" fill="currentColor" style="width:100%;max-width:36em">{}</svg>',
        WIDTH,
        height,
        name,
        join(drawn),
    )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from at most `low` to at least `high`, about `count` of them.

    Examples:
        >>> ticks(0.13, 2.3)
        [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    """
    if not high > low:
        low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
    rough = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= 0.999 * rough)
    start, end = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(start, end + 1)]


def short(value: Any) -> str:
    """A figure with four digits that count."""
    try:
        return "–" if value is None else f"{value:.4g}"
    except (TypeError, ValueError):  # a history holds whatever a callback puts there
        return str(value)


def _y_tick(y: float, value: float, right: float) -> Markup:
    return html(
        '<line x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" opacity=".2"/>'
        '<text x="{}" y="{:.1f}" text-anchor="end">{}</text>',
        LEFT,
        right,
        LEFT - 5,
        y + 4,
        short(value),
        y=y,
    )


def _x_tick(x: float, value: float, bottom: float) -> Markup:
    return html('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>', x, bottom + 16, short(value))


def _swatch(line: Line) -> Markup:
    return html(
        '<svg width="24" height="8" aria-hidden="true"><line x1="1" x2="23" y1="4" y2="4" stroke="{}" '
        'stroke-width="3"{}/></svg>',
        color_of(line.color),
        Markup(' stroke-dasharray="5 4"') if line.dashed else "",
    )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and abs(value) < LARGEST  # which NaN is not either


def _digits(value: Any) -> float | None:
    return float(f"{value:.5g}") if _is_number(value) else None


def _last(line: Line) -> float:
    return next(value for value in reversed(line.values) if _is_number(value))
