"""Means with their spread: a line for each thing that is compared, and two measures against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from maemm.ui.charts import Scale, span, tick_text, ticks
from maemm.ui.page import render

_LETTER = 7.0  # units of width of a letter of the labels
_LONGEST = 38  # letters of a label in a broad drawing
_VALUE = 112  # units for the value at the right


@dataclass(frozen=True)
class Dots:
    """A mean and the single values that it is of. Not-finite ones are not drawn."""

    label: str
    value: float
    std: float | None = None
    single: Sequence[float] = field(default=())
    text: str = ""  # the value as people read it
    style: str = "main"  # a class of the style sheet, as of :class:`maemm.ui.charts.Line`


def dots(rows: Sequence[Dots], *, x_label: str, mark: float | None = None) -> Markup:
    """A line for each of ``rows``: the mean, its standard deviation, the single values; for a screen and for a phone.

    ``mark``: a value to compare with, drawn through all lines.
    """
    rows = [row for row in rows if math.isfinite(row.value)]
    return render(
        "pair.html", broad=_dots(rows, x_label, mark, 1100, "broad"), narrow=_dots(rows, x_label, mark, 360, "narrow")
    )


def _dots(rows: Sequence[Dots], x_label: str, mark: float | None, width: int, kind: str) -> Markup:
    narrow = kind == "narrow"  # where labels stand above the lines
    longest = max((len(row.label) for row in rows), default=0)
    left = 10 if narrow else 20 + _LETTER * min(longest, _LONGEST)
    right, step, top = width - _VALUE, 46 if narrow else 26, 24
    ends = [row.value + sign * (row.std or 0) for row in rows for sign in (-1, 1)]
    values = [
        x
        for x in [*ends, *(x for row in rows for x in row.single), *([] if mark is None else [mark])]
        if math.isfinite(x)
    ]
    bottom = top + step * len(rows)
    data: dict[str, Any] = {"width": width, "height": bottom + 28, "kind": kind, "x_label": x_label, "rows": []}
    if not values:
        return render("dots.svg", **data)
    at = Scale(*span(*_wider(min(values), max(values))), left + 6, right - 10)
    shown = [x for x in ticks(min(values), max(values), 4 if narrow else 7) if at.low <= x <= at.high]
    for number, row in enumerate(rows):
        y = top + step * (number + 0.5) + (11 if narrow else 0)
        letters = round((width - 20) / _LETTER) if narrow else _LONGEST
        data["rows"].append(
            {
                "style": row.style,
                "label": row.label if len(row.label) <= letters else row.label[: letters - 1] + "…",
                "label_at": (left, y - 18) if narrow else (left - 8, y),
                "y": y,
                "x": at(row.value),
                "bar": (at(row.value - row.std), at(row.value + row.std)) if row.std else None,
                "single": [at(x) for x in row.single if math.isfinite(x)],
                "text": row.text,
            }
        )
    data |= {"left": left, "right": right, "top": top, "bottom": bottom, "mark": None if mark is None else at(mark)}
    return render("dots.svg", **data, ticks=[(at(tick), tick_text(tick)) for tick in shown])


def _wider(low: float, high: float) -> tuple[float, float]:
    margin = 0.04 * (high - low)
    return low - margin, high + margin


@dataclass(frozen=True)
class Point:
    """A thing by two measures. ``mark``: a short text beside it."""

    mark: str
    x: float
    y: float
    y_std: float | None = None
    style: str = "main"


def scatter(points: Sequence[Point], *, x_label: str, y_label: str) -> Markup:
    """Two measures against each other; for a screen and for a phone."""
    points = [point for point in points if math.isfinite(point.x) and math.isfinite(point.y)]
    broad = _scatter(points, x_label, y_label, 1100, 330, "broad")
    return render("pair.html", broad=broad, narrow=_scatter(points, x_label, y_label, 360, 260, "narrow"))


def _scatter(points: Sequence[Point], x_label: str, y_label: str, width: int, height: int, kind: str) -> Markup:
    data: dict[str, Any] = {"width": width, "height": height, "kind": kind, "x_label": x_label, "y_label": y_label}
    if not points:
        return render("scatter.svg", **data, points=[])
    xs = [point.x for point in points]
    ys = [point.y + sign * (point.y_std or 0) for point in points for sign in (-1, 1)]
    (x_low, x_high), (y_low, y_high) = span(*_wider(min(xs), max(xs))), span(*_wider(min(ys), max(ys)))
    y_ticks = [y for y in ticks(min(ys), max(ys), 5) if y_low <= y <= y_high]
    x_ticks = [x for x in ticks(min(xs), max(xs), 4 if kind == "narrow" else 8) if x_low <= x <= x_high]
    left, right = 12 + 8 * max((len(tick_text(tick)) for tick in y_ticks), default=1), width - 30
    at_x, at_y = Scale(x_low, x_high, left + 8, right), Scale(y_low, y_high, height - 38, 26)
    data["points"] = [
        {
            "mark": point.mark,
            "style": point.style,
            "x": at_x(point.x),
            "y": at_y(point.y),
            "bar": (at_y(point.y - point.y_std), at_y(point.y + point.y_std)) if point.y_std else None,
        }
        for point in points
    ]
    data |= {"left": left, "right": right, "bottom": height - 38}
    data["y_ticks"] = [(at_y(tick), tick_text(tick)) for tick in y_ticks]
    data["x_ticks"] = [(at_x(tick), tick_text(tick)) for tick in x_ticks]
    return render("scatter.svg", **data)
