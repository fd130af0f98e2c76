"""The mean of the losses of tokens: over all of a batch, or first over those of each row."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from maemm.contract import Term

Mean = Literal["tokens", "samples"]


def mean_term(loss: Tensor, counted: Tensor, mean: Mean, weight: float) -> Term:
    """A term from losses (R, M) and weights (R, M). With "samples" each row that counts any token counts 1; others
    count nothing, and have neither loss nor gradient."""
    return Term((loss * _weights(counted, mean)).sum(), mean_count(counted, mean), weight)


def mean_count(counted: Tensor, mean: Mean) -> Tensor:
    """The count of such a term, from the weights alone: a scalar."""
    return counted.sum() if mean == "tokens" else (counted > 0).any(1).float().sum()


def _weights(counted: Tensor, mean: Mean) -> Tensor:
    return counted if mean == "tokens" else counted / counted.sum(1, keepdim=True).clamp(min=1e-12)
