"""VideoMAE in the layout of transformers: pre-training, classification and bare encoder files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maemm.contract import ExportedState
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, NonNegative, PositiveInt
from maemm.model.model import Model
from maemm.weights.transformers import call_of, check_agreement

from .hf_config import CONFIG, config_of, run_in_transformers, size_of, stated_by
from .videomae import VideoMAE

#: their prefix -> VideoMAE's, outside the blocks (``{e}`` is ``encoder.`` in pre-training files)
OUTSIDE_BLOCKS = {
    "videomae.embeddings.patch_embeddings.projection.": "{e}patch_embed.proj.",
    "videomae.layernorm.": "{e}norm.",
    "classifier.": "head.",
}
BLOCKS = {"videomae.encoder.layer.": "{e}blocks.", "decoder.decoder_layers.": "decoder.blocks."}
INSIDE_BLOCKS = {
    "attention.output.dense.": "attn.proj.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
}
ATTENTION = "attention.attention."
#: names of the two biases in memory since 5.x, and in files
IN_MEMORY = {"query.bias": "q_bias", "value.bias": "v_bias"}
_MARK = "names.in_memory"  # an empty tensor among the extras, if the file used the names in memory
_BLOCK = re.compile(r"(videomae\.encoder\.layer\.|decoder\.decoder_layers\.)(\d+)\.(.+)")


class HFVideoMAE(VideoMAE):
    """``VideoMAEForPreTraining``, ``VideoMAEForVideoClassification`` and ``VideoMAEModel``.

    Query and value biases have two names, ``query.bias`` in memory and ``q_bias`` in files; a missing one was dropped
    by a loader and is an error. Layer norms have two different eps.
    """

    name = "hf_videomae"
    library = "hf"
    eps = {"encoder": 1e-12, "decoder": 1e-12, "decoder_norm": 1e-5, "head": 1e-5}
    config: Mapping[str, Any] | None = None  # what :meth:`settings_of` was called with

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        kernel = "embeddings.patch_embeddings.projection.weight"
        shape = next((shapes[key] for key in (f"videomae.{kernel}", kernel) if key in keys), ())
        return len(shape) == 5

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt | None = None,
        decoder_heads: PositiveInt | None = None,
        norm_pix: bool | None = None,
        mask_ratio: Fraction = 0.9,
        size: list[PositiveInt] | None = None,
        eps: NonNegative = 1e-12,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        self.eps = {**self.eps, "encoder": eps, "decoder": eps}  # transformers fixes the other two
        in_memory = any(key.endswith(f"{ATTENTION}query.bias") for key in state)
        recipe, ours, extras = super().read(
            from_hf(state), heads=heads, decoder_heads=decoder_heads, norm_pix=norm_pix, mask_ratio=mask_ratio,
            size=size,
        )  # fmt: skip
        if self.config is not None:
            check_agreement(self.config, stated_by(recipe))
        return recipe, ours, {**extras, **({_MARK: torch.zeros(0)} if in_memory else {})}

    def write(self, model: Model, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        """With the names of files, or those in memory if the weights were read with them."""
        rest = {key: value for key, value in extras.items() if key != _MARK}
        return to_hf(super().write(model, rest), in_memory=_MARK in extras)

    def exported_state(self, model: Model) -> ExportedState:
        """Encoder, and decoder or classifier if there is one, with a config.json for transformers."""
        state = self.write(model, {})
        if model.head is not None:  # our classifier skips the encoder's final norm, their classification model has none
            state = {key: value for key, value in state.items() if not key.startswith("encoder.norm.")}
        config = config_of(model, self.name)
        answers = "tokens" if model.head is None else "logits"
        return ExportedState(state, call_of(config), answers, run_in_transformers, config)

    def settings_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        self.config = config
        return {**CONFIG.read(config), "size": size_of(config)}


def from_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their names -> VideoMAE's. Raises :class:`MaemmError` where a query, key, value or bias is missing."""
    if "embeddings.patch_embeddings.projection.weight" in state:  # the bare encoder
        state = {f"videomae.{key}": value for key, value in state.items()}
    encoder = "" if "classifier.weight" in state else "encoder."
    renamed: dict[str, Tensor] = {}
    attentions: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        block = _BLOCK.fullmatch(key)
        if block is None:
            start = next((prefix for prefix in OUTSIDE_BLOCKS if key.startswith(prefix)), None)
            renamed[key if start is None else OUTSIDE_BLOCKS[start].format(e=encoder) + key[len(start) :]] = value
            continue
        stack, number, rest = block.groups()
        layer = f"{BLOCKS[stack].format(e=encoder)}{number}."
        if rest.startswith(ATTENTION):
            name = rest.removeprefix(ATTENTION)
            attentions.setdefault(layer, {})[IN_MEMORY.get(name, name)] = value
        else:
            start = next((prefix for prefix in INSIDE_BLOCKS if rest.startswith(prefix)), None)
            renamed[layer + (rest if start is None else INSIDE_BLOCKS[start] + rest[len(start) :])] = value
    for layer, attention in attentions.items():
        renamed |= _attention(layer, attention)
    return renamed


def _attention(prefix: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = [f"{name}.weight" for name in ("query", "key", "value")]
    missing = [name for name in (*weights, "q_bias", "v_bias") if name not in parts]
    if missing:
        raise MaemmError(f"weights 'hf_videomae': {prefix}attn lacks {', '.join(missing)}; get the complete file")
    joined = {f"{prefix}attn.qkv.weight": torch.cat([parts.pop(name) for name in weights])}
    return joined | {f"{prefix}attn.{name}": value for name, value in parts.items()}


def to_hf(state: Mapping[str, Tensor], in_memory: bool = False) -> dict[str, Tensor]:
    """VideoMAE's names -> theirs, as ``save_pretrained`` writes them or as they are in memory."""
    encoder = "" if "head.weight" in state else "encoder."
    whole = {ours.format(e=encoder): theirs for theirs, ours in OUTSIDE_BLOCKS.items()}
    blocks = {ours.format(e=encoder): theirs for theirs, ours in BLOCKS.items()}
    inside = {ours: theirs for theirs, ours in INSIDE_BLOCKS.items()}
    biases = {ours: theirs for theirs, ours in IN_MEMORY.items()} if in_memory else {}
    renamed = {}
    for key, value in state.items():
        stack = next((prefix for prefix in blocks if key.startswith(prefix)), None)
        if stack is None:
            start = next((prefix for prefix in whole if key.startswith(prefix)), None)
            renamed[key if start is None else whole[start] + key[len(start) :]] = value
            continue
        number, rest = key[len(stack) :].split(".", 1)
        layer = f"{blocks[stack]}{number}."
        if rest == "attn.qkv.weight":
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[f"{layer}{ATTENTION}{name}.weight"] = part
        elif rest in ("attn.q_bias", "attn.v_bias"):
            name = rest.removeprefix("attn.")
            renamed[layer + ATTENTION + biases.get(name, name)] = value
        else:
            start = next(prefix for prefix in inside if rest.startswith(prefix))
            renamed[layer + inside[start] + rest[len(start) :]] = value
    return renamed
