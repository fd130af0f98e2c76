"""AudioMAE: pre-training files with the local and the global decoder, fine-tuned files, encoders alone.

Position tables are loaded as they are stored, one row per token: those of the published files are scrambled (see
:class:`~.positions.StoredTable`). The local decoder has no class token; its table's first row is kept aside.

Ports of the encoder are state dicts of timm's ``VisionTransformer`` (``vit_base_patch16_1024_128.audiomae_as2m`` and
its fine-tuned forms on the Hugging Face hub, which ``timm.create_model`` fills strictly), whose key names are these
too. A timm model that averages tokens calls the last norm ``fc_norm``, and applies it to the average: ask
``embed(pool="mean", norm="after")`` for its features. The ports' own files have not been opened here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.patches import conv_to_linear, linear_to_conv
from maemm.weights.layout import blocks_of, heads_of, rename, require

from .positions import period_of

#: our prefix -> published prefix of what only needs another name
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
    "head.linear.": "head.",
    "head.norm.": "fc_norm.",
}
CLS_ROW = "decoder_cls_position"
#: published table -> our class-token row, our patch rows
TABLES = {
    "pos_embed": ("encoder.prefix_position", "modalities.audio.positions.values"),
    "decoder_pos_embed": ("decoder.prefix_position", "modalities.audio.decoder.positions.values"),
}
WINDOW, EPS = "decoder_blocks.0.attn.tau", 1e-6
BANDS = 8  # tokens along frequency of the published models: the tables tell only the product with time
HEADS = {768: 12, 384: 6}


class AudioMAE(CheckpointFormat):
    """Layout of the published AudioMAE files."""

    name = "audiomae"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        if not {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight"} <= keys:
            return False
        patch, count = shapes["patch_embed.proj.weight"], shapes["pos_embed"][1] - 1
        if len(patch) != 4 or patch[1] != 1 or shapes["cls_token"][1] != 1:
            return False
        return WINDOW in keys or math.isqrt(count) ** 2 != count  # else it may as well be a grey picture's

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: int | None = None,
        decoder_heads: int | None = None,
        decoder: Literal["window", "full"] | None = None,
        norm_pix: bool | None = None,
        mask_ratio: float = 0.8,
        size: list[int] | None = None,
        constants: Literal["audioset", "esc50", "speechcommands"] = "audioset",
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        self._require(state)
        state = with_final_norm(state)
        width, tuned = state["cls_token"].shape[-1], "head.weight" in state
        recipe: dict[str, Any] = {
            "modalities": {"audio": self._modality(state, size, tuned)},
            "encoder": {
                "type": "vit", **blocks_of(state, "blocks.", width), "eps": EPS,
                "heads": heads_of(width, heads, HEADS, "heads"),
                "prefix_position": "learned" if tuned else "fixed", "final_norm": "norm.weight" in state,
            },
            "decoder": self._decoder(state, decoder, decoder_heads),
        }  # fmt: skip
        recipe["modalities"]["audio"] |= {
            "constants": constants,
            "normalize": {None: None, True: "patch", False: "none"}[norm_pix],
            "masking": {"type": "random", "ratio": mask_ratio},
        }
        if tuned:
            recipe["head"] = {
                "type": "linear", "classes": state["head.weight"].shape[0], "pool": "mean", "norm": "after", "eps": EPS,
            }  # fmt: skip
        ours = to_ours(state)
        extras = {CLS_ROW: ours.pop(TABLES["decoder_pos_embed"][0])} if WINDOW in state else {}
        return recipe, ours, extras

    def _require(self, state: dict[str, Tensor]) -> None:
        require(state, ("patch_embed.proj.weight", "cls_token", "pos_embed"), self.name)
        if "head.weight" in state and "fc_norm.weight" not in state:
            raise MaemmError("weights 'audiomae': a head without fc_norm; published files average tokens, then norm")

    def _modality(self, state: dict[str, Tensor], size: list[int] | None, tuned: bool) -> dict[str, Any]:
        patch = list(state["patch_embed.proj.weight"].shape[2:])
        if size is None:
            count = state["pos_embed"].shape[1] - 1
            bands = _bands(state["pos_embed"][0, 1:], count)
            size = [count // bands * patch[0], bands * patch[1]]
        position = "learned" if tuned else "fixed"
        return {"type": "audio", "size": size, "patch": patch, "position": position, "pad": "seen", "crop": "head"}

    def _decoder(self, state: dict[str, Tensor], wanted: str | None, heads: int | None) -> dict[str, Any] | None:
        if "decoder_embed.weight" not in state:
            if wanted is not None:
                raise MaemmError(f"the weights hold no decoder, so decoder={wanted!r} cannot be had; leave it out")
            return None
        found = "window" if WINDOW in state else "full"
        if wanted not in (None, found):
            raise MaemmError(f"the weights hold the {found} decoder, not {wanted!r}; give decoder={found!r} or nothing")
        width = state["decoder_embed.weight"].shape[0]
        made = {"type": found, **blocks_of(state, "decoder_blocks.", width), "eps": EPS}
        if found == "window":
            own = state[WINDOW].shape[0]
            if heads not in (None, own):
                raise MaemmError(f"the window decoder has {own} heads, not {heads}; leave decoder_heads out")
            return {**made, "heads": own, "bias_hidden": state["decoder_blocks.0.attn.meta_mlp.fc1.weight"].shape[0]}
        return {**made, "heads": heads_of(width, heads, {512: 16}, "decoder_heads"), "prefix_position": "fixed"}

    def write(self, model: nn.Module, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        if list(model.modalities) != ["audio"]:
            raise MaemmError(f"layout {self.name!r} holds audio alone, this model has {', '.join(model.modalities)}")
        if model.modalities["audio"].mel_major:
            raise MaemmError(f"layout {self.name!r} holds tokens in time order; this model is order: mel_major")
        return to_published(model, extras)


def with_final_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An encoder without a head whose last norm is called ``fc_norm``, as timm does: with it under its own name."""
    if "fc_norm.weight" not in state or "head.weight" in state:
        return state
    if "norm.weight" in state:
        raise MaemmError("weights 'audiomae': both norm and fc_norm and no head; give the whole fine-tuned file")
    return {key.replace("fc_norm.", "norm.", 1) if key.startswith("fc_norm.") else key: state[key] for key in state}


