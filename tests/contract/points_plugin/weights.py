"""Point-MAE's pre-training weights."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maemm.contract import WeightsKind

#: published prefix -> ours
NAMES = {
    "MAE_encoder.encoder.first_conv.": "modalities.pointcloud.embedding.first.",
    "MAE_encoder.encoder.second_conv.": "modalities.pointcloud.embedding.second.",
    "MAE_encoder.pos_embed.": "modalities.pointcloud.positions.",
    "MAE_encoder.blocks.blocks.": "encoder.blocks.",
    "MAE_encoder.norm.": "encoder.norm.",
    "decoder_pos_embed.": "modalities.pointcloud.decoder.positions.",
    "MAE_decoder.blocks.": "decoder.blocks.",
    "MAE_decoder.norm.": "decoder.norm.",
    "mask_token": "decoder.mask_token",
    "increase_dim.0.": "decoder.heads.pointcloud.",
}
#: pointwise convolutions, (out, in, 1)
CONVOLUTIONS = {f"MAE_encoder.encoder.{n}_conv.{i}.weight" for n in ("first", "second") for i in (0, 3)}
CONVOLUTIONS |= {"increase_dim.0.weight"}


def rename(key: str, names: Mapping[str, str]) -> str:
    return next((new + key.removeprefix(old) for old, new in names.items() if key.startswith(old)), key)


def depth(state: dict[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


class PointMAE(WeightsKind):
    name = "contract_pointmae"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return {"MAE_encoder.encoder.first_conv.0.weight", "increase_dim.0.weight"} <= keys

    def read(
        self, state: dict[str, Tensor], *, heads: int = 6, decoder_heads: int = 6, groups: int = 64, loss: str = "cdl2"
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        dim = state["mask_token"].shape[-1]
        blocks = {"dim": dim, "eps": 1e-5, "qkv_bias": False, "position_every_block": True}
        recipe = {
            "modalities": {
                "pointcloud": {
                    "type": "contract_pointcloud", "groups": groups, "loss": loss,
                    "group_size": state["increase_dim.0.weight"].shape[0] // 3,
                    "masking": {"type": "random", "ratio": 0.6, "count": "floor_hidden"},
                }
            },
            "encoder": {
                "type": "vit", "depth": depth(state, "MAE_encoder.blocks.blocks."), "heads": heads, "prefix": 0,
                **blocks,
            },
            "decoder": {
                "type": "full", "depth": depth(state, "MAE_decoder.blocks."), "heads": decoder_heads,
                "prefix": "none", "project": "none", **blocks,
            },
        }  # fmt: skip
        return recipe, {rename(k, NAMES): v.squeeze(-1) if k in CONVOLUTIONS else v for k, v in state.items()}, {}

    def write(self, model: torch.nn.Module, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        back = {new: old for old, new in NAMES.items()}
        state = {rename(key, back): value for key, value in model.state_dict().items()}
        return {key: value[..., None] if key in CONVOLUTIONS else value for key, value in state.items()}
