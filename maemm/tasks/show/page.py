"""The page of ``maemm show``: a card for each sample, figures of the batch, refused files with their reasons."""

from __future__ import annotations

from typing import Any

from maemm.config import stage_rows
from maemm.tasks._shared.sample_facts import element_valid
from maemm.tasks.show.shown import Part, Shown, padding, statistics
from maemm.ui.page import embedded, render, write_html
from maemm.ui.pictures import cell
from maemm.ui.text import number

_COLUMNS = ("shape", "type", "range", "mean", "std", "not finite")


def page(shown: Shown) -> None:
    """Write ``shown.path``."""
    opened = shown.opened
    text = render(
        "show.html",
        title=opened.title,
        lead=f"{len(shown.ids):,} of {len(opened.source):,} samples as a model of this recipe gets them, without "
        f"augmentation. On a GPU steps of its training are {shown.steps}."
        + (f" In training, {shown.spikes}." if shown.spikes else ""),
        parts=[_part(shown, name, part) for name, part in shown.parts.items()],
        refused=[[sample.id, sample.reason] for sample in shown.refused],
        data=opened.data,
        recipe=opened.name,
        several=len(opened.source) > 1,
        stages=stage_rows(opened.stages) if opened.stages else None,
        stage=next(iter(opened.stages), None),
    )
    write_html(shown.path, text)


def _part(shown: Shown, name: str, part: Part) -> dict[str, Any]:
    return {
        "name": name,
        "tiles": _tiles(part),
        "stages": _stages(part),
        "notes": [note for note in [*part.notes, part.rows.note] if note],
        "cards": [_card(shown, name, part, row) for row in range(len(shown.ids))],
    }


def _tiles(part: Part) -> list[tuple[str, str]]:
    tokens = part.tokens
    grid = "" if tokens.grid is None else f" ({' x '.join(map(str, tokens.grid))})"
    tiles = [(f"{tokens.count:,}{grid}", "tokens of a sample")]
    for position, plan in enumerate(part.plans, 1):
        of_set = "" if len(part.plans) == 1 else f", set {position} of plans"
        tiles.append((f"{plan.visible.shape[1]:,}", f"visible to the encoder{of_set}"))
        rows = len(plan.predict) // max(tokens.batch, 1)
        each = "" if rows == 1 else f", in each of {rows} plans of a sample"
        tiles.append((f"{plan.predict.shape[1]:,}", f"to predict{each}{of_set}"))
    return [*tiles, (f"{100 * padding(part.preprocessed):.3g} %", "of this batch is padding")]


def _stages(part: Part) -> list[list[str]]:
    """Shapes, types and ranges of the whole batch at each stage, as a table."""
    preprocessed = part.preprocessed
    valid = None if preprocessed.valid is None else element_valid(preprocessed)
    stages = {"preprocessed: x": statistics(preprocessed.x, valid)}
    stages["tokens: values"] = statistics(part.tokens.values, part.tokens.valid)
    if part.target is not None:
        stages["target"] = statistics(part.target, part.plan.predict_valid)
    columns = [column for column in _COLUMNS if any(column in values for values in stages.values())]
    rows = [[stage, *(values.get(column, "") for column in columns)] for stage, values in stages.items()]
    return [["the whole batch", *columns], *rows]


def _card(shown: Shown, name: str, part: Part, row: int) -> dict[str, Any]:
    """Pictures of one sample, and what is known of it after each stage."""
    modality = shown.opened.modalities[name]
    strips = [
        [
            (caption.replace("\n", " "), embedded(cell(modality, signals[row])))
            for caption, signals in rows.columns.items()
        ]
        for rows in (part.rows, part.augmented)
        if rows.columns
    ]
    read = [f"{key} {number(value)}" for key, value in part.facts[row].items()]
    label, classes = shown.labels[row], shown.opened.source.classes or ()
    if label is not None:
        indices = label if isinstance(label, tuple) else (label,)
        names = [str(classes[index]) if index < len(classes) else str(index) for index in indices]
        read.insert(0, f"label {' + '.join(names) or 'none'}")
    valid = None if part.preprocessed.valid is None else element_valid(part.preprocessed)[row]
    preprocessed = [f"{key} {value}" for key, value in statistics(part.preprocessed.x[row], valid).items()]
    empty = 0.0 if valid is None else 1 - float(valid.float().mean())
    if empty:
        preprocessed.append(f"padding {100 * empty:.3g} %")
    stages = [("read", read), ("loaded", part.loaded[row]), ("preprocessed", preprocessed)]
    return {"id": shown.ids[row], "strips": strips, "facts": [(stage, words) for stage, words in stages if words]}
