"""OmniMAE: one set of weights for videos (batch key ``video``) and pictures (``image``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from maemm.contract import CheckpointFormat
from maemm.contract.errors import MaemmError
from maemm.contract.options import Fraction, PositiveInt
from maemm.model.model import Model
from maemm.weights.layout import blocks_of, heads_of, require

from ..positions import flat_sincos
from .common import NORMALIZE, to_ours, to_theirs, video_of

NAMES = {
    "modalities.video.embedding.": "trunk.patch_embed.proj.1.",  # 0 repeats pictures
    "encoder.": "trunk.",
    "decoder.blocks.": "trunk.decoder.decoder_blocks.",
    "decoder.norm.": "trunk.decoder.norm.",
    "decoder.project.": "trunk.decoder.decoder_embed.",
    "decoder.mask_token": "trunk.mask_token",
}
TABLES = ("trunk.pos_embed", "trunk.decoder.pos_embed")
_VIDEO, _IMAGE = "modalities.video.", "modalities.image."  # two names of one module
HEADS = {768: 12, 1024: 16, 1280: 16}


class OmniMAE(CheckpointFormat):
    """Pre-trained files. Their sinusoids must equal ours, and are written back as they were read.

    ``size`` is that of clips, by default 16 x 224 x 224; pictures have its height and width.
    """

    name = "omnimae"

    def match(self, keys: set[str], shapes: Mapping[str, tuple[int, ...]]) -> bool:
        return {"trunk.patch_embed.proj.1.weight", "trunk.mask_token", "trunk.decoder.decoder_embed.weight"} <= keys

    def read(
        self,
        state: dict[str, Tensor],
        *,
        heads: PositiveInt | None = None,
        decoder_heads: PositiveInt | None = None,
        norm_pix: bool | None = None,
        mask_ratio: Fraction = 0.9,
        image_mask_ratio: Fraction = 0.75,
        size: list[PositiveInt] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]]:
        needed = ("trunk.patch_embed.proj.1.weight", "trunk.mask_token", "trunk.decoder.decoder_embed.weight")
        require(state, [*needed, "head.weight"], self.name)
        state = dict(state)
        extras = {name: state.pop(name) for name in TABLES if name in state}
        for name, table in extras.items():
            if (table[0] - flat_sincos(*table.shape[1:])).abs().max() > 1e-3:  # stored in half precision at worst
                raise MaemmError(
                    f"weights {self.name!r}: {name} is not the published sinusoid; other positions are not supported"
                )
        width, dim = state["trunk.mask_token"].shape[-1], state["trunk.decoder.decoder_embed.weight"].shape[0]
        recipe = {
            "modalities": {
                "video": self._video(state, norm_pix, mask_ratio, size),
                "image": {"same_as": "video", "masking": {"type": "random", "ratio": image_mask_ratio}},
            },
            "encoder": {
                "type": "apart", **blocks_of(state, "trunk.blocks.", width), "prefix": 0,
                "heads": heads_of(width, heads, HEADS, "heads"),
            },
            "decoder": {
                "type": "project_last", **blocks_of(state, "trunk.decoder.decoder_blocks.", dim),
                "heads": heads_of(dim, decoder_heads, {384: 16, 512: 16}, "decoder_heads"),
                "qkv_bias": "trunk.decoder.decoder_blocks.0.attn.qkv.bias" in state,
            },
        }  # fmt: skip
        state["trunk.mask_token"] = state["trunk.mask_token"].unsqueeze(0)
        ours = to_ours(state, _names(state["head.weight"].shape[0]))
        image = {_IMAGE + key[len(_VIDEO) :]: value for key, value in ours.items() if key.startswith(_VIDEO)}
        return recipe, ours | image, extras

    def _video(
        self, state: Mapping[str, Tensor], norm_pix: bool | None, mask_ratio: float, size: list[int] | None
    ) -> dict[str, Any]:
        _, channels, *patch = state["trunk.patch_embed.proj.1.weight"].shape
        if size is None:
            size = [16, *(224 if 224 % side == 0 else 14 * side for side in patch[1:])]
        return {
            "type": "video", "size": size,
            "patch": patch, "channels": channels, "position": "flat", "eps_on": "var",
            "normalize": NORMALIZE[norm_pix], "masking": {"type": "random", "ratio": mask_ratio},
        }  # fmt: skip

    def write(self, model: Model, extras: dict[str, Tensor]) -> dict[str, Tensor]:
        modules = {id(modality) for modality in model.modalities.values()}
        if set(model.modalities) != {"video", "image"} or len(modules) > 1:
            raise MaemmError(f"layout {self.name!r} holds a model of videos and pictures, image: {{same_as: video}}")
        video = video_of(model)
        if set(video.position_kinds.values()) != {"flat"}:
            raise MaemmError(f"layout {self.name!r} needs position: flat")
        state = to_theirs(model, _names(video.output_dim()))
        state = {key: value for key, value in state.items() if not key.startswith(_IMAGE)}
        state["trunk.mask_token"] = state["trunk.mask_token"][0]
        count = video.grid[0] * video.grid[1] * video.grid[2]
        tables = {name: extras.get(name, flat_sincos(count, model.encoder.dim)[None]) for name in TABLES}
        return {**state, **extras, **tables}


def _names(outputs: int) -> dict[str, str]:
    return {**NAMES, f"decoder.heads.{outputs}.": "head."}
