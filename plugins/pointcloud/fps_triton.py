"""Farthest point sampling as one Triton kernel: one program per cloud, no kernel launch per chosen point.

Distances are compared by their bits as integers, in the order of torch's ``max``: NaN above infinity, the first of
equals.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 4096  # points in registers at a time


@triton.jit
def _farthest(planes, nearest, first, index, gap, total, count, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    planes += row * 3 * total
    nearest += row * total
    index += row * count
    gap += row * count
    lanes = tl.arange(0, BLOCK)
    last = tl.load(first + row)
    tl.store(index, last)
    tl.store(gap, float("inf"))
    for number in range(1, count):
        x0 = tl.load(planes + last)
        y0 = tl.load(planes + total + last)
        z0 = tl.load(planes + 2 * total + last)
        best = tl.full((), -(2**31), tl.int32)
        for start in range(0, total, BLOCK):
            at = start + lanes
            inside = at < total
            dx = tl.load(planes + at, mask=inside, other=0.0) - x0
            dy = tl.load(planes + total + at, mask=inside, other=0.0) - y0
            dz = tl.load(planes + 2 * total + at, mask=inside, other=0.0) - z0
            old = tl.load(nearest + at, mask=inside, other=-1.0)
            new = tl.minimum(old, (dx * dx + dy * dy) + dz * dz, propagate_nan=tl.PropagateNan.ALL)
            tl.store(nearest + at, new, mask=inside)
            # Floats that are not negative sort like their bits; -1 marks points that may not be picked, and is the
            # only negative value. NaN gets the bits of the positive NaN, which are above those of infinity.
            bits = tl.where(new != new, 0x7FC00000, new.to(tl.int32, bitcast=True))
            far, where = tl.max(bits, 0, return_indices=True, return_indices_tie_break_left=True)
            better = far > best  # strictly: the lowest index wins ties
            last = tl.where(better, (start + where).to(tl.int64), last)
            best = tl.where(better, far, best)
        tl.store(index + number, last)
        tl.store(gap + number, best.to(tl.float32, bitcast=True))
        tl.debug_barrier()  # nearest is read in the next iteration


def sample(planes: Tensor, nearest: Tensor, first: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """``planes`` (B, 3, N) contiguous, ``nearest`` (B, N), overwritten, ``first`` (B,) -> index, gap (B, count)."""
    batch, _, total = planes.shape
    index = torch.empty(batch, count, dtype=torch.long, device=planes.device)
    gap = torch.empty(batch, count, dtype=torch.float32, device=planes.device)
    block = min(_BLOCK, triton.next_power_of_2(total))
    with torch.cuda.device_of(planes):
        _farthest[(batch,)](
            planes, nearest, first, index, gap, total, count,
            BLOCK=block, num_warps=max(1, min(16, block // 128)),
            enable_fp_fusion=False,  # fused multiply-adds round differently from other devices
        )  # fmt: skip
    return index, gap
