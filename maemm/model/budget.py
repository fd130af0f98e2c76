"""A budget of tokens over all modalities: the visible ones of each row, side by side, in a block of one size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from maemm.contract import ModalityInput
from maemm.contract.errors import MaemmError


def budget_of(inputs: dict[str, ModalityInput]) -> int | None:
    """The budget of the plans, None without one. Raises :class:`MaemmError` where they differ."""
    budgets = {x.plan.budget for x in inputs.values()}
    if len(budgets) > 1:
        raise MaemmError(f"plans have different budgets ({', '.join(map(str, budgets))}); a joint masking sets one")
    return budgets.pop()


def first_valid(
    valid: Sequence[Tensor | None], lengths: Sequence[int], x: Tensor, count: int
) -> tuple[Tensor, list[Tensor | None]]:
    """The first ``count`` valid tokens of each row of x (R, L, D), in order: their index (R, count) and validity.

    ``valid``: of the parts of x, whose ``lengths`` add up to L, (R, length) bool or None where all are valid.
    """
    parts = [
        torch.ones(len(x), length, dtype=torch.bool, device=x.device) if part is None else part
        for part, length in zip(valid, lengths, strict=True)
    ]
    whole = torch.cat(parts, dim=1)
    index = whole.long().argsort(dim=1, descending=True, stable=True)[:, :count].sort(1).values
    return index, [whole.gather(1, index)]
