"""One model for pictures and videos that never meet in one sequence (OmniMAE, arXiv 2206.08356)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import nn

from maemm.contract import Latents, Modality, ModalityInput
from maemm.model.blocks import init_linear, key_mask
from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import ViT


class Apart(ViT):
    """A plain ViT through which each modality goes by itself; nothing tells the modalities apart."""

    def __init__(self, names: list[str], **rest):
        super().__init__(names[:1], **rest)

    def forward(
        self,
        inputs: dict[str, ModalityInput],
        modalities: Mapping[str, Modality],
        *,
        layers: Iterable[int] = (),
        norm: bool = True,
    ) -> Latents:
        whole, layers = Latents({}), tuple(layers)
        for name, one in inputs.items():
            part = super().forward({name: one}, modalities, layers=layers, norm=norm)
            whole.tokens |= part.tokens
            whole.prefix |= part.prefix
            for layer, tokens in part.layers.items():
                whole.layers.setdefault(layer, {}).update(tokens)
        return whole


class ProjectLast(Full):
    """Mask tokens and positions have the encoder's width and are added before the projection (OmniMAE).

    Modalities are decoded one by one, with the same blocks and, where they predict equally many values, one head.
    """

    def __init__(self, outputs: dict[str, int], encoder_dim: int, prefix_count: int, **rest):
        options = {"prefix": "none", **rest}
        super().__init__(outputs, encoder_dim, prefix_count, **options)
        self.mask_token = nn.Parameter(torch.randn(1, 1, encoder_dim) * 0.02)
        self.heads = nn.ModuleDict({str(size): nn.Linear(self.dim, size) for size in sorted(set(outputs.values()))})
        self.heads.apply(init_linear)
        self.dim = encoder_dim  # the width in which the modalities' positions come
        self._outputs = dict(outputs)
        if hasattr(self, "vectors"):
            del self.vectors

    def forward(
        self, latents: Latents, inputs: dict[str, ModalityInput], modalities: Mapping[str, Modality]
    ) -> dict[str, torch.Tensor]:
        return {name: self._one(name, latents, one, modalities[name]) for name, one in inputs.items()}

    def _one(self, name: str, latents: Latents, one: ModalityInput, modality: Modality) -> torch.Tensor:
        plan, seen = one.plan, latents.tokens[name]
        hidden = self.mask_token.to(seen.dtype).expand(seen.shape[0], plan.predict.shape[1], -1)
        places = [
            modality.position(one.tokens, index, "decoder").to(seen.dtype) for index in (plan.visible, plan.predict)
        ]
        parts = [part + place for part, place in zip((seen, hidden), places, strict=True)]
        lengths = [part.shape[1] for part in parts]
        mask = key_mask([plan.visible_valid, plan.predict_valid], lengths, seen.shape[0], seen.device)
        x = self.project(torch.cat(parts, 1))
        for block in self.blocks:
            x = block(x, attn_mask=mask)
        return self.heads[str(self._outputs[name])](self.norm(x[:, lengths[0] :]))
