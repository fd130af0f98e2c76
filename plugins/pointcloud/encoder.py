"""The encoder of PCP-MAE: it predicts where hidden groups are, and the decoder is given no more than that."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from maemm.contract import Latents, Modality, ModalityInput, Term
from maemm.contract.errors import MaemmError
from maemm.model.encoders.vit import ViT

TERM = "centers"


class PCP(ViT):
    """Visible groups as in the plain encoder, and hidden ones beside them (Zhang et al. 2024, section 3.3).

    One sequence [visible, hidden] through the same blocks, in which visible groups see each other only and hidden
    ones see all; the published code runs the same as two streams. A hidden group brings its points but not its
    centre: one learned token stands for all hidden positions. From its latent the code of the centre is predicted
    (published: the sin-cos code, ``position: sincos``; else the centre itself), with a squared error as the term
    "centers"; the prediction, without gradient, is the decoder's position.

    Options
        dim: width
        depth: blocks
        heads: attention heads
        mlp_ratio: hidden width of the MLP over the width
        qkv_bias: bias of queries, keys and values
        eps: of the layer norms
        drop_path: rate of the last block, growing linearly from 0
        center_weight: of the term "centers" in the loss
    """

    def __init__(
        self,
        names: list[str],
        *,
        dim: int = 384,
        depth: int = 12,
        heads: int = 6,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        eps: float = 1e-5,
        drop_path: float = 0.0,
        center_weight: float = 0.1,
    ):
        if len(names) != 1:
            raise MaemmError(f"encoder pcp takes one modality, got {', '.join(names)} (encoder.type); choose vit")
        super().__init__(
            names, dim=dim, depth=depth, heads=heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, eps=eps, prefix=0,
            position_every_block=True, drop_path=drop_path, init="normal",
        )  # fmt: skip
        self.center_weight = center_weight
        self.hidden_position = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.centers = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, dim))

    def forward(
        self,
        inputs: dict[str, ModalityInput],
        modalities: Mapping[str, Modality],
        *,
        layers: Iterable[int] = (),
        norm: bool = True,
    ) -> Latents:
        name, one = next(iter(inputs.items()))
        modality = modalities[name]
        if not hasattr(modality, "code"):
            raise MaemmError(f"encoder pcp predicts centres, which {name!r} has not (encoder.type); choose vit")
        visible, hidden = one.plan.visible, one.plan.predict
        seen = visible.shape[1]
        x = modality.embed(one.tokens, torch.cat([visible, hidden], 1))
        at_visible = modality.position(one.tokens, visible, "encoder").to(x.dtype)
        at_hidden = self.hidden_position.to(x.dtype).expand(len(x), hidden.shape[1], -1)
        position, mask = torch.cat([at_visible, at_hidden], 1), self._mask(one)
        wanted, kept = set(layers), {}
        for number, block in enumerate(self.blocks):
            x = block(x + position, attn_mask=mask)
            if number in wanted:
                kept[number] = {name: x[:, :seen]}
        normed = self.norm(x)
        code = self.centers(normed[:, seen:])[..., : modality.code_dim]
        latents = Latents({name: (normed if norm else x)[:, :seen]}, layers=kept)
        latents.positions[name] = modality.place(code.detach(), "decoder")
        latents.terms[TERM] = self._term(modality, one, code)
        return latents

    def _mask(self, one: ModalityInput) -> Tensor | None:
        """(1 or R, 1, L, L) bool, True where a query (rows) may see a key."""
        plan = one.plan
        seen, hidden = plan.visible.shape[1], plan.predict.shape[1]
        if not hidden and plan.visible_valid is None:
            return None
        mask = torch.ones(1, 1, seen + hidden, seen + hidden, dtype=torch.bool, device=plan.visible.device)
        mask[..., :seen, seen:] = False
        for valid, start in ((plan.visible_valid, 0), (plan.predict_valid, seen)):
            if valid is not None:
                keys = nn.functional.pad(valid, (start, seen + hidden - start - valid.shape[1]), value=True)
                mask = mask & keys[:, None, None]
        return mask

    def _term(self, modality: Modality, one: ModalityInput, code: Tensor) -> Term:
        with torch.autocast(code.device.type, enabled=False):
            target = modality.code(one.tokens, one.plan.predict).float()
            error = (code.float() - target).square().mean(-1)
            return Term((error * one.plan.counted).sum(), one.plan.counted.sum(), self.center_weight)

    def counts(self, inputs: dict[str, ModalityInput]) -> dict[str, Tensor]:
        return {TERM: next(iter(inputs.values())).plan.counted.sum()}

    def layer_of(self, name: str) -> int:
        """As in the plain encoder; the hidden position is an embedding."""
        return 0 if name == "hidden_position" else super().layer_of(name)
