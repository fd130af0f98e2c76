"""Published layouts of clips: VideoMAE (v1 and v2 are one) and MAE-ST. Small: only what the cases hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract import WeightsKind
from maemm.patches import conv_to_linear, linear_to_conv

KERNEL = "modalities.video.embedding.weight"


class Renaming(WeightsKind):
    """A layout that differs from ours by names, by the patch kernel and by how queries, keys and values are stored."""

    names: Mapping[str, str]  # our prefix -> published prefix
    needs: set[str]

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return self.needs <= keys

    def _ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        back = {theirs: mine for mine, theirs in self.names.items()}
        ours = {_rename(key, back): value for key, value in state.items()}
        ours[KERNEL] = conv_to_linear(ours[KERNEL])
        return ours

    def write(self, model: nn.Module, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        video = model.modalities["video"]
        ours = dict(model.state_dict())
        ours[KERNEL] = linear_to_conv(ours[KERNEL], video.channels, video.patch)
        return {**self._split({_rename(key, self.names): value for key, value in ours.items()}), **extras}


class VideoMAE(Renaming):
    """Keys have no bias: ours is zero, and as softmax ignores it, it stays zero in training too."""

    name = "videomae"
    needs = {"encoder.patch_embed.proj.weight", "encoder_to_decoder.weight"}
    names = {
        "modalities.video.embedding.": "encoder.patch_embed.proj.",
        "decoder.project.": "encoder_to_decoder.",
        "decoder.mask_token": "mask_token",
        "decoder.heads.video.": "decoder.head.",
    }

    def read(
        self, state: dict[str, Tensor], *, heads: int, decoder_heads: int, norm_pix: bool | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        width, channels, *patch = state["encoder.patch_embed.proj.weight"].shape
        normalize = {None: None, True: "patch", False: "none"}[norm_pix]
        recipe = {
            "modalities": {
                "video": {"type": "contract_clip", "patch": patch, "channels": channels, "normalize": normalize}
            },
            "encoder": {"type": "vit", **_shape(state, "encoder.blocks.", width), "heads": heads, "prefix": 0},
            "decoder": {
                "type": "full", **_shape(state, "decoder.blocks.", state["mask_token"].shape[-1]),
                "heads": decoder_heads, "project": "no_bias", "prefix": "none",
            },
        }  # fmt: skip
        joined = {}
        for key, value in state.items():
            if key.endswith("q_bias"):
                other = state[key.replace("q_bias", "v_bias")]
                joined[key.replace("q_bias", "qkv.bias")] = torch.cat([value, torch.zeros_like(value), other])
            elif not key.endswith("v_bias"):
                joined[key] = value
        return recipe, self._ours(joined), {}

    def _split(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        split = {}
        for key, value in state.items():
            if key.endswith("qkv.bias"):
                split[key.replace("qkv.bias", "q_bias")], _, split[key.replace("qkv.bias", "v_bias")] = value.chunk(3)
            else:
                split[key] = value
        return split


class MaeST(Renaming):
    """Class token of its own in the decoder; separable or joint learned positions; three linear layers for q, k, v."""

    name = "mae_st"
    needs = {"patch_embed.proj.weight", "blocks.0.attn.q.weight", "decoder_embed.weight"}
    names = {
        "modalities.video.embedding.": "patch_embed.proj.",
        "modalities.video.positions.values": "pos_embed",
        "modalities.video.positions.": "pos_embed_",
        "modalities.video.decoder.positions.values": "decoder_pos_embed",
        "modalities.video.decoder.positions.": "decoder_pos_embed_",
        "encoder.prefix_position": "pos_embed_class",
        "encoder.prefix": "cls_token",
        "encoder.": "",
        "decoder.prefix_position": "decoder_pos_embed_class",
        "decoder.prefix": "decoder_cls_token",
        "decoder.project.": "decoder_embed.",
        "decoder.mask_token": "mask_token",
        "decoder.heads.video.": "decoder_pred.",
        "decoder.norm.": "decoder_norm.",
        "decoder.blocks.": "decoder_blocks.",
    }

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: int,
        decoder_heads: int,
        pred_t_dim: int,
        norm_pix: bool | None = None,
        size: list[int] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        prefix = int("cls_token" in state)
        video = self._video(state, pred_t_dim, size)
        video["normalize"] = {None: None, True: "patch", False: "none"}[norm_pix]
        recipe = {
            "modalities": {"video": video},
            "encoder": {
                "type": "vit", **_shape(state, "blocks.", state["norm.weight"].shape[0]), "heads": heads,
                "prefix": prefix, "prefix_position": "learned",
            },
            "decoder": {
                "type": "full", **_shape(state, "decoder_blocks.", state["mask_token"].shape[-1]),
                "heads": decoder_heads, "prefix": "own" if prefix else "none", "prefix_position": "learned",
            },
        }  # fmt: skip
        return recipe, self._ours(_join(state)), {}

    def _video(self, state: dict[str, Tensor], predicted: int, size: list[int] | None) -> dict[str, Any]:
        """Time slots follow from the head's width, which tells how many frames each slot predicts."""
        _, channels, *patch = state["patch_embed.proj.weight"].shape
        slots = predicted * channels * patch[1] * patch[2] // state["decoder_pred.weight"].shape[0]
        separable = "pos_embed_spatial" in state
        area = state["pos_embed_spatial"].shape[1] if separable else state["pos_embed"].shape[1] // slots
        side = math.isqrt(area)
        return {
            "type": "contract_frames", "patch": patch, "channels": channels, "predicted": predicted,
            "size": size or [slots * patch[0], side * patch[1], side * patch[2]],
            "position": "separable" if separable else "learned",
        }  # fmt: skip

    def _split(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        split = {}
        for key, value in state.items():
            parts = dict(zip("qkv", value.chunk(3), strict=True)) if ".qkv." in key else {"qkv": value}
            split |= {key.replace(".qkv.", f".{letter}."): part for letter, part in parts.items()}
        return split


def _join(state: dict[str, Tensor]) -> dict[str, Tensor]:
    joined = {}
    for key, value in state.items():
        if ".attn.q." in key:
            rest = [state[key.replace(".q.", f".{letter}.")] for letter in "kv"]
            joined[key.replace(".q.", ".qkv.")] = torch.cat([value, *rest])
        elif ".attn.k." not in key and ".attn.v." not in key:
            joined[key] = value
    return joined


def _shape(state: dict[str, Tensor], blocks: str, width: int) -> dict[str, Any]:
    depth = len({key[len(blocks) :].split(".")[0] for key in state if key.startswith(blocks)})
    return {"dim": width, "depth": depth, "mlp_ratio": state[f"{blocks}0.mlp.fc1.weight"].shape[0] / width}


def _rename(key: str, names: Mapping[str, str]) -> str:
    """The longest prefix wins."""
    start = max((one for one in names if key.startswith(one)), key=len, default="")
    return names.get(start, "") + key[len(start) :]
