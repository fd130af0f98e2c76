"""Masked regions beside masked pixels (R-MAE)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import einops
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.vision_transformer import Attention
from torch import Tensor, nn

from maemm.contract import ModalityInput, Objective, Output, Plan, Term
from maemm.contract.data import gather_tokens
from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality
from maemm.contract.options import Depth, NonNegative, Positive, PositiveInt
from maemm.contract.positions import SinCos
from maemm.model.blocks import check_width, init_linear, key_mask, make_blocks
from maemm.model.model import Model

from .._images.mirrors import map_mirrored_with
from .modality import RandomCrop
from .regions import MOST, NO_REGION

SIDE = "regions"


class Regions(Objective):
    """Predict the hidden part of regions of the picture from their visible part and from the picture's (R-MAE, Nguyen
    et al. 2023, section 3).

    ``count`` regions of each row of a plan are maps of 0 and 1 with the plan of the picture. A region's visible patches
    become one vector, regions attend to each other, and each is told from the picture's latents what belongs to it: the
    binary cross-entropy of its pixels in hidden patches. Regions are those of Felzenszwalb and Huttenlocher, found in
    the worker (``modalities.image.regions``), or labels beside the samples (data.source: beside, arrays: {regions:
    FILE}; (maps, height, width) uint8, 255: no region) where the picture is not cropped.

    Options
        modality: whose regions
        weight: of the term in the loss
        count: regions of a row; where there are fewer they are repeated. Published code leaves it at 0, which is MAE
        touching: only regions of which a patch is visible
        background: factor of the loss where a pixel is not of the region
        dim: width of everything about regions
        heads: attention heads
        encoder_depth: blocks over the visible patches of a region
        memory_depth: blocks over the latents of the picture and mask tokens
        mlp_ratio: hidden width of the MLPs of these blocks over the width
        eps: of the layer norms
    """

    def __init__(
        self,
        name: str,
        *,
        modality: str = "image",
        weight: NonNegative = 1.0,
        count: PositiveInt = 8,
        touching: bool = True,
        background: NonNegative = 1.0,
        dim: PositiveInt = 128,
        heads: PositiveInt = 8,
        encoder_depth: Depth = 1,
        memory_depth: Depth = 8,
        mlp_ratio: Positive = 4.0,
        eps: NonNegative = 1e-6,
    ):
        super().__init__()
        check_width(dim, heads, f"objectives.{name}", mlp_ratio)
        self.name, self.modality, self.weight, self.count = name, modality, weight, count
        self.touching, self.background, self.dim = touching, background, dim
        self.side_inputs = {modality: (SIDE,)}
        self._blocks: dict[str, Any] = {"heads": heads, "mlp_ratio": mlp_ratio, "qkv_bias": True, "eps": eps}
        self._depths = encoder_depth, memory_depth

    def connect(self, model: Model) -> None:
        """Raises :class:`MaemmError` for a modality that the recipe does not have, or that is no picture."""
        modality = dict(model.modalities.items()).get(self.modality)
        if not isinstance(modality, GridModality) or len(modality.patch) != 2:
            raise MaemmError(
                f"{self.modality!r} is no picture of this recipe (objectives.{self.name}.modality); choose one of "
                f"{', '.join(model.modalities)}"
            )
        self._check_crop(modality, model.recipe)
        self.patch, eps = modality.patch, self._blocks["eps"]
        values = torch.Size(self.patch).numel()
        with torch.random.fork_rng(devices=[]):  # what is made afterwards has the weights that it has without this
            self.embedding = nn.Linear(values, self.dim)
            self.encoder = make_blocks(self.dim, self._depths[0], drop_path=0.0, **self._blocks)
            self.memory_project = nn.Linear(model.encoder.dim, self.dim)
            self.mask_token = nn.Parameter(torch.randn(1, 1, self.dim) * 0.02)
            self.memory_blocks = make_blocks(self.dim, self._depths[1], drop_path=0.0, **self._blocks)
            self.memory_norm = nn.LayerNorm(self.dim, eps=eps)
            self.region_norm = nn.LayerNorm(self.dim, eps=eps)
            self.region_project = nn.Linear(self.dim, self.dim)
            self.decoder = Expansion(self.dim, self._blocks["heads"], eps)
            self.head = nn.Linear(self.dim, values)
            for layer in (self.embedding, self.memory_project, self.region_project, self.decoder, self.head):
                layer.apply(init_linear)
        self.positions = SinCos(self.dim)
        self.register_buffer("labels", torch.arange(MOST + 1, dtype=torch.int16), persistent=False)
        self.requires_grad_(self.weight > 0)  # the norm of the gradient is that of what learns

    def _check_crop(self, modality: Any, recipe: Mapping[str, Any]) -> None:
        if getattr(modality, "device_crop", False):
            raise MaemmError(
                f"regions are found in cropped pictures (objectives.{self.name}), and these are cropped on the device "
                f"(modalities.{self.modality}.device_crop); set it to false"
            )
        source = (recipe.get("data") or {}).get("source")
        stored = isinstance(source, Mapping) and SIDE in (source.get("arrays") or {})
        if stored and isinstance(getattr(modality, "crop", None), RandomCrop):
            raise MaemmError(
                f"stored regions are those of whole pictures, and {self.modality!r} is cropped at random (modalities."
                f"{self.modality}.crop); set it to center or null, or have regions found in the worker"
            )

    # --------------------------------------------------------------------------------------------- regions of a row
    def maps(self, x: ModalityInput) -> tuple[Tensor, Tensor]:
        """Which pixels are of each chosen region: those of visible and of predicted tokens, (R, K, V, P) and (R, K, M,
        P) bool."""
        labels = x.preprocessed.info.get(SIDE)
        sides = tuple(x.preprocessed.x.shape[2:])
        if labels is None or labels.ndim != 4 or tuple(labels.shape[2:]) != sides or labels.dtype != torch.uint8:
            had = "none" if labels is None else f"{tuple(labels.shape[1:])} {str(labels.dtype).removeprefix('torch.')}"
            raise MaemmError(
                f"the regions of {self.modality!r} are {had}, its pictures {sides} (objectives.{self.name}); give "
                "uint8 labels (maps, height, width), or leave them to the worker"
            )
        labels = map_mirrored_with(labels, x.preprocessed)
        height, width = self.patch
        patches = einops.rearrange(labels, "b s (g h) (k w) -> b (g k) s (h w)", h=height, w=width).to(torch.int16)
        visible, predicted = (gather_tokens(patches, index, x.plan.rows) for index in (x.plan.visible, x.plan.predict))
        if self.touching:
            seen = visible
            if x.plan.visible_valid is not None:
                seen = visible.masked_fill(~x.plan.visible_valid[..., None, None], NO_REGION)
        else:
            seen = patches if x.plan.rows is None else patches[x.plan.rows]
        chosen = self._chosen(seen.flatten(1).long())[:, :, None, None, None]
        first, second = ((part[:, None] == chosen).any(3) for part in (visible, predicted))
        return first, second

    def _chosen(self, seen: Tensor) -> Tensor:
        """Labels (R, n) that there are -> the first K different ones (R, K) int16, repeated; -1 where there is none."""
        there = torch.zeros(len(seen), MOST + 1, dtype=torch.bool, device=seen.device).scatter_(1, seen, True)
        labels: Tensor = self.labels  # type: ignore[assignment]
        there = there & (labels != NO_REGION)
        ordered = torch.where(there, labels, NO_REGION).sort(1).values
        place = torch.remainder(labels[: self.count].long(), there.sum(1, keepdim=True).clamp(1, self.count))
        chosen = ordered.gather(1, place)
        return torch.where(chosen == NO_REGION, -1, chosen)

    # ------------------------------------------------------------------------------------------------- the network
    def region_vectors(self, visible: Tensor, x: ModalityInput) -> Tensor:
        """Regions at visible patches (R, K, V, P) -> a vector for each (R, K, D)."""
        rows, count, tokens = visible.shape[:3]
        z = self.embedding(visible.to(self.embedding.weight.dtype) - 0.5)
        z = z + self.positions(x.tokens, x.plan.visible).to(z.dtype)[:, None]
        z, valid = z.flatten(0, 1), x.plan.visible_valid
        valid = None if valid is None else valid.repeat_interleave(count, 0)
        mask = key_mask([valid], [tokens], rows * count, z.device)
        for block in self.encoder:
            z = block(z, attn_mask=mask)
        if valid is None:
            z = z.mean(1)
        else:
            weight = valid[..., None].to(z.dtype)
            z = (z * weight).sum(1) / weight.sum(1).clamp(min=1)
        return self.region_project(self.region_norm(z.unflatten(0, (rows, count))))

    def memory(self, encoded: Tensor, prefix: Tensor | None, x: ModalityInput) -> Tensor:
        """The picture's latents (R, V, E) and class tokens -> what is known of visible and then of predicted patches
        (R, V + M, D)."""
        plan = x.plan
        visible = self.memory_project(encoded)
        hidden = self.mask_token.to(visible.dtype).expand(len(visible), plan.predict.shape[1], -1)
        index = torch.cat([plan.visible, plan.predict], 1)
        z = torch.cat([visible, hidden], 1)
        z = z + self.positions(x.tokens, index).to(z.dtype)
        first = 0 if prefix is None else prefix.shape[1]
        if prefix is not None:
            z = torch.cat([self.memory_project(prefix), z], 1)
        lengths = [first, plan.visible.shape[1], plan.predict.shape[1]]
        mask = key_mask([None, plan.visible_valid, plan.predict_valid], lengths, len(z), z.device)
        for block in self.memory_blocks:
            z = block(z, attn_mask=mask)
        return self.memory_norm(z)[:, first:]

    def logits(self, regions: Tensor, memory: Tensor) -> Tensor:
        """(R, K, D) and (R, M, D) -> (R, K, M, P): whether the pixels of a patch are of a region."""
        return self.head(F.gelu(self.decoder(regions, memory)))

    # ---------------------------------------------------------------------------------------------------- the loss
    def forward(self, out: Output, model: Model) -> dict[str, Term]:
        if self.modality not in out.inputs:  # a data set without pictures
            return {}
        x = out.inputs[self.modality]
        encoded, prefix = out.encoded[self.modality], out.prefix.get(self.modality, out.prefix.get("joint"))
        if not self.weight:  # nothing depends on it
            encoded, prefix = encoded.detach(), None if prefix is None else prefix.detach()
        visible, predicted = self.maps(x)
        memory = self.memory(encoded, prefix, x)[:, x.plan.visible.shape[1] :]
        logits = self.logits(self.region_vectors(visible, x), memory)
        return {f"{self.name}.{self.modality}": self._term(logits, predicted, x.plan)}

    def _term(self, logits: Tensor, predicted: Tensor, plan: Plan) -> Term:
        with torch.autocast(logits.device.type, enabled=False):
            target = predicted.float()
            losses = F.binary_cross_entropy_with_logits(logits.float(), target, reduction="none")
            if self.background != 1.0:
                losses = losses * torch.where(predicted, 1.0, self.background)
            return Term((losses.mean((1, 3)) * plan.counted).sum(), plan.counted.sum(), self.weight)

    def baselines(self, out: Output, model: Model) -> dict[str, Term | None]:
        """Of the probability that fits all pixels of all regions best."""
        if self.modality not in out.inputs:
            return {}
        x = out.inputs[self.modality]
        predicted, counted = self.maps(x)[1], x.plan.counted
        share = (predicted.float().mean((1, 3)) * counted).sum() / counted.sum().clamp(min=1e-12)
        constant = torch.logit(share.clamp(1e-6, 1 - 1e-6)).expand(predicted.shape)
        return {f"{self.name}.{self.modality}": self._term(constant, predicted, x.plan)}

    def counts(self, plans: dict[str, Plan]) -> dict[str, Tensor]:
        if self.modality not in plans:
            return {}
        return {f"{self.name}.{self.modality}": plans[self.modality].counted.sum()}


class Expansion(nn.Module):
    """Regions attend to each other, and each is put beside every patch of the picture (R-MAE, section 3.3).

    Attention runs over K regions alone; the K x M pairs see only a narrow MLP, without a residual.
    """

    def __init__(self, dim: int, heads: int, eps: float):
        super().__init__()
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.attention = Attention(dim, num_heads=heads, qkv_bias=True)
        self.memory = nn.Linear(dim, dim)
        self.pair_norm = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, hidden_features=dim)

    def forward(self, regions: Tensor, memory: Tensor) -> Tensor:
        """(R, K, D) and (R, M, D) -> (R, K, M, D)."""
        regions = regions + self.attention(self.norm(regions))
        pairs = regions[:, :, None] + self.memory(memory)[:, None]
        return self.mlp(self.pair_norm(pairs))
