"""CAV-MAE's pre-training weights."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maemm.contract import WeightsKind
from maemm.patches import conv_to_linear, linear_to_conv

LETTERS = {"a": "audio", "v": "image"}
#: every published block carries the norms of all passes, only joint blocks use them
UNUSED = re.compile(r"(blocks_[av]|decoder_blocks)\.\d+\.norm[12]_[av]\.")


def names(joint: int) -> dict[str, str]:
    """Published prefix -> ours, the special before the general."""
    found = {}
    for letter, name in LETTERS.items():
        found |= {
            f"blocks_u.{i}.norm{n}_{letter}.": f"encoder.own.{name}.{i}.norm{n}." for i in range(joint) for n in (1, 2)
        }
        found |= {
            f"blocks_{letter}.": f"encoder.trunks.{name}.",
            f"norm_{letter}.": f"encoder.own_norm.{name}.",
            f"modality_{letter}": f"encoder.vectors.{name}",
            f"decoder_modality_{letter}": f"decoder.vectors.{name}",
            f"patch_embed_{letter}.proj.": f"modalities.{name}.embedding.",
            f"pos_embed_{letter}": f"modalities.{name}.positions.values",
            f"decoder_pos_embed_{letter}": f"modalities.{name}.decoder.positions.values",
            f"decoder_pred_{letter}.": f"decoder.heads.{name}.",
        }
    return found | {
        "blocks_u.": "encoder.joint.",
        "norm.": "encoder.norm.",
        "decoder_embed.": "decoder.project.",
        "decoder_blocks.": "decoder.blocks.",
        "decoder_norm.": "decoder.norm.",
        "mask_token": "decoder.mask_token",
    }


def rename(key: str, table: Mapping[str, str]) -> str:
    return next((new + key.removeprefix(old) for old, new in table.items() if key.startswith(old)), key)


def depth(state: dict[str, Tensor], prefix: str) -> int:
    return len({key.removeprefix(prefix).split(".")[0] for key in state if key.startswith(prefix)})


def ratio(state: dict[str, Tensor], block: str) -> float:
    hidden, width = state[f"{block}0.mlp.fc1.weight"].shape
    return hidden / width


class CAVMAE(WeightsKind):
    name = "contract_cavmae"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return {"blocks_u.0.norm1_a.weight", "decoder_pred_v.weight"} <= keys

    def read(
        self, state: dict[str, Tensor], *, heads: int = 12, decoder_heads: int = 16, norm_pix: bool | None = None
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        joint = depth(state, "blocks_u.")
        extras = {key: value for key, value in state.items() if UNUSED.match(key)}
        table, ours = names(joint), {}
        for key in state.keys() - extras.keys():
            value = state[key]
            if re.fullmatch(r"patch_embed_.\.proj\.weight", key):
                value = conv_to_linear(value)
            ours[rename(key, table)] = value.flatten() if "modality_" in key else value
        width, decoder_width = state["norm.weight"].numel(), state["decoder_norm.weight"].numel()
        recipe = {
            "modalities": self._modalities(state, {None: None, True: "patch", False: "none"}[norm_pix]),
            "encoder": {
                "type": "streams", "dim": width, "depth": depth(state, "blocks_a."), "joint_depth": joint,
                "heads": heads, "mlp_ratio": ratio(state, "blocks_a."),
                "eps": 1e-5, "streams": ["audio", "image"], "chain_streams": False,
            },
            "decoder": {
                "type": "full", "dim": decoder_width, "depth": depth(state, "decoder_blocks."), "heads": decoder_heads,
                "mlp_ratio": ratio(state, "decoder_blocks."), "eps": 1e-5, "prefix": "none",
            },
            "objectives": {
                "reconstruct": {},
                "contrastive": {"pair": ["audio", "image"], "weight": 0.01},
            },
        }  # fmt: skip
        return recipe, ours, extras

    def _modalities(self, state: dict[str, Tensor], normalize: str | None) -> dict[str, Any]:
        mels, side = 128, math.isqrt(state["pos_embed_v"].shape[1])
        patches = {n: state[f"patch_embed_{letter}.proj.weight"].shape for letter, n in LETTERS.items()}
        rows = {"audio": mels // patches["audio"][2], "image": side}
        counts = {n: state[f"pos_embed_{letter}"].shape[1] for letter, n in LETTERS.items()}
        types = {"audio": "contract_spectrogram", "image": "contract_picture"}
        return {
            name: {
                "type": types[name], "patch": [high, wide], "channels": channels, "position": "fixed",
                "size": [rows[name] * high, counts[name] // rows[name] * wide], "normalize": normalize,
                "masking": {"type": "random", "ratio": 0.75},
            }
            for name, (_, channels, high, wide) in patches.items()
        }  # fmt: skip

    def write(self, model: torch.nn.Module, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        back = {new: old for old, new in names(len(model.encoder.joint)).items()}
        state = {rename(key, back): value for key, value in model.state_dict().items()}
        for letter, name in LETTERS.items():
            one, kernel = model.modalities[name], f"patch_embed_{letter}.proj.weight"
            state[kernel] = linear_to_conv(state[kernel], one.channels, one.patch)
            for key in (f"modality_{letter}", f"decoder_modality_{letter}"):
                state[key] = state[key][None, None]
        return {**state, **extras}
