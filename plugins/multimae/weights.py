"""MultiMAE (Bachmann et al. 2022): pre-training files, and fine-tuned classifiers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.options import PositiveInt
from maemm.contract.patches import conv_to_linear, linear_to_conv
from maemm.contract.positions import Table
from maemm.model.decoders.cross import Cross
from maemm.model.encoders.vit import ViT
from maemm.model.heads import Linear
from maemm.weights.layout import blocks_of, depth_of, heads_of, require

from .labels import LabelMap

HEADS = {(768, 12): 12, (1024, 24): 16}  # (width, depth) of the encoder -> heads
STRIDE = 4  # of published label maps, where no other modality tells
_INPUT = re.compile(r"input_adapters\.([^.]+)\.proj\.weight")
_OUTPUT = re.compile(r"output_adapters\.([^.]+)\.out_proj\.weight")
_ADAPTER = {  # of an output: published prefix -> ours
    "decoder.": "attention.",
    "decoder_transformer.": "blocks.",
    "proj_context.": "project.",
}
_CLASSIFIER = {"output_adapters.cls.norm.": "head.norm.", "output_adapters.cls.head.": "head.linear."}


class MultiMAE(CheckpointFormat):
    """Layout of the published MultiMAE files: adapters of inputs, the encoder, and a decoder for every output.

    A modality with embeddings of classes is a ``label_map``, one of three channels an ``image``, of one ``depth``, of
    others a ``map``. An output ``norm_NAME`` predicts the normalised patches of NAME. How the budget was drawn is not
    recorded: it is a sixth of the tokens, as published.
    """

    name = "multimae"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return "global_tokens" in keys and any(_INPUT.fullmatch(key) for key in keys)

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt | None = None,
        decoder_heads: PositiveInt = 8,
        budget: PositiveInt | None = None,
        pool: Literal["mean", "global"] = "mean",
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        inputs = [match[1] for key in state if (match := _INPUT.fullmatch(key))]
        require(state, ["global_tokens", "encoder.0.norm1.weight"], self.name)
        require(state, [f"input_adapters.{name}.pos_emb" for name in inputs], self.name)
        outputs = [match[1] for key in state if (match := _OUTPUT.fullmatch(key))]
        extra = _extra(inputs, outputs)
        width = state["global_tokens"].shape[-1]
        blocks = blocks_of(state, "encoder.", width)
        modalities = _modalities(state, inputs, outputs)
        recipe: dict[str, Any] = {
            "modalities": modalities,
            "encoder": {
                "type": "vit", **blocks, "heads": heads_of((width, blocks["depth"]), heads, HEADS, "heads"),
                "eps": 1e-6, "prefix": state["global_tokens"].shape[1], "vectors": False, "final_norm": False,
                "init": "xavier_qkv",
            },
        }  # fmt: skip
        if outputs:
            tokens = sum(state[f"input_adapters.{name}.pos_emb"][0, 0].numel() for name in inputs)
            recipe["masking"] = {"type": "dirichlet", "budget": budget or max(1, tokens // 6), "count": "official"}
            recipe["decoder"] = {
                "type": "cross", **_decoder(state, outputs[0]), "heads": decoder_heads, "eps": 1e-6, "extra": extra,
            }  # fmt: skip
            recipe["objectives"] = {"reconstruct": {"mean": "samples"}}
            for output, name in extra.items():
                recipe["objectives"][output] = {
                    "type": "predict", "target": {"type": "patches"}, "modalities": [name], "output": output,
                    "mean": "samples",
                }  # fmt: skip
        if "output_adapters.cls.head.weight" in state:
            classes = state["output_adapters.cls.head.weight"].shape[0]
            recipe["head"] = {"type": "linear", "classes": classes, "pool": "all" if pool == "mean" else "cls"}
            recipe["objectives"] = {"classify": {}}
        return recipe, _ours(state, modalities, extra), {}

    # ---- and back
    def write(self, model: Any, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        self._check(model)
        places = {} if model.decoder is None else model.decoder.places
        state: dict[str, Tensor] = {}
        for key, x in model.state_dict().items():
            if not key.endswith("positions.values"):
                state |= _published(key, x, model, places)
        for name, modality in model.modalities.items():
            state[f"input_adapters.{name}.pos_emb"] = _image(modality.positions, modality.grid)
        for output, name in places.items():
            modality = model.modalities[name]
            state[f"output_adapters.{output}.pos_emb"] = _image(modality.decoder.positions, modality.grid)
        return {**state, **extras}

    def _check(self, model: Any) -> None:
        """Raises :class:`MaemmError` for parts that MultiMAE does not have."""
        encoder, decoder, head = model.encoder, model.decoder, model.head
        if (
            type(encoder) is not ViT
            or encoder.position_every_block
            or encoder.has_vectors
            or encoder.block_norm == "post"
            or encoder.input_norm is not None
            or encoder.layer_scale is not None
            or encoder.rotary is not None
            or encoder.reads_predict
            or encoder.prefix is None
            or hasattr(encoder.norm, "weight")
        ):
            raise MaemmError(
                f"layout {self.name!r} has a plain encoder with global tokens, no vectors of modalities and no final "
                "norm (encoder.prefix, encoder.vectors, encoder.final_norm); this one is another"
            )
        if decoder is not None and type(decoder) is not Cross:
            raise MaemmError(
                f"layout {self.name!r} has no place for this decoder ({type(decoder).__name__}); leave it out"
            )
        if head is not None and (
            type(head) is not Linear or head.pool not in ("all", "cls") or head.norm_when != "after"
        ):
            raise MaemmError(
                f"layout {self.name!r} has a linear classifier of the mean of all tokens, or of the global one, with a "
                "norm after it (head.pool: all or cls); this head is another"
            )
        if model.only or len(model.targets):
            raise MaemmError(
                f"layout {self.name!r} has modalities that are inputs and outputs, and predict their own values; use "
                "another layout"
            )
        known = {"reconstruct", "classify", *(() if decoder is None else decoder.places)}
        if others := [name for name, part in model.objectives.items() if name not in known and list(part.parameters())]:
            raise MaemmError(f"layout {self.name!r} has no place for the objective {others[0]!r}; leave it out")
        for name, modality in model.modalities.items():
            sides = [modality.positions, *([] if decoder is None else [modality.decoder.positions])]
            if not all(isinstance(side, Table) and not side.values.requires_grad for side in sides):
                raise MaemmError(
                    f"layout {self.name!r} holds fixed tables of positions (modalities.{name}.position); set "
                    "sincos_table"
                )


# ------------------------------------------------------------------------------------------------------------- recipes
def _extra(inputs: list[str], outputs: list[str]) -> dict[str, str]:
    """{further output: its modality}. Raises :class:`MaemmError` for one of no input."""
    extra = {}
    for output in outputs:
        if output in inputs:
            continue
        name = output.removeprefix("norm_")
        if name not in inputs:
            raise MaemmError(
                f"weights 'multimae': the output {output!r} belongs to no input ({', '.join(inputs)}), which is not "
                "supported; leave it out of the file"
            )
        extra[output] = name
    return extra


def _modalities(state: Mapping[str, Tensor], inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    kernels = {name: state[f"input_adapters.{name}.proj.weight"].shape for name in inputs}
    plain = [name for name in inputs if f"input_adapters.{name}.class_emb.weight" not in state]
    modalities: dict[str, Any] = {}
    for name, (_, channels, *patch) in kernels.items():
        grid = state[f"input_adapters.{name}.pos_emb"].shape[2:]
        stride = 1 if name in plain else kernels[plain[0]][2] // patch[0] if plain else STRIDE
        spec: dict[str, Any] = {
            "size": [side * step * stride for side, step in zip(grid, patch, strict=True)],
            "patch": [step * stride for step in patch],
            "position": "sincos_table",
            "decoder_table_resize": "linear",
        }
        if name not in plain:
            classes, embedding = state[f"input_adapters.{name}.class_emb.weight"].shape
            spec |= {"type": "label_map", "stride": stride, "classes": classes, "embedding": embedding}
            spec["table_resize"] = "linear"
        elif channels == 1:
            spec |= {"type": "depth"}
        else:
            spec |= {"type": "image" if channels == 3 else "map", "channels": channels, "normalize": "none"}
        if outputs and name not in outputs:
            raise MaemmError(
                f"weights 'multimae': the input {name!r} has no output ({', '.join(outputs)}), which is not supported; "
                "leave all outputs out of the file"
            )
        modalities[name] = spec
    for name in inputs[1:]:
        modalities[name]["align"] = inputs[0]
    return modalities


def _decoder(state: Mapping[str, Tensor], output: str) -> dict[str, Any]:
    """Options of the decoder that follow from the tensors of one output."""
    prefix = f"output_adapters.{output}."
    width = state[f"{prefix}mask_token"].shape[-1]
    depth = depth_of(state, f"{prefix}decoder_transformer.")
    hidden = next(
        (state[key].shape[0] for key in (f"{prefix}mlp.fc1.weight", f"{prefix}decoder_transformer.0.mlp.fc1.weight")
         if key in state), 4 * width,
    )  # fmt: skip
    return {
        "dim": width, "depth": depth, "mlp_ratio": hidden / width,
        "cross_attention": f"{prefix}decoder.q.weight" in state,
    }  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- tensors
def _ours(state: Mapping[str, Tensor], modalities: Mapping[str, Any], extra: Mapping[str, str]) -> dict[str, Tensor]:
    """Published names -> ours; convolutions become matrices, tables of positions rows, values of a token change their
    order."""
    result: dict[str, Tensor] = {}
    for key, x in state.items():
        part, _, rest = key.partition(".")
        classifier = next((theirs for theirs in _CLASSIFIER if key.startswith(theirs)), None)
        if classifier is not None:
            result[_CLASSIFIER[classifier] + key.removeprefix(classifier)] = x
        elif key == "global_tokens":
            result["encoder.prefix"] = x
        elif part == "encoder":
            result[f"encoder.blocks.{rest}"] = x
        elif part == "input_adapters":
            name, _, inner = rest.partition(".")
            result |= _input(name, inner, x)
        elif part == "output_adapters":
            output, _, inner = rest.partition(".")
            name = extra.get(output, output)
            if name in modalities:
                spec = modalities[name]
                channels = spec.get("classes", spec.get("channels", 1))
                result |= _output(output, name, inner, x, channels, state)
            else:
                result[key] = x  # the strict load reports it
        else:
            result[key] = x
    return result


def _input(name: str, inner: str, x: Tensor) -> dict[str, Tensor]:
    if inner == "pos_emb":
        return {f"modalities.{name}.positions.values": _rows(x)}
    inner = inner.replace("class_emb.", "class_embedding.").replace("proj.", "embedding.")
    return {f"modalities.{name}.{inner}": conv_to_linear(x).contiguous() if x.ndim == 4 else x}


def _output(
    output: str, name: str, inner: str, x: Tensor, channels: int, state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    if inner == "pos_emb":
        if output == name:
            return {f"modalities.{name}.decoder.positions.values": _rows(x)}
        own = state.get(f"output_adapters.{name}.pos_emb")
        if own is None or not torch.equal(own, x):
            raise MaemmError(
                f"weights 'multimae': the outputs {output} and {name} have different tables of positions, which is not "
                "supported; give both the same"
            )
        return {}
    if inner.startswith("out_proj."):
        owner = f"decoder.heads.{name}" if output == name else f"objectives.{output}.layers.{name}"
        return {f"{owner}.{inner.removeprefix('out_proj.')}": _channels_last(x, channels)}
    if inner.startswith("task_embeddings."):
        return {f"decoder.adapters.{output}.vectors.{inner.removeprefix('task_embeddings.')}": x.flatten()}
    prefix = next((theirs for theirs in _ADAPTER if inner.startswith(theirs)), "")
    return {f"decoder.adapters.{output}.{_ADAPTER.get(prefix, '')}{inner.removeprefix(prefix)}": x}


def _published(key: str, x: Tensor, model: Any, places: Mapping[str, str]) -> dict[str, Tensor]:
    """The inverse of :func:`_ours` of one tensor, which is no table of positions."""
    part, _, rest = key.partition(".")
    if key == "encoder.prefix":
        return {"global_tokens": x}
    if part == "encoder":
        return {key.replace("encoder.blocks.", "encoder."): x}
    if part == "head":
        theirs = next(theirs for theirs, ours in _CLASSIFIER.items() if key.startswith(ours))
        return {theirs + key.removeprefix(_CLASSIFIER[theirs]): x}
    if part == "modalities":
        name, _, inner = rest.partition(".")
        modality = model.modalities[name]
        if inner == "embedding.weight":
            channels = modality.width if isinstance(modality, LabelMap) else modality.channels
            x = linear_to_conv(x, channels, modality.patch)
        inner = inner.replace("class_embedding.", "class_emb.").replace("embedding.", "proj.")
        return {f"input_adapters.{name}.{inner}": x}
    if part == "objectives":
        output, _, inner = rest.partition(".")
        name = places[output]
        inner = inner.removeprefix(f"layers.{name}.")
        return {f"output_adapters.{output}.out_proj.{inner}": _channels_first(x, _channels(model, name))}
    kind, _, inner = rest.partition(".")
    output, _, inner = inner.partition(".")
    if kind == "heads":
        return {f"output_adapters.{output}.out_proj.{inner}": _channels_first(x, _channels(model, output))}
    if inner.startswith("vectors."):
        name = inner.removeprefix("vectors.")
        return {f"output_adapters.{output}.task_embeddings.{name}": x.view(1, 1, -1)}
    theirs = next((theirs for theirs, ours in _ADAPTER.items() if inner.startswith(ours)), "")
    inner = theirs + inner.removeprefix(_ADAPTER.get(theirs, ""))
    return {f"output_adapters.{output}.{inner}": x}


def _channels(model: Any, name: str) -> int:
    modality = model.modalities[name]
    return modality.classes if isinstance(modality, LabelMap) else modality.channels


def _channels_last(x: Tensor, channels: int) -> Tensor:
    """Rows of a last layer for values (channel, row, column) -> for (row, column, channel)."""
    return x.unflatten(0, (channels, -1)).transpose(0, 1).flatten(0, 1).contiguous()


def _channels_first(x: Tensor, channels: int) -> Tensor:
    return x.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1).contiguous()


def _rows(table: Tensor) -> Tensor:
    """(1, D, h, w) -> (1, h * w, D)."""
    return table.flatten(2).transpose(1, 2).contiguous()


def _image(positions: Any, grid: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`_rows`, of a table for a grid."""
    return positions.table(grid).detach().transpose(1, 2).unflatten(2, grid).contiguous()
