"""MAE-ST (Masked Autoencoders As Spatiotemporal Learners): pre-trained files, with or without their decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, PositiveInt
from maemm.model.model import Model
from maemm.weights.layout import blocks_of, heads_of, require, square_side

from .common import check_video_only, to_ours, to_theirs, video_of

NAMES = {
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
#: joint tables of models with a class token start with its row
_JOINT = {"pos_embed": "pos_embed_class", "decoder_pos_embed": "decoder_pos_embed_class"}
MEAN, STD = (0.45, 0.45, 0.45), (0.225, 0.225, 0.225)
HEADS = {768: 12, 1024: 16, 1280: 16}


class MaeST(CheckpointFormat):
    """``pred_t_dim``: number of frames of a clip that the decoder predicts, 8 of 16 as published.

    The number of time slots follows from the width of the head; height and width follow from the position table if it
    is square, otherwise pass ``size``.
    """

    name = "mae_st"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        needed = {"patch_embed.proj.weight", "blocks.0.attn.q.weight", "blocks.0.attn.k.weight", "norm.weight"}
        return needed <= keys and len(shapes["patch_embed.proj.weight"]) == 5

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt | None = None,
        decoder_heads: PositiveInt | None = None,
        pred_t_dim: PositiveInt = 8,
        norm_pix: bool | None = None,
        mask_ratio: Fraction = 0.9,
        size: list[PositiveInt] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        require(state, ["patch_embed.proj.weight", "blocks.0.attn.q.weight", "norm.weight"], self.name)
        state, prefix = _split_tables(state), int("cls_token" in state)
        video = self._video(state, pred_t_dim, size)
        video["normalize"] = {None: None, True: "patch", False: "none"}[norm_pix]
        video["masking"] = {"type": "random", "ratio": mask_ratio}
        width = state["norm.weight"].shape[0]
        recipe: dict[str, Any] = {
            "modalities": {"video": video},
            "encoder": {
                "type": "vit", **blocks_of(state, "blocks.", width), "heads": heads_of(width, heads, HEADS, "heads"),
                "prefix": prefix, "prefix_position": "learned",
            },
            "decoder": None,
        }  # fmt: skip
        if "decoder_embed.weight" in state:
            dim = state["decoder_embed.weight"].shape[0]
            recipe["decoder"] = {
                "type": "full", **blocks_of(state, "decoder_blocks.", dim),
                "heads": heads_of(dim, decoder_heads, {512: 16}, "decoder_heads"),
                "prefix": "own" if "decoder_cls_token" in state else "none", "prefix_position": "learned",
            }  # fmt: skip
        return recipe, to_ours(_join(state), NAMES), {}

    def _video(self, state: Mapping[str, Tensor], predicted: int, size: list[int] | None) -> dict[str, Any]:
        _, channels, *patch = state["patch_embed.proj.weight"].shape
        separable = "pos_embed_spatial" in state
        if size is None:
            slots = self._slots(state, predicted, channels, patch)
            area = state["pos_embed_spatial"].shape[1] if separable else state["pos_embed"].shape[1] // slots
            side = square_side(area, "a position table of a frame", 0, "size=[frames, height, width]")
            size = [slots * patch[0], side * patch[1], side * patch[2]]
        return {
            "type": "video", "size": size, "patch": patch, "channels": channels,
            "position": "separable" if separable else "learned", "mean": list(MEAN[:1] * channels),
            "std": list(STD[:1] * channels), "units": "input", "eps_on": "var",
            "predict_frames": None if "decoder_pred.weight" not in state else predicted,
        }  # fmt: skip

    def _slots(self, state: Mapping[str, Tensor], predicted: int, channels: int, patch: list[int]) -> int:
        if "pos_embed_temporal" in state:
            return state["pos_embed_temporal"].shape[1]
        if "decoder_pred.weight" not in state:
            raise MaemmError("the weights do not record the number of frames; give size=[frames, height, width]")
        return predicted * channels * patch[1] * patch[2] // state["decoder_pred.weight"].shape[0]

    def write(self, model: Model, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        check_video_only(model, self.name, ("separable", "learned"))
        split: dict[str, Tensor] = {}
        for key, value in to_theirs(model, NAMES).items():
            parts = dict(zip("qkv", value.chunk(3), strict=True)) if ".attn.qkv." in key else {"": value}
            split |= {key.replace(".qkv.", f".{letter}.") if letter else key: part for letter, part in parts.items()}
        if video_of(model).position_kinds["encoder"] == "learned":
            split = _join_tables(split)
        return {**split, **extras}


def _split_tables(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Move the class token's row of joint tables to the name that it has beside separable tables."""
    state = dict(state)
    for table, row in _JOINT.items():
        token = "cls_token" if table == "pos_embed" else "decoder_cls_token"
        if table in state and token in state:
            state[row], state[table] = state[table][:, :1], state[table][:, 1:]
    return state


def _join_tables(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`_split_tables`."""
    for table, row in _JOINT.items():
        if table in state and row in state:
            state[table] = torch.cat([state.pop(row), state[table]], 1)
    return state


def _join(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Linear layers of queries, keys and values -> one. Raises :class:`MaemmError` if one is missing."""
    joined = {}
    for key, value in state.items():
        if ".attn.q." in key:
            others = [key.replace(".q.", f".{letter}.") for letter in "kv"]
            require(state, others, "mae_st")
            joined[key.replace(".q.", ".qkv.")] = torch.cat([value, *(state[other] for other in others)])
        elif ".attn.k." not in key and ".attn.v." not in key:
            joined[key] = value
    return joined
