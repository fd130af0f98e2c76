"""Settings that the ViTs of transformers share, whatever they look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

_KNOWN = {
    "heads": "num_attention_heads",
    "decoder_heads": "decoder_num_attention_heads",
    "norm_pix": "norm_pix_loss",
    "eps": "layer_norm_eps",
}


def encoder_settings(encoder: nn.Module) -> dict[str, Any]:
    """Of a plain ViT (:func:`maemm.model.encoders.vit.plain_vit`), under the names of ``config.json``."""
    block = encoder.blocks[0]
    return {
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
    }


def decoder_settings(decoder: nn.Module) -> dict[str, Any]:
    """Of the decoder ``full``."""
    return {
        "decoder_hidden_size": decoder.dim,
        "decoder_num_hidden_layers": len(decoder.blocks),
        "decoder_num_attention_heads": decoder.blocks[0].attn.num_heads,
        "decoder_intermediate_size": decoder.blocks[0].mlp.fc1.out_features,
    }


def known_settings(config: Mapping[str, Any], **more: str) -> dict[str, Any]:
    """Settings -> what reading the weights wants to know, and ``more`` of them; what is missing stays asked for."""
    return {ours: config[theirs] for ours, theirs in {**_KNOWN, **more}.items() if theirs in config}


def call_of(config: Mapping[str, Any]) -> str:
    """Python that loads the folder in transformers; ``{path!r}`` stands for it."""
    return f"transformers.{config['architectures'][0]}.from_pretrained({{path!r}})"
