"""Groups of points: farthest point sampling and nearest neighbours, batched, exact and the same on every device.

Distances are float32 sums (x + y) + z of squared differences. The expanded form |a|^2 + |b|^2 - 2ab is faster, but
it reorders points at nearly equal distances, and is up to 1e-6 where the distance is 0.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from maemm.contract import gather_tokens
from maemm.contract.errors import MaemmError

ORIGIN = 1e-3  # squared radius around the origin within which the published CUDA kernel never picks a point
_AT_ONCE = 2**25  # distances in memory at a time in neighbours()


def farthest_points(
    xyz: Tensor, count: int, valid: Tensor | None = None, *, skip_origin: bool = False
) -> tuple[Tensor, Tensor]:
    """Farthest point sampling (Eldar et al. 1997; PointNet++, section 3.2): (B, N, 3) -> index, gap, both (B, count).

    Starts at each row's first valid point and repeatedly picks the valid point farthest from those picked before; the
    lowest index wins ties. ``gap`` is the squared distance to the nearest one picked before, inf for the first; 0 or
    less means that no distinct point was left, and the point is a repetition. ``skip_origin``: points within 0.0316 of
    the origin are never picked, except as the first (as in the kernel of Point-MAE's published weights). Without
    gradient, in float32 even under autocast. Raises :class:`MaemmError` for clouds without points.
    """
    if not xyz.shape[1]:
        raise MaemmError(f"no points to choose {count} from (pointcloud); give clouds of at least one point")
    with torch.no_grad(), torch.autocast(xyz.device.type, enabled=False):
        planes = xyz[..., :3].detach().float().transpose(1, 2).contiguous()  # (B, 3, N): contiguous per axis
        if valid is not None:
            planes = torch.where(valid[:, None], planes, 0.0)  # padding may be anything, even NaN
        nearest = _candidates(planes, valid, skip_origin)
        first = torch.zeros_like(planes[:, 0, 0], dtype=torch.long) if valid is None else valid.byte().argmax(1)
        if planes.is_cuda and (kernel := _kernel()):
            try:
                return kernel(planes, nearest, first, count)
            except torch.OutOfMemoryError:
                raise
            except Exception as problem:  # raised while compiling, before anything is launched
                _do_without_kernel(problem)
        return _sample(planes, nearest, first, count)


def _candidates(planes: Tensor, valid: Tensor | None, skip_origin: bool) -> Tensor:
    """(B, N) initial distances to the picked points: inf, and -1 for points that may not be picked."""
    nearest = torch.full_like(planes[:, 0], math.inf)
    if skip_origin:
        nearest = torch.where(_squares(planes) > ORIGIN, nearest, -1.0)
    return nearest if valid is None else torch.where(valid, nearest, -1.0)


def _squares(planes: Tensor) -> Tensor:
    x, y, z = planes.square().unbind(-2)
    return x + y + z


def _sample(planes: Tensor, nearest: Tensor, first: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The loop of :func:`farthest_points` in PyTorch; overwrites ``nearest``."""
    index, gap = [first], [torch.full_like(nearest[:, 0], math.inf)]
    for _ in range(count - 1):
        last = planes.gather(2, index[-1][:, None, None].expand(-1, 3, 1))
        torch.minimum(nearest, _squares(planes - last), out=nearest)
        far, at = nearest.max(1)
        index.append(at)
        gap.append(far)
    return torch.stack(index, 1), torch.stack(gap, 1)


def _kernel() -> Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]] | None:
    """The Triton kernel, if Triton is installed and has not failed before."""
    if _failed_kernel:
        return None
    try:
        from .fps_triton import sample
    except ImportError:
        return None
    return sample


_failed_kernel: list[Exception] = []  # why the kernel is not tried again in this process


def _do_without_kernel(problem: Exception) -> None:
    """Triton compiles when a kernel is first used, and needs a C compiler for it: say once that the loop does it."""
    _failed_kernel.append(problem)
    reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
    warnings.warn(
        f"the Triton kernel of farthest point sampling cannot be compiled ({reason}); a slower loop in torch with the "
        "same results takes its place: install a C compiler, or set CC to one",
        stacklevel=3,
    )


def neighbours(xyz: Tensor, centers: Tensor, count: int, valid: Tensor | None = None) -> Tensor:
    """The ``count`` nearest points of each centre: (B, N, 3), (B, G, 3) -> (B, G, count) int64.

    By ascending distance, then index; a centre that is a point of the cloud is its own neighbour. In a cloud with fewer
    valid points, the nearest one is repeated. Raises :class:`MaemmError` if N is less than ``count``.
    """
    total = xyz.shape[1]
    if total < count:
        raise MaemmError(
            f"a cloud of {total} points is too small for groups of {count} (modalities.pointcloud.group_size); "
            "lower group_size, or remove such clouds"
        )
    with torch.no_grad(), torch.autocast(xyz.device.type, enabled=False):
        planes = xyz[..., :3].detach().float().transpose(1, 2).contiguous()
        centers = centers[..., :3].detach().float()
        # In an exported graph the batch size is symbolic: all centres at once.
        step = len(centers[0]) if torch.compiler.is_exporting() else max(1, _AT_ONCE // max(1, xyz.shape[0] * total))
        indices = [_nearest(planes, part, count, valid) for part in centers.split(step, 1)]
        return torch.cat(indices, 1) if indices else centers.new_zeros(*centers.shape[:2], count, dtype=torch.long)


def _nearest(planes: Tensor, centers: Tensor, count: int, valid: Tensor | None) -> Tensor:
    distance = torch.zeros((), device=planes.device)
    for axis in range(3):
        distance = distance + (planes[:, None, axis] - centers[..., axis, None]).square_()
    if valid is not None:
        distance = torch.where(valid[:, None], distance, math.inf)
    if torch.compiler.is_exporting():  # ONNX cannot view the bits of a float; a stable sort is slower, and exact too
        first = torch.arange(count, device=distance.device)  # a slice would ask whether N is this number
        sorted_distance, index = (x.index_select(-1, first) for x in distance.sort(dim=-1, stable=True))
        return index if valid is None else torch.where(sorted_distance < math.inf, index, index[..., :1])
    # The bits of a non-negative float sort like the float; the index in the lower bits breaks ties.
    indices = torch.arange(distance.shape[-1], device=distance.device)
    key = (distance.view(torch.int32).long() << 32) | indices
    key = key.topk(count, largest=False, sorted=True).values
    index = key & 0xFFFFFFFF
    if valid is None:
        return index
    infinite = torch.tensor(math.inf).view(torch.int32).item()
    return torch.where(key >> 32 < infinite, index, index[..., :1])


def gather_points(points: Tensor, index: Tensor) -> Tensor:
    """(B, N, C) and (B, G, K) -> (B, G, K, C)."""
    return gather_tokens(points, index.flatten(1)).unflatten(1, index.shape[1:])
