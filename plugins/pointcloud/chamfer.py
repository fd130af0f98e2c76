"""The Chamfer distance between sets of points, with exact gradients."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["cdl1", "cdl2"]


def chamfer(a: Tensor, b: Tensor, kind: Kind = "cdl2") -> Tensor:
    """Sets (..., P, 3) and (..., Q, 3) -> (...): how far each point is from the nearest one of the other set.

    With d the squared distance, ``cdl2`` is mean_a d + mean_b d, ``cdl1`` (mean_a sqrt d + mean_b sqrt d) / 2, as in
    Point-MAE (section 3.3 and published code). Float32 or float64, also under autocast. The gradient goes to the
    nearest point, the first among equals. Where points coincide, cdl1 has no gradient; it is taken as 0, and not as
    NaN as in the published code.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = (one if one.dtype == torch.float64 else one.float() for one in (a, b))
        to_b, to_a = _nearest(a.detach(), b.detach())
        ways = [_squares(a - _take(b, to_b)), _squares(b - _take(a, to_a))]
        if kind == "cdl2":
            return ways[0].mean(-1) + ways[1].mean(-1)
        return (_root(ways[0]).mean(-1) + _root(ways[1]).mean(-1)) / 2


def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest point of ``b`` for each of ``a`` (..., P), and the other way round (..., Q)."""
    distance = torch.zeros((), dtype=a.dtype, device=a.device)
    for axis in range(3):
        distance = distance + (a[..., :, None, axis] - b[..., None, :, axis]).square_()
    return distance.argmin(-1), distance.argmin(-2)


def _take(points: Tensor, index: Tensor) -> Tensor:
    return points.gather(-2, index[..., None].expand(*index.shape, 3))


def _squares(difference: Tensor) -> Tensor:
    x, y, z = difference.square().unbind(-1)
    return x + y + z


def _root(squared: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
