"""Cut a signal on a grid of any number of axes into patches, and put it together again."""

from __future__ import annotations

import einops
from torch import Tensor

from maemm.contract.errors import MaemmError


def grid_of(size: tuple[int, ...], patch: tuple[int, ...], where: str = "size") -> tuple[int, ...]:
    """Patches along each axis. Raises :class:`MaemmError` where a side is not a multiple of the patch."""
    if len(size) != len(patch):
        raise MaemmError(f"size {size} and patch {patch} have different numbers of axes ({where})")
    for side, step in zip(size, patch, strict=True):
        if side < step or side % step:
            near = sorted({max(side // step, 1) * step, (side // step + 1) * step})
            use = " or ".join(str(n) for n in near)
            raise MaemmError(f"size {side} is not a multiple of patch {step} ({where}); use {use}")
    return tuple(side // step for side, step in zip(size, patch, strict=True))


def _names(axes: int) -> tuple[str, str, str, str]:
    spread = " ".join(f"(g{i} p{i})" for i in range(axes))
    cells = " ".join(f"g{i}" for i in range(axes))
    inside = " ".join(f"p{i}" for i in range(axes))
    return spread, cells, inside, f"({inside} c)"


def patchify(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """(B, C, *size) -> (B, N, P): tokens in raster order, values (axis 0, .., last axis, channel), channel fastest."""
    spread, cells, _, values = _names(len(patch))
    sizes = {f"p{i}": step for i, step in enumerate(patch)}
    return einops.rearrange(x, f"b c {spread} -> b ({cells}) {values}", **sizes)


def unpatchify(values: Tensor, grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`patchify`: (B, N, P) -> (B, C, *size)."""
    spread, cells, _, inside = _names(len(patch))
    sizes = {f"p{i}": step for i, step in enumerate(patch)} | {f"g{i}": n for i, n in enumerate(grid)}
    return einops.rearrange(values, f"b ({cells}) {inside} -> b c {spread}", **sizes)


def conv_to_linear(weight: Tensor) -> Tensor:
    """Kernel of a patch convolution (D, C, *patch) -> matrix (D, P) on :func:`patchify`'s values."""
    return weight.movedim(1, -1).flatten(1)


def linear_to_conv(weight: Tensor, channels: int, patch: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`conv_to_linear`."""
    return weight.reshape(weight.shape[0], *patch, channels).movedim(-1, 1).contiguous()
