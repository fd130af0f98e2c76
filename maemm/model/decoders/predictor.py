"""The predictor of joint-embedding predictive architectures."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Ge, Le
from torch import nn

from maemm.contract.errors import MaemmError
from maemm.contract.options import Depth, NonNegative, Positive, PositiveInt
from maemm.model.blocks import init_normal, make_blocks, scale_by_depth
from maemm.model.decoders.full import Full
from maemm.model.rotary import Rotary, RotaryKind

MOST_MASK_TOKENS = 1000  # published files have up to ten


class Predictor(Full):
    """A narrow transformer that predicts the latents of tokens from the context (I-JEPA, section 3; V-JEPA 2).

    The context is projected, and a mask token for each predicted token is put beside it; class tokens are left out.
    Each row of a plan is a pass of its own, so that the blocks of a picture do not see each other, while they share
    the encoder's pass (``Plan.passes``). Published code sorts context and mask tokens by their places, here they stay
    in the order of the lists: attention does not depend on it.

    Options
        dim: width
        depth: blocks
        heads: attention heads (I-JEPA: as many as the encoder has)
        mlp_ratio: hidden width of the MLP over the width
        qkv_bias: bias of queries, keys and values
        eps: of the layer norms
        init: initial weights of linear layers: normal with std 0.02 (I-JEPA), or normal_by_depth: in block
            i those of the last layers of attention and MLP are divided by sqrt(2 i) (V-JEPA 2)
        rotary: positions inside attention, as in the encoder vit: pairs or vjepa2; null: none
        square_frames: rotary positions as V-JEPA 2's predictor counts them, in frames as wide as they are high: wrong
            on others, for its weights only
        mask_tokens: mask tokens in the file. The first is used; V-JEPA 2 has one for each length of clips, of which a
            training has one, and the others stay as they are
        mask_init: initial mask tokens: normal with std 0.02, or zeros (V-JEPA 2)
    """

    def __init__(
        self,
        outputs: dict[str, int],
        encoder_dim: int,
        prefix_count: int,
        *,
        dim: PositiveInt = 384,
        depth: Depth = 12,
        heads: PositiveInt = 12,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = True,
        eps: NonNegative = 1e-6,
        init: Literal["normal", "normal_by_depth"] = "normal",
        rotary: RotaryKind | None = None,
        square_frames: bool = False,
        mask_tokens: Annotated[int, Ge(1), Le(MOST_MASK_TOKENS)] = 1,
        mask_init: Literal["normal", "zeros"] = "normal",
    ):
        if square_frames and rotary is None:
            raise MaemmError(
                "square_frames is about rotary positions (decoder.square_frames); set decoder.rotary, or leave it out"
            )
        super().__init__(
            outputs,
            encoder_dim,
            prefix_count,
            dim=dim,
            depth=depth,
            heads=heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            eps=eps,
            prefix="none",
        )
        if rotary is not None:
            self.rotary = Rotary(dim // heads, rotary, square_frames)
            self.blocks = make_blocks(
                dim, depth, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, eps=eps, drop_path=0.0, rotary=True
            )
        self.apply(init_normal)
        if init == "normal_by_depth":
            scale_by_depth(self.blocks)
        if mask_tokens > 1:
            others = torch.randn(mask_tokens - 1, 1, dim) * 0.02
            self.other_mask_tokens = nn.Parameter(others, requires_grad=False)
        if mask_init == "zeros":
            nn.init.zeros_(self.mask_token)
            if mask_tokens > 1:
                nn.init.zeros_(self.other_mask_tokens)
