"""Point-MAE (Pang et al. 2022) and PCP-MAE (Zhang et al. 2024): pre-training, classifiers, part segmentation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, NonNegativeInt, PositiveInt
from maemm.model.model import Model
from maemm.weights.layout import blocks_of, depth_of, heads_of, rename, require

#: (width, depth) of the published encoders -> heads
HEADS = {(384, 12): 6}
#: published prefix in fine-tuned files -> ours; pre-training files have "MAE_encoder." in front
TRUNK = {
    "encoder.first_conv.0.": "modalities.pointcloud.embedding.first.",
    "encoder.first_conv.1.": "modalities.pointcloud.embedding.first_norm.",
    "encoder.first_conv.3.": "modalities.pointcloud.embedding.point.",
    "encoder.second_conv.0.": "modalities.pointcloud.embedding.mix.",
    "encoder.second_conv.1.": "modalities.pointcloud.embedding.mix_norm.",
    "encoder.second_conv.3.": "modalities.pointcloud.embedding.last.",
    "pos_embed.": "modalities.pointcloud.positions.",
    "blocks.blocks.": "encoder.blocks.",
    "norm.": "encoder.norm.",
    "mask_pos_token": "encoder.hidden_position",
}
PRETRAINING = {"MAE_encoder." + theirs: ours for theirs, ours in TRUNK.items()} | {
    "decoder_pos_embed.": "modalities.pointcloud.decoder.positions.",
    "MAE_decoder.blocks.": "decoder.blocks.",
    "MAE_decoder.norm.": "decoder.norm.",
    "mask_token": "decoder.mask_token",
    "increase_dim.0.": "decoder.heads.pointcloud.",
    "pred_pos_proj.": "encoder.centers.",
}
FINETUNED = TRUNK | {
    "cls_pos": "encoder.prefix_position",  # before encoder.prefix, with which it begins
    "cls_token": "encoder.prefix",
    "cls_head_finetune.": "head.layers.",
    "label_conv.0.": "head.category.",
    "label_conv.1.": "head.category_norm.",
    "propagation_0.mlp_convs.0.": "head.spread.",
    "propagation_0.mlp_bns.0.": "head.spread_norm.",
    "propagation_0.mlp_convs.1.": "head.point.",
    "propagation_0.mlp_bns.1.": "head.point_norm.",
    "convs1.": "head.mix.",
    "bns1.": "head.mix_norm.",
    "convs2.": "head.narrow.",
    "bns2.": "head.narrow_norm.",
    "convs3.": "head.last.",
}
#: published layers that are pointwise convolutions: weights (out, in, 1)
CONVOLUTIONS = ("first_conv.", "second_conv.", "increase_dim.", "label_conv.", "mlp_convs.", "convs")
FIRST = "encoder.first_conv.0.weight"
SEGMENTATION_LAYERS = {12: (3, 7, 11)}  # depth -> blocks whose latents part segmentation uses


class PointMAE(CheckpointFormat):
    """Files of pre-training, classification, part segmentation, and encoders alone.

    The weights determine widths, depths, classes and parts, and ``group_size`` of pre-training files, but not the
    number of groups or the loss.
    """

    name = "pointmae"
    position = "mlp"
    encoder = "vit"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        prefix = "MAE_encoder." if "MAE_encoder." + FIRST in keys else ""
        if not {prefix + FIRST, prefix + "pos_embed.0.weight", prefix + "blocks.blocks.0.attn.qkv.weight"} <= keys:
            return False
        codes = shapes[prefix + "pos_embed.0.weight"][1] != 3
        return codes == (self.position == "sincos")

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt | None = None,
        decoder_heads: PositiveInt | None = None,
        groups: PositiveInt | None = None,
        group_size: PositiveInt | None = None,
        loss: Literal["cdl1", "cdl2"] = "cdl2",
        mask_ratio: Fraction = 0.6,
        layers: tuple[NonNegativeInt, ...] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        pretraining = "MAE_encoder." + FIRST in state
        names, prefix = (PRETRAINING, "MAE_encoder.") if pretraining else (FINETUNED, "")
        needed = ("pos_embed.0.weight", "norm.weight", "blocks.blocks.0.mlp.fc1.weight", FIRST)
        require(state, [prefix + key for key in needed], self.name)
        blocks = blocks_of(state, prefix + "blocks.blocks.", state[prefix + "norm.weight"].shape[0])
        dim, depth = blocks["dim"], blocks["depth"]
        blocks |= {"qkv_bias": prefix + "blocks.blocks.0.attn.qkv.bias" in state, "eps": 1e-5}
        recipe: dict[str, Any] = {
            "modalities": {
                "pointcloud": {
                    "type": "pointcloud", "groups": _groups(state) if groups is None else groups,
                    "group_size": _group_size(state, group_size), "points": None, "loss": loss,
                    "features": state[prefix + FIRST].shape[1] - 3, "position": self.position, "skip_origin": True,
                    "width": _width(state, prefix),
                    "masking": {"type": "random", "ratio": mask_ratio, "count": "floor_hidden"},
                }
            },
            "encoder": {**blocks, "heads": heads_of((dim, depth), heads, HEADS, "heads")},
        }  # fmt: skip
        recipe["encoder"] |= self._encoder(state, pretraining)
        recipe["decoder"] = _decoder(state, blocks, decoder_heads) if "mask_token" in state else None
        recipe["head"] = _head(state, depth, layers)
        return recipe, {rename(k, names): v.squeeze(-1) if _pointwise(k, v) else v for k, v in state.items()}, {}

    def _encoder(self, state: dict[str, Tensor], pretraining: bool) -> dict[str, Any]:
        if pretraining and self.encoder != "vit":
            return {"type": self.encoder}
        return {
            "type": "vit", "prefix": int("cls_token" in state),
            "prefix_position": "learned" if "cls_pos" in state else "none", "position_every_block": True,
            "init": "normal",
        }  # fmt: skip

    def write(self, model: Model, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        ours = model.state_dict()
        names = PRETRAINING if model.decoder is not None else FINETUNED
        back = {our_prefix: their_prefix for their_prefix, our_prefix in names.items()}
        state = {rename(key, back): value for key, value in ours.items()}
        unknown = [key for key in state if key in ours and not key.startswith(tuple(names))]
        if unknown:
            raise MaemmError(f"layout {self.name!r} cannot store {', '.join(unknown[:3])}; use maemm's own format")
        return {
            key: value[..., None] if value.ndim == 2 and any(part in key for part in CONVOLUTIONS) else value
            for key, value in state.items()
        } | extras


class PCPMAE(PointMAE):
    """PCP-MAE: positions from sin-cos codes, an encoder that predicts the codes of hidden centres."""

    name = "pcp_mae"
    position = "sincos"
    encoder = "pcp"


def _pointwise(key: str, value: Tensor) -> bool:
    return value.ndim == 3 and any(part in key for part in CONVOLUTIONS)


def _width(state: dict[str, Tensor], prefix: str) -> int:
    key = prefix + "encoder.second_conv.0.weight"
    if key not in state:
        raise MaemmError(f"the weights are incomplete: {key} is missing; get the complete file")
    return state[key].shape[0]


def _groups(state: dict[str, Tensor]) -> int:
    """The published number of groups, if only one was published: the weights do not record it."""
    if "convs3.weight" in state:
        return 128
    if "cls_head_finetune.8.weight" not in state:
        return 64
    raise MaemmError(
        "the number of groups is not in a classifier's weights; give groups= 64 (1,024 points), 128 (ScanObjectNN) "
        "or 512 (8,192 points)"
    )


def _group_size(state: dict[str, Tensor], group_size: int | None) -> int:
    if "increase_dim.0.weight" not in state:
        return 32 if group_size is None else group_size
    stored = state["increase_dim.0.weight"].shape[0] // 3
    if group_size not in (None, stored):
        raise MaemmError(f"group_size is {group_size}, the weights predict groups of {stored} points; leave it out")
    return stored


def _decoder(state: dict[str, Tensor], blocks: dict[str, Any], heads: int | None) -> dict[str, Any]:
    return {
        **blocks, "type": "full", "depth": depth_of(state, "MAE_decoder.blocks."),
        "heads": heads_of(blocks["dim"], heads, {384: 6}, "decoder_heads"), "prefix": "none", "project": "none",
        "position_every_block": True,
    }  # fmt: skip


def _head(state: dict[str, Tensor], depth: int, layers: tuple[int, ...] | None) -> dict[str, Any] | None:
    if "cls_head_finetune.8.weight" in state:
        classes, dim = state["cls_head_finetune.8.weight"].shape[0], state["cls_head_finetune.0.weight"].shape[0]
        return {"type": "point_classifier", "classes": classes, "hidden": dim}
    if "convs3.weight" not in state:
        return None
    layers = layers or SEGMENTATION_LAYERS.get(depth)
    if layers is None:
        raise MaemmError(f"no encoder of {depth} blocks was published; give layers= for part segmentation")
    return {
        "type": "point_parts", "classes": state["convs3.weight"].shape[0], "layers": list(layers),
        "categories": state["label_conv.0.weight"].shape[1] if "label_conv.0.weight" in state else 0,
    }  # fmt: skip
