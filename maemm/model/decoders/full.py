"""The plain decoder: full self-attention over prefix, visible and mask tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from maemm.contract import Decoder, Latents, Modality, ModalityInput
from maemm.contract.errors import MaemmError
from maemm.contract.options import Depth, NonNegative, Positive, PositiveInt, Rate
from maemm.model.blocks import check_width, init_linear, key_mask, make_blocks, register_position
from maemm.model.precision import under_autocast
from maemm.model.rotary import Rotary


class Full(Decoder):
    """Project latents, append one mask token per predicted token, add positions, run blocks (MAE, section 3).

    Tokens stay in the order [prefix, visible, mask tokens] (attention does not depend on their order), positions are
    gathered by index, and the last norm and the heads run on predicted tokens only.

    Options
        dim: width
        depth: blocks
        heads: attention heads
        mlp_ratio: hidden width of the MLP over the width
        qkv_bias: bias of queries, keys and values
        eps: of the layer norms
        norm_eps: of the last norm; null: the same as eps (transformers' VideoMAE differs)
        prefix: class tokens: from_encoder: those of the encoder, projected; own: learned ones; none
        prefix_position: position of the class tokens: none, fixed (stored, not trained) or learned
        project: linear, linear without bias ("no_bias"), or none where the widths are equal
        position_every_block: add positions before every block instead of once (Point-MAE)
        drop_path: rate of the last block, growing linearly from 0
        head_scale: factor of the heads' initial weights (Xavier). Small targets need small initial predictions:
            otherwise the first gradients are a thousand times the later ones, stay in Adam's moments, and the encoder
            hardly learns
    """

    residual: torch.dtype | None = None  # of the sums between blocks under autocast; None: that of the projection
    takes_condition, keep_visible = True, False

    def __init__(
        self,
        outputs: dict[str, int],
        encoder_dim: int,
        prefix_count: int,
        *,
        dim: PositiveInt = 512,
        depth: Depth = 8,
        heads: PositiveInt = 16,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = True,
        eps: NonNegative = 1e-6,
        norm_eps: NonNegative | None = None,
        prefix: Literal["from_encoder", "own", "none"] = "from_encoder",
        prefix_position: Literal["none", "fixed", "learned"] = "none",
        project: Literal["linear", "no_bias", "none"] = "linear",
        position_every_block: bool = False,
        drop_path: Rate = 0.0,
        head_scale: NonNegative = 1.0,
    ):
        super().__init__()
        check_width(dim, heads, "decoder", mlp_ratio)
        if project == "none" and dim != encoder_dim:
            raise MaemmError(
                f"the decoder is {dim} wide, the encoder {encoder_dim} (decoder.project: none); "
                f"set decoder.dim={encoder_dim}, or decoder.project=linear"
            )
        self.dim = self.decoded_dim = dim
        self.prefix_kind, self.position_every_block = prefix, position_every_block
        self.rotary: Rotary | None = None  # positions inside attention, which the predictor may have
        self.project = nn.Identity() if project == "none" else nn.Linear(encoder_dim, dim, bias=project == "linear")
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = make_blocks(
            dim, depth, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, eps=eps, drop_path=drop_path
        )
        self.norm = nn.LayerNorm(dim, eps=eps if norm_eps is None else norm_eps)
        linears = {name: nn.Linear(dim, size) for name, size in outputs.items() if size}
        self.heads = nn.ModuleDict(linears)
        self.heads.apply(init_linear)
        with torch.no_grad():
            for linear in linears.values():
                linear.weight.mul_(head_scale)
        self.project.apply(init_linear)
        self.prefix, self.prefix_position = None, None
        count = 0 if prefix == "none" else prefix_count or int(prefix == "own")
        if prefix == "own":
            self.prefix = nn.Parameter(torch.randn(1, count, dim) * 0.02)
        if count:
            register_position(self, prefix_position, count, dim)
        if len(outputs) > 1:
            self.vectors = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in outputs})

    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, Tensor]:
        parts, positions, valid = self._prefix(latents)
        for name, modality_input in inputs.items():
            tokens, plan = modality_input.tokens, modality_input.plan
            visible = under_autocast(self.project(latents.tokens[name]), self.residual)
            masked = self.mask_token.to(visible.dtype).expand(visible.shape[0], plan.predict.shape[1], -1)
            masked_position = latents.positions.get(name)
            if masked_position is None:
                masked_position = modalities[name].position(tokens, plan.predict, "decoder")
            vector = self.vectors[name] if hasattr(self, "vectors") else 0
            if name in latents.condition:
                vector = vector + latents.condition[name].to(visible.dtype)
            parts += [visible + vector, masked + vector]
            visible_position = modalities[name].position(tokens, plan.visible, "decoder")
            positions += [visible_position.expand_as(visible), masked_position.expand_as(masked)]
            valid += [plan.visible_valid, plan.predict_valid]
        lengths = [part.shape[1] for part in parts]
        x, position = torch.cat(parts, 1), torch.cat([part.to(parts[0].dtype) for part in positions], 1)
        mask = key_mask(valid, lengths, x.shape[0], x.device)
        x = x if self.position_every_block else x + position
        options = self._rotation(inputs)
        for block in self.blocks:
            x = block(x + position if self.position_every_block else x, attn_mask=mask, **options)
        sections = x.split(lengths, dim=1)[len(lengths) - 2 * len(inputs) :]
        predicted = sections[1::2]
        if self.keep_visible:
            latents.decoded_visible = {n: self.norm(part) for n, part in zip(inputs, sections[::2], strict=True)}
        latents.decoded = {
            name: self.norm(part) for name, part in zip(inputs, predicted, strict=True) if name in self.heads
        }
        return {name: self.heads[name](part) for name, part in latents.decoded.items()}

    def _rotation(self, inputs: dict[str, ModalityInput]) -> dict[str, Tensor]:
        """{"rotation": that of visible and mask tokens (2, R, 1, L, W)}; {} without rotary positions."""
        if self.rotary is None:
            return {}
        parts = [self.rotary(x.tokens, index) for x in inputs.values() for index in (x.plan.visible, x.plan.predict)]
        return {"rotation": torch.cat(parts, 3)}

    def _prefix(self, latents: Latents) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
        """([class tokens], [their positions], [validity]), empty lists without class tokens."""
        if self.prefix_kind == "none" or (self.prefix is None and not latents.prefix):
            return [], [], []
        rows = next(iter(latents.tokens.values())).shape[0]
        if self.prefix is not None:
            prefix = self.prefix.expand(rows, -1, -1)
        else:
            prefix = torch.cat([self.project(part) for part in latents.prefix.values()], 1)
        position = torch.zeros_like(prefix) if self.prefix_position is None else self.prefix_position.expand_as(prefix)
        return [prefix], [position], [None]
