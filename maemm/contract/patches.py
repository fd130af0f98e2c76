"""Cut a signal on a grid of any number of axes into patches, and put the patches together again."""

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
            multiples = sorted({max(side // step, 1) * step, (side // step + 1) * step})
            suggestion = " or ".join(str(multiple) for multiple in multiples)
            raise MaemmError(f"size {side} is not a multiple of patch {step} ({where}); use {suggestion}")
    return tuple(side // step for side, step in zip(size, patch, strict=True))


def _einops_axes(axes: int) -> tuple[str, str, str]:
    """Names of the axes for einops: "(g0 p0) (g1 p1)" of the signal, "g0 g1" of tokens, "(p0 p1 c)" of values."""
    signal = " ".join(f"(g{i} p{i})" for i in range(axes))
    tokens = " ".join(f"g{i}" for i in range(axes))
    values = " ".join(f"p{i}" for i in range(axes))
    return signal, tokens, f"({values} c)"


def patchify(x: Tensor, patch: tuple[int, ...]) -> Tensor:
    """(B, C, *size) -> (B, N, P): tokens in raster order, values (axis 0, .., last axis, channel), channel fastest."""
    signal, tokens, values = _einops_axes(len(patch))
    sizes = {f"p{i}": step for i, step in enumerate(patch)}
    return einops.rearrange(x, f"b c {signal} -> b ({tokens}) {values}", **sizes)


def unpatchify(patches: Tensor, grid: tuple[int, ...], patch: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`patchify`: (B, N, P) -> (B, C, *size)."""
    signal, tokens, values = _einops_axes(len(patch))
    sizes = {f"p{i}": step for i, step in enumerate(patch)} | {f"g{i}": n for i, n in enumerate(grid)}
    return einops.rearrange(patches, f"b ({tokens}) {values} -> b c {signal}", **sizes)


def conv_to_linear(weight: Tensor) -> Tensor:
    """Kernel of a patch embedding by convolution (D, C, *patch) -> matrix (D, P) for the values of :func:`patchify`."""
    return weight.movedim(1, -1).flatten(1)


def linear_to_conv(weight: Tensor, channels: int, patch: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`conv_to_linear`."""
    return weight.reshape(weight.shape[0], *patch, channels).movedim(-1, 1).contiguous()
