"""What the published layouts of video models share: names, sizes that follow from shapes, patch kernels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from maemm.contract.errors import MaemmError
from maemm.contract.patches import conv_to_linear, linear_to_conv
from maemm.weights.layout import rename

KERNEL = "modalities.video.embedding.weight"
NORMALIZE = {None: None, True: "colour", False: "none"}
#: width -> heads of the published encoders and decoders
HEADS = {384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16}
DECODER_HEADS = {192: 3, 384: 6, 512: 8, 640: 8}


def to_ours(state: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Published names -> ours by ``names`` {our prefix: theirs}; the patch convolution becomes a matrix."""
    back = {theirs: mine for mine, theirs in names.items()}
    ours = {rename(key, back): value.contiguous() for key, value in state.items()}
    ours[KERNEL] = conv_to_linear(ours[KERNEL]).contiguous()
    return ours


def to_theirs(model: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The inverse of :func:`to_ours`."""
    video = model.modalities["video"]
    ours = dict(model.state_dict())
    ours[KERNEL] = linear_to_conv(ours[KERNEL], video.channels, video.patch)
    return {rename(key, names): value for key, value in ours.items()}


def video_alone(model: nn.Module, kind: str, position: str | tuple[str, ...]) -> None:
    """Raises :class:`MaemmError` for a model that the layout cannot hold."""
    if list(model.modalities) != ["video"]:
        raise MaemmError(f"layout {kind!r} holds videos alone, this model has {', '.join(model.modalities)}")
    kinds = set(model.modalities["video"].position_kinds.values())
    if not kinds <= set([position] if isinstance(position, str) else position):
        raise MaemmError(f"layout {kind!r} has no place for positions of kind {', '.join(sorted(kinds))}")
