"""AudioMAE's pre-training file with the local decoder. Small: only what the case holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maemm.contract import WeightsKind
from maemm.patches import conv_to_linear, linear_to_conv

NAMES = {
    "encoder.blocks.": "blocks.",
    "encoder.norm.": "norm.",
    "encoder.prefix": "cls_token",
    "modalities.audio.embedding.": "patch_embed.proj.",
    "decoder.blocks.": "decoder_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.project.": "decoder_embed.",
    "decoder.mask_token": "mask_token",
    "decoder.heads.audio.": "decoder_pred.",
}
TABLES = {  # ours of the class token, ours of the patches; the local decoder has no class token: kept aside
    "pos_embed": ("encoder.prefix_position", "modalities.audio.positions.values"),
    "decoder_pos_embed": ("decoder_cls_position", "modalities.audio.decoder.positions.values"),
}
BANDS = 8  # tokens along frequency of every published model: the file tells their product with time alone


class AudioMAE(WeightsKind):
    """timm keeps the logarithm of 1 / tau: the way back is equal to rounding, not to the bit."""

    name = "audiomae"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return {"decoder_blocks.0.attn.tau", "decoder_pos_embed", "patch_embed.proj.weight"} <= keys

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: int,
        decoder: Literal["window"] = "window",
        norm_pix: bool | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        width, channels, *patch = state["patch_embed.proj.weight"].shape
        steps = (state["pos_embed"].shape[1] - 1) // BANDS
        recipe = {
            "modalities": {
                "audio": {
                    "type": "contract_spectrogram", "patch": patch, "channels": channels, "position": "fixed",
                    "size": [steps * patch[0], BANDS * patch[1]],
                    "normalize": {None: None, True: "patch", False: "none"}[norm_pix],
                }
            },
            "encoder": {"type": "vit", **_shape(state, "blocks.", width), "heads": heads, "prefix_position": "fixed"},
            "decoder": {
                "type": f"contract_{decoder}", **_shape(state, "decoder_blocks.", state["mask_token"].shape[-1]),
                "heads": len(state["decoder_blocks.0.attn.tau"]),
            },
        }  # fmt: skip
        ours = _ours(state)
        return recipe, ours, {"decoder_cls_position": ours.pop("decoder_cls_position")}

    def write(self, model: nn.Module, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        audio, ours = model.modalities["audio"], {**model.state_dict(), **extras}
        state = {name: torch.cat([ours.pop(key) for key in pair], 1) for name, pair in TABLES.items()}
        for key, value in ours.items():
            if key == "modalities.audio.embedding.weight":
                value = linear_to_conv(value, audio.channels, audio.patch)
            elif key.endswith("logit_scale"):
                key, value = key.replace("logit_scale", "tau"), value.neg().exp()
            state[_rename(key, NAMES)] = value
        return state


def _ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    ours, back = {}, {theirs: mine for mine, theirs in NAMES.items()}
    for key, value in state.items():
        if key in TABLES:
            cls, patches = TABLES[key]
            ours[cls], ours[patches] = value[:, :1], value[:, 1:]
            continue
        if key == "patch_embed.proj.weight":
            value = conv_to_linear(value)
        elif key.endswith("attn.tau"):
            key, value = key.replace("tau", "logit_scale"), value.log().neg()
        ours[_rename(key, back)] = value
    return ours


def _shape(state: dict[str, Tensor], blocks: str, width: int) -> dict[str, Any]:
    depth = len({key[len(blocks) :].split(".")[0] for key in state if key.startswith(blocks)})
    return {"dim": width, "depth": depth, "mlp_ratio": state[f"{blocks}0.mlp.fc1.weight"].shape[0] / width}


def _rename(key: str, names: Mapping[str, str]) -> str:
    start = next((one for one in names if key.startswith(one)), "")
    return names.get(start, "") + key[len(start) :]
