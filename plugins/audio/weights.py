"""AudioMAE: pre-training files with the local and the global decoder, fine-tuned files, encoders alone.

Position tables are loaded as they are stored, one row per token: the published ones do not follow the grid (see
:class:`~.positions.StoredTable`). The local decoder has no class token; its table's first row is kept aside.

Ports of the encoder are state dicts of timm's ``VisionTransformer`` (``vit_base_patch16_1024_128.audiomae_as2m`` and
its fine-tuned forms on the Hugging Face hub) with the same key names. A timm model that averages tokens calls the last
norm ``fc_norm`` and applies it to the mean: ``embed(pool="mean", norm="after")`` gives its features. This follows
timm's code; the ports' own files were not tried.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, PositiveInt
from maemm.model.decoders.full import Full
from maemm.weights.layout import blocks_of, heads_of, require

from .._layouts.mae import KERNEL, check_alone, check_parts, normalize_of, tables_of, to_ours, to_published
from .positions import period_of
from .window import Window

CLS_ROW = "decoder_cls_position"  # key of the row that the window decoder has no use for
WINDOW, EPS = "decoder_blocks.0.attn.tau", 1e-6
BANDS = 8  # tokens along frequency in the published models: tables record only the product with time
HEADS = {768: 12, 384: 6}


class AudioMAE(CheckpointFormat):
    """Layout of the published AudioMAE files."""

    name = "audiomae"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        if not {"cls_token", "pos_embed", KERNEL, "blocks.0.attn.qkv.weight"} <= keys:
            return False
        patch, count = shapes[KERNEL], shapes["pos_embed"][1] - 1
        if len(patch) != 4 or patch[1] != 1 or shapes["cls_token"][1] != 1:
            return False
        return WINDOW in keys or math.isqrt(count) ** 2 != count  # else it may as well be a grey picture's

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt | None = None,
        decoder_heads: PositiveInt | None = None,
        decoder: Literal["window", "full"] | None = None,
        norm_pix: bool | None = None,
        mask_ratio: Fraction = 0.8,
        size: list[PositiveInt] | None = None,
        constants: Literal["audioset", "esc50", "speechcommands"] = "audioset",
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        require(state, (KERNEL, "cls_token", "pos_embed"), self.name)
        if "head.weight" in state and "fc_norm.weight" not in state:
            raise MaemmError("weights 'audiomae': a head without fc_norm; published files average tokens, then norm")
        state = _with_final_norm(state)
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
            "normalize": normalize_of(norm_pix),
            "masking": {"type": "random", "ratio": mask_ratio},
        }
        if tuned:
            recipe["head"] = {
                "type": "linear", "classes": state["head.weight"].shape[0], "pool": "mean", "norm": "after", "eps": EPS,
            }  # fmt: skip
        ours = to_ours(state, "audio")
        extras = {CLS_ROW: ours.pop(tables_of("audio")["decoder_pos_embed"][0])} if WINDOW in state else {}
        return recipe, ours, extras

    def _modality(self, state: dict[str, Tensor], size: list[int] | None, tuned: bool) -> dict[str, Any]:
        patch = list(state[KERNEL].shape[2:])
        if size is None:
            count = state["pos_embed"].shape[1] - 1
            bands = _bands(state["pos_embed"][0, 1:], count)
            size = [count // bands * patch[0], bands * patch[1]]
        position = "learned" if tuned else "fixed"
        return {"type": "audio", "size": size, "patch": patch, "position": position, "pad": "seen", "crop": "head"}

    def _decoder(self, state: dict[str, Tensor], requested: str | None, heads: int | None) -> dict[str, Any] | None:
        if "decoder_embed.weight" not in state:
            if requested is not None:
                raise MaemmError(f"the weights hold no decoder; leave out decoder={requested!r}")
            return None
        kind = "window" if WINDOW in state else "full"
        if requested not in (None, kind):
            raise MaemmError(f"the weights hold the {kind} decoder, not {requested!r}; leave out decoder=")
        width = state["decoder_embed.weight"].shape[0]
        recipe = {"type": kind, **blocks_of(state, "decoder_blocks.", width), "eps": EPS}
        if kind == "window":
            stored = state[WINDOW].shape[0]
            if heads not in (None, stored):
                raise MaemmError(f"the window decoder has {stored} heads, not {heads}; leave decoder_heads out")
            bias_hidden = state["decoder_blocks.0.attn.meta_mlp.fc1.weight"].shape[0]
            return {**recipe, "heads": stored, "bias_hidden": bias_hidden}
        return {**recipe, "heads": heads_of(width, heads, {512: 16}, "decoder_heads"), "prefix_position": "fixed"}

    def write(self, model: Any, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        check_alone(model, "audio", "audio", self.name)
        check_parts(model, "audio", self.name, (Full, Window))
        if model.modalities["audio"].mel_major:
            raise MaemmError(f"layout {self.name!r} holds tokens in time order; this model is order: mel_major")

        def prefix_rows(table: str, part: Any, rows: Tensor) -> Tensor:
            first = getattr(part, "prefix_position", None)
            if first is None and table == "decoder_pos_embed":
                first = extras.get(CLS_ROW)
            return rows.new_zeros(1, 1, rows.shape[-1]) if first is None else first.detach()

        return to_published(model, "audio", prefix_rows)


def _with_final_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm calls the last norm of an encoder without a head ``fc_norm``: renamed to ``norm``."""
    if "fc_norm.weight" not in state or "head.weight" in state:
        return state
    if "norm.weight" in state:
        raise MaemmError("weights 'audiomae': both norm and fc_norm and no head; give the whole fine-tuned file")
    return {key.replace("fc_norm.", "norm.", 1) if key.startswith("fc_norm.") else key: state[key] for key in state}


def _bands(table: Tensor, count: int) -> int:
    """Tokens along frequency: from the period of a sin-cos table, else that of the published models."""
    period = period_of(table) if not table.is_meta else None
    if period and count % period == 0:
        return min(period, count // period)  # the table was made for the two sides, in one order or the other
    if count % BANDS:
        raise MaemmError(f"a position table of {count} rows is not {BANDS} bands wide; give size=[frames, mels]")
    return BANDS
