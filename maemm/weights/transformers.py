"""Settings in config.json that the ViTs of transformers have in common, whatever their modality."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from maemm.contract.errors import MaemmError
from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import ViT
from maemm.weights.describe import printable

#: keys that any config.json may have and that change no output of a model in eval mode: where it comes from, names of
#: labels, how it was trained, formats of outputs, generation of texts
_HARMLESS_KEYS = """
    _name_or_path name_or_path _commit_hash transformers_version architectures model_type torch_dtype dtype license tags
    finetuning_task id2label label2id num_labels problem_type task_specific_params tokenizer_class
    attention_probs_dropout_prob hidden_dropout_prob classifier_dropout initializer_range initializer_factor
    gradient_checkpointing use_cache torchscript use_bfloat16 tf_legacy_loss chunk_size_feed_forward
    return_dict use_return_dict output_hidden_states output_attentions output_scores return_dict_in_generate
    attn_implementation _attn_implementation _attn_implementation_internal _attn_implementation_autoset
    experts_implementation _experts_implementation tie_word_embeddings tie_encoder_decoder
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id
    begin_suppress_tokens suppress_tokens bad_words_ids prefix max_length min_length max_new_tokens do_sample
    early_stopping num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty
    length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size num_return_sequences
    exponential_decay_length_penalty remove_invalid_values encoder_stride pooler_output_size pooler_act
"""
_HARMLESS = frozenset(_HARMLESS_KEYS.split())
#: keys whose other values make another model, and the values that maemm has
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("gelu", "gelu_python"),  # two names of one function
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "auto_map": (None, {}),
    "is_decoder": (False, None),
    "is_encoder_decoder": (False, None),
    "add_cross_attention": (False, None),
    "cross_attention_hidden_size": (None,),
    "per_layer_config": (None, {}),
}


@dataclass(frozen=True)
class ConfigReader:
    """How the config.json of a model is read. A key that none of this knows is refused.

    ``settings``: {setting of :meth:`CheckpointFormat.read`: (key, what transformers takes where it is missing)};
    ``weights``: keys whose values the weights have too, see :func:`check_agreement`; ``required``: {key: values that
    are supported}, besides those that all models share; ``architectures``: classes whose weights are read.
    """

    settings: Mapping[str, tuple[str, Any]]
    weights: tuple[str, ...]
    architectures: tuple[str, ...]
    model_types: tuple[str, ...]
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def read(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """The settings. Raises :class:`MaemmError` for a key that is not known, and for values of another model."""
        self._check_class(config)
        required = {**_REQUIRED, **self.required}
        read = {key for key, _ in self.settings.values()}
        for key, value in config.items():
            if key in required:
                if not any(value == allowed and type(value) is type(allowed) for allowed in required[key]):
                    supported = " or ".join(json.dumps(allowed) for allowed in required[key])
                    raise MaemmError(
                        f"{key} is {printable(json.dumps(value))}, and only {supported} is supported; load this model "
                        "with transformers"
                    )
            elif key not in read and key not in self.weights and key not in _HARMLESS and value is not None:
                raise MaemmError(
                    f"the setting {printable(key)} is not known, and may make this another model; take it out if it "
                    "changes no output"
                )
        return {setting: config.get(key, default) for setting, (key, default) in self.settings.items()}

    def _check_class(self, config: Mapping[str, Any]) -> None:
        model_type, names = config.get("model_type"), config.get("architectures") or []
        if model_type is not None and model_type not in self.model_types:
            raise MaemmError(
                f"model_type is {printable(model_type)}, and the weights are of {' or '.join(self.model_types)}; get "
                "config and weights of one model"
            )
        if not isinstance(names, list) or not set(map(str, names)) <= set(self.architectures):
            raise MaemmError(
                f"architectures is {printable(json.dumps(names))}, and {', '.join(self.architectures)} are read; load "
                "this model with transformers"
            )


def check_agreement(config: Mapping[str, Any], actual: Mapping[str, Any]) -> None:
    """Raises :class:`MaemmError` where a config.json says something else than the weights. ``actual``: {key: value}."""
    for key, value in actual.items():
        stated = config.get(key, value)
        if isinstance(stated, list) and not isinstance(value, list) and len(set(map(str, stated))) == 1:
            stated = stated[0]  # the same for height and width
        if stated != value or isinstance(stated, bool) != isinstance(value, bool):
            raise MaemmError(
                f"config.json has {key} {printable(json.dumps(stated))}, the weights {json.dumps(value)}; get config "
                "and weights of one model"
            )


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


def call_of(config: Mapping[str, Any]) -> str:
    """Python code that loads a folder in transformers; ``{path!r}`` is replaced by its path."""
    return f"transformers.{config['architectures'][0]}.from_pretrained({{path!r}})"
