"""Losses of a token's features, and what the best constant prediction loses: for targets that are features."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from maemm.contract.means import mean_of_counted

FeatureLoss = Literal["smooth_l1", "mse", "l1", "cosine"]
Reduction = Literal["mean", "sum_by_root"]

_HUBER_STEPS = 12
_HALVINGS = 24


def feature_loss(
    pred: Tensor,
    target: Tensor,
    kind: FeatureLoss,
    *,
    beta: float = 1.0,
    reduction: Reduction = "mean",
    exponent: float = 1.0,
) -> Tensor:
    """Loss of each token: (R, M, O) twice -> (R, M) float32.

    ``smooth_l1``: e^2 / (2 beta) up to |e| = beta, then |e| - beta / 2 (I-JEPA); ``mse``: e^2; ``l1``: |e|, or with an
    ``exponent`` p of 1 or more |e|^p / p (V-JEPA 2, app/vjepa/train.py);
    ``cosine``: 1 - cos of the angle. ``reduction`` over the O values: their mean, or their sum / sqrt(O) (data2vec 2.0,
    published code: sqrt(O) times the mean); a cosine needs none.
    """
    pred, target = pred.float(), target.float()
    if kind == "cosine":
        return 1.0 - F.cosine_similarity(pred, target, dim=-1)
    if kind == "smooth_l1":
        errors = F.smooth_l1_loss(pred, target, reduction="none", beta=beta)
    else:
        errors = (pred - target).square() if kind == "mse" else (pred - target).abs()
        if kind == "l1" and exponent != 1:
            errors = errors.pow(exponent) / exponent
    return errors.mean(-1) if reduction == "mean" else errors.sum(-1) / target.shape[-1] ** 0.5


def feature_baseline(
    target: Tensor,
    counted: Tensor,
    kind: FeatureLoss,
    *,
    beta: float = 1.0,
    reduction: Reduction = "mean",
    exponent: float = 1.0,
) -> Tensor:
    """:func:`feature_loss` of the best constant prediction: targets (R, M, O), weights (R, M) -> (R, M) float32.

    It is the mean for squared errors, the median for absolute ones, the mean direction for cosines, for the smooth L1
    loss found by steps that never go up (its curvature is at most 1 / beta), and for other powers of the error by
    halving: the slope grows.
    """
    target = target.float()
    if kind == "cosine":
        best = mean_of_counted(F.normalize(target, dim=-1), counted)
    elif kind == "mse":
        best = mean_of_counted(target, counted)
    elif kind == "l1" and exponent != 1:
        best = _best_for_power(target, counted, exponent)
    else:
        best = _median_of_counted(target, counted)
    if kind == "smooth_l1" and beta:
        for _ in range(_HUBER_STEPS):
            best = best + mean_of_counted((target - best).clamp(-beta, beta), counted)
    return feature_loss(best.expand_as(target), target, kind, beta=beta, reduction=reduction, exponent=exponent)


def _median_of_counted(target: Tensor, counted: Tensor) -> Tensor:
    """Targets (R, M, O) with weights (R, M) -> their lower weighted median (O,)."""
    values, order = target.flatten(0, 1).sort(0)
    weights = counted.flatten()[order].cumsum(0)
    place = (weights < counted.sum() / 2).sum(0, keepdim=True).clamp(max=len(values) - 1)
    return values.gather(0, place)[0]


def _best_for_power(target: Tensor, counted: Tensor, exponent: float) -> Tensor:
    """Targets (R, M, O) with weights (R, M) -> the constants (O,) with the least mean |error|^exponent (> 1)."""
    low, high = target.flatten(0, 1).aminmax(dim=0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        error = middle - target
        rises = mean_of_counted(error.sign() * error.abs().pow(exponent - 1), counted) > 0
        low, high = torch.where(rises, low, middle), torch.where(rises, middle, high)
    return (low + high) / 2
