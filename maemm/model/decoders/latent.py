"""The decoder of latent tokens: all that it knows of a sample is in them (MAETok)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from maemm.contract import Decoder, Encoder, Latents, Modality, ModalityInput
from maemm.contract.errors import MaemmError
from maemm.contract.options import Depth, NonNegative, Positive, PositiveInt, Rate
from maemm.model.blocks import BlockInit, check_width, init_linear, key_mask, make_blocks, select
from maemm.model.encoders.vit import MOST_PREFIX, Axes
from maemm.model.rotary import AnyRotary, make_rotary


class LatentDecoder(Decoder):
    """A mask token for every token of the signal, and the latent tokens, projected to its width, behind them (MAETok:
    Chen et al. 2025, arXiv 2502.03444, section 3).

    Every token is decoded, visible or not, and what the plan predicts is taken from them: the latents decide the
    result, and no mask does. The signal of latents alone is :meth:`maemm.Model.decode`.

    Options
        dim: width
        depth: blocks
        heads: attention heads
        mlp_ratio: hidden width of the MLP over the width
        qkv_bias: bias of queries, keys and values
        eps: of the layer norms
        prefix: learned class tokens of its own in front of the sequence
        init: initial weights of linear layers in blocks, as in the encoder vit
        layer_scale: initial value of learned factors of the channels behind attention and MLP; null: none
        drop_path: rate of the last block, growing linearly from 0
        rotary: positions of the mask tokens inside attention, beside those of the modality (decoder_position: none
            leaves them out): pairs, mixed or vjepa2, see the encoder vit; null: none
        rotary_axes: with rotary mixed: axes of the tokens' coordinates, 2 for pictures
        head_scale: factor of the heads' initial weights (Xavier), see the decoder full
    """

    encoder_options = {"type": "latent"}
    reads_latent_tokens = True

    def __init__(
        self,
        outputs: dict[str, int],
        encoder_dim: int,
        prefix_count: int,
        *,
        dim: PositiveInt = 768,
        depth: Depth = 12,
        heads: PositiveInt = 12,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = True,
        eps: NonNegative = 1e-6,
        prefix: Annotated[int, Ge(0), Le(MOST_PREFIX)] = 1,
        init: BlockInit = "xavier",
        layer_scale: Positive | None = None,
        drop_path: Rate = 0.0,
        rotary: AnyRotary | None = None,
        rotary_axes: Axes = 2,
        head_scale: NonNegative = 1.0,
    ):
        super().__init__()
        check_width(dim, heads, "decoder", mlp_ratio)
        self.dim = self.decoded_dim = dim
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.prefix = nn.Parameter(torch.randn(1, prefix, dim) * 0.02) if prefix else None
        self.blocks = make_blocks(
            dim,
            depth,
            heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            eps=eps,
            drop_path=drop_path,
            init=init,
            layer_scale=layer_scale,
            rotary=rotary is not None,
        )
        self.rotary = make_rotary(rotary, dim // heads, heads, depth, rotary_axes)
        self.norm = nn.LayerNorm(dim, eps=eps)
        linears = {name: nn.Linear(dim, size) for name, size in outputs.items()}
        self.heads = nn.ModuleDict(linears)
        self.heads.apply(init_linear)
        with torch.no_grad():
            for linear in linears.values():
                linear.weight.mul_(head_scale)
        if len(outputs) > 1:
            self.vectors = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in outputs})

    def connect(self, encoder: Encoder) -> None:
        """Make the projection of its latents, and their positions. Raises :class:`MaemmError` where it has none."""
        if encoder.latent_shape is None or self.dim is None:
            raise MaemmError(
                f"decoder latent reads latent tokens, and {type(encoder).__name__} has none (encoder.type); set "
                "encoder.type=latent, or choose another decoder"
            )
        count, width = encoder.latent_shape
        self.project = nn.Linear(width, self.dim)
        init_linear(self.project)
        self.latent_positions = nn.Parameter(torch.randn(1, count, self.dim) * 0.02)

    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, Tensor]:
        codes = self.project(next(iter(latents.latent_tokens.values())))
        rows, dtype = len(codes), codes.dtype
        parts: list[Tensor] = []
        valid: list[Tensor | None] = []
        if self.prefix is not None:
            parts.append(self.prefix.to(dtype).expand(rows, -1, -1))
            valid.append(None)
        for name, x in inputs.items():
            position = modalities[name].position(x.tokens, x.tokens.all_indices(), "decoder").to(dtype)
            vector = self.vectors[name].to(dtype) if hasattr(self, "vectors") else 0
            parts.append((self.mask_token.to(dtype) + vector + position).expand(rows, -1, -1))
            own, of_row = x.tokens.valid, x.tokens.rows
            valid.append(own if own is None or of_row is None else own[of_row])
        parts.append(codes + self.latent_positions.to(dtype))
        lengths = [part.shape[1] for part in parts]
        sequence, mask = torch.cat(parts, 1), key_mask([*valid, None], lengths, rows, codes.device)
        for block, options in zip(self.blocks, self._rotations(inputs), strict=True):
            sequence = block(sequence, attn_mask=mask, **options)
        decoded = dict(zip(inputs, sequence.split(lengths, dim=1)[self.prefix is not None : -1], strict=True))
        decoded = {name: select(part, inputs[name].plan.predict) for name, part in decoded.items()}
        latents.decoded = {name: self.norm(part) for name, part in decoded.items()}
        return {name: self.heads[name](part) for name, part in latents.decoded.items()}

    def _rotations(self, inputs: dict[str, ModalityInput]) -> list[dict[str, Tensor]]:
        """For each block {"rotation": that of the sequence}, in which class and latent tokens stay as they are; {}
        without rotary positions."""
        if self.rotary is None:
            return [{} for _ in self.blocks]
        parts = [self.rotary(x.tokens, None) for x in inputs.values()]
        rows = max(part.shape[-4] for part in parts)
        parts = [part.expand(*part.shape[:-4], rows, *part.shape[-3:]) for part in parts]
        counts = (0 if self.prefix is None else self.prefix.shape[1], self.latent_positions.shape[1])
        prefix, latents = (self.rotary.none(rows, count, parts[0].device) for count in counts)
        places = torch.cat([prefix, *parts, latents], -2)
        return [{"rotation": self.rotary.of_block(number, places)} for number in range(len(self.blocks))]
