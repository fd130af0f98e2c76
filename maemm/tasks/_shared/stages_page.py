"""The page of a run of several stages: all of them on one axis with their borders, then each by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

from maemm import config
from maemm.tasks._shared.run_files import RunContents, read_run
from maemm.tasks._shared.run_page import name_of, page_data
from maemm.ui.charts import Line, charts
from maemm.ui.page import render, write_html

_STYLES = ("main", "other", "third", "fourth")


def write_stages_page(folder: Path) -> Path:
    """Write ``report.html`` into the folder of a run of several stages and return its path.

    Raises :class:`MaemmError` where its recipe cannot be read or the page not be written.
    """
    recipes = config.stages_of(config.load(folder))
    whole, runs = read_run(folder), {name: read_run(folder / name) for name in recipes}
    text = render(
        "stages.html",
        title=folder.resolve().name or str(folder),
        lead=f"Recipe {name_of(whole)}, {len(recipes)} stages. Everything in this page comes from the files beside it.",
        table=_table(recipes, runs),
        loss=_loss(runs),
        stages=[{"name": name, "run": page_data(run)} for name, run in runs.items()],
        recipe_text=whole.recipe_text,
    )
    return write_html(folder / "report.html", text)


def _table(recipes: Mapping[str, Mapping[str, Any]], runs: Mapping[str, RunContents]) -> list[list[str]]:
    """What each stage is to train, and the steps that it has done."""
    head, *rows = config.stage_rows(recipes)
    table = [[*head, "done"]]
    for row, run in zip(rows, runs.values(), strict=True):
        steps = run.last("steps")
        done = f"{run.rows[-1]['step']:,} of {int(steps):,} steps" if run.rows and steps else "not begun"
        table.append([*row, done])
    return table


def _loss(runs: Mapping[str, RunContents]) -> str:
    """The losses of all stages one behind the other, with a line at each border."""
    lines, done, borders = [], 0.0, []
    for (name, run), style in zip(runs.items(), cycle(_STYLES), strict=False):
        steps, losses = run.column("loss")
        if steps:
            lines.append(Line(name, [done + step for step in steps], losses, style))
            borders.append(done)
            done += run.rows[-1]["step"]
    heights = _heights(lines)
    marks = [Line("", [border, border], heights, "soft dashed") for border in borders[1:]] if heights else []
    return charts([*lines, *marks], x_label="step of all stages", y_label="loss", width=1100, height=330)


def _heights(lines: Sequence[Line]) -> list[float]:
    """The lowest and the highest finite loss; [] where there is none."""
    values = [y for line in lines for y in line.y if abs(y) < float("inf")]
    return [min(values), max(values)] if values else []
