"""The config.json of transformers' ViTMAE, and running the exported encoder there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract.errors import MaemmError
from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import plain_vit
from maemm.weights.transformers import ConfigReader, decoder_settings, encoder_settings

MODEL, WITH_DECODER = "ViTMAEModel", "ViTMAEForPreTraining"
#: both classes of ViT have the layout of ViTMAE's encoder; what they do without a key is the same
CONFIG = ConfigReader(
    settings={
        "heads": ("num_attention_heads", 12),
        "decoder_heads": ("decoder_num_attention_heads", 16),
        "norm_pix": ("norm_pix_loss", False),
        "mask_ratio": ("mask_ratio", 0.75),
        "size": ("image_size", 224),
        "eps": ("layer_norm_eps", 1e-12),
    },
    weights=(
        "hidden_size", "num_hidden_layers", "intermediate_size", "patch_size", "num_channels", "qkv_bias",
        "decoder_hidden_size", "decoder_num_hidden_layers", "decoder_intermediate_size",
    ),
    architectures=(MODEL, WITH_DECODER, "ViTForImageClassification", "ViTModel"),
    model_types=("vit_mae", "vit"),
)  # fmt: skip


def stated_by(recipe: dict[str, Any]) -> dict[str, Any]:
    """What the weights say of themselves, in the keys of config.json, from the recipe made of them."""
    image, encoder, decoder = recipe["modalities"]["image"], recipe["encoder"], recipe.get("decoder")
    stated = {
        "hidden_size": encoder["dim"],
        "num_hidden_layers": encoder["depth"],
        "intermediate_size": round(encoder["dim"] * encoder["mlp_ratio"]),
        "patch_size": image["patch"][0] if len({*image["patch"]}) == 1 else image["patch"],
        "num_channels": image["channels"],
        "qkv_bias": encoder.get("qkv_bias", True),
    }
    if decoder is not None:
        stated["decoder_hidden_size"] = decoder["dim"]
        stated["decoder_num_hidden_layers"] = decoder["depth"]
        stated["decoder_intermediate_size"] = round(decoder["dim"] * decoder["mlp_ratio"])
    return stated


def config_of(model: Any, layout: str) -> dict[str, Any]:
    """Settings of ``ViTMAEConfig``. Raises :class:`MaemmError` for what ViTMAE does not have."""
    encoder, image = plain_vit(model, layout), model.modalities["image"]
    if model.head is not None:
        raise MaemmError(f"layout {layout!r} has no place for a classifier")
    if len({*image.size}) > 1 or len({*image.patch}) > 1:
        raise MaemmError(f"layout {layout!r} takes square pictures and patches, this model {image.size}, {image.patch}")
    if encoder.prefix is None or encoder.prefix.shape[1] != 1 or isinstance(encoder.norm, nn.Identity):
        raise MaemmError(f"layout {layout!r} has one class token and a final norm, this encoder has not")
    if image.position_kinds["encoder"] == "none":
        raise MaemmError(f"layout {layout!r} adds positions, and this encoder has none")
    config = {
        "architectures": [MODEL],
        "model_type": "vit_mae",
        "image_size": image.size[0],
        "patch_size": image.patch[0],
        "num_channels": image.channels,
        **encoder_settings(encoder),
        "norm_pix_loss": image.normalize == "patch",
        "mask_ratio": _mask_ratio(model),
    }
    return config if model.decoder is None else {**config, **_decoder(model, layout)}


def _decoder(model: Any, layout: str) -> dict[str, Any]:
    decoder = model.decoder
    same = type(decoder) is Full and decoder.prefix_kind == "from_encoder" and not decoder.position_every_block
    same = same and getattr(decoder.project, "bias", None) is not None
    same = same and model.encoder.blocks[0].norm1.eps == decoder.blocks[0].norm1.eps == decoder.norm.eps
    if not same or model.modalities["image"].position_kinds["decoder"] == "none":
        raise MaemmError(
            f"layout {layout!r} has the decoder of MAE alone, with the eps of the encoder; this is another"
        )
    return {"architectures": [WITH_DECODER], **decoder_settings(decoder)}


def _mask_ratio(model: Any) -> float:
    masking = (model.recipe["modalities"]["image"] or {}).get("masking")
    return masking.get("ratio", 0.75) if isinstance(masking, dict) else 0.75


def run_in_transformers(path: str) -> Callable[[Tensor], Tensor]:
    """The encoder in transformers: x (B, C, H, W) -> patch tokens (B, N, D)."""
    from transformers import ViTMAEModel

    model = ViTMAEModel.from_pretrained(path, mask_ratio=0.0).eval()

    def tokens(x: Tensor) -> Tensor:
        count = (model.config.image_size // model.config.patch_size) ** 2
        noise = torch.arange(float(count)).expand(len(x), -1)  # sorted noise: no token is moved or hidden
        return model(x, noise=noise).last_hidden_state[:, 1:]

    return tokens
