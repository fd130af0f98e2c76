"""From a mask ratio to a number of tokens, and from a random order of tokens to a plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from maemm.contract import Plan, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.small import small_tensor

Count = Literal["floor_visible", "floor_hidden", "round_visible", "round_hidden"]


def as_sets(plans: dict[str, Plan] | list[dict[str, Plan]]) -> list[dict[str, Plan]]:
    """The sets of plans that a masking drew: a list in any case."""
    return plans if isinstance(plans, list) else [plans]


def check_ratio(ratio: float) -> None:
    """Raise :class:`MaemmError` for a mask ratio outside 0 .. 1.

    A modality with ratio 0 is only encoded, one with ratio 1 only decoded, where other modalities are visible.
    """
    if not 0.0 <= ratio <= 1.0:
        raise MaemmError(f"mask ratio is {ratio} (masking.ratio); give at least 0 and at most 1")


def visible_count(total: int, ratio: float, count: Count) -> int:
    """How many of ``total`` tokens are visible. Published code differs: "floor_visible" is ``int(N * (1 - r))`` in
    double precision (MAE), "floor_hidden" is ``N - int(N * r)`` (VideoMAE, Point-MAE), "round_visible" rounds,
    "round_hidden" is ``N - round(N * r)`` (SMA)."""
    if count == "floor_visible":
        return int(total * (1 - ratio))
    if count == "round_hidden":
        return total - round(total * ratio)
    if count == "floor_hidden":
        return total - int(total * ratio)
    return round(total * (1 - ratio))


def plan_from_order(order: Tensor, tokens: Tokens, ratio: float, count: Count) -> Plan:
    """``order`` (R, N): indices of the tokens, the visible ones first, invalid ones last -> plan with exact counts.

    Shapes depend on N alone, never on the data; in ragged batches the ratio applies to the valid tokens of each row.
    """
    check_ratio(ratio)  # the hint of a masking may have no bounds
    return plan_by_counts(order, tokens, [visible_count(n, ratio, count) for n in range(tokens.count + 1)])


def plan_by_counts(order: Tensor, tokens: Tokens, visible_of: Sequence[int]) -> Plan:
    """:func:`plan_from_order` with the number of visible tokens of a row that has n valid ones, n = 0 .. N."""
    if tokens.valid is None:
        keep = visible_of[-1]
        return Plan(order[:, :keep].sort(1).values, order[:, keep:].sort(1).values)
    valid = tokens.valid.sum(1, keepdim=True)
    visible = small_tensor(list(visible_of), order.device)[valid]  # (R, 1)
    position = torch.arange(tokens.count, device=order.device).expand_as(order)
    shown, shown_valid = packed(order, position < visible, max(visible_of))
    most_hidden = max(n - shown_of_n for n, shown_of_n in enumerate(visible_of))
    hidden, hidden_valid = packed(order, (position >= visible) & (position < valid), most_hidden)
    return Plan(shown, hidden, visible_valid=shown_valid, predict_valid=hidden_valid)


def plan_from_hidden(hidden: Tensor, tokens: Tokens, visible: int, predict: int) -> Plan:
    """``hidden`` (R, N) bool -> plan, for maskings that choose the hidden tokens themselves.

    ``visible`` and ``predict``: V and M, the numbers of visible and of predicted tokens in every row. In ragged batches
    they are the most that a row can have, so that shapes do not depend on the data; tokens that are not valid are
    neither.
    """
    index = torch.arange(tokens.count, device=hidden.device).expand_as(hidden)
    if tokens.valid is None:
        shown = torch.where(hidden, tokens.count, index).sort(1).values[:, :visible]
        return Plan(shown, torch.where(hidden, index, tokens.count).sort(1).values[:, :predict])
    shown, shown_valid = packed(index, tokens.valid & ~hidden, visible)
    predicted, predicted_valid = packed(index, tokens.valid & hidden, predict)
    return Plan(shown, predicted, visible_valid=shown_valid, predict_valid=predicted_valid)


def packed(order: Tensor, chosen: Tensor, width: int, count: int | None = None) -> tuple[Tensor, Tensor]:
    """(R, width) the chosen entries of each row, sorted and padded with the last of them (0 if there is none); and
    (R, width) bool, False where padded. ``count``: number of tokens, where ``order`` (R, n) has not all of them."""
    beyond = count or order.shape[1]  # sorts behind all entries
    index = torch.where(chosen, order, beyond).sort(1).values[:, :width]
    valid = index < beyond
    last = (valid.sum(1, keepdim=True) - 1).clamp(min=0)
    padding = index.gather(1, last) if width else index
    return torch.where(valid, index, torch.where(padding < beyond, padding, 0)), valid


def noise_order(noise: Tensor, tokens: Tokens) -> Tensor:
    """Noise (R, N) -> order (R, N), ascending and stable, with tokens that are not valid at the end."""
    if tokens.valid is not None:
        noise = noise.masked_fill(~tokens.valid, float("inf"))
    return noise.argsort(stable=True, dim=1)
