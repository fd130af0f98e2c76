"""A decoder whose mask tokens read the encoder's features and never each other (CrossMAE)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from timm.layers.mlp import Mlp
from torch import Tensor, nn

from maemm.contract import Decoder, Encoder, Latents, Modality, ModalityInput
from maemm.contract.errors import MaemmError
from maemm.contract.options import Depth, NonNegative, Positive, PositiveInt
from maemm.model.blocks import check_width, init_linear, key_mask
from maemm.model.cross_attention import CrossAttention


class CrossMAE(Decoder):
    """Mask tokens attend to the encoder's features in every block, and not to each other (Fu et al. 2024, arXiv
    2401.14391, section 3; models_cross.py).

    Each prediction is by itself, so that only a part of the hidden tokens needs to be predicted (``predict_some``). A
    block is ``x + attention(norm(x), features)``, then ``x + MLP(norm(x))``. Keys and values are made
    of the encoder's width at once. With ``layers: weighted`` every block has its own learned mix of what enters the
    encoder's first block and of what every block gives, class tokens among them and without the encoder's final norm,
    and its own norm of it; with ``last`` all read the encoder's output. Features have no position in the decoder.

    Options
        dim: width
        depth: blocks
        heads: attention heads
        mlp_ratio: hidden width of the MLPs over the width
        qkv_bias: bias of queries, keys and values
        eps: of the layer norms
        layers: weighted: mixes of all layers of the encoder, one for each block; last: its output
    """

    def __init__(
        self,
        outputs: dict[str, int],
        encoder_dim: int,
        prefix_count: int,
        *,
        dim: PositiveInt = 512,
        depth: Depth = 12,
        heads: PositiveInt = 16,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = True,
        eps: NonNegative = 1e-6,
        layers: Literal["weighted", "last"] = "weighted",
    ):
        super().__init__()
        check_width(dim, heads, "decoder", mlp_ratio)
        self.dim = self.decoded_dim = dim
        self.weighted, self.depth, self.encoder_dim, self.eps = layers == "weighted", depth, encoder_dim, eps
        norm: Any = partial(nn.LayerNorm, eps=eps)
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.ModuleList(
            _Block(dim, heads, encoder_dim, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, norm=norm) for _ in range(depth)
        )
        self.norm = norm(dim)
        self.heads = nn.ModuleDict({name: nn.Linear(dim, size) for name, size in outputs.items() if size})
        self.heads.apply(init_linear)
        if len(outputs) > 1:
            self.vectors = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in outputs})

    def connect(self, encoder: Encoder) -> None:
        """A weight for each layer of the encoder in each block, and a norm of the mix."""
        if not self.weighted:
            return
        count = len(getattr(encoder, "blocks", ()))
        if not count:
            raise MaemmError(
                f"decoder crossmae weighs the blocks of the encoder, and {type(encoder).__name__} has none of its own "
                "(decoder.layers); set decoder.layers=last, or choose encoder vit"
            )
        self.encoder_layers = tuple(range(-1, count))
        self.mix = nn.Parameter(torch.randn(self.depth, count + 1) / (count + 1) ** 0.5)
        self.mix_norms = nn.ModuleList(nn.LayerNorm(self.encoder_dim, eps=self.eps) for _ in range(self.depth))

    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, Tensor]:
        if self.weighted:
            parts = [
                [*latents.prefix_layers[layer].values(), *(latents.layers[layer][name] for name in inputs)]
                for layer in self.encoder_layers
            ]
        else:
            parts = [[*latents.prefix.values(), *(latents.tokens[name] for name in inputs)]]
        features = torch.stack([torch.cat(of, 1) for of in parts])  # (layers, R, K, D)
        lengths = [part.shape[1] for part in parts[0]]
        valid = [*(None for _ in latents.prefix), *(x.plan.visible_valid for x in inputs.values())]
        mask = key_mask(valid, lengths, features.shape[1], features.device)
        names = [name for name in inputs if name in self.heads]
        queries = [self._queries(name, inputs[name], modalities[name], features) for name in names]
        x = torch.cat(queries, 1)
        for number, block in enumerate(self.blocks):
            x = block(x, self._context(features, number), mask)
        decoded = self.norm(x).split([part.shape[1] for part in queries], 1)
        latents.decoded = dict(zip(names, decoded, strict=True))
        return {name: self.heads[name](part) for name, part in latents.decoded.items()}

    def _queries(self, name: str, inputs: ModalityInput, modality: Modality, features: Tensor) -> Tensor:
        """A mask token for each predicted token, with its position and the vector of its modality (R, M, dim)."""
        index = inputs.plan.predict
        x = self.mask_token.to(features.dtype).expand(*index.shape, -1)
        x = x + modality.position(inputs.tokens, index, "decoder").to(x.dtype)
        return x + self.vectors[name].to(x.dtype) if hasattr(self, "vectors") else x

    def _context(self, features: Tensor, number: int) -> Tensor:
        """What a block reads of the layers (layers, R, K, D): (R, K, D)."""
        if not self.weighted:
            return features[0]
        mixed = torch.tensordot(self.mix[number].to(features.dtype), features, 1)
        return self.mix_norms[number](mixed)


class _Block(nn.Module):
    """Attention to the features, then an MLP, each behind a norm and with a residual."""

    def __init__(self, dim: int, heads: int, encoder_dim: int, *, mlp_ratio: float, qkv_bias: bool, norm: Any):
        super().__init__()
        self.norm1, self.norm2 = norm(dim), norm(dim)
        self.attention = CrossAttention(dim, heads, context_dim=encoder_dim, qkv_bias=qkv_bias)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.mlp.apply(init_linear)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """x (R, M, dim), context (R, K, D) -> (R, M, dim)."""
        x = x + self.attention(self.norm1(x), context, mask)
        return x + self.mlp(self.norm2(x))
