"""One model for pictures and videos, never in the same sequence (OmniMAE, arXiv 2206.08356)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from maemm.contract import Latents, Modality, ModalityInput
from maemm.model.blocks import init_linear, key_mask
from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import ViT


class Apart(ViT):
    """A plain ViT that encodes each modality separately, without an embedding of the modality."""

    def __init__(self, names: list[str], **options: Any):
        super().__init__(names[:1], **options)

    def forward(
        self,
        inputs: dict[str, ModalityInput],
        modalities: Mapping[str, Modality],
        *,
        layers: Iterable[int] = (),
        norm: bool = True,
    ) -> Latents:
        merged, layers = Latents({}), tuple(layers)
        for name, modality_input in inputs.items():
            latents = super().forward({name: modality_input}, modalities, layers=layers, norm=norm)
            merged.tokens |= latents.tokens
            merged.prefix |= latents.prefix
            for layer, tokens in latents.layers.items():
                merged.layers.setdefault(layer, {}).update(tokens)
        return merged


class ProjectLast(Full):
    """Mask tokens and positions have the encoder's width and are added before the projection (OmniMAE).

    Modalities are decoded one by one with the same blocks; those with equal ``output_dim`` share a head.
    """

    dim: int

    def __init__(self, outputs: dict[str, int], encoder_dim: int, prefix_count: int, **options: Any):
        super().__init__(outputs, encoder_dim, prefix_count, **{"prefix": "none", **options})
        self.mask_token = nn.Parameter(torch.randn(1, 1, encoder_dim) * 0.02)
        self.heads = nn.ModuleDict({str(size): nn.Linear(self.dim, size) for size in sorted(set(outputs.values()))})
        self.heads.apply(init_linear)
        self.dim = encoder_dim  # width of the modalities' decoder positions
        self._outputs = dict(outputs)
        if hasattr(self, "vectors"):
            del self.vectors

    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, torch.Tensor]:
        predictions = {}
        for name, modality_input in inputs.items():
            plan, visible = modality_input.plan, latents.tokens[name]
            hidden = self.mask_token.to(visible.dtype).expand(visible.shape[0], plan.predict.shape[1], -1)
            parts = [
                x + modalities[name].position(modality_input.tokens, index, "decoder").to(x.dtype)
                for x, index in ((visible, plan.visible), (hidden, plan.predict))
            ]
            lengths = [part.shape[1] for part in parts]
            mask = key_mask([plan.visible_valid, plan.predict_valid], lengths, visible.shape[0], visible.device)
            x = self.project(torch.cat(parts, 1))
            for block in self.blocks:
                x = block(x, attn_mask=mask)
            predictions[name] = self.heads[str(self._outputs[name])](self.norm(x[:, lengths[0] :]))
        return predictions
