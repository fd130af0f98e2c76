"""VideoMAE and VideoMAE v2, pre-trained and fine-tuned; their layout is the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, PositiveInt
from maemm.model.model import Model
from maemm.weights.layout import blocks_of, heads_of, require

from .common import DECODER_HEADS, HEADS, NORMALIZE, check_video_only, to_ours, to_theirs

PRETRAINED = {
    "modalities.video.embedding.": "encoder.patch_embed.proj.",
    "decoder.project.": "encoder_to_decoder.",
    "decoder.mask_token": "mask_token",
    "decoder.heads.video.": "decoder.head.",
}
FINETUNED = {
    "modalities.video.embedding.": "patch_embed.proj.",
    "encoder.blocks.": "blocks.",
    "head.norm.": "fc_norm.",
    "head.linear.": "head.",
}


class VideoMAE(CheckpointFormat):
    """Files with ``encoder.*`` (pre-trained, with or without a decoder) or with ``fc_norm`` and ``head`` (fine-tuned).

    They hold neither positions nor the clip's size; pass ``size`` if it is not 16 x 224 x 224. Keys have no bias: ours
    starts at zero, has no effect behind the softmax, and is dropped again when writing.
    """

    name = "videomae"
    eps = {"encoder": 1e-6, "decoder": 1e-6, "decoder_norm": 1e-6, "head": 1e-6}

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        kernel = "encoder.patch_embed.proj.weight"
        if kernel not in keys:
            kernel = "patch_embed.proj.weight"
            if not {kernel, "blocks.0.attn.q_bias", "fc_norm.weight"} <= keys:
                return False
        return len(shapes[kernel]) == 5

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt | None = None,
        decoder_heads: PositiveInt | None = None,
        norm_pix: bool | None = None,
        mask_ratio: Fraction = 0.9,
        size: list[PositiveInt] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        state = dict(state)
        if state and all(key.startswith("backbone.") for key in state):  # fine-tuning scripts add it
            state = {key.removeprefix("backbone."): value for key, value in state.items()}
        pretrained = "encoder.patch_embed.proj.weight" in state
        start = "encoder." if pretrained else ""
        require(state, [f"{start}patch_embed.proj.weight", f"{start}blocks.0.attn.qkv.weight"], self.name)
        if any(key.endswith("attn.scale") for key in state):
            raise MaemmError(
                "these weights use cosine attention (cos_attn), which is not supported; no published model has it"
            )
        if not pretrained and "fc_norm.weight" not in state:
            raise MaemmError("these weights classify the first patch token (use_cls); only mean pooling is supported")
        recipe = self._recipe(state, start, heads, decoder_heads)
        recipe["modalities"]["video"] |= {
            "normalize": NORMALIZE[norm_pix],
            "masking": {"type": "tube", "ratio": mask_ratio},
            **({} if size is None else {"size": size}),
        }
        return recipe, to_ours(_join(state), PRETRAINED if pretrained else FINETUNED), {}

    def _recipe(
        self, state: dict[str, Tensor], start: str, heads: int | None, decoder_heads: int | None
    ) -> dict[str, Any]:
        width, channels, *patch = state[f"{start}patch_embed.proj.weight"].shape
        recipe: dict[str, Any] = {
            "modalities": {
                "video": {
                    "type": "video", "size": [16, *(224 if 224 % side == 0 else 14 * side for side in patch[1:])],
                    "patch": patch, "channels": channels, "position": "flat",
                }
            },
            "encoder": {
                "type": "vit", **blocks_of(state, f"{start}blocks.", width),
                "heads": heads_of(width, heads, HEADS, "heads"), "eps": self.eps["encoder"], "prefix": 0,
                "final_norm": f"{start}norm.weight" in state,
            },
            "decoder": None,
        }  # fmt: skip
        if "encoder_to_decoder.weight" in state:
            dim = state["encoder_to_decoder.weight"].shape[0]
            recipe["decoder"] = {
                "type": "full", **blocks_of(state, "decoder.blocks.", dim),
                "heads": heads_of(dim, decoder_heads, DECODER_HEADS, "decoder_heads"), "eps": self.eps["decoder"],
                "project": "no_bias", "prefix": "none",
            }  # fmt: skip
            if self.eps["decoder_norm"] != self.eps["decoder"]:
                recipe["decoder"]["norm_eps"] = self.eps["decoder_norm"]
        if "head.weight" in state:
            classes = state["head.weight"].shape[0]
            recipe["head"] = {
                "type": "linear", "classes": classes, "pool": "mean", "norm": "after", "eps": self.eps["head"]
            }  # fmt: skip
        return recipe

    def write(self, model: Model, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        check_video_only(model, self.name, ("flat",))
        decoder: Any = model.decoder
        if model.encoder.prefix is not None or (decoder is not None and decoder.project.bias is not None):
            raise MaemmError(
                f"layout {self.name!r} has no class token and no bias between encoder and decoder; "
                "train with encoder.prefix: 0, decoder.prefix: none and decoder.project: no_bias"
            )
        return {**_split(to_theirs(model, FINETUNED if model.head is not None else PRETRAINED)), **extras}


def _join(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """``q_bias`` and ``v_bias`` -> the bias of queries, keys and values: [q, 0, v]."""
    joined = {}
    for key, value in state.items():
        if key.endswith(("attn.q_bias", "attn.v_bias")):
            start = key[: -len("q_bias")]
            query, values = state.get(f"{start}q_bias"), state.get(f"{start}v_bias")
            if query is None or values is None:
                raise MaemmError(f"the weights hold {key} without its counterpart; get the complete file")
            joined[f"{start}qkv.bias"] = torch.cat([query, torch.zeros_like(value), values])
        else:
            joined[key] = value
    return joined


def _split(state: dict[str, Tensor]) -> dict[str, Tensor]:
    split = {}
    for key, value in state.items():
        if key.endswith("attn.qkv.bias"):
            start = key.removesuffix("qkv.bias")
            split[f"{start}q_bias"], _, split[f"{start}v_bias"] = value.chunk(3)
        else:
            split[key] = value
    return split
