"""I-JEPA (Assran et al. 2023): encoder, predictor and the moving average of the encoder, the target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.options import PositiveInt
from maemm.contract.patches import conv_to_linear, linear_to_conv
from maemm.weights.layout import blocks_of, heads_of, rename, require, square_side

from ..._layouts import jepa

#: (width, depth) of the published encoders -> heads; the predictor has as many
HEADS = {(192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1408, 40): 16}
_KERNEL, _TABLE = "patch_embed.proj.weight", "pos_embed"
_NEEDED = (
    f"encoder.{_KERNEL}", f"encoder.{_TABLE}", "predictor.predictor_embed.weight", "predictor.predictor_pos_embed",
    f"target_encoder.{_KERNEL}",
)  # fmt: skip

_ENCODER = {
    "encoder.blocks.": "blocks.",
    "encoder.norm.": "norm.",
    "modalities.image.embedding.": "patch_embed.proj.",
    "modalities.image.positions.values": _TABLE,
}
#: {our prefix: published prefix}
NAMES = {
    **{ours: f"encoder.{theirs}" for ours, theirs in _ENCODER.items()},
    **{f"targets.image.{ours}": f"target_encoder.{theirs}" for ours, theirs in _ENCODER.items()},
    "decoder.project.": "predictor.predictor_embed.",
    "decoder.mask_token": "predictor.mask_token",
    "decoder.blocks.": "predictor.predictor_blocks.",
    "decoder.norm.": "predictor.predictor_norm.",
    "decoder.heads.image.": "predictor.predictor_proj.",
    "modalities.image.decoder.positions.values": "predictor.predictor_pos_embed",
}


class IJEPA(CheckpointFormat):
    """Checkpoints of I-JEPA, with the entries encoder, predictor and target_encoder.

    ``part``: all of it, as it was trained; or the encoder or its average, target_encoder, alone. The average is what
    the published evaluation uses.
    """

    name = "ijepa"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return keys.issuperset(_NEEDED) and len(shapes[f"encoder.{_KERNEL}"]) == 4

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt | None = None,
        decoder_heads: PositiveInt | None = None,
        size: PositiveInt | list[PositiveInt] | None = None,
        part: Literal["all", "encoder", "target_encoder"] = "all",
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        state = dict(state)
        require(state, _NEEDED, self.name)
        recipe = self._recipe(state, heads, decoder_heads, size)
        if part != "all":
            state = {f"encoder.{key}": x for owner, key, x in jepa.split(state) if owner == part}
            del recipe["modalities"]["image"]["target"]
            recipe["decoder"] = None
        ours_of = {theirs: ours for ours, theirs in NAMES.items()}
        ours = {
            rename(key, ours_of): (conv_to_linear(x) if key.endswith(f".{_KERNEL}") else x).contiguous()
            for key, x in state.items()
        }
        return recipe, ours, {}

    def _recipe(
        self, state: dict[str, Tensor], heads: int | None, decoder_heads: int | None, size: int | list[int] | None
    ) -> dict[str, Any]:
        width, channels, *patch = state[f"encoder.{_KERNEL}"].shape
        blocks = blocks_of(state, "encoder.blocks.", width)
        heads = heads_of((width, blocks["depth"]), heads, HEADS, "heads")
        narrow = state["predictor.predictor_embed.weight"].shape[0]
        if size is None:
            side = square_side(state[f"encoder.{_TABLE}"].shape[1], f"the position table encoder.{_TABLE}", 0)
            size = [side * patch[0], side * patch[1]]
        return {
            "modalities": {
                "image": {
                    "type": "image", "size": size, "patch": patch, "channels": channels, "position": "fixed",
                    "masking": {"type": "multi_block"},
                    "target": {"type": "ema", "momentum": 0.996, "momentum_end": 1.0},
                }
            },
            "encoder": {
                "type": "vit", **blocks, "heads": heads, "eps": 1e-6, "prefix": 0, "init": "normal",
                **jepa.bias_of(state, "encoder.blocks."),
            },
            "decoder": {
                "type": "predictor", **blocks_of(state, "predictor.predictor_blocks.", narrow),
                "heads": heads if decoder_heads is None else decoder_heads,
                **jepa.bias_of(state, "predictor.predictor_blocks."),
            },
        }  # fmt: skip

    def write(self, model: Any, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        self._check(model)
        image = model.modalities["image"]
        state = {}
        for key, x in model.state_dict().items():
            if key.endswith("positions.values"):
                continue
            if key.endswith("embedding.weight"):
                x = linear_to_conv(x, image.channels, image.patch)
            state[rename(key, NAMES)] = x
        tables = {
            f"encoder.{_TABLE}": image.positions,
            f"target_encoder.{_TABLE}": model.targets["image"].modalities["image"].positions,
            "predictor.predictor_pos_embed": image.decoder.positions,
        }
        for name, positions in tables.items():
            rows = positions.table(image.grid).detach()
            state[name] = rows if rows.ndim == 3 else rows[None]
        return {**state, **extras}

    def entries(self, state: dict[str, Tensor]) -> dict[str, Any]:
        return jepa.entries_of(state)

    def _check(self, model: Any) -> None:
        """Raises :class:`MaemmError` for parts that I-JEPA does not have."""
        _, predictor = jepa.checked(model, "image", "images", self.name, rotary=False)
        if predictor.rotary is not None or hasattr(predictor, "other_mask_tokens"):
            raise MaemmError(
                f"layout {self.name!r} has one mask token and no rotary positions; this predictor is another "
                "(decoder.mask_tokens, decoder.rotary)"
            )
        if "none" in model.modalities["image"].position_kinds.values():
            raise MaemmError(f"layout {self.name!r} holds tables of positions, and this model has none")
