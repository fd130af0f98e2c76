"""The page of a comparison: what differs, curves over each other, values at equal steps."""

from __future__ import annotations

import os
from itertools import cycle
from pathlib import Path
from urllib.parse import quote

from markupsafe import Markup

from maemm.tasks.runs.compare import Comparison
from maemm.ui.charts import Line, charts
from maemm.ui.page import render, write_html

_COLOURS = ("main", "other", "third", "fourth", "baseline", "soft")
_STYLES = tuple(colour + dash for dash in ("", " dashed", " dotted") for colour in _COLOURS)
_TABLES = ("loss", "validation.", "monitor.", "terms.")


def write_page(comparison: Comparison, path: Path) -> Path:
    """Write the page and return its path. Raises :class:`MaemmError` where it cannot be written."""
    first, *others = comparison.columns() or [""]
    text = render(
        "runs.html",
        title=f"Comparison of {len(comparison.runs)} runs",
        lead="Everything in this page comes from the metrics and recipes of the runs.",
        notes=comparison.notes,
        runs=[(run.name, _link(run.contents.folder, path)) for run in comparison.runs],
        differences=comparison.recipe_table() if comparison.differences() else [],
        first=_chart(comparison, first, 1100, 330) if first else "",
        others=[_chart(comparison, column, 540, 230) for column in others],
        tables=[comparison.metric_table(column) for column in comparison.columns() if column.startswith(_TABLES)],
    )
    return write_html(path, text)


def _chart(comparison: Comparison, column: str, width: int, height: int) -> Markup:
    lines = [
        Line(run.name, *run.contents.column(column), style)
        for run, style in zip(comparison.runs, cycle(_STYLES), strict=False)
        if run.values(column)
    ]
    return charts(lines, x_label="step", y_label=column.replace(".", " ", 1), width=width, height=height)


def _link(folder: Path, page: Path) -> str:
    """From the page to that of a run; "" where that has none."""
    report = folder / "report.html"
    if not report.is_file():
        return ""
    try:
        return quote(Path(os.path.relpath(report.resolve(), page.resolve().parent)).as_posix())
    except ValueError:  # on another drive
        return ""
