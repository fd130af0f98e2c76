"""The page of a comparison: the table, means with their spread, cost, losses, pictures, and what differs."""

from __future__ import annotations

import math
from itertools import cycle
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from maemm.tasks._shared.baselines import RAW
from maemm.tasks.ablate import summary
from maemm.tasks.ablate.measures import curve
from maemm.tasks.ablate.results import PAGE, RESULTS, Ablation
from maemm.tasks.ablate.summary import Row
from maemm.ui.charts import Line, charts
from maemm.ui.dots import Dots, Point, dots, scatter
from maemm.ui.page import embedded, render, write_html

_COLOURS = ("main", "other", "third", "fourth", "baseline", "soft")
_STYLES = tuple(colour + dash for dash in ("", " dashed", " dotted") for colour in _COLOURS)
_WIDTH = 480  # pixels of a picture
_COST = ("cpu_seconds_per_step", "seconds_per_step")


def write_page(ablation: Ablation) -> Path:
    """Write ``report.html`` into the folder of the comparison and return its path."""
    study, rows = ablation.study, ablation.rows
    shown = [*rows, *ablation.baseline_rows]
    length = "" if study.steps is None else f" of {study.steps:,} steps each"
    seeds = "1 seed" if study.seeds == 1 else f"{study.seeds} seeds"
    lead = (
        f"{len(study.variants)} variants of {study.base.get('name') or study.name}, {seeds}{length}, on the same "
        f"samples in the same order. Everything comes from the runs beside this page; the numbers are in {RESULTS}."
    )
    text = render(
        "ablate.html",
        title=f"Ablation: {study.name}",
        lead=lead,
        failed=[f"failed: {x.variant}, seed {x.seed}: {x.error}" for x in ablation.failed],
        tiles=_tiles(ablation),
        tables=_tables(rows, ablation.baseline_rows),
        reading=[*study.notes, *ablation.notes, *summary.notes(rows, study.reference)],
        figures=_figures(shown, study.reference),
        **_cost(rows),
        losses=_losses(ablation, rows),
        pictures=_pictures(ablation),
        variants=_variants(ablation),
        protocol=ablation.protocol_words or ["no features were measured"],
    )
    return write_html(ablation.folder / PAGE, text)


def _tables(rows: list[Row], baselines: list[Row]) -> list[list[list[str]]]:
    """What is compared, and beside it loss and cost: one table would be too wide for a page."""
    measures = summary.columns([*rows, *baselines])
    compared = [name for name in measures if name.split(" ")[0] in summary.COMPARED]
    others = [name for name in measures if name not in compared]
    tables = [summary.table([*rows, *baselines], compared)] if compared else []
    return [*tables, summary.table(rows, others)]


def _tiles(ablation: Ablation) -> list[tuple[str, str]]:
    study = ablation.study
    done = sum(1 for outcome in ablation.outcomes if not outcome.error)
    tiles = [
        (f"{done} of {len(study.variants) * study.seeds}", "runs finished"),
        (f"{study.steps:,}" if study.steps else "as the recipe says", "steps of each run"),
        (f"{study.base['train']['batch']:,}", "samples of a step"),
    ]
    if ablation.failed:
        tiles.append((str(len(ablation.failed)), "runs failed"))
    return tiles


def _style(row: Row, reference: str) -> str:
    """The baselines, the reference, the others."""
    if row.name == reference:
        return "baseline"
    return "main" if row.differences else "soft"


def _figures(rows: list[Row], reference: str) -> list[dict[str, Any]]:
    """A drawing for each measure of the features."""
    figures: list[dict[str, Any]] = []
    for measure in summary.columns(rows):
        if measure.split(" ")[0] not in summary.COMPARED:
            continue
        lines = [
            Dots(
                row.name,
                spread.mean,
                spread.std,
                tuple(spread.values.values()) if len(spread.values) > 1 else (),
                summary.text(measure, spread),
                _style(row, reference),
            )
            for row in rows
            if (spread := row.spreads.get(measure)) is not None and not (row.name == RAW and measure.startswith("rank"))
        ]
        base = next(
            (row.spreads[measure].mean for row in rows if row.name == reference and measure in row.spreads), None
        )
        caption = "Dots: means over seeds; rings: single seeds; lines: one standard deviation to either side."
        drawn = dots(lines, x_label=summary.title(measure), mark=base)
        figures.append({"drawn": drawn, "caption": caption if not figures else ""})
    return figures


