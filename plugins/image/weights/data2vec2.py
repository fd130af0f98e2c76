"""data2vec 2.0 for images (Baevski et al. 2022): the student, its decoder, and the moving average that it predicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.options import PositiveInt
from maemm.contract.patches import conv_to_linear, linear_to_conv
from maemm.model.decoders.conv import Conv
from maemm.model.encoders.vit import ViT
from maemm.model.targets.ema import EMA
from maemm.weights.layout import blocks_of, depth_of, heads_of, rename, require, square_side

from ..._layouts.mae import check_alone

HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 32): 16}  # (width, depth) of the published encoders -> heads
_IMAGE, _EMA = "modality_encoders.IMAGE.", "_ema."
_KERNEL = f"{_IMAGE}local_encoder.proj.weight"
_TABLE = f"{_IMAGE}fixed_positional_encoder.positions"
_FIRST = f"{_IMAGE}context_encoder.blocks."  # the first blocks of the encoder
_NEEDED = (_KERNEL, _TABLE, f"{_IMAGE}extra_tokens", f"{_IMAGE}context_encoder.norm.weight", "blocks.0.norm1.weight")
_CONV = f"{_IMAGE}decoder.blocks."
_OWN_BLOCKS = "names.own_blocks"  # among the extras of an encoder alone: as many zeros as the modality has blocks

#: {our prefix: published prefix} of the model and, behind other prefixes, of its average
_ENCODER = {
    "encoder.prefix": f"{_IMAGE}extra_tokens",
    "encoder.input_norm.": f"{_IMAGE}context_encoder.norm.",
    "modalities.image.embedding.": f"{_IMAGE}local_encoder.proj.",
    "modalities.image.positions.values": _TABLE,
}
_DECODER = {"decoder.heads.image.": f"{_IMAGE}decoder.proj."}


class Data2Vec2(CheckpointFormat):
    """Pre-trained checkpoints of data2vec 2.0 for images, with blocks whose norms stand behind the residuals.

    The number of blocks that the average's targets are a mean of is not recorded: it is that of the blocks behind the
    modality's own ones.
    """

    name = "data2vec2"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return keys.issuperset(_NEEDED) and len(shapes[_KERNEL]) == 4

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt | None = None,
        size: PositiveInt | list[PositiveInt] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        require(state, _NEEDED, self.name)
        first = depth_of(state, _FIRST)
        whole = f"{_CONV}0.0.weight" in state and f"{_EMA}{_KERNEL}" in state
        extras = {} if whole else {key: x for key, x in state.items() if key.startswith((_EMA, f"{_IMAGE}decoder."))}
        recipe = self._recipe(state, heads, size, first, whole)
        ours = _ours({key: x for key, x in state.items() if key not in extras}, first)
        return recipe, ours, extras if whole else {**extras, _OWN_BLOCKS: torch.zeros(first)}

    def _recipe(
        self, state: dict[str, Tensor], heads: int | None, size: int | list[int] | None, first: int, whole: bool
    ) -> dict[str, Any]:
        width, channels, *patch = state[_KERNEL].shape
        blocks = blocks_of(state, "blocks.", width)
        later, blocks["depth"] = blocks["depth"], first + blocks["depth"]
        if size is None:
            side = square_side(state[_TABLE].shape[1], f"the position table {_TABLE}", 0)
            size = [side * patch[0], side * patch[1]]
        image: dict[str, Any] = {
            "type": "image", "size": size, "patch": patch, "channels": channels, "position": "fixed",
            "masking": {"type": "scattered_blocks", "ratio": 0.8},
        }  # fmt: skip
        decoder = None
        if whole:
            image["target"] = {
                "type": "ema", "momentum": 0.9998, "momentum_end": 0.99999, "momentum_schedule": "anneal",
                "momentum_steps": 100_000, "layers": later, "features": "ffn", "instance_norm": True, "loss": "mse",
                "reduction": "sum_by_root",
            }  # fmt: skip
            kernel = state[f"{_CONV}0.0.weight"]
            decoder = {
                "type": "conv", "dim": kernel.shape[0], "depth": depth_of(state, _CONV), "kernel": kernel.shape[-1],
                "groups": width // kernel.shape[1],
            }  # fmt: skip
        return {
            "modalities": {"image": image},
            "encoder": {
                "type": "vit", **blocks, "heads": heads_of((width, blocks["depth"]), heads, HEADS, "heads"),
                "eps": 1e-6, "prefix": state[f"{_IMAGE}extra_tokens"].shape[1], "block_norm": "post",
                "input_norm": True, "final_norm": False, "init": "normal",
            },
            "decoder": decoder,
        }  # fmt: skip

    def write(self, model: Any, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        self._check(model)
        image, target = model.modalities["image"], model.targets["image"] if len(model.targets) else None
        if target is None and _OWN_BLOCKS not in extras:
            raise MaemmError(
                f"layout {self.name!r} names the first blocks otherwise, and a model without the average does not say "
                "how many; keep its target"
            )
        first = len(extras[_OWN_BLOCKS]) if target is None else len(model.encoder.blocks) - len(target.blocks)
        state = _published(model.state_dict(), first, image)
        tables = {_TABLE: image.positions}
        if target is not None:
            tables[f"{_EMA}{_TABLE}"] = target.modalities["image"].positions
        for name, positions in tables.items():
            rows = positions.table(image.grid).detach()
            state[name] = rows if rows.ndim == 3 else rows[None]
        return {**state, **{key: x for key, x in extras.items() if key != _OWN_BLOCKS}}

    def entries(self, state: dict[str, Tensor]) -> dict[str, Any]:
        """The average in an entry of its own among the weights, as published."""
        average = {key.removeprefix(_EMA): x for key, x in state.items() if key.startswith(_EMA)}
        own = {key: x for key, x in state.items() if not key.startswith(_EMA)}
        return {"model": {**own, _EMA.removesuffix("."): average} if average else own}

    def _check(self, model: Any) -> None:
        """Raises :class:`MaemmError` for parts that data2vec 2.0 does not have."""
        check_alone(model, "image", "images", self.name)
        encoder, target = model.encoder, model.targets["image"] if len(model.targets) else None
        plain = type(encoder) is ViT and not encoder.position_every_block and not encoder.reads_predict
        if not plain or encoder.block_norm != "post" or encoder.input_norm is None or encoder.prefix is None:
            raise MaemmError(
                f"layout {self.name!r} has an encoder with a norm before the blocks, norms behind their residuals and "
                "an extra token; this one is another (encoder.block_norm, encoder.input_norm, encoder.prefix)"
            )
        if hasattr(encoder.norm, "weight") or model.head is not None:
            raise MaemmError(
                f"layout {self.name!r} has no norm behind the blocks and no classifier (encoder.final_norm, head); "
                "use another layout"
            )
        if (target is None) != (model.decoder is None) or not isinstance(target, EMA | None):
            raise MaemmError(f"layout {self.name!r} holds the decoder beside the average that it predicts; use another")
        if model.decoder is not None and type(model.decoder) is not Conv:
            raise MaemmError(f"layout {self.name!r} has a decoder of convolutions; use another layout")


def _ours(state: Mapping[str, Tensor], first: int) -> dict[str, Tensor]:
    """Published names -> ours; ``first``: the blocks in front of the shared ones."""
    ours_of = {theirs: ours for ours, theirs in {**_ENCODER, **_DECODER}.items()}
    result = {}
    for key, x in state.items():
        name, owner = (key.removeprefix(_EMA), "targets.image.") if key.startswith(_EMA) else (key, "")
        if name == _KERNEL:
            x = conv_to_linear(x)
        if name.startswith(_FIRST):
            name = f"encoder.blocks.{name.removeprefix(_FIRST)}"
        elif name.startswith("blocks."):
            number, rest = name.removeprefix("blocks.").split(".", 1)
            name = f"encoder.blocks.{int(number) + first}.{rest}"
        elif name.startswith(_CONV):
            number, _, rest = name.removeprefix(_CONV).split(".", 2)
            name = f"decoder.layers.image.{number}.{rest}"
        else:
            name = rename(name, ours_of)
        result[owner + name] = x.contiguous()
    return result


def _published(state: Mapping[str, Tensor], first: int, image: Any) -> dict[str, Tensor]:
    """The inverse of :func:`_ours`, without the tables of positions."""
    result = {}
    for key, x in state.items():
        name, owner = (key.removeprefix("targets.image."), _EMA) if key.startswith("targets.") else (key, "")
        if name.endswith("positions.values"):
            continue
        if name == "modalities.image.embedding.weight":
            x = linear_to_conv(x, image.channels, image.patch)
        if name.startswith("encoder.blocks."):
            number, rest = name.removeprefix("encoder.blocks.").split(".", 1)
            mine = int(number) < first
            name = f"{_FIRST}{number}.{rest}" if mine else f"blocks.{int(number) - first}.{rest}"
        elif name.startswith("decoder.layers.image."):
            number, rest = name.removeprefix("decoder.layers.image.").split(".", 1)
            name = f"{_CONV}{number}.0.{rest}"
        else:
            name = rename(name, {**_ENCODER, **_DECODER})
        result[owner + name] = x
    return result
