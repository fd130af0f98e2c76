"""ViTMAE and ViT of transformers: other names, separate queries, keys and values, LayerNorm eps 1e-12."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maemm.contract import ExportedState
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, NonNegative, PositiveInt
from maemm.model.heads import Linear
from maemm.weights.transformers import call_of, check_agreement

from .hf_config import CONFIG, config_of, run_in_transformers, stated_by
from .mae import MAE

#: name in files -> MAE's name, outside the blocks
OUTSIDE_BLOCKS = {
    "vit.embeddings.cls_token": "cls_token",
    "vit.embeddings.position_embeddings": "pos_embed",
    "vit.embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "vit.layernorm.": "norm.",
    "classifier.": "head.",
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


_KERNEL = "embeddings.patch_embeddings.projection.weight"
_BARE, _POOLER = "names.bare", "pooler."  # an empty tensor among the extras: the names had no "vit." in front


class HFViTMAE(MAE):
    """``ViTMAEForPreTraining``, ``ViTMAEModel``, ``ViTForImageClassification`` and ``ViTModel``.

    Names as in files, and as in memory since transformers 5. The classifier reads the class token behind the final
    norm; the pooler of ``ViTModel`` is kept aside.
    """

    name = "hf_vitmae"
    library = "hf"
    config: Mapping[str, Any] | None = None  # what :meth:`settings_of` was called with

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        start = "vit." if f"vit.{_KERNEL}" in keys else ""
        needed = {f"{start}{key}" for key in (_KERNEL, "embeddings.cls_token", "embeddings.position_embeddings")}
        return needed <= keys and len(shapes[start + _KERNEL]) == 4

    def read(  # type: ignore[override]  # eps in place of pool
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt | None = None,
        decoder_heads: PositiveInt | None = None,
        norm_pix: bool | None = None,
        mask_ratio: Fraction = 0.75,
        size: PositiveInt | list[PositiveInt] | None = None,
        eps: NonNegative = 1e-12,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        self.eps = eps
        extras = {}
        if _KERNEL in state:  # the bare encoder
            state, extras = {f"vit.{key}": value for key, value in state.items()}, {_BARE: torch.zeros(0)}
        extras |= {key: value for key, value in state.items() if key.startswith(f"vit.{_POOLER}")}
        recipe, ours, rest = super().read(
            from_hf({key: value for key, value in state.items() if key not in extras}),
            heads=heads,
            decoder_heads=decoder_heads,
            norm_pix=norm_pix,
            mask_ratio=mask_ratio,
            size=size,
        )
        if self.config is not None:
            check_agreement(self.config, stated_by(recipe))
        return recipe, ours, {**extras, **rest}

    def write(self, model: Any, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        head = model.head
        if head is not None and (type(head) is not Linear or head.pool != "cls" or head.norm_when != "before"):
            raise MaemmError(
                f"layout {self.name!r} holds a linear classifier of the class token behind the final norm, this head "
                "is another; use --to mae"
            )
        rest = {key: value for key, value in extras.items() if key != _BARE}
        state = to_hf(super().write(model, rest))
        if _BARE not in extras or model.decoder is not None or head is not None:
            return state
        return {key.removeprefix("vit."): value for key, value in state.items()}

    def exported_state(self, model: Any) -> ExportedState:
        """The encoder, and the decoder where there is one, with a config.json for transformers."""
        self.check(model)
        config = config_of(model, self.name)
        return ExportedState(self.write(model, {}), call_of(config), "tokens", run_in_transformers, config)

    def settings_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        self.config = config
        return CONFIG.read(config)


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