def _cost(rows: list[Row]) -> dict[str, Any]:
    """The first measure of quality against the seconds of a step."""
    quality = next((name for name in summary.columns(rows) if name.split(" ")[0] in summary.COMPARED), None)
    cost = next((name for name in _COST if any(name in row.spreads for row in rows)), None)
    if quality is None or cost is None:
        return {"cost": "", "cost_caption": ""}
    points = []
    for number, row in enumerate(rows, start=1):
        if quality in row.spreads and cost in row.spreads:
            spread = row.spreads[quality]
            style = "main" if row.differences else "baseline"
            points.append(Point(str(number), row.spreads[cost].mean, spread.mean, spread.std, style))
    names = "; ".join(f"{number}: {row.name}" for number, row in enumerate(rows, start=1))
    x_label = "CPU seconds of a step" if cost == _COST[0] else "seconds of a step"
    return {
        "cost": scatter(points, x_label=x_label, y_label=summary.title(quality)),
        "cost_caption": f"Up and to the left is better. {names}.",
    }


def _losses(ablation: Ablation, rows: list[Row]) -> list[Markup]:
    """Mean loss over seeds by step: a drawing for all variants that predict the same, and for each other prediction."""
    variants = {variant.name: variant for variant in ablation.study.variants}
    groups: dict[tuple[str, ...], list[str]] = {}
    for row in rows:
        groups.setdefault(variants[row.name].predicts(), []).append(row.name)
    drawings = []
    for names in groups.values():
        lines = []
        for name, style in zip(names, cycle(_STYLES), strict=False):
            runs = [curve(x.folder) for x in ablation.outcomes if x.variant == name]
            steps, losses = _mean_curve(runs)
            lines.append(Line(name, steps, losses, style))
        width, height = (1100, 280) if len(groups) == 1 else (540, 190)
        drawings.append(charts(lines, x_label="step", y_label="loss", width=width, height=height))
    return drawings


def _mean_curve(runs: list[tuple[list[float], list[float]]]) -> tuple[list[float], list[float]]:
    """Mean over runs at the steps that all of them have logged."""
    by_run = [dict(zip(steps, losses, strict=True)) for steps, losses in runs if steps]
    if not by_run:
        return [], []
    steps = sorted(set.intersection(*(set(run) for run in by_run)))
    means = [sum(run[step] for run in by_run) / len(by_run) for step in steps]
    return steps, [x if math.isfinite(x) else math.nan for x in means]


def _pictures(ablation: Ablation) -> list[dict[str, str]]:
    """The last picture of the first seed of each variant."""
    pictures = []
    for variant in ablation.study.variants:
        own = [outcome for outcome in ablation.outcomes if outcome.variant == variant.name]
        files = sorted((own[0].folder / "pictures").glob("*.png")) if own else []
        if files:
            pictures.append({"uri": embedded(files[-1], _WIDTH), "caption": f"{variant.name}, seed {own[0].seed}"})
    return pictures


def _variants(ablation: Ablation) -> list[dict[str, Any]]:
    rows = []
    for variant in ablation.study.variants:
        own = [outcome for outcome in ablation.outcomes if outcome.variant == variant.name]
        pages = [(f"seed {x.seed}", x.folder / "report.html") for x in own]
        runs = [(name, quote(page.relative_to(ablation.folder).as_posix())) for name, page in pages if page.is_file()]
        rows.append({"name": variant.name, "differs": variant.differs, "runs": runs})
    return rows
