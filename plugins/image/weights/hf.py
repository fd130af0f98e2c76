"""ViTMAE of transformers: other names, separate queries, keys and values, LayerNorm eps 1e-12."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maemm.contract import ExportedState
from maemm.contract.errors import MaemmError
from maemm.weights.transformers import call_of, known_settings

from .hf_config import config_of, run_in_transformers
from .mae import MAE

#: name in files -> MAE's name, outside the blocks
OUTSIDE_BLOCKS = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "vit.layernorm.": "norm.",
    "decoder.mask_token": "mask_token",
    "decoder.decoder_pos_embed": "decoder_pos_embed",
    "decoder.decoder_embed.": "decoder_embed.",
    "decoder.decoder_norm.": "decoder_norm.",
    "decoder.decoder_pred.": "decoder_pred.",
}
#: inside a block: name in files, name in memory since transformers 5, MAE's name
INSIDE_BLOCKS = [
    ("attention.output.dense.", "attention.o_proj.", "attn.proj."),
    ("intermediate.dense.", "mlp.fc1.", "mlp.fc1."),
    ("output.dense.", "mlp.fc2.", "mlp.fc2."),
    ("layernorm_before.", "layernorm_before.", "norm1."),
    ("layernorm_after.", "layernorm_after.", "norm2."),
]
QKV = [
    ("attention.attention.query.", "attention.q_proj."),
    ("attention.attention.key.", "attention.k_proj."),
    ("attention.attention.value.", "attention.v_proj."),
]
BLOCKS = {"vit.encoder.layer.": "blocks.", "decoder.decoder_encoder.layer.": "decoder_blocks."}
BLOCK = re.compile(
    r"(?:vit\.(?:encoder\.layer|layers)|(decoder)\.(?:decoder_encoder\.layer|decoder_layers))\.(\d+)\.(.+)"
)


class HFViTMAE(MAE):
    """``ViTMAEForPreTraining`` and ``ViTMAEModel``: names as in files, and as in memory since transformers 5."""

    name = "hf_vitmae"
    library = "hf"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return "vit.embeddings.cls_token" in keys and "vit.embeddings.position_embeddings" in keys

    def read(  # type: ignore[override]  # eps in place of pool
        self,
        state: dict[str, Tensor],
        *,
        heads: int | None = None,
        decoder_heads: int | None = None,
        norm_pix: bool | None = None,
        mask_ratio: float = 0.75,
        size: int | list[int] | None = None,
        eps: float = 1e-12,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        self.eps = eps
        return super().read(
            from_hf(state),
            heads=heads,
            decoder_heads=decoder_heads,
            norm_pix=norm_pix,
            mask_ratio=mask_ratio,
            size=size,
        )

    def write(self, model: Any, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        return to_hf(super().write(model, extras))

    def exported_state(self, model: Any) -> ExportedState:
        """The encoder, and the decoder where there is one, with a config.json for transformers."""
        self.check(model)
        config = config_of(model, self.name)
        return ExportedState(self.write(model, {}), call_of(config), "tokens", run_in_transformers, config)

    def settings_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return known_settings(config, mask_ratio="mask_ratio", size="image_size")


def from_hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their names -> MAE's; raises :class:`MaemmError` where a query, key or value is missing."""
    result: dict[str, Tensor] = {}
    split: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        block = BLOCK.fullmatch(key)
        if block is None:
            result[_whole(key)] = value
            continue
        side, number, rest = block.groups()
        start = f"{'decoder_blocks' if side else 'blocks'}.{number}."
        part = next((i for i, names in enumerate(QKV) if rest.startswith(names)), None)  # query, key or value
        if part is None:
            result[start + _inside(rest)] = value
        else:
            split.setdefault(f"{start}attn.qkv.{rest.rsplit('.', 1)[1]}", {})[part] = value
    for key, parts in split.items():
        if set(parts) != {0, 1, 2}:
            raise MaemmError(f"weights 'hf_vitmae': {key} lacks a query, key or value; get the complete file")
        result[key] = torch.cat([parts[i] for i in range(3)])
    return result


def _whole(key: str) -> str:
    for theirs, mae in OUTSIDE_BLOCKS.items():
        if key.startswith(theirs):
            return mae + key[len(theirs) :]
    return key


def _inside(rest: str) -> str:
    for file, memory, mae in INSIDE_BLOCKS:
        for name in (file, memory):
            if rest.startswith(name):
                return mae + rest[len(name) :]
    return rest


def to_hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MAE's names -> those of files."""
    result = {}
    for key, value in state.items():
        start = next((s for s in BLOCKS.values() if key.startswith(s)), None)
        if start is None:
            theirs = next((t for t, mae in OUTSIDE_BLOCKS.items() if key.startswith(mae)), None)
            result[key if theirs is None else theirs + key[len(OUTSIDE_BLOCKS[theirs]) :]] = value
            continue
        number, rest = key[len(start) :].split(".", 1)
        block = next(t for t, mae in BLOCKS.items() if mae == start) + number + "."
        if rest.startswith("attn.qkv."):
            for (name, _), part in zip(QKV, value.chunk(3), strict=True):
                result[block + name + rest.rsplit(".", 1)[1]] = part
        else:
            file, _, mae = next(names for names in INSIDE_BLOCKS if rest.startswith(names[2]))
            result[block + file + rest[len(mae) :]] = value
    return result