def to_ours(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Published names -> ours; the patch convolution becomes a matrix, tables are cut into class and patch rows."""
    ours, back = {}, {theirs: mine for mine, theirs in NAMES.items()}
    for key, value in state.items():
        if key in TABLES:
            cls, patches = TABLES[key]
            ours[cls], ours[patches] = value[:, :1].contiguous(), value[:, 1:].contiguous()
            continue
        ours[rename(key, back)] = conv_to_linear(value) if key == "patch_embed.proj.weight" else value
    return ours


def to_published(model: nn.Module, extras: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`to_ours` for any model of audio alone; sin-cos tables are written out."""
    audio, state = model.modalities["audio"], {}
    for key, value in model.state_dict().items():
        if key.endswith("prefix_position") or ".positions." in key:
            continue
        if key == "modalities.audio.embedding.weight":
            value = linear_to_conv(value, 1, audio.patch)
        state[rename(key, NAMES)] = value
    sides = {"pos_embed": (model.encoder, audio.positions)}
    if model.decoder is not None:
        sides["decoder_pos_embed"] = (model.decoder, audio.decoder.positions)
    for key, (part, positions) in sides.items():
        rows = positions.table(audio.grid).detach()
        rows = rows if rows.ndim == 3 else rows[None]
        first = getattr(part, "prefix_position", None)
        if first is None:
            first = extras.get(CLS_ROW) if key == "decoder_pos_embed" else None
        first = rows.new_zeros(1, 1, rows.shape[-1]) if first is None else first.detach()
        state[key] = torch.cat([first, rows], 1)
    return state


def _bands(table: Tensor, count: int) -> int:
    """Tokens along frequency: from the period of a sin-cos table, or those of the published models."""
    period = period_of(table) if not table.is_meta else None
    if period and count % period == 0:
        return min(period, count // period)  # the table was made for the two sides, in one order or the other
    if count % BANDS:
        raise MaemmError(f"a position table of {count} rows is not {BANDS} bands wide; give size=[frames, mels]")
    return BANDS
