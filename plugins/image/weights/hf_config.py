"""The config.json of transformers' ViTMAE: written from our model, read back, and the class that takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maemm.decoders.full import Full
from maemm.encoders.vit import plain_vit
from maemm.errors import MaemmError

MODEL, WITH_DECODER = "ViTMAEModel", "ViTMAEForPreTraining"


def config_of(model: nn.Module, layout: str) -> dict[str, Any]:
    """Settings of ``ViTMAEConfig``. Raises :class:`MaemmError` for what that model has no place for."""
    encoder, image = plain_vit(model, layout), model.modalities["image"]
    if model.head is not None:
        raise MaemmError(f"layout {layout!r} has no place for a classifier")
    if len({*image.size}) > 1 or len({*image.patch}) > 1:
        raise MaemmError(f"layout {layout!r} takes square pictures and patches, this model {image.size}, {image.patch}")
    if encoder.prefix is None or encoder.prefix.shape[1] != 1 or isinstance(encoder.norm, nn.Identity):
        raise MaemmError(f"layout {layout!r} has one class token and a final norm, this encoder has not")
    if image.position_kinds["encoder"] == "none":
        raise MaemmError(f"layout {layout!r} adds positions, and this encoder has none")
    block = encoder.blocks[0]
    config = {
        "architectures": [MODEL],
        "model_type": "vit_mae",
        "image_size": image.size[0],
        "patch_size": image.patch[0],
        "num_channels": image.channels,
        "hidden_size": encoder.dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "layer_norm_eps": block.norm1.eps,
        "qkv_bias": block.attn.qkv.bias is not None,
        "norm_pix_loss": image.normalize == "patch",
        "mask_ratio": _mask_ratio(model),
    }
    return config if model.decoder is None else {**config, **_decoder(model, block.norm1.eps, layout)}


def _decoder(model: nn.Module, eps: float, layout: str) -> dict[str, Any]:
    decoder = model.decoder
    same = type(decoder) is Full and decoder.prefix_kind == "from_encoder" and not decoder.position_every_block
    same = same and getattr(decoder.project, "bias", None) is not None
    same = same and eps == decoder.blocks[0].norm1.eps == decoder.norm.eps
    kinds = model.modalities["image"].position_kinds
    if not same or kinds["decoder"] == "none":
        raise MaemmError(
            f"layout {layout!r} has the decoder of MAE alone, with the eps of the encoder; this is another"
        )
    return {
        "architectures": [WITH_DECODER],
        "decoder_hidden_size": decoder.dim,
        "decoder_num_hidden_layers": len(decoder.blocks),
        "decoder_num_attention_heads": decoder.blocks[0].attn.num_heads,
        "decoder_intermediate_size": decoder.blocks[0].mlp.fc1.out_features,
    }


def _mask_ratio(model: nn.Module) -> float:
    masking = (model.recipe["modalities"]["image"] or {}).get("masking")
    return masking.get("ratio", 0.75) if isinstance(masking, dict) else 0.75


def known_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings -> what reading the weights wants to know; what is missing stays asked for."""
    names = {
        "heads": "num_attention_heads",
        "decoder_heads": "decoder_num_attention_heads",
        "norm_pix": "norm_pix_loss",
        "mask_ratio": "mask_ratio",
        "size": "image_size",
        "eps": "layer_norm_eps",
    }
    return {ours: config[theirs] for ours, theirs in names.items() if theirs in config}


def call_of(config: Mapping[str, Any]) -> str:
    """Python that loads the folder in transformers; a mask ratio of 0 and ordered noise leave all tokens in order."""
    return f"transformers.{config['architectures'][0]}.from_pretrained({{path!r}})"


def run_there(path: str) -> Callable[[Tensor], Tensor]:
    """The encoder in transformers: x (B, C, H, W) -> patch tokens (B, N, D)."""
    from transformers import ViTMAEModel

    model = ViTMAEModel.from_pretrained(path, mask_ratio=0.0).eval()

    def tokens(x: Tensor) -> Tensor:
        count = (model.config.image_size // model.config.patch_size) ** 2
        noise = torch.arange(float(count)).expand(len(x), -1)  # sorted: nothing is moved
        return model(x, noise=noise).last_hidden_state[:, 1:]

    return tokens
