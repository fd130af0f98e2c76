"""Settings in config.json that the ViTs of transformers have in common, whatever their modality."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import ViT

_SETTINGS = {  # setting of CheckpointFormat.read: key of config.json
    "heads": "num_attention_heads",
    "decoder_heads": "decoder_num_attention_heads",
    "norm_pix": "norm_pix_loss",
    "eps": "layer_norm_eps",
}


def encoder_settings(encoder: ViT) -> dict[str, Any]:
    """A plain ViT (see :func:`maemm.model.encoders.vit.plain_vit`) in the keys of config.json."""
    block: Any = encoder.blocks[0]
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


def decoder_settings(decoder: Full) -> dict[str, Any]:
    """The decoder in the keys of config.json."""
    block: Any = decoder.blocks[0]
    return {
        "decoder_hidden_size": decoder.dim,
        "decoder_num_hidden_layers": len(decoder.blocks),
        "decoder_num_attention_heads": block.attn.num_heads,
        "decoder_intermediate_size": block.mlp.fc1.out_features,
    }


def known_settings(config: Mapping[str, Any], **more: str) -> dict[str, Any]:
    """config.json -> settings of :meth:`CheckpointFormat.read`, as far as it has them.

    ``more``: further settings and their keys in config.json.
    """
    return {setting: config[key] for setting, key in {**_SETTINGS, **more}.items() if key in config}


def call_of(config: Mapping[str, Any]) -> str:
    """Python code that loads a folder in transformers; ``{path!r}`` is replaced by its path."""
    return f"transformers.{config['architectures'][0]}.from_pretrained({{path!r}})"
