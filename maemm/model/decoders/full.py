"""The plain decoder: full attention over prefix, visible and mask tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from maemm.contract import Decoder, Latents, Modality, ModalityInput
from maemm.model.blocks import check_width, init_linear, key_mask, make_blocks, register_position


class Full(Decoder):
    """Project latents, append one mask token per predicted token, add positions, run blocks (MAE, section 3).

    Tokens are a set: they stay in the order [prefix, visible, mask tokens], positions are gathered by index, and
    the last norm and the heads run on predicted tokens only.

    Options
        dim: width
        depth: blocks
        heads: attention heads
        mlp_ratio: hidden width of the MLP over the width
        qkv_bias: bias of queries, keys and values
        eps: of the layer norms
        norm_eps: of the last norm; null: like eps (transformers' VideoMAE differs)
        prefix: from_encoder: the encoder's class tokens, projected; own: learned ones; none
        prefix_position: position of the class tokens: none, fixed (stored, not trained) or learned
        project: linear, linear without bias ("no_bias"), or none where the widths are equal
        position_every_block: add positions before every block instead of once (Point-MAE)
        drop_path: rate of the last block, growing linearly from 0
        head_scale: of the heads' first weights, times Xavier's. Where targets are small, predictions must begin small:
            first gradients a thousand times the later ones stay in Adam's memory and leave the encoder unmoved
    """

    def __init__(
        self,
        outputs: dict[str, int],
        encoder_dim: int,
        prefix_count: int,
        *,
        dim: int = 512,
        depth: int = 8,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        norm_eps: float | None = None,
        prefix: Literal["from_encoder", "own", "none"] = "from_encoder",
        prefix_position: Literal["none", "fixed", "learned"] = "none",
        project: Literal["linear", "no_bias", "none"] = "linear",
        position_every_block: bool = False,
        drop_path: float = 0.0,
        head_scale: float = 1.0,
    ):
        super().__init__()
        check_width(dim, heads, "decoder")
        self.dim, self.prefix_kind, self.position_every_block = dim, prefix, position_every_block
        self.project = nn.Identity() if project == "none" else nn.Linear(encoder_dim, dim, bias=project == "linear")
        self.mask_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = make_blocks(
            dim, depth, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, eps=eps, drop_path=drop_path
        )
        self.norm = nn.LayerNorm(dim, eps=eps if norm_eps is None else norm_eps)
        self.heads = nn.ModuleDict({name: nn.Linear(dim, size) for name, size in outputs.items()})
        self.heads.apply(init_linear)
        with torch.no_grad():
            for head in self.heads.values():
                head.weight.mul_(head_scale)
        self.project.apply(init_linear)
        self.prefix, self.prefix_position = None, None
        count = 0 if prefix == "none" else prefix_count or int(prefix == "own")
        if prefix == "own":
            self.prefix = nn.Parameter(torch.randn(1, count, dim) * 0.02)
        if count:
            register_position(self, prefix_position, count, dim)
        if len(outputs) > 1:
            self.vectors = nn.ParameterDict({n: nn.Parameter(torch.randn(dim) * 0.02) for n in outputs})

    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, Tensor]:
        parts, places, valid = self._prefix(latents)
        for name, one in inputs.items():
            seen = self.project(latents.tokens[name])
            hidden = self.mask_token.to(seen.dtype).expand(seen.shape[0], one.plan.predict.shape[1], -1)
            at_hidden = latents.positions.get(name)
            if at_hidden is None:
                at_hidden = modalities[name].position(one.tokens, one.plan.predict, "decoder")
            vector = self.vectors[name] if hasattr(self, "vectors") else 0
            parts += [seen + vector, hidden + vector]
            at_seen = modalities[name].position(one.tokens, one.plan.visible, "decoder")
            places += [at_seen.expand_as(seen), at_hidden.expand_as(hidden)]
            valid += [one.plan.visible_valid, one.plan.predict_valid]
        lengths = [part.shape[1] for part in parts]
        x, position = torch.cat(parts, 1), torch.cat([p.to(parts[0].dtype) for p in places], 1)
        mask = key_mask(valid, lengths, x.shape[0], x.device)
        x = x if self.position_every_block else x + position
        for block in self.blocks:
            x = block(x + position if self.position_every_block else x, attn_mask=mask)
        predicted = x.split(lengths, dim=1)[len(lengths) - 2 * len(inputs) :][1::2]
        return {name: self.heads[name](self.norm(part)) for name, part in zip(inputs, predicted, strict=True)}

    def _prefix(self, latents: Latents) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
        if self.prefix_kind == "none" or (self.prefix is None and not latents.prefix):
            return [], [], []
        rows = next(iter(latents.tokens.values())).shape[0]
        if self.prefix is not None:
            first = self.prefix.expand(rows, -1, -1)
        else:
            first = torch.cat([self.project(part) for part in latents.prefix.values()], 1)
        place = torch.zeros_like(first) if self.prefix_position is None else self.prefix_position.expand_as(first)
        return [first], [place], [None]
