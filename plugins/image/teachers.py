"""Frozen networks of other libraries as teachers of pictures: timm's models, and folders of transformers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from maemm.config.paths import expanded
from maemm.contract import Modality, ModalityInput
from maemm.contract.errors import MaemmError
from maemm.weights.describe import printable
from maemm.weights.teacher import FrozenTeacher
from maemm.weights.teacher_networks import Named, Network, Scale, affine_of, on_grid, resized_to

HALF = (0.5, 0.5, 0.5)


class PictureTeacher(FrozenTeacher):
    """Features of a frozen network of another library: its patch tokens after the final norm, layer normalised without
    parameters. For the rest it is the target ``teacher``.

    Options
        library: timm, or transformers
        model: the name of a timm model, or a folder of transformers
        weights: file of the weights of a timm model; null: those that timm fetches
    """

    def __init__(
        self,
        names: list[str],
        encoder_dim: int,
        *,
        library: Literal["timm", "transformers"] = "timm",
        model: str,
        weights: str | None = None,
        **rest: Any,
    ):
        if weights is not None and library != "timm":
            raise MaemmError(f"weights is for timm's models, library is {library} (target: picture_teacher); remove it")
        kind = NamedTimm if library == "timm" else NamedTransformers
        super().__init__(names, encoder_dim, kind(model, weights), **rest)


@dataclass(frozen=True)
class NamedPictures(Named):
    """``weights``: a file of them, where ``model`` names an architecture alone."""

    weights: str | None = None

    @property
    def file(self) -> Path:
        return expanded(self.weights or self.model)


class NamedTimm(NamedPictures):
    """A model of timm by its name."""

    def open(self) -> Network:
        return _timm(self.model, self.weights)


class NamedTransformers(NamedPictures):
    """A folder that transformers wrote."""

    def open(self) -> Network:
        return _transformers(self.file)


class ForPictures(Network):
    """A network of another library: pictures (B, 3, H, W) -> patch features, as ``read`` takes them from ``net``.

    ``mean``, ``std``: of its input, pixels of 0 .. 1. ``sides``: height and width of its pictures. ``inner``: how
    features of inner layers are taken, (B, N', D') each.
    """

    def __init__(
        self,
        net: nn.Module,
        dim: int,
        read: Callable[[nn.Module, Tensor], tuple[Tensor, tuple[int, int]]],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        sides: tuple[int, int],
        inner: Callable[[Any, Tensor, Sequence[int]], list[Tensor]] | None = None,
    ):
        super().__init__()
        self.net, self.dim, self.read, self.mean, self.std, self.sides = net, dim, read, mean, std, sides
        self.inner = inner
        self.scales: dict[str, Scale] = {}

    def features(
        self, inputs: Mapping[str, ModalityInput], modalities: Mapping[str, Modality], size: int | None
    ) -> dict[str, Tensor]:
        features = {}
        for name, x in inputs.items():
            tokens, grid = self.read(self.net, self._pictures(name, x, modalities, size))
            features[name] = on_grid(tokens, grid, x.tokens.grid, x.tokens.count, name)
        return features

    def maps(
        self,
        inputs: Mapping[str, ModalityInput],
        modalities: Mapping[str, Modality],
        size: int | None,
        layers: Sequence[int],
    ) -> dict[str, list[Tensor]]:
        if not layers or self.inner is None:
            return super().maps(inputs, modalities, size, layers)
        return {
            name: self.inner(self.net, self._pictures(name, x, modalities, size), layers) for name, x in inputs.items()
        }

    def _pictures(self, name: str, x: ModalityInput, modalities: Mapping[str, Modality], size: int | None) -> Tensor:
        """The student's pictures as the network takes them (B, 3, H, W)."""
        signal = x.preprocessed.x.to(next(self.net.parameters()).dtype)
        if signal.ndim != 4 or signal.shape[1] != len(self.mean):
            raise MaemmError(
                f"this teacher takes pictures of {len(self.mean)} channels, {name!r} has {tuple(signal.shape[1:])} "
                "(target: picture_teacher); give a teacher of that modality, by the target teacher"
            )
        if name not in self.scales:
            shift, scale = affine_of(modalities[name], signal)
            mean, std = (torch.tensor(values, device="cpu").view(-1, 1, 1) for values in (self.mean, self.std))
            self.scales[name] = Scale(scale / std, (shift - mean) / std, signal)
        return resized_to(self.scales[name](signal), self.sides if size is None else (size, size), name)


