"""Pictures of plans: what is visible and what is predicted, of every set of plans and of several plans of a sample."""

from __future__ import annotations

import torch
from torch import Tensor

from maemm.contract import Plan
from maemm.tasks.show.shown import Part
from maemm.ui.pictures import by_row, put_together, visible_fraction

MOST = 4  # rows of a sample that are shown


def add_plans(part: Part) -> None:
    """Add columns for the plans of ``part``, and notes about what is not shown."""
    for number, plan in enumerate(part.plans):
        _add_plan(part, plan, number)


def _add_plan(part: Part, plan: Plan, number: int) -> None:
    rows = rows_of_samples(plan, part.tokens.batch)
    tokens, by_rows = by_row(part.tokens, plan)
    of_set = "" if len(part.plans) == 1 else f", set {number + 1}"

    def add(caption: str, values: Tensor, index: Tensor, valid: Tensor | None, several: list[int]) -> None:
        signals = put_together(part.modality, tokens, (values, index, valid))
        for row in several:
            of_row = "" if len(rows) == 1 else f", plan {row + 1} of {len(rows)}"
            part.rows.columns[caption + of_set + of_row] = signals[rows[row]]

    shown = list(range(min(len(rows), MOST)))
    if len(rows) > MOST:
        part.notes.append(f"Of the {len(rows)} plans of each sample the first {MOST} are shown.")
    caption = f"visible ({visible_fraction(tokens, by_rows)})"
    add(caption, tokens.gather(by_rows.visible), by_rows.visible, by_rows.visible_valid, _passes(plan, rows, shown))
    if not plan.predict.shape[1]:
        part.notes.append("This plan hides nothing.")
        return
    hidden = tokens.gather(by_rows.predict)
    add("hidden: to predict", hidden, by_rows.predict, by_rows.predict_valid, shown)
    if number or part.target is None:
        return
    if part.target.numel() == hidden.numel():
        target = part.target.reshape(hidden.shape)
        add("target of the hidden", target, by_rows.predict, by_rows.predict_valid, shown[:1])
    else:
        part.notes.append(f"The target has {part.target.shape[-1]:,} values for a token and is not part of the signal.")


def rows_of_samples(plan: Plan, batch: int) -> list[Tensor]:
    """The first row of each sample (B,), the second, ...: as many as every sample has."""
    if plan.rows is None:
        return [torch.arange(batch)]
    own = [(plan.rows == sample).nonzero()[:, 0] for sample in range(batch)]
    return list(torch.stack([rows[: min(map(len, own))] for rows in own], 1))


def _passes(plan: Plan, rows: list[Tensor], shown: list[int]) -> list[int]:
    """Of rows that share a pass of the encoder the first: they see the same tokens."""
    if plan.passes is None:
        return shown
    passes = [plan.passes[rows[row]].tolist() for row in shown]
    return [row for row in shown if passes[row] not in passes[:row]]
