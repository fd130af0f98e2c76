"""The table of ``maemm runs ls``."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from maemm.tasks.runs.folders import RunSummary
from maemm.train.figures import HIGHER_IS_BETTER, monitor_text
from maemm.ui.text import columns, number

_WIDTH = 60  # letters of a name or a note


def table(runs: Sequence[RunSummary]) -> str:
    """A line for each run; columns that nothing stands in are left out."""
    rows = [["run", "recipe", "state", "step", "loss", "best validation", "monitor", "changed", "size", ""]]
    rows += [_row(run) for run in runs]
    kept = [place for place in range(len(rows[0])) if any(row[place] for row in rows[1:])]
    return "\n".join(columns([[row[place] for place in kept] for row in rows]))


def _row(run: RunSummary) -> list[str]:
    step = f"{run.step:,}" + (f"/{run.steps:,}" if run.steps else "") if run.step or run.steps else ""
    changed = "" if run.changed is None else datetime.fromtimestamp(run.changed).strftime("%Y-%m-%d %H:%M")
    loss = number(run.loss) if run.loss is not None else ""
    best = validation_text(run)
    name, note = run.name, run.note if len(run.note) <= _WIDTH else f"{run.note[: _WIDTH - 3]}..."
    return [name, run.recipe, run.state, step, loss, best, monitor_text(run.monitor).strip(), changed, size(run), note]


def validation_text(run: RunSummary) -> str:
    """The validation metric that decides, and the step of the best weights."""
    name = next((name for name in (*HIGHER_IS_BETTER, "loss") if name in run.validation), None)
    if name is None:
        return ""
    return f"{name} {number(run.validation[name])}" + (f" at {run.best_step:,}" if run.best_step is not None else "")


def size(run: RunSummary) -> str:
    """Bytes as a person writes them: 1.2 GB."""
    for unit, bytes_ in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if run.bytes >= bytes_:
            return f"{run.bytes / bytes_:.1f} {unit}"
    return f"{run.bytes} B"
