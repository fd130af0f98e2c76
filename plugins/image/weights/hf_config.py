"""The config.json of transformers' ViTMAE, and running the exported encoder there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maemm.contract.errors import MaemmError
from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import plain_vit
from maemm.weights.transformers import decoder_settings, encoder_settings

MODEL, WITH_DECODER = "ViTMAEModel", "ViTMAEForPreTraining"


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
