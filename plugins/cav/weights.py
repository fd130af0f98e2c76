"""CAV-MAE (Gong et al. 2023): pre-training and fine-tuned files."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, NonNegative, Positive, PositiveInt
from maemm.contract.patches import conv_to_linear, linear_to_conv
from maemm.model.decoders.full import Full
from maemm.weights.layout import blocks_of, depth_of, rename, require

from .._layouts.mae import normalize_of

LETTERS = {"a": "audio", "v": "image"}  # suffix of published names -> modality
#: every published block has the norms of all passes; in trunks and decoder blocks they are unused
UNUSED = re.compile(r"(blocks_[av]|decoder_blocks)\.\d+\.norm[12]_[av]\.")
VECTOR = re.compile(r"(decoder_)?modality_[av]")
EPS = 1e-5
MELS = 128  # fixed in the published code
NEEDED = ("modality_a", "modality_v", "patch_embed_a.proj.weight", "blocks_u.0.norm1_a.weight", "norm_a.weight")


class CAVMAE(CheckpointFormat):
    """Layout of the published CAV-MAE files.

    Audio tokens are in the order ``mel_major``, position tables are stored, and in pre-training single streams do not
    chain over several joint blocks, as published; feature extraction always chains.
    """

    name = "cavmae"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return set(NEEDED) <= keys

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt = 12,
        decoder_heads: PositiveInt = 16,
        norm_pix: bool | None = None,
        mask_ratio: Fraction = 0.75,
        contrastive_weight: NonNegative = 0.01,
        temperature: Positive = 0.05,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        require(state, NEEDED, self.name)
        extras = {key: value for key, value in state.items() if UNUSED.match(key)}
        ours = self._ours({key: value for key, value in state.items() if key not in extras})
        normalize = normalize_of(norm_pix)
        tuned = "mlp_head.1.weight" in state
        recipe: dict[str, Any] = {
            "modalities": {name: self._modality(state, letter, tuned) for letter, name in LETTERS.items()},
            "encoder": {
                "type": "streams", **blocks_of(state, "blocks_a.", state["norm.weight"].numel()),
                "joint_depth": depth_of(state, "blocks_u."), "heads": heads, "eps": EPS,
                "streams": list(LETTERS.values()), "chain_streams": False,
            },
        }  # fmt: skip
        for modality in recipe["modalities"].values():
            modality |= {"normalize": normalize, "masking": {"type": "random", "ratio": mask_ratio}}
        if tuned:
            recipe["head"] = {"type": "cav", "classes": state["mlp_head.1.weight"].shape[0], "eps": EPS}
        if "decoder_embed.weight" in state:
            recipe["decoder"] = {
                "type": "full", **blocks_of(state, "decoder_blocks.", state["decoder_norm.weight"].numel()),
                "heads": decoder_heads, "eps": EPS, "prefix": "none",
            }  # fmt: skip
            pair = {"pair": list(LETTERS.values()), "weight": contrastive_weight, "temperature": temperature}
            recipe["objectives"] = {"reconstruct": {}, "contrastive": pair}
        return recipe, ours, extras

    def _modality(self, state: dict[str, Tensor], letter: str, tuned: bool) -> dict[str, Any]:
        channels, high, wide = state[f"patch_embed_{letter}.proj.weight"].shape[1:]
        count = state[f"pos_embed_{letter}"].shape[1]
        position = "learned" if tuned else "fixed"
        if letter == "a":
            if MELS % high or count % (MELS // high):
                raise MaemmError(f"weights 'cavmae': {count} audio tokens of {high} mels do not fill {MELS} mels")
            size = [count // (MELS // high) * wide, MELS]
            published = {"order": "mel_major", "constants": "cavmae", "pad": "seen", "crop": "head"}
            return {"type": "audio", "size": size, "patch": [wide, high], "position": position, **published}
        side = math.isqrt(count)
        if side * side != count:
            raise MaemmError(f"weights 'cavmae': {count} image tokens are no square")
        size, patch = [side * high, side * wide], [high, wide]
        return {"type": "image", "size": size, "patch": patch, "channels": channels, "position": position}

    def _ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        names, ours = _names(depth_of(state, "blocks_u.")), {}
        for key, value in state.items():
            if re.fullmatch(r"patch_embed_.\.proj\.weight", key):
                value = conv_to_linear(value)
            ours[rename(key, names)] = value.flatten() if VECTOR.fullmatch(key) else value
        return ours

    def write(self, model: Any, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        if not hasattr(model.encoder, "joint") or set(model.modalities) != set(LETTERS.values()):
            raise MaemmError("layout 'cavmae' takes encoder streams over audio and image, nothing else")
        if set(model.encoder.members) != set(LETTERS.values()):
            raise MaemmError("layout 'cavmae' has streams of audio and of image, this encoder others (encoder.streams)")
        if model.decoder is not None and type(model.decoder) is not Full:
            name = type(model.decoder).__name__
            raise MaemmError(f"layout 'cavmae' has no place for this decoder ({name}); leave it out")
        back = {ours: published for published, ours in _names(len(model.encoder.joint)).items()}
        state = {rename(key, back): value for key, value in model.state_dict().items()}
        if missing := [name for letter, name in LETTERS.items() if f"pos_embed_{letter}" not in state]:
            keys = " and ".join(f"modalities.{name}.position" for name in missing)
            raise MaemmError(f"layout 'cavmae' stores position tables, which this model has not; set {keys} to fixed")
        for letter, name in LETTERS.items():
            kernel, modality = f"patch_embed_{letter}.proj.weight", model.modalities[name]
            state[kernel] = linear_to_conv(state[kernel], modality.channels, modality.patch)
            for key in (f"modality_{letter}", f"decoder_modality_{letter}"):
                if key in state:
                    state[key] = state[key][None, None]
        return {**state, **extras}


def _names(joint: int) -> dict[str, str]:
    """{published prefix: ours} of a model with ``joint`` joint blocks."""
    names: dict[str, str] = {}
    for letter, name in LETTERS.items():
        names |= {
            f"blocks_u.{i}.norm{n}_{letter}.": f"encoder.own.{name}.{i}.norm{n}." for i in range(joint) for n in (1, 2)
        }
        names |= {
            f"blocks_{letter}.": f"encoder.trunks.{name}.",
            f"norm_{letter}.": f"encoder.own_norm.{name}.",
            f"modality_{letter}": f"encoder.vectors.{name}",
            f"decoder_modality_{letter}": f"decoder.vectors.{name}",
            f"patch_embed_{letter}.proj.": f"modalities.{name}.embedding.",
            f"pos_embed_{letter}": f"modalities.{name}.positions.values",
            f"decoder_pos_embed_{letter}": f"modalities.{name}.decoder.positions.values",
            f"decoder_pred_{letter}.": f"decoder.heads.{name}.",
        }
    return names | {
        "blocks_u.": "encoder.joint.",
        "norm.": "encoder.norm.",
        "decoder_embed.": "decoder.project.",
        "decoder_blocks.": "decoder.blocks.",
        "decoder_norm.": "decoder.norm.",
        "mask_token": "decoder.mask_token",
        "mlp_head.0.": "head.norm.",
        "mlp_head.1.": "head.linear.",
    }
