"""timm's transformer blocks, with the options in which published weights differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from maemm.contract.errors import MaemmError
from maemm.model.rotary import RotaryAttention, rotate

Init = Literal["xavier", "normal"]
BlockInit = Literal["xavier", "xavier_qkv", "normal", "normal_by_depth"]
BlockNorm = Literal["pre", "post"]
QkvBias = bool | Literal["no_key"]


class PostNormBlock(Block):
    """A block whose layer norms stand behind the residuals, as in the first transformers (data2vec 2.0).

    x = norm1(x + attention(x)), then norm2(x + mlp(x)).
    """

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, **options: Any) -> Tensor:
        return with_ffn(self, x, attn_mask, is_causal, **options)[0]


class RotaryBlock(Block):
    """A block whose attention reads a ``rotation``, see :class:`maemm.model.rotary.RotaryAttention`."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, **options: Any) -> Tensor:
        return with_ffn(self, x, attn_mask, is_causal, **options)[0]


class NoKeyBias(nn.Linear):
    """Queries, keys and values, of which keys have no bias (BEiT): it would add the same to all scores of a query."""

    def __init__(self, dim: int):
        super().__init__(dim, 3 * dim, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))

    def whole_bias(self) -> Tensor:
        """(3 dim,)."""
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.whole_bias())


def with_ffn(
    block: Block, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, **options: Any
) -> tuple[Tensor, Tensor]:
    """What a block makes of x (R, L, D), and the output of its MLP before the residual, which data2vec predicts.

    ``options`` are those of its attention, such as a ``rotation``.
    """
    post = isinstance(block, PostNormBlock)
    attended = block.attn(x if post else block.norm1(x), attn_mask=attn_mask, is_causal=is_causal, **options)
    x = x + block.drop_path1(block.ls1(attended))
    x = block.norm1(x) if post else x
    ffn = block.mlp(x if post else block.norm2(x))
    x = x + block.drop_path2(block.ls2(ffn))
    return (block.norm2(x) if post else x), ffn


