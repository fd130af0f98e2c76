"""Small, sharp line charts as inline SVG: no script, no network, colours from the page's style sheet."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

_POINTS = 300  # more than this many are averaged in bins; a screen shows no more


@dataclass(frozen=True)
class Line:
    """One line of a chart. Not-finite values leave a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "main"  # a class of the style sheet: "main", "other", "baseline"


def chart(
    lines: Sequence[Line], *, x_label: str, y_label: str, width: int, height: int, kind: str = "", zero: bool = False
) -> str:
    """An SVG element with all lines; an empty one says so. Sizes in units of a text of 12; ``kind``: more classes;
    ``zero``: the axis begins there."""
    lines = [_thin(line) for line in lines]
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for y in line.y if math.isfinite(y)]
    name = escape(y_label, quote=True)
    head = f'<svg class="chart {kind}" viewBox="0 0 {width} {height}" role="img" aria-label="{name}">'
    if not ys:
        return f'{head}<text class="empty" x="{width / 2}" y="{height / 2}">nothing logged yet</text></svg>'
    x_ticks, y_ticks = ticks(min(xs), max(xs), 6), ticks(min(*ys, *[0.0] * zero, ys[0]), max(ys), 5)
    left, right, top, bottom = 12 + 8 * max(len(_text(t)) for t in y_ticks), width - 12, 26, height - 38
    x_low, x_high = _span(min(xs), max(xs))
    y_low, y_high = _span(min(*ys, y_ticks[0]), max(*ys, y_ticks[-1]))

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (x - x_low) / (x_high - x_low), (y - y_low) / (y_high - y_low)
        return round(left + across * (right - left), 2), round(bottom - up * (bottom - top), 2)

    parts = [head]
    for tick in y_ticks:
        y = at(x_low, tick)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="tick end" x="{left - 6}" y="{y + 4}">{_text(tick)}</text>')
    for tick in x_ticks:
        x = at(tick, y_low)[0]
        parts.append(f'<line class="grid" x1="{x}" x2="{x}" y1="{bottom}" y2="{bottom + 4}"/>')
        parts.append(f'<text class="tick middle" x="{x}" y="{bottom + 18}">{_text(tick)}</text>')
    parts.append(f'<text class="tick end" x="{right}" y="{height - 4}">{escape(x_label)}</text>')
    parts.append(f'<text class="name" x="{left}" y="14">{escape(y_label)}</text>')
    parts += [_path(line, at) for line in lines]
    parts.append(_legend(lines, right))
    return "".join(parts) + "</svg>"


def charts(lines: Sequence[Line], *, x_label: str, y_label: str, width: int, height: int, zero: bool = False) -> str:
    """The chart twice, for a screen and for a phone, where the same drawing would be too small to read."""
    broad = chart(lines, x_label=x_label, y_label=y_label, width=width, height=height, kind="broad", zero=zero)
    return broad + chart(lines, x_label=x_label, y_label=y_label, width=360, height=230, kind="narrow", zero=zero)


def _path(line: Line, at: Callable[[float, float], tuple[float, float]]) -> str:
    """One line as path, broken at gaps; a lonely point is a dot."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(line.x, line.y, strict=True):
        if math.isfinite(y):
            pieces[-1].append(at(x, y))
        elif pieces[-1]:
            pieces.append([])
    drawn = []
    for piece in filter(None, pieces):
        if len(piece) == 1:
            drawn.append(f'<circle class="dot {line.style}" cx="{piece[0][0]}" cy="{piece[0][1]}" r="3"/>')
        else:
            steps = " L".join(f"{x} {y}" for x, y in piece)
            drawn.append(f'<path class="line {line.style}" d="M{steps}"/>')
    return "".join(drawn)


def _legend(lines: Sequence[Line], right: float) -> str:
    """Names at the top right, last line outermost; a single unnamed line needs none."""
    parts, x = [], right
    for line in reversed([line for line in lines if line.label]):
        parts.append(f'<text class="tick end {line.style}-text" x="{x}" y="14">{escape(line.label)}</text>')
        x -= 7 * len(line.label)
        parts.append(f'<line class="line {line.style}" x1="{x - 24}" x2="{x - 6}" y1="10" y2="10"/>')
        x -= 38
    return "".join(parts)


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
    return Line(line.label, [*xs, line.x[-1]], [*ys, line.y[-1]], line.style)


def ticks(low: float, high: float, about: int) -> list[float]:
    """Round numbers inside [low, high], about ``about`` of them, at least one step apart (1, 2 or 5 times 10^k)."""
    low, high = _span(low, high)
    raw = (high - low) / max(1, about - 1)
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 5, 10) if base * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + k) * step, 12) for k in range(max(1, count))]


def _span(low: float, high: float) -> tuple[float, float]:
    """The range, widened where it is a point or too narrow for float arithmetic."""
    if high - low > 1e-9 * max(abs(low), abs(high), 1e-30):
        return low, high
    margin = 0.5 * abs(low) or 0.5
    return low - margin, high + margin


def _text(value: float) -> str:
    """A tick's text: 1,200 or 0.35 or 2e-05."""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.3g}"
    return f"{value:,.6g}" if abs(value) < 100 else f"{value:,.0f}"
