"""The page of a run: one HTML file that needs no network and no other file."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import cycle
from pathlib import Path
from typing import Any

from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError
from maemm.tasks._shared.evaluations import evaluations
from maemm.tasks._shared.run_files import RunContents, read_run
from maemm.train.initialize import InitReport
from maemm.train.run_folder import INIT
from maemm.ui.charts import Line, charts
from maemm.ui.interactive import interactive_beside
from maemm.ui.page import embedded, render, write_html
from maemm.ui.text import number

_TERMS = ("other", "third", "fourth", "other dashed", "third dashed", "fourth dashed")  # styles of the loss's terms
_EARLIER = 5  # pictures of earlier steps on the page
_EARLIER_WIDTH = 480  # their pixels


def write_page(run_folder: str | Path) -> Path:
    """Write ``report.html`` into a run folder and return its path.

    Shows what there is: a run without metrics, pictures or recipe gets a page that says so.
    Raises :class:`MaemmError` when the folder is missing or cannot be written.
    """
    folder = expanded(run_folder)
    if not folder.is_dir():
        raise MaemmError(f"there is no run folder {folder}; give the folder that pretrain wrote (out=...)")
    run = read_run(folder)
    title = folder.resolve().name or str(folder)  # the folder's own name, also for "."
    lead = f"Recipe {name_of(run)}. Everything in this page comes from the files beside it."
    return write_html(folder / "report.html", render("run.html", title=title, lead=lead, run=page_data(run)))


def name_of(run: RunContents) -> str:
    """The recipe's name; its modalities where it has none."""
    name = run.recipe.get("name")
    return str(name) if name else ", ".join(map(str, run.recipe.get("modalities") or {})) or "unknown"


def page_data(run: RunContents) -> dict[str, Any]:
    """What the templates ``run.html`` and ``demo.html`` show of a run, see ``run_macros.html``."""
    records = evaluations(run.folder)
    last = run.pictures[-1] if run.pictures else None
    return {
        "folder": run.folder,
        "recipe": name_of(run),
        "recipe_text": run.recipe_text,
        "unread": run.unread,
        "alarms": run.alarms(),
        "monitor": monitor_charts(run),
        "evaluations": records,
        "trained": bool(run.rows or not records),  # else a folder of several runs, which has evaluations alone
        "tiles": _tiles(run),
        "loss": _loss(run),
        "baseline": run.last("baseline") is not None,
        "speed": [
            charts([Line("", *run.column(column))], x_label="step", y_label=label, width=540, height=190, zero=True)
            for column, label in (("lr", "learning rate"), ("samples_per_second", "samples per second"))
        ],
        "init": _init(run),
        "details": _details(run),
        "picture": last and {"name": last.name, "uri": embedded(last), "interactive": interactive_beside(last)},
        "earlier": [
            {"name": path.stem, "uri": embedded(path, _EARLIER_WIDTH)} for path in _evenly(run.pictures[:-1], _EARLIER)
        ],
    }


def _init(run: RunContents) -> list[str]:
    """What became of the weights of ``init``, in words; none where the run began without, or the file is damaged."""
    try:
        return InitReport(**json.loads((run.folder / INIT).read_text(encoding="utf-8"))).lines()
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return []


def _tiles(run: RunContents) -> list[tuple[str, str]]:
    steps, data_wait, mfu = run.last("steps"), run.last("data_wait"), run.last("mfu")
    done = f"{run.rows[-1]['step']:,}" + (f" of {int(steps):,}" if steps else "") if run.rows else "-"
    tiles = [
        (number(run.last("loss")), "loss"),
        (number(run.last("baseline")), "loss of the mean-predictor"),
        (done, "steps"),
        (number(run.last("samples_per_second")), "samples per second"),
        ("-" if data_wait is None else f"{100 * data_wait:.0f} %", "of the time waiting for data"),
        ("-" if mfu is None else f"{100 * mfu:.3g} %", "MFU: of the operations that the device could do"),
        (f"{run.bad:,}", "unreadable samples"),
        (_count(run.last("spikes.skipped")), "steps skipped, as their loss jumped"),
        (_count(run.last("spikes.rewinds")), "times back to a checkpoint, as the loss jumped"),
    ]
    return [(value, label) for value, label in tiles if value != "-" or label in ("loss", "steps")]


def _count(value: float | None) -> str:
    return "-" if value is None else f"{int(value):,}"


def _details(run: RunContents) -> list[tuple[str, str]]:
    memory, seconds = run.most("memory"), run.last("seconds")
    rows = [
        ("parameters", number(run.last("parameters"))),
        *((f"last {name.removeprefix('terms.')}", number(run.last(name))) for name in run.terms()),
        ("epochs", number(run.last("epoch"))),
        ("last learning rate", number(run.last("lr"))),
        ("peak memory on the device", f"{memory / 2**30:.2f} GiB" if memory else "-"),
        ("time in training", "-" if seconds is None else str(timedelta(seconds=round(seconds)))),
    ]
    return [(name, value) for name, value in rows if value != "-"]


def _loss(run: RunContents) -> str:
    lines = [Line("training", *run.column("loss"))]
    if len(run.terms()) > 1:
        for name, style in zip(run.terms(), cycle(_TERMS), strict=False):
            lines.append(Line(name.removeprefix("terms."), *run.column(name), style))
    baseline = Line("predicting the mean", *run.column("baseline"), "baseline dashed")
    if any(map(math.isfinite, baseline.y)):
        lines.append(baseline)
    return charts(lines, x_label="step", y_label="loss", width=1100, height=330)


# Charts of what a monitor measured: (title of the axis, {figure: words for its line, "" for its modality alone}).
_MONITORED: tuple[tuple[str, dict[str, str]], ...] = (
    ("accuracy of kNN and ridge", {"knn": "kNN", "ridge": "ridge"}),
    ("effective rank", {"effective_rank": ""}),
    ("variance", {"variance": "features", "target_variance": "targets"}),
    ("cosine between samples", {"cosine": ""}),
)


def monitor_charts(run: RunContents) -> list[str]:
    """What a monitor measured, a chart for each kind of figure; [] without a monitor."""
    names = [key.split(".", 1)[1].rpartition(".")[0] for key in run.names("monitor.") if key.endswith(".variance")]
    drawn = []
    relative = Line("", *run.column("monitor.relative_loss"))
    if any(map(math.isfinite, relative.y)):
        mean = Line("predicting the mean", [relative.x[0], relative.x[-1]], [1.0, 1.0], "baseline dashed")
        drawn.append(_monitor_chart([replace(relative, label="measured samples"), mean], "loss / that of the mean"))
    for label, figures in _MONITORED:
        styles = cycle(("main", *_TERMS))
        lines = [
            Line(" ".join(filter(None, (name, words))), *run.column(f"monitor.{name}.{figure}"), next(styles))
            for name in names
            for figure, words in figures.items()
        ]
        lines = [line for line in lines if any(map(math.isfinite, line.y))]
        if lines:
            drawn.append(_monitor_chart(lines, label))
    return drawn


def _monitor_chart(lines: Sequence[Line], label: str) -> str:
    return charts(lines, x_label="step", y_label=label, width=540, height=230)


def _evenly(items: Sequence[Path], count: int) -> list[Path]:
    """At most ``count`` of them, evenly spaced, the first and the last included."""
    if len(items) <= count:
        return list(items)
    return [items[round(k * (len(items) - 1) / (count - 1))] for k in range(count)]
