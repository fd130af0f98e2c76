"""The predictor of joint-embedding predictive architectures."""

from __future__ import annotations

from maemm.contract.options import Depth, NonNegative, Positive, PositiveInt
from maemm.model.blocks import init_normal
from maemm.model.decoders.full import Full


class Predictor(Full):
    """A narrow transformer that predicts the latents of one block of tokens from the context (I-JEPA, section 3).

    The context is projected, and a mask token for each predicted token is put beside it; class tokens are left out.
    Each row of a plan is a pass of its own, so that the blocks of a picture do not see each other, while they share
    the encoder's pass (``Plan.passes``).

    Options
        dim: width
        depth: blocks
        heads: attention heads (I-JEPA: as many as the encoder has)
        mlp_ratio: hidden width of the MLP over the width
        qkv_bias: bias of queries, keys and values
        eps: of the layer norms
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
    ):
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
        self.apply(init_normal)  # std 0.02 in all blocks, as the published training draws them anew
