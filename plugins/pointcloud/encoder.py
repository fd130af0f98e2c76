"""The encoder of PCP-MAE: it predicts the centres of hidden groups, and the decoder sees only the predictions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from maemm.contract import Latents, Modality, ModalityInput, Plan, Term, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.options import Depth, NonNegative, Positive, PositiveInt, Rate
from maemm.model.encoders.vit import ViT

from .modality import PointCloud

TERM = "centers"


class PCP(ViT):
    """A ViT on visible and hidden groups (Zhang et al. 2024, section 3.3).

    One sequence [visible, hidden] passes the blocks; visible groups attend to each other only, hidden ones to all (the
    published code computes the same in two streams). Hidden groups have their points but not their centres: one learned
    position replaces all of theirs. Their latents predict the code of the centre (its sin-cos code for ``position:
    sincos``, as published, else the centre itself), with a squared error as the term "centers"; the prediction, without
    gradient, is the decoder's position.

    Options
        dim: width
        depth: blocks
        heads: attention heads
        mlp_ratio: hidden width of the MLP over the width
        qkv_bias: bias of queries, keys and values
        eps: of the layer norms
        drop_path: rate of the last block, growing linearly from 0
        center_weight: weight of the term "centers" in the loss
    """

    def __init__(
        self,
        names: list[str],
        *,
        dim: PositiveInt = 384,
        depth: Depth = 12,
        heads: PositiveInt = 6,
        mlp_ratio: Positive = 4.0,
        qkv_bias: bool = False,
        eps: NonNegative = 1e-5,
        drop_path: Rate = 0.0,
        center_weight: NonNegative = 0.1,
    ):
        if len(names) != 1:
            raise MaemmError(f"encoder pcp accepts one modality, got {', '.join(names)} (encoder.type); use vit")
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
        name, modality_input = next(iter(inputs.items()))
        modality, tokens, plan = modalities[name], modality_input.tokens, modality_input.plan
        if not isinstance(modality, PointCloud):
            raise MaemmError(f"encoder pcp predicts centres, which {name!r} does not have (encoder.type); use vit")
        seen = plan.visible.shape[1]
        x = modality.embed(tokens, torch.cat([plan.visible, plan.predict], 1))
        visible_position = modality.position(tokens, plan.visible, "encoder").to(x.dtype)
        hidden_position = self.hidden_position.to(x.dtype).expand(x.shape[0], plan.predict.shape[1], -1)
        position, mask = torch.cat([visible_position, hidden_position], 1), self._mask(plan)
        requested, outputs = set(layers), {}
        for layer, block in enumerate(self.blocks):
            x = block(x + position, attn_mask=mask)
            if layer in requested:
                outputs[layer] = {name: x[:, :seen]}
        normed = self.norm(x)
        latents = Latents({name: (normed if norm else x)[:, :seen]}, layers=outputs)
        if not plan.predict.shape[1]:  # features: nothing is predicted, and there may be no decoder
            zero = torch.zeros((), device=x.device)
            latents.terms[TERM] = Term(zero, zero, self.center_weight)
            return latents
        code = self.centers(normed[:, seen:])[..., : modality.code_dim]
        latents.positions[name] = modality.position_of(code.detach(), "decoder")
        latents.terms[TERM] = self._term(modality, tokens, plan, code)
        return latents

    def _mask(self, plan: Plan) -> Tensor | None:
        """(1 or R, 1, L, L) bool, True where a query (rows) may attend to a key (columns)."""
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

    def _term(self, modality: PointCloud, tokens: Tokens, plan: Plan, code: Tensor) -> Term:
        assert plan.counted is not None
        with torch.autocast(code.device.type, enabled=False):
            target = modality.code(tokens, plan.predict).float()
            error = (code.float() - target).square().mean(-1)
            return Term((error * plan.counted).sum(), plan.counted.sum(), self.center_weight)

    def counts(self, inputs: dict[str, ModalityInput]) -> dict[str, Tensor]:
        counted = next(iter(inputs.values())).plan.counted
        assert counted is not None
        return {TERM: counted.sum()}

    def layer_of(self, name: str) -> int:
        """As for ViT; the hidden position counts as an embedding."""
        return 0 if name == "hidden_position" else super().layer_of(name)
