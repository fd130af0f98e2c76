"""MAE (He et al. 2022), its fine-tuned files, and Pixio: one layout, few differences."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.patches import conv_to_linear, linear_to_conv
from maemm.weights.layout import blocks_of, heads_of, rename, require

#: (width, depth) of the published encoders -> heads
HEADS = {
    (192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1536, 48): 24, (3072, 48): 32
}  # fmt: skip
#: our prefix -> published prefix of what only needs another name
NAMES = {
    "encoder.blocks.": "blocks.",
    "encoder.norm.": "norm.",
    "encoder.prefix": "cls_token",
    "modalities.image.embedding.": "patch_embed.proj.",
    "decoder.blocks.": "decoder_blocks.",
    "decoder.norm.": "decoder_norm.",
    "decoder.project.": "decoder_embed.",
    "decoder.mask_token": "mask_token",
    "decoder.heads.image.": "decoder_pred.",
    "head.linear.": "head.",
    "head.norm.": "fc_norm.",
}
#: published table -> our class-token rows, our patch rows
TABLES = {
    "pos_embed": ("encoder.prefix_position", "modalities.image.positions.values"),
    "decoder_pos_embed": ("decoder.prefix_position", "modalities.image.decoder.positions.values"),
}


class MAE(CheckpointFormat):
    """Encoder-only, full, visualize and fine-tuned files of MAE.

    The target's normalisation is not in the file: ``norm_pix`` is asked for once a loss is wanted. Fine-tuned files
    have ``head``; with ``fc_norm`` the patch tokens are averaged, with ``norm`` the class token is read.
    """

    name = "mae"
    eps = 1e-6
    mask_block = 1
    learned_positions = False

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        fits = {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= keys
        return fits and len(shapes["patch_embed.proj.weight"]) == 4 and self._tokens_fit(shapes["cls_token"][1])

    def _tokens_fit(self, count: int) -> bool:
        return count == 1

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: int | None = None,
        decoder_heads: int | None = None,
        norm_pix: bool | None = None,
        mask_ratio: float = 0.75,
        size: int | list[int] | None = None,
        pool: str | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        state = dict(state)
        self._require(state)
        extras = self._choose_pool(state, pool)
        recipe = self._recipe(state, heads, decoder_heads, size)
        recipe["modalities"]["image"]["normalize"] = {None: None, True: "patch", False: "none"}[norm_pix]
        recipe["modalities"]["image"]["masking"] = {
            "type": "random", "ratio": mask_ratio, "mask_block": self._mask_block(state)
        }  # fmt: skip
        return recipe, to_ours(state), extras

    def _require(self, state: dict[str, Tensor]) -> None:
        needed = ["patch_embed.proj.weight", "cls_token", "pos_embed", "blocks.0.attn.qkv.weight"]
        require(state, needed, self.name)

    def _choose_pool(self, state: dict[str, Tensor], pool: str | None) -> dict[str, Tensor]:
        """Fine-tuned files that hold both norms: only one is used, the other is kept aside."""
        both = "norm.weight" in state and "fc_norm.weight" in state
        if both and pool not in ("mean", "cls"):
            raise MaemmError("the weights hold norm.* and fc_norm.*; give pool='mean' (fc_norm) or pool='cls' (norm)")
        unused = {"mean": "norm.", "cls": "fc_norm."}[pool] if both else None
        return {key: state.pop(key) for key in list(state) if unused and key.startswith(unused)}

    def _recipe(
        self, state: dict[str, Tensor], heads: int | None, decoder_heads: int | None, size: int | list[int] | None
    ) -> dict[str, Any]:
        width, channels, *patch = state["patch_embed.proj.weight"].shape
        prefix = state["cls_token"].shape[1]
        tuned = "head.weight" in state
        position = "learned" if tuned or self.learned_positions else "fixed"
        blocks = blocks_of(state, "blocks.", width)
        recipe: dict[str, Any] = {
            "modalities": {
                "image": {
                    "type": "image",
                    "size": size or self._size(state["pos_embed"].shape[1] - prefix, patch),
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
            own = "fc_norm.weight" in state
            recipe["head"] = {
                "type": "linear", "classes": state["head.weight"].shape[0], "pool": "mean" if own else "cls",
                "norm": "after" if own else "before", "eps": self.eps,
            }  # fmt: skip
        return recipe

    def _decoder(self, state: dict[str, Tensor], heads: int | None, position: str) -> dict[str, Any]:
        width = state["decoder_embed.weight"].shape[0]
        return {
            "type": "full", **blocks_of(state, "decoder_blocks.", width),
            "heads": heads_of(width, heads, {512: 16}, "decoder_heads"), "eps": self.eps, "prefix_position": position,
        }  # fmt: skip

    def _size(self, count: int, patch: list[int]) -> list[int]:
        side = math.isqrt(count)
        if side * side != count:
            raise MaemmError(f"a position table of {count} patches is not square; give size=[height, width]")
        return [side * patch[0], side * patch[1]]

    def _mask_block(self, state: dict[str, Tensor]) -> int:
        return self.mask_block

    def write(self, model: torch.nn.Module, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        self.alone(model)
        return {**to_published(model), **extras}

    def alone(self, model: torch.nn.Module) -> None:
        """Raises :class:`MaemmError` for a model of anything but images."""
        if list(model.modalities) != ["image"]:
            raise MaemmError(f"layout {self.name!r} holds images alone, this model has {', '.join(model.modalities)}")


class Pixio(MAE):
    """Pixio (arXiv 2512.15715): several class tokens, learned positions, masks in blocks of patches."""

    name = "pixio"
    learned_positions = True

    def _tokens_fit(self, count: int) -> bool:
        return count > 1

    def _mask_block(self, state: dict[str, Tensor]) -> int:
        side = math.isqrt(state["pos_embed"].shape[1] - state["cls_token"].shape[1])
        return next(k for k in (4, 2, 1) if side % k == 0)


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> ours; the patch convolution becomes a matrix, tables are cut into class and patch rows."""
    ours = {}
    prefix = state["cls_token"].shape[1]
    for key, value in state.items():
        if key in TABLES:
            ours[TABLES[key][0]], ours[TABLES[key][1]] = value[:, :prefix], value[:, prefix:]
            continue
        if key == "patch_embed.proj.weight":
            value = conv_to_linear(value)
        ours[rename(key, {theirs: mine for mine, theirs in NAMES.items()})] = value
    return {key: value.contiguous() for key, value in ours.items()}


def to_published(model: torch.nn.Module) -> dict[str, Tensor]:
    """The inverse of :func:`to_ours`, for any model with images alone; sin-cos tables are written out."""
    image = model.modalities["image"]
    state = {}
    for key, value in model.state_dict().items():
        if key.endswith("prefix_position") or ".positions." in key:
            continue
        if key == "modalities.image.embedding.weight":
            value = linear_to_conv(value, image.channels, image.patch)
        state[rename(key, NAMES)] = value
    sides = {"pos_embed": (model.encoder, image.positions)}
    if model.decoder is not None:
        sides["decoder_pos_embed"] = (model.decoder, image.decoder.positions)
    for key, (part, positions) in sides.items():
        rows = positions.table(image.grid).detach()
        rows = rows if rows.ndim == 3 else rows[None]
        state[key] = torch.cat([_prefix_rows(part, model, rows), rows], 1)
    return state


def _prefix_rows(part: torch.nn.Module, model: torch.nn.Module, rows: Tensor) -> Tensor:
    if part.prefix_position is not None:
        return part.prefix_position.detach()
    prefix = model.encoder.prefix
    return rows.new_zeros(1, 0 if prefix is None else prefix.shape[1], rows.shape[-1])
