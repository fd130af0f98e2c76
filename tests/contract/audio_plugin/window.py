"""A decoder of shifted windows over the token lattice (AudioMAE's local decoder)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from timm.models.swin_transformer_v2_cr import SwinTransformerV2CrBlock
from torch import Tensor, nn

from maemm.contract import Decoder, Latents, MaskedInput


class Window(Decoder):
    """Fill the lattice with mask tokens, put visible ones in place, attend in windows that shift in every 2nd block.

    Prefix tokens have no place on a lattice and are dropped. Needs tokens on a grid of two axes.

    Options
        dim: width
        depth: blocks
        heads: attention heads
        window: tokens of a window along each axis
        shift: of the windows in odd blocks
        mlp_ratio: hidden width of the MLP over the width
        eps: of the layer norms
    """

    def __init__(
        self,
        outputs: dict[str, int],
        encoder_dim: int,
        prefix_count: int,
        *,
        dim: int = 512,
        depth: int = 16,
        heads: int = 16,
        window: Sequence[int] = (4, 4),
        shift: Sequence[int] = (2, 0),
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
    ):
        super().__init__()
        self.dim = dim
        self.project = nn.Linear(encoder_dim, dim)
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.ModuleList(
            SwinTransformerV2CrBlock(
                dim, heads, feat_size=tuple(window), window_size=tuple(window), always_partition=True,
                dynamic_mask=True, mlp_ratio=mlp_ratio, init_values=None, norm_layer=partial(nn.LayerNorm, eps=eps),
            )
            for _ in range(depth)
        )  # fmt: skip
        for number, block in enumerate(self.blocks):
            block.shift_size = tuple(shift) if number % 2 else (0, 0)  # the constructor knows half windows alone
            block.attn.meta_mlp.drop1.p = 0.1
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.heads = nn.ModuleDict({name: nn.Linear(dim, size) for name, size in outputs.items()})

    def forward(self, latents: Latents, inputs: dict[str, MaskedInput]) -> dict[str, Tensor]:
        return {name: self._one(latents.tokens[name], one, self.heads[name]) for name, one in inputs.items()}

    def _one(self, seen: Tensor, one: MaskedInput, head: nn.Module) -> Tensor:
        seen, every = self.project(seen), one.tokens.everything()
        place = one.plan.visible[..., None].expand_as(seen)
        x = self.mask_token.to(seen.dtype).expand(*every.shape, -1).scatter(1, place, seen)
        x = (x + one.position(every, "decoder").to(x.dtype)).unflatten(1, one.tokens.grid)
        for block in self.blocks:
            x = block(x)
        x = x.flatten(1, 2)
        return head(self.norm(x.gather(1, one.plan.predict[..., None].expand(-1, -1, self.dim))))
