"""What is done to a batch of signals on the device: shift, scale, gain, dropped channels. Padding does not count."""

from __future__ import annotations

import math

import torch
from torch import Tensor

IQR_OF_NORMAL = 1.3489795  # interquartile range of a normal distribution in standard deviations


def robust(x: Tensor, valid: Tensor | None, eps: float) -> Tensor:
    """(B, C, L) -> minus the median, divided by the interquartile range in units of a standard deviation.

    Median and range are taken over the valid samples of each channel. A channel that hardly moves apart from spikes
    has a range of nearly 0: it is divided by its standard deviation; one that does not move at all becomes 0.
    """
    ordered = (x if valid is None else x.masked_fill(~valid, math.inf)).sort(-1).values
    count = torch.full_like(x[..., :1], x.shape[-1]) if valid is None else valid.sum(-1, keepdim=True).to(x)
    low, middle, high = (_quantile(ordered, count, q) for q in (0.25, 0.5, 0.75))
    scale = (high - low) / IQR_OF_NORMAL
    _, deviation = _moments(x, valid)
    # A hundredth of the standard deviation: no signal without spikes comes near it.
    scale = torch.where(scale > deviation / 100, scale, deviation)
    return _scaled(x, middle, scale, eps)


def zscore(x: Tensor, valid: Tensor | None, eps: float) -> Tensor:
    """(B, C, L) -> minus the mean, divided by the standard deviation of each channel's valid samples."""
    return _scaled(x, *_moments(x, valid), eps)


def _scaled(x: Tensor, centre: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Divided by spread + eps; where the spread is no more than rounding errors of the centre, 0."""
    still = scale <= centre.abs() * 1e-6
    return torch.where(still, 0.0, (x - centre) / (scale + eps))


def _moments(x: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    fraction = torch.ones_like(x) if valid is None else valid.to(x)
    count = fraction.sum(-1, keepdim=True).clamp(min=1)
    mean = (x * fraction).sum(-1, keepdim=True) / count
    return mean, (((x - mean) * fraction).square().sum(-1, keepdim=True) / count).sqrt()


def _quantile(ordered: Tensor, count: Tensor, q: float) -> Tensor:
    """Linear between neighbours, of the first ``count`` sorted values; 0 where there are none.

    torch.quantile refuses more than 16 million values, which a batch of long recordings has.
    """
    place = (count - 1).clamp(min=0) * q
    below = ordered.gather(-1, place.floor().long())
    above = ordered.gather(-1, place.ceil().long())
    value = below + (above - below).nan_to_num(0.0, 0.0, 0.0) * (place - place.floor())
    return torch.where(count > 0, value, 0.0)


def shift(x: Tensor, valid: Tensor | None, by: Tensor) -> tuple[Tensor, Tensor]:
    """Move each sample by ``by`` (B,) steps to the right; what comes in at the ends is 0 and not valid."""
    length = x.shape[-1]
    at = torch.arange(length, device=x.device) - by.to(x.device)[:, None]
    inside = ((at >= 0) & (at < length))[:, None].expand_as(x)
    at = at.clamp(0, length - 1)[:, None].expand_as(x)
    valid = inside if valid is None else valid.gather(-1, at) & inside
    return x.gather(-1, at).masked_fill(~valid, 0.0), valid


def gain(x: Tensor, uniform: Tensor, low: float, high: float) -> Tensor:
    """Multiply each channel by a factor, log-uniform from ``low`` to ``high``; ``uniform`` (B, C) in 0 .. 1."""
    factor = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * uniform)
    return x * factor.to(x)[..., None]


def drop_channels(x: Tensor, valid: Tensor | None, uniform: Tensor, fraction: float) -> Tensor:
    """Validity (B, C, L) in which a channel is missing with probability ``share``; one at least stays.

    ``uniform`` (B, C) in 0 .. 1: channels below ``share`` go, the highest of those present never does.
    """
    valid = torch.ones_like(x, dtype=torch.bool) if valid is None else valid
    uniform = uniform.to(x.device)
    present = uniform.masked_fill(~valid.any(-1), -1.0)
    stays = (uniform >= fraction) | (present == present.amax(1, keepdim=True))
    return valid & stays[..., None]
