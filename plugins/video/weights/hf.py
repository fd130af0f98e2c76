"""VideoMAE as transformers names it: pre-training, classification and bare encoder files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract import ExportedState
from maemm.contract.errors import MaemmError
from maemm.weights.transformers import call_of

from .hf_config import config_of, run_there, settings_of
from .videomae import VideoMAE

#: their prefix -> VideoMAE's, outside the blocks (``{e}`` is ``encoder.`` in pre-training files)
WHOLE = {
    "videomae.embeddings.patch_embeddings.projection.": "{e}patch_embed.proj.",
    "videomae.layernorm.": "{e}norm.",
    "classifier.": "head.",
}
BLOCKS = {"videomae.encoder.layer.": "{e}blocks.", "decoder.decoder_layers.": "decoder.blocks."}
INSIDE = {
    "attention.output.dense.": "attn.proj.",
    "intermediate.dense.": "mlp.fc1.",
    "output.dense.": "mlp.fc2.",
    "layernorm_before.": "norm1.",
    "layernorm_after.": "norm2.",
}
ATTENTION = "attention.attention."
#: names of the two biases in memory since 5.x, and in files
IN_MEMORY = {"query.bias": "q_bias", "value.bias": "v_bias"}
_MARK = "names.in_memory"  # an empty tensor among the extras: the file used the names in memory
_BLOCK = re.compile(r"(videomae\.encoder\.layer\.|decoder\.decoder_layers\.)(\d+)\.(.+)")


class HFVideoMAE(VideoMAE):
    """``VideoMAEForPreTraining``, ``VideoMAEForVideoClassification`` and ``VideoMAEModel``.

    Query and value biases come under two names, ``query.bias`` in memory and ``q_bias`` in files; where one is
    missing, it was dropped by a loader, and that is an error. Their layer norms have two eps.
    """

    name = "hf_videomae"
    library = "hf"
    eps = {"encoder": 1e-12, "decoder": 1e-12, "decoder_norm": 1e-5, "head": 1e-5}

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        kernel = "embeddings.patch_embeddings.projection.weight"
        found = next((shapes[key] for key in (f"videomae.{kernel}", kernel) if key in keys), ())
        return len(found) == 5

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: int | None = None,
        decoder_heads: int | None = None,
        norm_pix: bool | None = None,
        mask_ratio: float = 0.9,
        size: list[int] | None = None,
        eps: float = 1e-12,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        self.eps = {**self.eps, "encoder": eps, "decoder": eps}  # the other two are fixed in their code
        in_memory = any(key.endswith(f"{ATTENTION}query.bias") for key in state)
        recipe, ours, extras = super().read(
            from_hf(state), heads=heads, decoder_heads=decoder_heads, norm_pix=norm_pix, mask_ratio=mask_ratio,
            size=size,
        )  # fmt: skip
        return recipe, ours, {**extras, **({_MARK: torch.zeros(0)} if in_memory else {})}

    def write(self, model: nn.Module, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        """The names of files, or those in memory where the weights came with them."""
        rest = {key: value for key, value in extras.items() if key != _MARK}
        return to_hf(super().write(model, rest), in_memory=_MARK in extras)

    def exported_state(self, model: nn.Module) -> ExportedState:
        """Encoder, decoder and classifier, as far as there are, with a config.json for transformers."""
        state = self.write(model, {})
        if model.head is not None:  # ours skips the encoder's last norm before a classifier, theirs has none then
            state = {key: value for key, value in state.items() if not key.startswith("encoder.norm.")}
        config = config_of(model, self.name)
        answers = "tokens" if model.head is None else "logits"
        return ExportedState(state, call_of(config), answers, run_there, config)

    def settings_of(self, config: Mapping[str, Any]) -> dict[str, Any]:
        return settings_of(config)


def from_hf(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Their names -> VideoMAE's. Raises :class:`MaemmError` where a query, key, value or bias is missing."""
    if "embeddings.patch_embeddings.projection.weight" in state:  # the bare encoder
        state = {f"videomae.{key}": value for key, value in state.items()}
    encoder = "" if "classifier.weight" in state else "encoder."
    found: dict[str, Tensor] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        block = _BLOCK.fullmatch(key)
        if block is None:
            start = next((one for one in WHOLE if key.startswith(one)), None)
            found[key if start is None else WHOLE[start].format(e=encoder) + key[len(start) :]] = value
            continue
        home, number, rest = block.groups()
        prefix = f"{BLOCKS[home].format(e=encoder)}{number}."
        if rest.startswith(ATTENTION):
            name = rest.removeprefix(ATTENTION)
            parts.setdefault(prefix, {})[IN_MEMORY.get(name, name)] = value
        else:
            start = next((one for one in INSIDE if rest.startswith(one)), None)
            found[prefix + (rest if start is None else INSIDE[start] + rest[len(start) :])] = value
    for prefix, attention in parts.items():
        found |= _attention(prefix, attention)
    return found


def _attention(prefix: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    whole = [f"{name}.weight" for name in ("query", "key", "value")]
    missing = [name for name in (*whole, "q_bias", "v_bias") if name not in parts]
    if missing:
        raise MaemmError(
            f"weights 'hf_videomae': {prefix}attn lacks {', '.join(missing)}; it was dropped, get the whole file"
        )
    joined = {f"{prefix}attn.qkv.weight": torch.cat([parts.pop(name) for name in whole])}
    return joined | {f"{prefix}attn.{name}": value for name, value in parts.items()}


def to_hf(state: Mapping[str, Tensor], in_memory: bool = False) -> dict[str, Tensor]:
    """VideoMAE's names -> theirs, as ``save_pretrained`` writes them or as they are in memory."""
    encoder = "" if "head.weight" in state else "encoder."
    whole = {mine.format(e=encoder): theirs for theirs, mine in WHOLE.items()}
    blocks = {mine.format(e=encoder): theirs for theirs, mine in BLOCKS.items()}
    inside = {mine: theirs for theirs, mine in INSIDE.items()}
    biases = {mine: theirs for theirs, mine in IN_MEMORY.items()} if in_memory else {}
    result = {}
    for key, value in state.items():
        start = next((one for one in blocks if key.startswith(one)), None)
        if start is None:
            outer = next((one for one in whole if key.startswith(one)), None)
            result[key if outer is None else whole[outer] + key[len(outer) :]] = value
            continue
        number, rest = key[len(start) :].split(".", 1)
        prefix = f"{blocks[start]}{number}."
        if rest == "attn.qkv.weight":
            for name, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                result[f"{prefix}{ATTENTION}{name}.weight"] = part
        elif rest in ("attn.q_bias", "attn.v_bias"):
            name = rest.removeprefix("attn.")
            result[prefix + ATTENTION + biases.get(name, name)] = value
        else:
            mine = next(one for one in inside if rest.startswith(one))
            result[prefix + inside[mine] + rest[len(mine) :]] = value
    return result
