"""The Chamfer distance between sets of points, with exact gradients."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["cdl1", "cdl2"]


def chamfer(a: Tensor, b: Tensor, kind: Kind = "cdl2") -> Tensor:
    """Chamfer distance of sets (..., P, 3) and (..., Q, 3) -> (...): of each point to the nearest one of the other set.

    With d the squared distance, ``cdl2`` is mean_a d + mean_b d, ``cdl1`` (mean_a sqrt d + mean_b sqrt d) / 2, as in
    Point-MAE (section 3.3 and published code). In float32 or float64, even under autocast. The gradient flows to the
    nearest point, of several to the first. Where points coincide, cdl1 is not differentiable; its gradient is 0 there,
    not NaN as in the published code.
    """
    with torch.autocast(a.device.type, enabled=False):
        a, b = (x if x.dtype == torch.float64 else x.float() for x in (a, b))
        to_b, to_a = _nearest(a.detach(), b.detach())
        from_a, from_b = _squares(a - _gather(b, to_b)), _squares(b - _gather(a, to_a))
        if kind == "cdl2":
            return from_a.mean(-1) + from_b.mean(-1)
        return (_root(from_a).mean(-1) + _root(from_b).mean(-1)) / 2


def _nearest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest point of ``b`` for each of ``a`` (..., P), and vice versa (..., Q)."""
    distance = torch.zeros((), dtype=a.dtype, device=a.device)
    for axis in range(3):
        distance = distance + (a[..., :, None, axis] - b[..., None, :, axis]).square_()
    return distance.argmin(-1), distance.argmin(-2)


def _gather(points: Tensor, index: Tensor) -> Tensor:
    return points.gather(-2, index[..., None].expand(*index.shape, 3))


def _squares(difference: Tensor) -> Tensor:
    x, y, z = difference.square().unbind(-1)
    return x + y + z


def _root(squared: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    apart = squared > 0
    return torch.where(apart, torch.where(apart, squared, 1.0).sqrt(), 0.0)
