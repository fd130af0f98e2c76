"""The config.json of transformers' VideoMAE: written from our model, read back, and loaded there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from maemm.contract.errors import MaemmError
from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import plain_vit
from maemm.model.heads import Linear
from maemm.model.model import Model
from maemm.weights.transformers import ConfigReader, decoder_settings, encoder_settings

from .common import video_of

MODEL, WITH_DECODER, CLASSIFIER = "VideoMAEModel", "VideoMAEForPreTraining", "VideoMAEForVideoClassification"
CONFIG = ConfigReader(
    settings={
        "heads": ("num_attention_heads", 12),
        "decoder_heads": ("decoder_num_attention_heads", 6),
        "norm_pix": ("norm_pix_loss", True),
        "eps": ("layer_norm_eps", 1e-12),
    },
    weights=(
        "image_size", "num_frames", "tubelet_size", "patch_size", "num_channels", "use_mean_pooling", "hidden_size",
        "num_hidden_layers", "intermediate_size", "decoder_hidden_size", "decoder_num_hidden_layers",
        "decoder_intermediate_size",
    ),
    architectures=(MODEL, WITH_DECODER, CLASSIFIER),
    model_types=("videomae",),
    required={"qkv_bias": (True,), "qv_bias": (True,)},  # two names of one setting
)  # fmt: skip


def config_of(model: Model, layout: str) -> dict[str, Any]:
    """Settings of ``VideoMAEConfig``. Raises :class:`MaemmError` for what that class does not support."""
    encoder, video = plain_vit(model, layout), video_of(model)
    _, height, width = video.size
    if height != width or video.patch[1] != video.patch[2]:
        raise MaemmError(
            f"layout {layout!r} needs square frames and patches, this model has {video.size}, {video.patch}"
        )
    if model.head is None and isinstance(encoder.norm, nn.Identity):
        raise MaemmError(f"layout {layout!r} needs a final norm or a classifier, this encoder has neither")
    config = {
        "architectures": [MODEL],
        "model_type": "videomae",
        "image_size": height,
        "patch_size": video.patch[1],
        "num_channels": video.channels,
        "num_frames": video.size[0],
        "tubelet_size": video.patch[0],
        **encoder_settings(encoder),
        "use_mean_pooling": model.head is not None,
        "norm_pix_loss": video.normalize == "colour",
    }
    if model.head is not None:
        return {**config, **_classifier(model.head, layout)}
    if model.decoder is None:
        return config
    return {**config, **_decoder(model.decoder, _eps_of(encoder.blocks), layout)}


def _classifier(head: nn.Module, layout: str) -> dict[str, Any]:
    if type(head) is not Linear or (head.pool, head.norm_when) != ("mean", "after"):
        raise MaemmError(f"layout {layout!r} needs a linear classifier with pool: mean and norm: after")
    names = {str(label): f"LABEL_{label}" for label in range(head.classes)}
    return {"architectures": [CLASSIFIER], "id2label": names, "label2id": {v: int(k) for k, v in names.items()}}


def _decoder(decoder: nn.Module, eps: float, layout: str) -> dict[str, Any]:
    if type(decoder) is not Full or _eps_of(decoder.blocks) != eps:
        raise MaemmError(f"layout {layout!r} needs VideoMAE's decoder, with the eps of the encoder")
    return {"architectures": [WITH_DECODER], **decoder_settings(decoder)}


def _eps_of(blocks: Any) -> float:
    return blocks[0].norm1.eps


def size_of(config: Mapping[str, Any]) -> list[Any]:
    """config.json -> [frames, height, width]."""
    side = config.get("image_size", 224)
    sides = side if isinstance(side, list) else [side, side]
    return [config.get("num_frames", 16), *sides]


def stated_by(recipe: dict[str, Any]) -> dict[str, Any]:
    """What the weights say of themselves, in the keys of config.json, from the recipe made of them."""
    video, encoder, decoder = recipe["modalities"]["video"], recipe["encoder"], recipe.get("decoder")
    stated = {
        "hidden_size": encoder["dim"],
        "num_hidden_layers": encoder["depth"],
        "intermediate_size": round(encoder["dim"] * encoder["mlp_ratio"]),
        "tubelet_size": video["patch"][0],
        "patch_size": video["patch"][1] if video["patch"][1] == video["patch"][2] else list(video["patch"][1:]),
        "num_channels": video["channels"],
        "use_mean_pooling": not encoder["final_norm"],  # the encoder has a norm where no mean is taken
    }
    if decoder is not None:
        stated["decoder_hidden_size"] = decoder["dim"]
        stated["decoder_num_hidden_layers"] = decoder["depth"]
        stated["decoder_intermediate_size"] = round(decoder["dim"] * decoder["mlp_ratio"])
    return stated


def run_in_transformers(path: str) -> Callable[[Tensor], Tensor]:
    """Load with transformers: x (B, C, T, H, W) -> tokens (B, N, D), or the logits of a classifier."""
    import transformers

    config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    is_classifier = config["architectures"] == [CLASSIFIER]
    model = getattr(transformers, CLASSIFIER if is_classifier else MODEL).from_pretrained(path).eval()

    def run(x: Tensor) -> Tensor:
        out = model(x.transpose(1, 2))
        return out.logits if is_classifier else out.last_hidden_state

    return run