def queries_and_keys(block: Any, x: Tensor, rotation: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What the attention of a block compares for its input x (R, L, D): (R, H, L, d) each, the queries scaled.

    ``rotation``: by their positions, see :class:`maemm.model.rotary.RotaryAttention`.
    """
    attention = block.attn
    x = x if isinstance(block, PostNormBlock) else block.norm1(x)
    qkv = attention.qkv
    weight, bias = qkv.weight, qkv.whole_bias() if isinstance(qkv, NoKeyBias) else qkv.bias
    size = 2 * attention.num_heads * attention.head_dim  # values, the last third, are not needed
    both = nn.functional.linear(x, weight[:size], None if bias is None else bias[:size])
    queries, keys = both.view(*x.shape[:2], 2, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    queries, keys = attention.q_norm(queries), attention.k_norm(keys)
    if rotation is not None:
        queries, keys = rotate(queries, rotation), rotate(keys, rotation)
    return queries * attention.scale, keys


def attention_received(queries: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
    """:func:`queries_and_keys` -> (R, L): the weight of each key, mean over heads and queries.

    ``mask``: bool, True where keys are attended to, or added to the scores.
    """
    scores = queries @ keys.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.float().softmax(-1).mean((1, 2))


def make_blocks(
    dim: int,
    depth: int,
    heads: int,
    *,
    mlp_ratio: float,
    qkv_bias: QkvBias,
    eps: float,
    drop_path: float | Sequence[float],
    init: BlockInit = "xavier",
    block_norm: BlockNorm = "pre",
    layer_scale: float | None = None,
    rotary: bool = False,
) -> nn.ModuleList:
    """``depth`` blocks (R, L, dim) -> (R, L, dim), whose norms stand before attention and MLP or behind them.

    ``drop_path``: the rate of the last block, rates grow linearly from 0; or the rate of each block. ``init``: how
    linear layers are initialised, by :func:`init_linear` ("xavier", for queries, keys and values each by itself
    "xavier_qkv") or :func:`init_normal`, then by :func:`scale_by_depth` ("normal_by_depth"). ``layer_scale``:
    initial value of a learned factor of each channel behind attention and MLP; None: there is none.
    ``rotary``: blocks whose attention reads a ``rotation``.
    ``qkv_bias``: of queries, keys and values, or ("no_key") of queries and values, see :class:`NoKeyBias`.
    """
    rates = drop_path
    if isinstance(rates, float | int):
        rates = [rates * i / max(depth - 1, 1) for i in range(depth)]
    norm: Any = partial(nn.LayerNorm, eps=eps)  # timm says type[nn.Module]
    kind = PostNormBlock if block_norm == "post" else RotaryBlock if rotary else Block
    attention: dict[str, Any] = {"attn_layer": RotaryAttention} if rotary else {}
    blocks = nn.ModuleList(
        kind(
            dim,
            heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=bool(qkv_bias),
            drop_path=rate,
            norm_layer=norm,
            init_values=layer_scale,
            **attention,
        )
        for rate in rates
    )
    if qkv_bias == "no_key":
        for block in blocks:
            block.attn.qkv = NoKeyBias(dim)  # type: ignore[union-attr]
    blocks.apply(init_linear if init in ("xavier", "xavier_qkv") else init_normal)
    if init == "xavier_qkv":
        for block in blocks:
            init_parts(block.attn.qkv, 3)  # type: ignore[union-attr, arg-type]
    if init == "normal_by_depth":
        scale_by_depth(blocks)
    return blocks


@torch.no_grad()
def scale_by_depth(blocks: nn.ModuleList) -> None:
    """Divide the weights of the last layers of attention and MLP of the i-th block, from 1, by sqrt(2 i).

    The residuals of all blocks then have equal shares of the output (BEiT, section 2.5; I-JEPA and V-JEPA 2).
    """
    for number, block in enumerate(blocks, start=1):
        last: list[Any] = [block.attn.proj, block.mlp.fc2]  # type: ignore[union-attr]
        for layer in last:
            layer.weight.div_(math.sqrt(2.0 * number))


def init_linear(module: nn.Module) -> None:
    """Xavier uniform weights and zero bias if ``module`` is a linear layer (MAE, published code)."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@torch.no_grad()
def init_parts(linear: nn.Linear, parts: int) -> None:
    """Xavier uniform weights of a layer that is ``parts`` layers of equal width, such as queries, keys and values."""
    for part in linear.weight.chunk(parts):
        nn.init.xavier_uniform_(part)


def init_normal(module: nn.Module) -> None:
    """Truncated normal weights (std 0.02) and zero bias if ``module`` is a linear layer (Point-MAE, published code).

    The blocks of a narrow encoder then start close to the identity; Xavier's larger weights add a large component that
    all tokens share.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def select(x: Tensor, index: Tensor) -> Tensor:
    """The tokens ``index`` (R, V) of x (R, N, D): (R, V, D)."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def key_mask(valid: list[Tensor | None], lengths: list[int], rows: int, device: torch.device) -> Tensor | None:
    """Attention mask (R, 1, 1, L) bool, True where a key may be attended to; None if all keys may be.

    ``valid``: for each part of the sequence (R, length) bool, or None if all of its tokens are valid. In a row without
    a valid key all may be attended to: the output of such rows is not used, but must be finite.
    """
    if all(part is None for part in valid):
        return None
    parts = [
        torch.ones(rows, length, dtype=torch.bool, device=device) if part is None else part
        for part, length in zip(valid, lengths, strict=True)
    ]
    visible = torch.cat(parts, dim=1)
    return (visible | ~visible.any(1, keepdim=True))[:, None, None, :]


def check_width(dim: int, heads: int, where: str, mlp_ratio: float = 1.0) -> None:
    """Raise :class:`MaemmError` where the heads do not divide the width, or the MLP of a block has no hidden unit."""
    if dim % heads:
        raise MaemmError(f"width {dim} is not a multiple of {heads} heads ({where}.heads); choose a divisor")
    if int(dim * mlp_ratio) < 1:
        raise MaemmError(f"an mlp_ratio of {mlp_ratio:g} leaves no hidden unit ({where}.mlp_ratio); raise it")


def register_position(module: nn.Module, kind: str, count: int, dim: int) -> None:
    """Set ``module.prefix_position`` (1, count, dim): a zero buffer ("fixed"), a parameter ("learned"), or leave it."""
    if kind == "fixed":
        del module.prefix_position
        module.register_buffer("prefix_position", torch.zeros(1, count, dim))
    elif kind == "learned":
        module.prefix_position = nn.Parameter(torch.randn(1, count, dim) * 0.02)
