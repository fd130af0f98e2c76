"""MAE (He et al. 2022), its fine-tuned files, and Pixio: one layout, few differences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, PositiveInt
from maemm.weights.layout import blocks_of, heads_of, require, square_side

from ..._layouts.mae import KERNEL, check_alone, check_parts, normalize_of, to_ours, to_published

#: (width, depth) of the published encoders -> heads
HEADS = {
    (192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1536, 48): 24, (3072, 48): 32
}  # fmt: skip

_NEEDED = (KERNEL, "cls_token", "pos_embed", "blocks.0.attn.qkv.weight")


class MAE(CheckpointFormat):
    """Encoder-only, full, visualize and fine-tuned files of MAE.

    The checkpoint does not record whether targets were normalised: pass ``norm_pix`` where a loss is computed.
    Fine-tuned files have ``head``; with ``fc_norm`` it reads the mean of the patch tokens, with ``norm`` the class
    token.
    """

    name = "mae"
    eps = 1e-6
    mask_block = 1
    learned_positions = False

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return keys.issuperset(_NEEDED) and len(shapes[KERNEL]) == 4 and self._has_prefix(shapes["cls_token"][1])

    def _has_prefix(self, count: int) -> bool:
        """Whether the layout has this number of class tokens."""
        return count == 1

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt | None = None,
        decoder_heads: PositiveInt | None = None,
        norm_pix: bool | None = None,
        mask_ratio: Fraction = 0.75,
        size: PositiveInt | list[PositiveInt] | None = None,
        pool: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        state = dict(state)
        require(state, _NEEDED, self.name)
        extras = self._choose_pool(state, pool)
        recipe = self._recipe(state, heads, decoder_heads, size)
        recipe["modalities"]["image"]["normalize"] = normalize_of(norm_pix)
        recipe["modalities"]["image"]["masking"] = {
            "type": "random", "ratio": mask_ratio, "mask_block": self._mask_block(state)
        }  # fmt: skip
        return recipe, to_ours(state, "image"), extras

    def _choose_pool(self, state: dict[str, Tensor], pool: str | None) -> dict[str, Tensor]:
        """Fine-tuned files that hold both norms: only one is used, the other is kept aside."""
        if not {"norm.weight", "fc_norm.weight"} <= state.keys():
            return {}
        if pool not in ("mean", "cls"):
            raise MaemmError("the weights hold norm.* and fc_norm.*; give pool='mean' (fc_norm) or pool='cls' (norm)")
        unused = "norm." if pool == "mean" else "fc_norm."
        return {key: state.pop(key) for key in list(state) if key.startswith(unused)}

    def _recipe(
        self, state: dict[str, Tensor], heads: int | None, decoder_heads: int | None, size: int | list[int] | None
    ) -> dict[str, Any]:
        width, channels, *patch = state[KERNEL].shape
        prefix = state["cls_token"].shape[1]
        tuned = "head.weight" in state
        position = "learned" if tuned or self.learned_positions else "fixed"
        blocks = blocks_of(state, "blocks.", width)
        if "blocks.0.attn.qkv.bias" not in state:  # an option of transformers and timm
            blocks["qkv_bias"] = False
        recipe: dict[str, Any] = {
            "modalities": {
                "image": {
                    "type": "image",
                    "size": self._size(state["pos_embed"].shape[1] - prefix, prefix, patch) if size is None else size,
                    "patch": list(patch),
                    "channels": channels,
                    "position": position,
                }
            },
            "encoder": {
                "type": "vit", **blocks, "heads": heads_of((width, blocks["depth"]), heads, HEADS, "heads"),
                "eps": self.eps, "prefix": prefix, "prefix_position": position, "final_norm": "norm.weight" in state,
            },
            "decoder": self._decoder(state, decoder_heads, position) if "decoder_embed.weight" in state else None,
        }  # fmt: skip
        if tuned:
            mean = "fc_norm.weight" in state
            recipe["head"] = {
                "type": "linear", "classes": state["head.weight"].shape[0], "pool": "mean" if mean else "cls",
                "norm": "after" if mean else "before", "eps": self.eps,
            }  # fmt: skip
        return recipe

    def _decoder(self, state: dict[str, Tensor], heads: int | None, position: str) -> dict[str, Any]:
        width = state["decoder_embed.weight"].shape[0]
        blocks = blocks_of(state, "decoder_blocks.", width)
        if "decoder_blocks.0.attn.qkv.bias" not in state:
            blocks["qkv_bias"] = False
        return {
            "type": "full", **blocks,
            "heads": heads_of(width, heads, {512: 16}, "decoder_heads"), "eps": self.eps, "prefix_position": position,
        }  # fmt: skip

    def _size(self, count: int, prefix: int, patch: list[int]) -> list[int]:
        side = square_side(count, "the position table pos_embed", prefix)
        return [side * patch[0], side * patch[1]]

    def _mask_block(self, state: dict[str, Tensor]) -> int:
        return self.mask_block

    def write(self, model: Any, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        self.check(model)
        check_parts(model, "image", self.name)
        return {**self.published(model), **extras}

    def published(self, model: Any, *, decoder: bool = True) -> dict[str, Tensor]:
        """:func:`to_published`; class tokens without a position have a row of zeros in the tables."""
        prefix = 0 if model.encoder.prefix is None else model.encoder.prefix.shape[1]

        def prefix_rows(table: str, part: Any, rows: Tensor) -> Tensor:
            if part.prefix_position is not None:
                return part.prefix_position.detach()
            return rows.new_zeros(1, prefix, rows.shape[-1])

        return to_published(model, "image", prefix_rows, decoder=decoder)

    def check(self, model: Any) -> None:
        """Raises :class:`MaemmError` for a model of anything but images."""
        check_alone(model, "image", "images", self.name)


class Pixio(MAE):
    """Pixio (arXiv 2512.15715): several class tokens, learned positions, masks in blocks of patches."""

    name = "pixio"
    learned_positions = True

    def _has_prefix(self, count: int) -> bool:
        return count > 1

    def _mask_block(self, state: dict[str, Tensor]) -> int:
        side = math.isqrt(state["pos_embed"].shape[1] - state["cls_token"].shape[1])
        return next(k for k in (4, 2, 1) if side % k == 0)
