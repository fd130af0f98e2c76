"""Attention from queries to a context, for decoders whose mask tokens only read what the encoder has seen."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from maemm.model.blocks import init_linear, init_parts


class CrossAttention(nn.Module):
    """Queries (R, Q, dim) attend to a context (R, K, context_dim): (R, Q, dim). Softmax of scaled products, H heads."""

    def __init__(self, dim: int, heads: int, *, context_dim: int | None = None, qkv_bias: bool = True):
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim if context_dim is None else context_dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.apply(init_linear)

    def init_separately(self) -> None:
        """Initial weights of keys and of values each by itself (MultiMAE)."""
        init_parts(self.kv, 2)

    def forward(self, queries: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """``mask``: (R, 1, 1, K) bool, True where the context may be attended to; None: everywhere."""
        rows, count, dim = queries.shape
        width = dim // self.heads
        q = self.q(queries).view(rows, count, self.heads, width).transpose(1, 2)
        keys, values = self.kv(context).view(rows, -1, 2, self.heads, width).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return self.proj(attended.transpose(1, 2).reshape(rows, count, dim))
