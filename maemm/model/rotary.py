"""Rotary positions: attention whose queries and keys are turned by the coordinates of their tokens."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from torch import Tensor, nn

from maemm.contract import Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.positions import lattice

RotaryKind = Literal["pairs", "vjepa2"]
AnyRotary = RotaryKind | Literal["mixed"]

_MOST_TABLES = 16


def rotation_of(coords: Tensor, width: int, kind: RotaryKind) -> Tensor:
    """Coordinates (..., A) -> (2, ..., W) float32, cosines and sines for the channels of a head, sines of even channels
    with the sign that :func:`rotate` needs.

    Of the ``width`` channels each axis gets P = 2 floor(width / A / 2), in the order of the axes; the rest are not
    turned. W is ``width``, without its last channel where that is odd. Channels 2i and 2i + 1 of a part are a pair,
    with the angle x 10000^(-i / (P / 2)) (RoFormer, section 3.2.2). ``vjepa2``: channel j has the angle
    x 10000^(-(j mod P / 2) / (P / 2)), so that the members of a pair have different ones: no rotation, but what the
    weights of V-JEPA 2 were trained with (src/models/utils/modules.py says so). Computed in float64. Raises
    :class:`MaemmError` where there are less than two channels for each axis.
    """
    axes = coords.shape[-1]
    half = width // axes // 2
    if not half:
        raise MaemmError(
            f"heads of {width} channels are too narrow for rotary positions of {axes} axes; use at least {2 * axes}"
        )
    frequencies = 10000.0 ** (-torch.arange(half, dtype=torch.float64, device=coords.device) / half)
    frequencies = frequencies.repeat(2) if kind == "vjepa2" else frequencies.repeat_interleave(2)
    angles = (coords.double()[..., None] * frequencies).flatten(-2)
    angles = F.pad(angles, (0, width - width % 2 - angles.shape[-1]))
    signed = torch.stack([-angles[..., ::2].sin(), angles[..., 1::2].sin()], -1).flatten(-2)
    return torch.stack([angles.cos(), signed]).float()


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Queries or keys x (..., R, H, L, d), turned by a rotation (2, R or 1, 1 or H, L, W): in float32 also under
    autocast.

    Of a pair (a, b) with the angles s and t: (a cos s - b sin s, b cos t + a sin t).
    """
    width = rotation.shape[-1]
    cos, sin = rotation.unbind(0)
    turned = x[..., :width].to(torch.promote_types(x.dtype, rotation.dtype))
    exchanged = turned.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    turned = torch.addcmul(turned * cos, exchanged, sin).to(x.dtype)
    return turned if width == x.shape[-1] else torch.cat([turned, x[..., width:]], -1)


def _coords(tokens: Tokens, index: Tensor | None) -> Tensor:
    """Coordinates (R or 1, V, A) of the tokens ``index`` (R, V), None: of all."""
    if index is not None:
        return tokens.gather_coords(index)
    return tokens.coords if tokens.rows is None or len(tokens.coords) == 1 else tokens.coords[tokens.rows]