def _timm_tokens(net: Any, pictures: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """timm's ``forward_features``: tokens behind class tokens, or a map with channels first or last."""
    x = net.forward_features(pictures)
    if x.ndim == 4:
        x = x if x.shape[-1] == net.num_features else x.permute(0, 2, 3, 1)
        return x.flatten(1, 2), (x.shape[1], x.shape[2])
    tokens = x[:, getattr(net, "num_prefix_tokens", 0) :]
    return tokens, _grid_of(tokens, getattr(getattr(net, "patch_embed", None), "patch_size", None), pictures)


def _transformers_tokens(net: Any, pictures: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The last hidden state behind class and register tokens. CLIP's has had no norm yet."""
    x = net(pixel_values=pictures).last_hidden_state
    if type(net).__name__.startswith("CLIP"):
        x = getattr(net, "vision_model", net).post_layernorm(x)
    if x.ndim == 4:
        return x.flatten(2).transpose(1, 2), (x.shape[2], x.shape[3])
    patch = net.config.patch_size
    height, width = (patch, patch) if isinstance(patch, int) else patch
    grid = pictures.shape[-2] // height, pictures.shape[-1] // width
    return x[:, x.shape[1] - math.prod(grid) :], grid


def _timm_layers(net: Any, pictures: Tensor, layers: Sequence[int]) -> list[Tensor]:
    """timm's ``forward_intermediates``: stages of a convolutional network, blocks of a transformer."""
    count = len(net.feature_info)
    if missing := [layer for layer in layers if layer >= count]:
        raise MaemmError(f"the teacher has no layers {missing} (layers); it has 0 .. {count - 1}")
    maps = net.forward_intermediates(pictures, indices=list(layers), intermediates_only=True, output_fmt="NCHW")
    return [x.flatten(2).transpose(1, 2) for x in maps]


def _grid_of(tokens: Tensor, patch: Any, pictures: Tensor) -> tuple[int, int]:
    if patch is not None:
        height, width = (patch, patch) if isinstance(patch, int) else patch
        return pictures.shape[-2] // height, pictures.shape[-1] // width
    side = math.isqrt(tokens.shape[1])
    return side, tokens.shape[1] // side


def _timm(name: str, weights: str | None) -> Network:
    import timm

    file = None if weights is None else expanded(weights)
    try:
        net: Any = timm.create_model(
            name, pretrained=file is None, num_classes=0, checkpoint_path="" if file is None else str(file)
        )
    except Exception as error:  # an unknown name, no network, a file of another model
        reason = printable(" ".join(str(error).split()) or type(error).__name__, 160)
        raise MaemmError(
            f"timm cannot make the teacher {name} ({reason}; target: picture_teacher); give the name of a model, and "
            "weights: FILE"
        ) from None
    config = net.pretrained_cfg
    sides = getattr(getattr(net, "patch_embed", None), "img_size", None) or config["input_size"][-2:]
    inner = _timm_layers if hasattr(net, "forward_intermediates") else None
    return ForPictures(net, net.num_features, _timm_tokens, config["mean"], config["std"], tuple(sides), inner)


def _transformers(folder: Path) -> Network:
    try:
        from transformers import AutoModel
        from transformers.utils import logging
    except ImportError:
        raise MaemmError("transformers is not installed (target: picture_teacher); pip install transformers") from None
    if not (folder / "config.json").is_file():
        raise MaemmError(
            f"the teacher is no folder of transformers ({folder} has no config.json); give the whole folder"
        )
    logging.disable_progress_bar()
    try:
        net: Any = AutoModel.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        reason = printable(" ".join(str(error).split()) or type(error).__name__, 160)
        raise MaemmError(
            f"transformers cannot open the teacher ({folder}: {reason}); give the whole folder of a vision model"
        ) from None
    net = getattr(net, "vision_model", net)
    if isinstance(getattr(net, "pooler", None), nn.Module):
        net.pooler = None  # its weights are drawn anew where the folder has none
    config = net.config
    if getattr(config, "mask_ratio", None):
        kind = type(net).__name__
        raise MaemmError(f"{kind} hides tokens by itself ({folder}; target: picture_teacher); use the target teacher")
    size = config.image_size
    sides = (size, size) if isinstance(size, int) else tuple(size)
    mean, std = _normalisation(folder)
    return ForPictures(net, config.hidden_size, _transformers_tokens, mean, std, sides)


def _normalisation(folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of preprocessor_config.json; 0.5, transformers' own default for ViT, where it has none."""
    try:
        values = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        values = {}
    return tuple(values.get("image_mean") or HALF), tuple(values.get("image_std") or HALF)
