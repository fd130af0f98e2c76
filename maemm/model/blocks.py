"""Transformer blocks: timm's, with the options that published weights differ in."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from maemm.contract.errors import MaemmError

Init = Literal["xavier", "normal"]


def make_blocks(
    dim: int,
    depth: int,
    heads: int,
    *,
    mlp_ratio: float,
    qkv_bias: bool,
    eps: float,
    drop_path: float | Sequence[float],
    init: Init = "xavier",
) -> nn.ModuleList:
    """``depth`` pre-norm blocks. ``init``: how linear layers start, see :func:`init_linear` and :func:`init_normal`.

    ``drop_path``: the last block's rate, to which it grows linearly from 0, or the rate of every block.
    """
    grows = isinstance(drop_path, float | int)
    rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)] if grows else drop_path
    norm = partial(nn.LayerNorm, eps=eps)
    blocks = nn.ModuleList(
        Block(dim, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, drop_path=rate, norm_layer=norm) for rate in rates
    )
    blocks.apply(init_normal if init == "normal" else init_linear)
    return blocks


def init_linear(module: nn.Module) -> None:
    """Xavier uniform weights and zero bias for every linear layer (MAE, published code)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_normal(module: nn.Module) -> None:
    """Truncated normal weights of deviation 0.02 and zero bias for every linear layer (Point-MAE, published code).

    A narrow encoder then begins close to passing its tokens on, where Xavier's weights add much that all tokens share.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def key_mask(valid: list[Tensor | None], lengths: list[int], rows: int, device: torch.device) -> Tensor | None:
    """Validity of parts of a sequence -> attention mask (R, 1, 1, L), True where a key may be seen; None if all may.

    In a row without a valid key all may be seen: nothing is made of such rows, but they must stay finite.
    """
    if all(part is None for part in valid):
        return None
    whole = [
        torch.ones(rows, length, dtype=torch.bool, device=device) if part is None else part
        for part, length in zip(valid, lengths, strict=True)
    ]
    seen = torch.cat(whole, dim=1)
    return (seen | ~seen.any(1, keepdim=True))[:, None, None, :]


def check_width(dim: int, heads: int, where: str) -> None:
    """Raises :class:`MaemmError` where heads do not divide the width."""
    if heads < 1 or dim < 1 or dim % heads:
        raise MaemmError(f"width {dim} is not a multiple of {heads} heads ({where}.heads); choose a divisor")


def register_position(module: nn.Module, kind: str, count: int, dim: int) -> None:
    """``module.prefix_position`` (1, count, dim): None, a zero buffer, or a parameter."""
    if kind == "fixed":
        del module.prefix_position
        module.register_buffer("prefix_position", torch.zeros(1, count, dim))
    elif kind == "learned":
        module.prefix_position = nn.Parameter(torch.randn(1, count, dim) * 0.02)
