"""Maskings by time and by frequency: whole columns and rows of the grid of spectrogram patches.

A ratio becomes a number of columns or rows (AudioMAE: ``int(64 * (1 - 0.7)) * int(8 * (1 - 0.3))`` visible), at
least one; in ragged batches each clip keeps that fraction of its own columns. Shapes never depend on the data.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from maemm.contract import Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction
from maemm.contract.rng import Rng
from maemm.contract.small import small_tensor
from maemm.model.masking.counts import Count, noise_order, plan_from_hidden, plan_from_order, visible_count
from maemm.model.masking.ratio import Ratio, RatioMasking, read_ratio


class TimeFrequency(RatioMasking):
    """Hide whole time columns and whole mel rows, drawn independently (AudioMAE, section 3.2: structured masking).

    With ``ratio`` the count of tokens is exact: random tokens are hidden, or shown again, until it is met
    (CAV-MAE's mode "tf": ``ratio: 0.75, time: 0.525, frequency: 0.525, count: floor_hidden``).

    Options
        time: fraction of the time columns that is hidden
        frequency: fraction of the mel rows that is hidden
        ratio: fraction of all tokens that is hidden in the end, or how it is drawn for each batch, as of random; null:
            whatever the two give
        count: how a ratio is rounded to a number of lines or tokens
    """

    def __init__(
        self,
        *,
        time: Fraction = 0.2,
        frequency: Fraction = 0.2,
        ratio: Ratio | None = None,
        count: Count = "floor_visible",
    ):
        self.fractions, self.count = (time, frequency), count
        self.ratio = None if ratio is None else read_ratio(ratio)

    def plan(self, name: str, tokens: Tokens, rng: Rng) -> Plan:
        valid, time_axis = _grid_validity(name, tokens)
        hidden, keep = torch.zeros_like(valid), 1
        for label, fraction, axis in zip(
            ("time", "frequency"), self.fractions, (time_axis, 1 - time_axis), strict=True
        ):
            most = valid.shape[1 + axis]
            visible = [
                min(n, max(1, visible_count(n, fraction, self.count))) if fraction else n for n in range(most + 1)
            ]
            if fraction:
                lines = _hidden(
                    rng.uniform(f"mask/{name}/{label}", most, device=valid.device), valid.any(2 - axis), visible
                )
                hidden = hidden | lines.unsqueeze(2 - axis)
            keep *= visible[most]
        hidden = hidden.flatten(1)
        if self.ratio is None:
            return plan_from_hidden(hidden, tokens, keep, tokens.count - keep)
        noise = rng.uniform(f"mask/{name}/exact", tokens.count, device=hidden.device)
        return plan_from_order(noise_order(noise + hidden, tokens), tokens, self.ratio_of(name, rng), self.count)


class Time(TimeFrequency):
    """Hide whole time columns.

    Options
        ratio: fraction of the time columns that is hidden
        count: how the ratio is rounded to a number of columns or rows
    """

    def __init__(self, *, ratio: Fraction = 0.5, count: Count = "floor_visible"):
        super().__init__(time=ratio, frequency=0.0, count=count)


class Frequency(TimeFrequency):
    """Hide whole mel rows.

    Options
        ratio: fraction of the mel rows that is hidden
        count: how the ratio is rounded to a number of columns or rows
    """

    def __init__(self, *, ratio: Fraction = 0.5, count: Count = "floor_visible"):
        super().__init__(time=0.0, frequency=ratio, count=count)


def _grid_validity(name: str, tokens: Tokens) -> tuple[Tensor, int]:
    """(B, *grid) bool validity, and the axis of the grid that is time."""
    if tokens.grid is None or len(tokens.grid) != 2:
        raise MaemmError(
            f"this masking needs tokens on a grid of time and frequency, not {tokens.grid} "
            f"(modalities.{name}.masking); use random"
        )
    if tokens.valid is None:
        valid = torch.ones(tokens.batch, *tokens.grid, dtype=torch.bool, device=tokens.values.device)
    else:
        valid = tokens.valid.unflatten(1, tokens.grid)
    return valid, int(tokens.context.get("time_axis", 0))


def _hidden(noise: Tensor, valid: Tensor, visible: list[int]) -> Tensor:
    """(B, n) bool: all but the ``visible[m]`` lowest of the m valid lines."""
    rank = noise.masked_fill(~valid, math.inf).argsort(dim=1, stable=True).argsort(dim=1)
    return (rank >= small_tensor(visible, noise.device)[valid.sum(1, keepdim=True)]) & valid
