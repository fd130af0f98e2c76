"""What the files of I-JEPA and V-JEPA 2 share: an encoder, a predictor and the moving average of the encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.model.decoders.predictor import Predictor
from maemm.model.encoders.vit import ViT, plain_vit
from maemm.model.targets.ema import EMA

from .mae import check_alone

PARTS = ("encoder", "predictor", "target_encoder")


def split(state: Mapping[str, Tensor]) -> list[tuple[str, str, Tensor]]:
    """(part, name in it, tensor)."""
    return [(*key.partition(".")[::2], x) for key, x in state.items()]


def entries_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Each part in an entry of its own, with the names that data parallel training gives."""
    parts: dict[str, dict[str, Tensor]] = {part: {} for part in PARTS}
    for owner, key, x in split(state):
        parts[owner][f"module.{key}"] = x
    return parts


def bias_of(state: Mapping[str, Tensor], blocks: str) -> dict[str, bool]:
    """The option ``qkv_bias`` of the blocks whose keys begin with ``blocks``, where it is not the default."""
    return {} if f"{blocks}0.attn.qkv.bias" in state else {"qkv_bias": False}


def checked(model: Any, modality: str, plural: str, layout: str, *, rotary: bool) -> tuple[ViT, Predictor]:
    """The encoder and the predictor. ``rotary``: positions inside attention are allowed.

    Raises :class:`MaemmError` for parts that these methods do not have.
    """
    check_alone(model, modality, plural, layout)
    encoder, target = plain_vit(model, layout, rotary=rotary), model.targets[modality] if len(model.targets) else None
    if encoder.prefix is not None or encoder.reads_predict or not hasattr(encoder.norm, "weight"):
        raise MaemmError(
            f"layout {layout!r} has an encoder with a final norm and without class tokens; this one is another "
            "(encoder.prefix, encoder.hidden, encoder.final_norm)"
        )
    if type(model.decoder) is not Predictor or not isinstance(target, EMA) or model.head is not None:
        raise MaemmError(
            f"layout {layout!r} holds an encoder, a predictor and the target that follows the encoder; this "
            "model has others; use another layout"
        )
    return encoder, model.decoder
