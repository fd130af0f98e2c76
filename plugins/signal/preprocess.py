"""Batched work on the device: shift, scale, gain, dropped channels. Statistics are those of valid samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor

IQR_OF_NORMAL = 1.3489795  # interquartile range of a normal distribution in standard deviations


def robust(x: Tensor, valid: Tensor | None, eps: float) -> Tensor:
    """(B, C, L) -> minus the median, divided by the interquartile range in units of a standard deviation.

    Median and range are those of the valid samples of each channel. A channel that is constant apart from spikes has
    a range of nearly 0 and is divided by its standard deviation instead; a constant one becomes 0.
    """
    ordered = (x if valid is None else x.masked_fill(~valid, math.inf)).sort(-1).values
    count = torch.full_like(x[..., :1], x.shape[-1]) if valid is None else valid.sum(-1, keepdim=True).to(x)
    low, middle, high = (_quantile(ordered, count, q) for q in (0.25, 0.5, 0.75))
    scale = (high - low) / IQR_OF_NORMAL
    _, deviation = _moments(x, valid)
    # The range of a signal without spikes is far above a hundredth of its standard deviation.
    scale = torch.where(scale > deviation / 100, scale, deviation)
    return _scaled(x, middle, scale, eps)


def zscore(x: Tensor, valid: Tensor | None, eps: float) -> Tensor:
    """(B, C, L) -> minus the mean, divided by the standard deviation of each channel's valid samples."""
    return _scaled(x, *_moments(x, valid), eps)


def _scaled(x: Tensor, centre: Tensor, scale: Tensor, eps: float) -> Tensor:
    """(x - centre) / (scale + eps); 0 where the scale is no more than rounding errors of the centre."""
    still = scale <= centre.abs() * 1e-6
    return torch.where(still, 0.0, (x - centre) / (scale + eps))


def _moments(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the valid samples of each channel."""
    weight = torch.ones_like(x) if valid is None else valid.to(x)
    count = weight.sum(-1, keepdim=True).clamp(min=1)
    mean = (x * weight).sum(-1, keepdim=True) / count
    return mean, (((x - mean) * weight).square().sum(-1, keepdim=True) / count).sqrt()


def _quantile(ordered: Tensor, count: Tensor, q: float) -> Tensor:
    """Linear between neighbours, of the first ``count`` sorted values; 0 where there are none.

    torch.quantile refuses more than 16 million values, fewer than a batch of long recordings has.
    """
    position = (count - 1).clamp(min=0) * q
    below = ordered.gather(-1, position.floor().long())
    above = ordered.gather(-1, position.ceil().long())
    value = below + (above - below).nan_to_num(0.0, 0.0, 0.0) * (position - position.floor())
    return torch.where(count > 0, value, 0.0)


def shift(x: Tensor, valid: Tensor | None, by: Tensor) -> tuple[Tensor, Tensor]:
    """Shift each sample by ``by`` (B,) steps to the right; the ends are filled with 0, not valid."""
    length = x.shape[-1]
    index = torch.arange(length, device=x.device) - by[:, None]
    inside = ((index >= 0) & (index < length))[:, None].expand_as(x)
    index = index.clamp(0, length - 1)[:, None].expand_as(x)
    valid = inside if valid is None else valid.gather(-1, index) & inside
    return x.gather(-1, index).masked_fill(~valid, 0.0), valid


def gain(x: Tensor, uniform: Tensor, low: float, high: float) -> Tensor:
    """Multiply each channel by a factor, log-uniform from ``low`` to ``high``; ``uniform`` (B, C) in 0 .. 1."""
    factor = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * uniform)
    return x * factor.to(x)[..., None]


def drop_channels(x: Tensor, valid: Tensor | None, uniform: Tensor, fraction: float) -> Tensor:
    """Validity (B, C, L) in which each channel is dropped with probability ``fraction``; at least one stays.

    ``uniform`` (B, C) in 0 .. 1: channels below ``fraction`` are dropped, except the highest of those present.
    """
    valid = torch.ones_like(x, dtype=torch.bool) if valid is None else valid
    present = uniform.masked_fill(~valid.any(-1), -1.0)
    stays = (uniform >= fraction) | (present == present.amax(1, keepdim=True))
    return valid & stays[..., None]
