"""The config.json of transformers' VideoMAE: written from our model, read back, and the class that takes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from maemm.contract.errors import MaemmError
from maemm.model.decoders.full import Full
from maemm.model.encoders.vit import plain_vit
from maemm.model.heads import Linear
from maemm.weights.transformers import decoder_settings, encoder_settings, known_settings

MODEL, WITH_DECODER, CLASSIFIER = "VideoMAEModel", "VideoMAEForPreTraining", "VideoMAEForVideoClassification"


def config_of(model: nn.Module, layout: str) -> dict[str, Any]:
    """Settings of ``VideoMAEConfig``. Raises :class:`MaemmError` for what that model has no place for."""
    encoder, video = plain_vit(model, layout), model.modalities["video"]
    _, height, width = video.size
    if height != width or video.patch[1] != video.patch[2]:
        raise MaemmError(f"layout {layout!r} takes square frames and patches, this model {video.size}, {video.patch}")
    if model.head is None and isinstance(encoder.norm, nn.Identity):
        raise MaemmError(f"layout {layout!r} has a final norm or a classifier, this encoder has neither")
    config = {
        "architectures": [MODEL],
        "model_type": "videomae",
        "image_size": height,
        "patch_size": video.patch[1],
        "num_channels": video.channels,
        "num_frames": video.size[0],
        "tubelet_size": video.patch[0],
        **encoder_settings(encoder),
        "use_mean_pooling": model.head is not None,
        "norm_pix_loss": video.normalize == "colour",
    }
    if model.head is not None:
        return {**config, **_classifier(model.head, layout)}
    return (
        config if model.decoder is None else {**config, **_decoder(model.decoder, encoder.blocks[0].norm1.eps, layout)}
    )


def _classifier(head: nn.Module, layout: str) -> dict[str, Any]:
    if type(head) is not Linear or (head.pool, head.norm_when) != ("mean", "after"):
        raise MaemmError(f"layout {layout!r} classifies the mean of all tokens behind a norm of its own alone")
    names = {str(number): f"LABEL_{number}" for number in range(head.classes)}
    return {"architectures": [CLASSIFIER], "id2label": names, "label2id": {v: int(k) for k, v in names.items()}}


def _decoder(decoder: nn.Module, eps: float, layout: str) -> dict[str, Any]:
    if type(decoder) is not Full or decoder.blocks[0].norm1.eps != eps:
        raise MaemmError(f"layout {layout!r} has the decoder of VideoMAE alone, with the eps of the encoder")
    return {"architectures": [WITH_DECODER], **decoder_settings(decoder)}


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Settings -> what reading the weights wants to know; what is missing stays asked for."""
    known = known_settings(config)
    side = config.get("image_size")
    if isinstance(side, int) and "num_frames" in config:
        known["size"] = [config["num_frames"], side, side]
    return known


def run_there(path: str) -> Callable[[Tensor], Tensor]:
    """In transformers: x (B, C, T, H, W) -> tokens (B, N, D), or logits of a classifier."""
    import json
    from pathlib import Path

    import transformers

    config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
    tuned = config["architectures"] == [CLASSIFIER]
    model = getattr(transformers, CLASSIFIER if tuned else MODEL).from_pretrained(path).eval()

    def answers(x: Tensor) -> Tensor:
        out = model(x.transpose(1, 2))
        return out.logits if tuned else out.last_hidden_state

    return answers
