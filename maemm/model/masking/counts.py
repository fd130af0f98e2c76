"""How a ratio becomes a number of tokens, and how a random order becomes a plan."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from maemm.contract import Plan, Tokens
from maemm.contract.errors import MaemmError

Count = Literal["floor_visible", "floor_hidden", "round_visible"]


def check_ratio(ratio: float) -> None:
    if not 0.0 <= ratio < 1.0:
        raise MaemmError(f"mask ratio {ratio} must be at least 0 and below 1 (masking.ratio)")


def visible_count(total: int, ratio: float, count: Count) -> int:
    """Visible of ``total`` tokens. Published codes differ: ``int(N * (1 - r))`` evaluated in double precision as
    written (MAE: "floor_visible"), ``N - int(N * r)`` (VideoMAE, Point-MAE: "floor_hidden"), or rounded."""
    if count == "floor_visible":
        return int(total * (1 - ratio))
    if count == "floor_hidden":
        return total - int(total * ratio)
    return round(total * (1 - ratio))


def plan_from_order(order: Tensor, tokens: Tokens, ratio: float, count: Count) -> Plan:
    """``order`` (R, N): tokens from first kept to first hidden, invalid ones last -> plan with exact counts.

    Shapes depend on N alone, never on the data; in ragged batches each row keeps its own share of its valid tokens.
    """
    total = tokens.count
    keep = visible_count(total, ratio, count)
    if tokens.valid is None:
        return Plan(order[:, :keep].sort(1).values, order[:, keep:].sort(1).values)
    return _ragged(order, tokens, ratio, count, keep)


def plan_from_hidden(hidden: Tensor, tokens: Tokens, visible: int, predict: int) -> Plan:
    """``hidden`` (R, N) bool -> plan, for maskings that choose the tokens themselves.

    ``visible`` and ``predict`` are the counts of every row where all tokens are valid, and otherwise the most that a
    row can have, so that shapes do not depend on the data. Tokens that are not valid are neither.
    """
    place = torch.arange(tokens.count, device=hidden.device).expand_as(hidden)
    if tokens.valid is None:
        shown = torch.where(hidden, tokens.count, place).sort(1).values[:, :visible]
        return Plan(shown, torch.where(hidden, place, tokens.count).sort(1).values[:, :predict])
    shown, shown_valid = _pack(place, tokens.valid & ~hidden, visible)
    guessed, guessed_valid = _pack(place, tokens.valid & hidden, predict)
    return Plan(shown, guessed, visible_valid=shown_valid, predict_valid=guessed_valid)


def _ragged(order: Tensor, tokens: Tokens, ratio: float, count: Count, keep: int) -> Plan:
    table = torch.tensor([visible_count(n, ratio, count) for n in range(tokens.count + 1)], device=order.device)
    valid = tokens.valid.sum(1, keepdim=True)
    kept = table[valid]
    place = torch.arange(tokens.count, device=order.device).expand_as(order)
    hidden_most = max(n - visible_count(n, ratio, count) for n in range(tokens.count + 1))
    keep = max(visible_count(n, ratio, count) for n in range(tokens.count + 1))
    visible, visible_valid = _pack(order, place < kept, keep)
    predict, predict_valid = _pack(order, (place >= kept) & (place < valid), hidden_most)
    return Plan(visible, predict, visible_valid=visible_valid, predict_valid=predict_valid)


def _pack(order: Tensor, chosen: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Chosen entries of each row, sorted, then padded with the last of them (0 where there is none)."""
    far = order.shape[1]
    index = torch.where(chosen, order, far).sort(1).values[:, :width]
    ok = index < far
    last = (ok.sum(1, keepdim=True) - 1).clamp(min=0)
    padding = index.gather(1, last) if width else index
    return torch.where(ok, index, torch.where(padding < far, padding, 0)), ok


def noise_order(noise: Tensor, tokens: Tokens) -> Tensor:
    """Noise (R, N) -> order, with tokens that are not valid at the end."""
    if tokens.valid is not None:
        noise = noise.masked_fill(~tokens.valid, float("inf"))
    return noise.argsort(stable=True, dim=1)
