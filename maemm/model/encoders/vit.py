"""The plain Vision Transformer encoder on visible tokens (MAE, section 3)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from maemm.contract import Encoder, Latents, Modality, ModalityInput
from maemm.contract.errors import MaemmError
from maemm.model.blocks import Init, check_width, key_mask, make_blocks, register_position


class ViT(Encoder):
    """Embed visible tokens, add positions, prepend prefix tokens, run blocks, norm.

    The tokens of several modalities form one sequence; a learned vector per modality is added to them.

    Options
        dim: width
        depth: blocks
        heads: attention heads
        mlp_ratio: hidden width of the MLP over the width
        qkv_bias: bias of queries, keys and values
        eps: of the layer norms
        prefix: class tokens in front of the sequence
        prefix_position: position of the class tokens: none, fixed (stored, not trained) or learned
        position_every_block: add positions before every block instead of once (Point-MAE)
        drop_path: rate of the last block, growing linearly from 0
        final_norm: a norm after the last block; false for fine-tuned weights without
        init: initial weights of linear layers: xavier (MAE), or normal with std 0.02 (Point-MAE)
    """

    def __init__(
        self,
        names: list[str],
        *,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        eps: float = 1e-6,
        prefix: int = 1,
        prefix_position: Literal["none", "fixed", "learned"] = "none",
        position_every_block: bool = False,
        drop_path: float = 0.0,
        final_norm: bool = True,
        init: Init = "xavier",
    ):
        super().__init__()
        check_width(dim, heads, "encoder")
        self.dim, self.names, self.position_every_block = dim, list(names), position_every_block
        self.blocks = make_blocks(
            dim, depth, heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, eps=eps, drop_path=drop_path, init=init
        )
        self.norm = nn.LayerNorm(dim, eps=eps) if final_norm else nn.Identity()
        self.prefix, self.prefix_position = None, None
        if prefix:
            self.prefix = nn.Parameter(torch.randn(1, prefix, dim) * 0.02)
            register_position(self, prefix_position, prefix, dim)
        if len(self.names) > 1:
            self.vectors = nn.ParameterDict({name: nn.Parameter(torch.randn(dim) * 0.02) for name in self.names})

    def forward(
        self,
        inputs: dict[str, ModalityInput],
        modalities: Mapping[str, Modality],
        *,
        layers: Iterable[int] = (),
        norm: bool = True,
    ) -> Latents:
        parts, positions = self._sequence(inputs, modalities)
        lengths = [part.shape[1] for part in parts]
        valid = [None] * (len(parts) - len(inputs)) + [x.plan.visible_valid for x in inputs.values()]
        x, position = torch.cat(parts, 1), torch.cat(positions, 1)
        mask = key_mask(valid, lengths, x.shape[0], x.device)
        numbers, outputs = set(layers), {}
        x = x if self.position_every_block else x + position
        for number, block in enumerate(self.blocks):
            x = block(x + position if self.position_every_block else x, attn_mask=mask)
            if number in numbers:
                outputs[number] = self._split(x, lengths, inputs)[0]
        tokens, prefix = self._split(self.norm(x) if norm else x, lengths, inputs)
        return Latents(tokens, prefix, layers=outputs)

    def _sequence(
        self, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """(embedded prefix and modalities, their positions), each (R, length, D)."""
        parts, positions = [], []
        for name, x in inputs.items():
            embedded = modalities[name].embed(x.tokens, x.plan.visible)
            if len(self.names) > 1:
                embedded = embedded + self.vectors[name]
            parts.append(embedded)
            position = modalities[name].position(x.tokens, x.plan.visible, "encoder")
            positions.append(position.to(embedded.dtype).expand_as(embedded))
        if self.prefix is not None:
            prefix = self.prefix.to(parts[0].dtype).expand(parts[0].shape[0], -1, -1)
            if self.prefix_position is None:
                position = torch.zeros_like(prefix)
            else:
                position = self.prefix_position.expand_as(prefix)
            parts, positions = [prefix, *parts], [position.to(prefix.dtype), *positions]
        return parts, positions

    def _split(
        self, x: Tensor, lengths: list[int], inputs: dict[str, ModalityInput]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The whole sequence (R, L, D) -> ({modality: its tokens}, {modality or "joint": prefix tokens})."""
        parts = list(x.split(lengths, dim=1))
        prefix = {}
        if self.prefix is not None:
            prefix["joint" if len(inputs) > 1 else next(iter(inputs))] = parts.pop(0)
        return dict(zip(inputs, parts, strict=True)), prefix

    def layer_of(self, name: str) -> int:
        """Prefix tokens and modality vectors: 0, block i: i + 1, the rest (the final norm): depth + 1."""
        block = re.match(r"blocks\.(\d+)\.", name)
        if block:
            return int(block.group(1)) + 1
        return 0 if name.startswith(("prefix", "vectors")) else len(self.blocks) + 1


def plain_vit(model: nn.Module, layout: str) -> ViT:
    """``model.encoder``, if it is the plain ViT of one modality, as other libraries have it.

    Raises :class:`MaemmError`, which names the ``layout`` that needs it, for any other encoder.
    """
    encoder = model.encoder
    if type(encoder) is not ViT or encoder.position_every_block or len(encoder.names) > 1:
        raise MaemmError(
            f"layout {layout!r} holds a plain ViT of one modality, which this encoder is not; use another layout"
        )
    return encoder