class Rotary(nn.Module):
    """The rotation of tokens by their coordinates, for heads ``width`` channels wide. It has no state.

    ``kind``: see :func:`rotation_of`. ``square``: tokens on a grid of three axes get the coordinates that they would
    have in frames as wide as they are high: V-JEPA 2's predictor counts so, whatever the frames.
    """

    def __init__(self, width: int, kind: RotaryKind, square: bool = False):
        super().__init__()
        self.width, self.kind, self.square = width, kind, square
        self._cache: dict[tuple[tuple[int, ...], torch.device], Tensor] = {}

    def forward(self, tokens: Tokens, index: Tensor | None) -> Tensor:
        """Tokens ``index`` (R, V), None: all of them -> their rotation (2, R or 1, 1, V, W) float32."""
        if tokens.grid is None or tokens.coords.shape[0] != 1:
            return rotation_of(_coords(tokens, index), self.width, self.kind).unsqueeze(2)
        key = (tokens.grid, tokens.coords.device)
        if key not in self._cache:  # on a grid the coordinates are the lattice: cache one table per grid and device
            if len(self._cache) >= _MOST_TABLES:
                self._cache.clear()
            self._cache[key] = rotation_of(self._coordinates(tokens), self.width, self.kind)
        table = self._cache[key]
        return (table.unsqueeze(1) if index is None else table[:, index]).unsqueeze(2)

    def _coordinates(self, tokens: Tokens) -> Tensor:
        assert tokens.grid is not None
        if not self.square or len(tokens.grid) != 3:
            return tokens.coords[0]
        frames, rows, columns = tokens.grid
        return lattice((-(-frames * columns // rows), rows, rows), tokens.coords.device)[: tokens.count]

    def of_block(self, number: int, rotation: Tensor) -> Tensor:
        """The same in every block."""
        return rotation

    def none(self, rows: int, count: int, device: torch.device) -> Tensor:
        """The rotation (2, rows, 1, count, W) of tokens without a position, such as class tokens: they stay as they
        are."""
        key = ((), device)
        if key not in self._cache:
            self._cache[key] = rotation_of(torch.zeros(1, 1, device=device), self.width, self.kind)
        return self._cache[key][:, None, None].expand(-1, rows, -1, count, -1)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_cache": {}}


class MixedRotary(nn.Module):
    """Rotations whose frequencies are learned, for each block, head and pair, along all axes at once.

    RoPE-Mixed (Heo et al. 2024, arXiv 2403.13298, section 3.2), which MAETok uses.

    The angle of a pair is the sum over the axes of coordinate times frequency; channels 2i and 2i + 1 of a head are a
    pair. ``axes``: coordinates at most; a modality with fewer uses the first ones.
    """

    def __init__(self, width: int, heads: int, depth: int, axes: int):
        super().__init__()
        self.axes = axes
        self.frequencies = nn.Parameter(_mixed_frequencies(width, heads, depth, axes))  # (A, depth, heads, pairs)

    def forward(self, tokens: Tokens, index: Tensor | None) -> Tensor:
        """Where the tokens ``index`` (R, V), None: all of them, are: (R or 1, 1, V, A), for :meth:`of_block`."""
        coords = _coords(tokens, index)
        if coords.shape[-1] > self.axes:
            raise MaemmError(
                f"rotary positions are for {self.axes} axes, these tokens have {coords.shape[-1]} (rotary_axes); set "
                f"rotary_axes to {coords.shape[-1]}"
            )
        return F.pad(coords.float(), (0, self.axes - coords.shape[-1])).unsqueeze(1)

    def of_block(self, number: int, places: Tensor) -> Tensor:
        """Places (R or 1, 1, L, A) -> the rotation of one block (2, R or 1, H, L, d) float32, as :func:`rotate` takes
        it. Differentiable; autocast does not touch it."""
        frequencies = self.frequencies[:, number, :, None]  # (A, H, 1, pairs)
        angles = sum(places[..., axis, None] * frequencies[axis] for axis in reversed(range(self.axes)))
        assert isinstance(angles, Tensor)
        cos, sin = angles.cos(), angles.sin()
        return torch.stack([torch.stack([cos, cos], -1), torch.stack([-sin, sin], -1)]).flatten(-2)

    def none(self, rows: int, count: int, device: torch.device) -> Tensor:
        """The places of tokens without a position: (rows, 1, count, A) zeros, whose rotation changes nothing."""
        return self.frequencies.new_zeros(rows, 1, count, self.axes, dtype=torch.float32)


def _mixed_frequencies(width: int, heads: int, depth: int, axes: int) -> Tensor:
    """Initial frequencies (A, depth, heads, width / 2): each head has as many orthogonal directions as there are axes,
    turned at random, and along each of them magnitudes 10^(-j / K), j = 0 .. K - 1 (published code, for two axes)."""
    count = width // 2 // axes
    if not count:
        raise MaemmError(
            f"heads of {width} channels are too narrow for rotary positions of {axes} axes; use at least {2 * axes}"
        )
    magnitudes = 10.0 ** (-torch.arange(count, dtype=torch.float32) / count)
    directions = _random_bases(depth * heads, axes)  # of each head (group, A)
    frequencies = directions.transpose(1, 2)[..., None] * magnitudes  # (depth * heads, A, group, K)
    frequencies = F.pad(frequencies.flatten(2), (0, width // 2 - axes * count))
    return frequencies.view(depth, heads, axes, width // 2).permute(2, 0, 1, 3).contiguous()


def _random_bases(count: int, axes: int) -> Tensor:
    """(count, A, A) random rotations of space, a direction in each row; one axis has the single direction 1."""
    if axes == 1:
        return torch.ones(count, 1, 1)
    if axes == 2:
        angle = torch.rand(count) * 2 * math.pi
        rows = [torch.stack([angle.sin(), angle.cos()], -1), torch.stack([angle.cos(), -angle.sin()], -1)]
        return torch.stack(rows, 1)
    return torch.stack([nn.init.orthogonal_(torch.empty(axes, axes)) for _ in range(count)])


def make_rotary(kind: AnyRotary | None, width: int, heads: int, depth: int, axes: int) -> Rotary | MixedRotary | None:
    """Rotary positions of a kind for heads ``width`` channels wide in ``depth`` blocks; None: there are none."""
    if kind is None:
        return None
    return MixedRotary(width, heads, depth, axes) if kind == "mixed" else Rotary(width, kind)


class RotaryAttention(Attention):
    """timm's attention without its options, with queries and keys turned by ``rotation`` (2, R or 1, 1 or H, L, W)."""

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, rotation: Tensor | None = None
    ) -> Tensor:
        rows, length, _ = x.shape
        qkv = self.qkv(x).reshape(rows, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        both, v = qkv[:2], qkv[2]
        q, k = (both if rotation is None else rotate(both, rotation)).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
        return self.proj(x.transpose(1, 2).reshape(rows, length, self.attn_dim))
