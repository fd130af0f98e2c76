"""Small, sharp line charts as inline SVG: no script, no network, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from markupsafe import Markup

from maemm.ui.page import render

_POINTS = 300  # more than this many are averaged in bins; a screen shows no more


@dataclass(frozen=True)
class Line:
    """One line of a chart. Not-finite values leave a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "main"  # classes of the style sheet: main, other, third, fourth, baseline or soft; dashed, dotted
    std: Sequence[float] = field(default=())  # drawn as error bars


@dataclass(frozen=True)
class Scale:
    """Values between ``low`` and ``high`` -> coordinates between ``first`` and ``last``."""

    low: float
    high: float
    first: float
    last: float

    def __call__(self, value: float) -> float:
        fraction = (value - self.low) / (self.high - self.low)
        return round(self.first + fraction * (self.last - self.first), 2)


def charts(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    width: int,
    height: int,
    zero: bool = False,
    x_names: Sequence[str] = (),
) -> Markup:
    """A legend and the chart twice: for a screen, and for a phone, where the same drawing would be too small to read.

    See :func:`chart`. A single line without a label has no legend.
    """
    axes: dict[str, Any] = {"x_label": x_label, "y_label": y_label, "zero": zero, "x_names": x_names}
    broad = chart(lines, width=width, height=height, kind="broad", **axes)
    narrow = chart(lines, width=360, height=230, kind="narrow", **axes)
    return render("charts.html", labelled=[line for line in lines if line.label], broad=broad, narrow=narrow)


def chart(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    width: int,
    height: int,
    kind: str = "",
    zero: bool = False,
    x_names: Sequence[str] = (),
) -> Markup:
    """An SVG element with all lines; one without values says so.

    ``width``, ``height``: in units of a text of 12. ``kind``: more classes of the element. ``zero``: the y axis begins
    there. ``x_names``: what stands at x = 0, 1, ... instead of numbers.
    """
    lines = [_thin(line) for line in lines]
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for y in line.y if math.isfinite(y)]
    ys += [end for line in lines for x, low, high in _bars(line) for end in (low, high)]
    data: dict[str, Any] = {"x_label": x_label, "y_label": y_label, "width": width, "height": height}
    data |= {"kind": kind, "lines": []}
    if not ys:
        return render("chart.svg", **data)
    y_ticks = ticks(min(*ys, *[0.0] * zero, ys[0]), max(ys), 5)
    x_ticks = list(range(len(x_names))) if x_names else ticks(min(xs), max(xs), 6)
    left, right, top, bottom = 12 + 8 * max(len(tick_text(tick)) for tick in y_ticks), width - 12, 26, height - 38
    margin = 0.25 if x_names else 0.0
    at_x = Scale(*span(min(xs) - margin, max(xs) + margin), left, right)
    at_y = Scale(*span(min(*ys, y_ticks[0]), max(*ys, y_ticks[-1])), bottom, top)
    data["lines"] = [
        {
            "style": line.style,
            "pieces": _pieces(line, at_x, at_y),
            "bars": [(at_x(x), at_y(low), at_y(high)) for x, low, high in _bars(line)],
        }
        for line in lines
    ]
    data |= {"left": left, "right": right, "bottom": bottom}
    data["y_ticks"] = [(at_y(tick), tick_text(tick)) for tick in y_ticks]
    data["x_ticks"] = [(at_x(tick), x_names[int(tick)] if x_names else tick_text(tick)) for tick in x_ticks]
    return render("chart.svg", **data)


def _pieces(line: Line, at_x: Scale, at_y: Scale) -> list[list[tuple[float, float]]]:
    """The coordinates of a line, broken at gaps."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y):
            pieces[-1].append((at_x(x), at_y(y)))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _bars(line: Line) -> list[tuple[float, float, float]]:
    """(x, y - std, y + std) of the values that have one."""
    points = zip(line.x, line.y, line.std, strict=True) if line.std else ()
    return [(x, y - std, y + std) for x, y, std in points if math.isfinite(y) and math.isfinite(std) and std > 0]


def _thin(line: Line) -> Line:
    """Average neighbours until at most ``_POINTS`` are left; the last point stays as it is."""
    count = len(line.x)
    if count <= _POINTS:
        return line
    edges = [round(k * (count - 1) / (_POINTS - 1)) for k in range(_POINTS)]
    xs, ys = [], []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        xs.append(sum(line.x[low:high]) / (high - low))
        ys.append(sum(line.y[low:high]) / (high - low))  # a NaN stays visible as a gap
    return replace(line, x=[*xs, line.x[-1]], y=[*ys, line.y[-1]], std=())


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers inside [low, high], about ``about`` of them, at least one step apart (1, 2 or 5 times 10^k)."""
    low, high = span(low, high)
    raw = (high - low) / max(1, about - 1)
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 5, 10) if base * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + k) * step, 12) for k in range(max(1, count))]


def span(low: float, high: float) -> tuple[float, float]:
    """The range, widened where it is a point or too narrow for float arithmetic."""
    if high - low > 1e-9 * max(abs(low), abs(high), 1e-30):
        return low, high
    margin = 0.5 * abs(low) or 0.5
    return low - margin, high + margin


def tick_text(value: float) -> str:
    """A tick's text: 1,200 or 0.35 or 2e-05."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.6g}" if abs(value) < 100 else f"{value:,.0f}"
