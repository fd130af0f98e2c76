"""MAETok (Chen et al. 2025, arXiv 2502.03444): an encoder into latent tokens and a decoder of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.options import PositiveInt
from maemm.contract.patches import conv_to_linear, linear_to_conv
from maemm.contract.positions import lattice
from maemm.model.decoders.latent import LatentDecoder
from maemm.model.encoders.latent import LatentViT
from maemm.model.rotary import MixedRotary
from maemm.weights.layout import blocks_of, heads_of, rename, require, square_side

from ..._layouts.mae import check_alone

HEADS = {384: 6, 768: 12, 1024: 16}  # width -> heads of the published sizes, encoder and decoder
_MODEL = "encoder.model."
_KERNEL, _TABLE = f"{_MODEL}patch_embed.proj.weight", f"{_MODEL}pos_embed"
_NEEDED = (
    _KERNEL, _TABLE, f"{_MODEL}cls_token", "encoder.mask_token", "encoder.latent_tokens", "encoder.latent_pos_embed",
    "encoder.freqs", "quant_conv.weight", "post_quant_conv.weight", "decoder.mask_token", "decoder.freqs",
    "decoder.to_pixel.model.weight", "decoder.latent_pos_embed", "decoder.model.cls_token",
)  # fmt: skip
_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
#: what the published decoder has and, with rotary positions, never uses
UNUSED = ("decoder.model.patch_embed.proj.weight", "decoder.model.patch_embed.proj.bias", "decoder.model.pos_embed")

#: {our prefix: published prefix} of what only needs another name
NAMES = {
    "modalities.image.embedding.": f"{_MODEL}patch_embed.proj.",
    "encoder.prefix": f"{_MODEL}cls_token",
    "encoder.blocks.": f"{_MODEL}blocks.",
    "encoder.norm.": f"{_MODEL}norm.",
    "encoder.hidden_token": "encoder.mask_token",
    "encoder.latent_tokens": "encoder.latent_tokens",
    "encoder.latent_positions": "encoder.latent_pos_embed",
    "encoder.rotary.frequencies": "encoder.freqs",
    "encoder.project.": "quant_conv.",
    "decoder.project.": "post_quant_conv.",
    "decoder.prefix": "decoder.model.cls_token",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.blocks.": "decoder.model.blocks.",
    "decoder.norm.": "decoder.model.norm.",
    "decoder.latent_positions": "decoder.latent_pos_embed",
    "decoder.rotary.frequencies": "decoder.freqs",
    "decoder.heads.image.": "decoder.to_pixel.model.",
}


class MAETok(CheckpointFormat):
    """Tokenizers of MAETok with learned rotary positions: pictures in -1 .. 1, latents before any quantisation.

    Parts beside the encoder, the decoder and their projections, such as auxiliary decoders, whose code is not public,
    are kept for files that are written again. Those of a training of ours are left out.
    """

    name = "maetok"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return keys.issuperset(_NEEDED) and len(shapes[_KERNEL]) == 4

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt | None = None,
        decoder_heads: PositiveInt | None = None,
        size: PositiveInt | list[PositiveInt] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        require(state, _NEEDED, self.name)
        recipe = self._recipe(state, heads, decoder_heads, size)
        ours_of = {theirs: ours for ours, theirs in NAMES.items()}
        extras = {key: x for key, x in state.items() if key in UNUSED or not key.startswith(_PARTS)}
        ours = {}
        for key, x in state.items():
            if key in extras or ".freqs_t_" in key:  # coordinates of the patches, computed here
                continue
            if key == _TABLE:
                ours["encoder.prefix_position"] = x[:, :1].contiguous()
                ours["modalities.image.positions.values"] = x[:, 1:].contiguous()
                continue
            if key == _KERNEL:
                x = conv_to_linear(x)
            elif key.endswith(".freqs"):  # (x, y) -> (row, column); channels by head
                side = key.split(".")[0]
                x = x.flip(0).unflatten(-1, (recipe[side]["heads"], -1))
            ours[rename(key, ours_of)] = x.contiguous()
        return recipe, ours, extras

    def _recipe(
        self, state: dict[str, Tensor], heads: int | None, decoder_heads: int | None, size: int | list[int] | None
    ) -> dict[str, Any]:
        width, channels, *patch = state[_KERNEL].shape
        narrow = state["post_quant_conv.weight"].shape[0]
        if size is None:
            side = square_side(state[_TABLE].shape[1] - 1, f"the position table {_TABLE}", 1)
            size = [side * patch[0], side * patch[1]]
        return {
            "modalities": {
                "image": {
                    "type": "image", "size": size, "patch": patch, "channels": channels, "position": "learned",
                    "decoder_position": "none", "normalize": "none", "mean": [0.5] * channels, "std": [0.5] * channels,
                }
            },
            "masking": {
                "type": "predict_all",
                "masking": {"type": "random", "ratio": {"mean": 0.6, "std": 0.25, "low": 0.4, "high": 0.6}},
            },
            "encoder": {
                "type": "latent", **_blocks(state, _MODEL, width), "heads": heads_of(width, heads, HEADS, "heads"),
                "latents": state["encoder.latent_tokens"].shape[1], "latent_dim": state["quant_conv.weight"].shape[0],
                "eps": 1e-6, "prefix_position": "learned", "rotary": "mixed",
            },
            "decoder": {
                "type": "latent", **_blocks(state, "decoder.model.", narrow),
                "heads": heads_of(narrow, decoder_heads, HEADS, "decoder_heads"), "eps": 1e-6, "rotary": "mixed",
            },
        }  # fmt: skip

    def write(self, model: Any, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        self._check(model)
        image, encoder = model.modalities["image"], model.encoder
        state = {}
        for key, x in model.state_dict().items():
            if key.startswith("objectives.") or key in ("encoder.prefix_position", "modalities.image.positions.values"):
                continue
            if key.endswith("embedding.weight"):
                x = linear_to_conv(x, image.channels, image.patch)
            elif key.endswith("rotary.frequencies"):
                x = x.flatten(2).flip(0).contiguous()
            state[rename(key, NAMES)] = x
        position = encoder.prefix_position
        first = torch.zeros_like(encoder.prefix) if position is None else position
        state[_TABLE] = torch.cat([first, image.positions.table(image.grid).view(1, -1, encoder.dim)], 1).detach()
        rows, columns = lattice(image.grid).unbind(-1)
        for side in ("encoder", "decoder"):
            state |= {f"{side}.freqs_t_x": columns, f"{side}.freqs_t_y": rows}
        return {**state, **self._unused(model), **extras}

    def _unused(self, model: Any) -> dict[str, Tensor]:
        """Zeros for :data:`UNUSED`, so that a file of a model that was trained here opens there."""
        image, width = model.modalities["image"], model.decoder.dim
        shapes = ((width, image.channels, *image.patch), (width,), (1, 1 + len(lattice(image.grid)), width))
        return {key: torch.zeros(shape) for key, shape in zip(UNUSED, shapes, strict=True)}

    def _check(self, model: Any) -> None:
        """Raises :class:`MaemmError` for parts that MAETok does not have."""
        check_alone(model, "image", "images", self.name)
        encoder, decoder, image = model.encoder, model.decoder, model.modalities["image"]
        if type(encoder) is not LatentViT or type(decoder) is not LatentDecoder or model.head is not None:
            raise MaemmError(
                f"layout {self.name!r} holds an encoder and a decoder of latent tokens; this model has others "
                "(encoder.type, decoder.type); use another layout"
            )
        kinds = [type(part.rotary) is MixedRotary and part.rotary.axes == 2 for part in (encoder, decoder)]
        if not all(kinds) or image.position_kinds["encoder"] == "none" or image.position_kinds["decoder"] != "none":
            raise MaemmError(
                f"layout {self.name!r} has learned rotary positions of two axes in both and a table in the encoder; "
                "this model has others (encoder.rotary, decoder.rotary, modalities.image.position, "
                "modalities.image.decoder_position); use another layout"
            )
        tokens = [part.prefix is not None and part.prefix.shape[1] == 1 for part in (encoder, decoder)]
        if not all(tokens) or not encoder.replaces or not isinstance(encoder.project, torch.nn.Linear):
            raise MaemmError(
                f"layout {self.name!r} has one class token on both sides, a vector for hidden patches and a projection "
                "of the latents; this model has others (encoder.prefix, decoder.prefix, encoder.hidden, "
                "encoder.latent_dim); use another layout"
            )
        if len(model.targets) or image.normalize != "none":
            raise MaemmError(
                f"layout {self.name!r} predicts pixels as they are, and this model something else "
                "(modalities.image.normalize, modalities.image.target); use another layout"
            )


def _blocks(state: Mapping[str, Tensor], prefix: str, width: int) -> dict[str, Any]:
    """Sizes and options of the blocks of one side."""
    blocks = blocks_of(state, f"{prefix}blocks.", width)
    if f"{prefix}blocks.0.attn.qkv.bias" not in state:
        blocks["qkv_bias"] = False
    if f"{prefix}blocks.0.ls1.gamma" in state:
        blocks["layer_scale"] = 1e-5  # its initial value, which the file does not tell (DINOv2's)
    return blocks
