"""Means of errors and targets, over what is known and counted."""

from __future__ import annotations

import torch
from torch import Tensor


def mean_over_known(errors: Tensor, known: Tensor | None) -> Tensor:
    """Errors (R, M, O) -> their mean over the known values (R, M); 0 where a token has none."""
    if known is None:
        return errors.mean(-1)
    return torch.where(known, errors, 0.0).sum(-1) / known.sum(-1).clamp(min=1)


def mean_of_counted(target: Tensor, counted: Tensor, known: Tensor | None = None) -> Tensor:
    """Targets (R, M, O) with weights (R, M) -> their mean (O,), of known values where ``known`` (R, M, O) is given."""
    if known is None:
        return (target * counted[..., None]).sum((0, 1)) / counted.sum().clamp(min=1e-12)
    weights = counted[..., None] * known
    return (torch.where(known, target, 0.0) * weights).sum((0, 1)) / weights.sum((0, 1)).clamp(min=1e-12)
