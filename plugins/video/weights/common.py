"""Shared by the published layouts of video models: names, heads, patch kernels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.contract.patches import conv_to_linear, linear_to_conv
from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import plain_vit
from maemm.model.model import Model
from maemm.weights.layout import rename

from ..modality import Video

KERNEL = "modalities.video.embedding.weight"
NORMALIZE = {None: None, True: "colour", False: "none"}
#: width -> heads of the published encoders and decoders
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}


def to_ours(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Published names -> ours by ``names`` {our prefix: theirs}; the patch convolution becomes a matrix."""
    back = {theirs: ours for ours, theirs in names.items()}
    renamed = {rename(key, back): value.contiguous() for key, value in state.items()}
    renamed[KERNEL] = conv_to_linear(renamed[KERNEL]).contiguous()
    return renamed


def to_theirs(model: Model, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The inverse of :func:`to_ours`."""
    video = video_of(model)
    ours = dict(model.state_dict())
    ours[KERNEL] = linear_to_conv(ours[KERNEL], video.channels, video.patch)
    return {rename(key, names): value for key, value in ours.items()}


def video_of(model: Model) -> Video:
    """The modality ``video`` of a model that has it."""
    video = model.modalities["video"]
    assert isinstance(video, Video)
    return video


def check_video_only(model: Model, layout: str, positions: tuple[str, ...]) -> None:
    """Raises :class:`MaemmError` for a model of other modalities, another encoder than a plain ViT, another decoder
    than the usual one, or other kinds of positions."""
    if list(model.modalities) != ["video"]:
        raise MaemmError(f"layout {layout!r} holds only videos, this model has {', '.join(model.modalities)}")
    plain_vit(model, layout)
    if model.decoder is not None and type(model.decoder) is not Full:
        name = type(model.decoder).__name__
        raise MaemmError(f"layout {layout!r} has no place for this decoder ({name}); leave it out")
    kinds = set(video_of(model).position_kinds.values())
    if not kinds <= set(positions):
        raise MaemmError(f"layout {layout!r} cannot store positions of kind {', '.join(sorted(kinds))}")
