"""V-JEPA 2 (Assran et al. 2025): encoder, predictor and the moving average of the encoder, the target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.options import PositiveInt
from maemm.contract.patches import conv_to_linear, linear_to_conv
from maemm.weights.layout import MissingSettingError, blocks_of, heads_of, rename, require

from ..._layouts import jepa
from ..positions import TimeFirstSinCos
from .common import video_of

#: (width, depth) of the published encoders -> heads; V-JEPA 2's giant has 22
HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1408, 40): 22}
PREDICTOR_HEADS = {384: 12}
SIZE = (16, 256, 256)  # of the published pre-training
STORED = ("fixed", "learned", "sincos", "sincos_time_first")  # kinds of positions that a table can hold

_KERNEL, _TABLE = "backbone.patch_embed.proj.weight", "backbone.pos_embed"
_MASKS = "predictor.backbone.mask_tokens."
_NEEDED = (f"encoder.{_KERNEL}", "predictor.backbone.predictor_embed.weight", f"{_MASKS}0", f"target_encoder.{_KERNEL}")
_ALONE = (_KERNEL, "backbone.norm.weight", "backbone.blocks.0.attn.qkv.weight")

_ENCODER = {
    "encoder.blocks.": "backbone.blocks.",
    "encoder.norm.": "backbone.norm.",
    "modalities.video.embedding.": "backbone.patch_embed.proj.",
    "modalities.video.positions.values": _TABLE,
}
#: {our prefix: published prefix}
NAMES = {
    **{ours: f"encoder.{theirs}" for ours, theirs in _ENCODER.items()},
    **{f"targets.video.{ours}": f"target_encoder.{theirs}" for ours, theirs in _ENCODER.items()},
    "decoder.project.": "predictor.backbone.predictor_embed.",
    "decoder.mask_token": f"{_MASKS}0",
    "decoder.blocks.": "predictor.backbone.predictor_blocks.",
    "decoder.norm.": "predictor.backbone.predictor_norm.",
    "decoder.heads.video.": "predictor.backbone.predictor_proj.",
    "modalities.video.decoder.positions.values": "predictor.backbone.predictor_pos_embed",
}
_OTHERS = "decoder.other_mask_tokens"


class VJEPA2(CheckpointFormat):
    """Checkpoints of V-JEPA 2, with the entries encoder, predictor and target_encoder, or the encoder alone.

    ``part``: all of it, as it was trained; or the encoder or its average, target_encoder, alone. The average is what
    the published evaluation uses. Models without tables of positions have the published rotary ones; ``size`` is then
    that of the clips which are prepared for it, 16 frames of 256 x 256 by default.
    """

    name = "vjepa2"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        if keys.issuperset(_NEEDED):
            return len(shapes[f"encoder.{_KERNEL}"]) == 5
        return keys.issuperset(_ALONE) and "backbone.cls_token" not in keys and len(shapes[_KERNEL]) == 5

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt | None = None,
        decoder_heads: PositiveInt | None = None,
        size: list[PositiveInt] | None = None,
        part: Literal["all", "encoder", "target_encoder"] = "all",
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        if _KERNEL in state:
            state, part = {f"encoder.{key}": x for key, x in state.items()}, "encoder"
        elif part == "all":
            require(state, _NEEDED, self.name)
        if part != "all":
            require(state, [f"{part}.{_KERNEL}"], self.name)
            state = {f"encoder.{key}": x for owner, key, x in jepa.split(state) if owner == part}
        recipe = _recipe(state, heads, size)
        if part == "all":
            recipe["decoder"] = _predictor(state, decoder_heads)
            recipe["modalities"]["video"]["target"] = {"type": "ema", "momentum": 0.99925, "loss": "l1"}
        ours_of = {theirs: ours for ours, theirs in NAMES.items()}
        ours = {
            rename(key, ours_of): (conv_to_linear(x) if key.endswith(f".{_KERNEL}") else x).contiguous()
            for key, x in state.items()
            if not key.startswith(_MASKS) or key == f"{_MASKS}0"
        }
        if others := _other_mask_tokens(state):
            ours[_OTHERS] = torch.cat(others)
        return recipe, ours, {}

    def write(self, model: Any, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        self._check(model)
        video, state = video_of(model), dict[str, Tensor]()
        for key, x in model.state_dict().items():
            if key.endswith("positions.values"):
                continue
            if key == _OTHERS:
                state |= {f"{_MASKS}{number}": token[None] for number, token in enumerate(x, start=1)}
                continue
            if key.endswith("embedding.weight"):
                x = linear_to_conv(x, video.channels, video.patch)
            state[rename(key, NAMES)] = x
        if model.encoder.rotary is None:
            tables: dict[str, Any] = {
                f"encoder.{_TABLE}": video.positions,
                f"target_encoder.{_TABLE}": model.targets["video"].modalities["video"].positions,
                "predictor.backbone.predictor_pos_embed": video.decoder.positions,
            }
            for name, positions in tables.items():
                rows = positions.table(video.grid).detach()
                state[name] = rows if rows.ndim == 3 else rows[None]
        return {**state, **extras}

    def entries(self, state: dict[str, Tensor]) -> dict[str, Any]:
        return jepa.entries_of(state)

    def _check(self, model: Any) -> None:
        """Raises :class:`MaemmError` for parts that V-JEPA 2 does not have."""
        encoder, predictor = jepa.checked(model, "video", "videos", self.name, rotary=True)
        rotary = {None if part.rotary is None else part.rotary.kind for part in (encoder, predictor)}
        positions = set(video_of(model).position_kinds.values())
        tables = rotary == {None} and positions <= set(STORED)
        if not tables and (rotary != {"vjepa2"} or positions != {"none"}):
            raise MaemmError(
                f"layout {self.name!r} has tables of positions, or vjepa2's rotary ones in encoder and predictor; this "
                "model has others (encoder.rotary, decoder.rotary, modalities.video.position)"
            )


def _recipe(state: Mapping[str, Tensor], heads: int | None, size: list[int] | None) -> dict[str, Any]:
    """The recipe of the encoder alone, whose keys begin with ``encoder.``."""
    width, channels, *patch = state[f"encoder.{_KERNEL}"].shape
    blocks = blocks_of(state, "encoder.backbone.blocks.", width)
    table = state.get(f"encoder.{_TABLE}")
    if size is None:
        size = list(SIZE) if table is None else [a * b for a, b in zip(_grid_of(table), patch, strict=True)]
    return {
        "modalities": {
            "video": {
                "type": "video", "size": size, "patch": patch, "channels": channels,
                "position": "none" if table is None else "fixed", "fps": 4.0,
                "crop": {"scale": [0.3, 1.0], "ratio": [0.75, 1.35]}, "flip": True,
                "masking": {
                    "type": "multi_block",
                    "generators": [{"blocks": 8, "scale": [0.15, 0.15]}, {"blocks": 2, "scale": [0.7, 0.7]}],
                },
            }
        },
        "encoder": {
            "type": "vit", **blocks, "heads": heads_of((width, blocks["depth"]), heads, HEADS, "heads"), "prefix": 0,
            "init": "normal_by_depth", "rotary": "vjepa2" if table is None else None,
            **jepa.bias_of(state, "encoder.backbone.blocks."),
        },
        "decoder": None,
    }  # fmt: skip


def _predictor(state: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    width, rotary = state["predictor.backbone.predictor_embed.weight"].shape[0], f"encoder.{_TABLE}" not in state
    return {
        "type": "predictor", **blocks_of(state, "predictor.backbone.predictor_blocks.", width),
        "heads": heads_of(width, heads, PREDICTOR_HEADS, "decoder_heads"), "init": "normal_by_depth",
        "mask_init": "zeros", "mask_tokens": 1 + len(_other_mask_tokens(state)),
        "rotary": "vjepa2" if rotary else None, "square_frames": rotary,
        **jepa.bias_of(state, "predictor.backbone.predictor_blocks."),
    }  # fmt: skip


def _other_mask_tokens(state: Mapping[str, Tensor]) -> list[Tensor]:
    """All but the first, (1, 1, D) each, in their order."""
    numbers = sorted(int(key[len(_MASKS) :]) for key in state if key.startswith(_MASKS))
    if numbers != list(range(len(numbers))):
        raise MaemmError(f"the mask tokens {_MASKS}N have the numbers {numbers}, not those from 0 on; get a whole file")
    return [state[f"{_MASKS}{number}"] for number in numbers[1:]]


def _grid_of(table: Tensor) -> tuple[int, ...]:
    """Frames, rows and columns of a table of positions (1, N, D) of square frames: those whose sinusoids it holds.

    Raises :class:`MissingSettingError` where it holds others.
    """
    count, dim = table.shape[1:]
    for slots in range(1, count + 1):
        side = math.isqrt(count // slots)
        if slots * side * side == count:
            expected = TimeFirstSinCos(dim).table((slots, side, side))
            if torch.allclose(expected, table[0].float(), atol=1e-2):
                return slots, side, side
    raise MissingSettingError(f"a table of {count} positions does not say how many frames and rows they are", "size")
