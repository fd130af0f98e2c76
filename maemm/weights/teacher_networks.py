"""Frozen networks whose features are targets: what they share, and those that are models of maemm."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maemm.config.paths import expanded
from maemm.contract import Modality, ModalityInput, Preprocessed
from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality
from maemm.contract.rng import seeded
from maemm.model.build import build_model
from maemm.model.model import Model
from maemm.weights.loading import load_encoder


class Network(nn.Module, ABC):
    """A frozen network in eval mode. ``dim``: values of a token's features."""

    dim: int

    @abstractmethod
    def features(
        self, inputs: Mapping[str, ModalityInput], modalities: Mapping[str, Modality], size: int | None
    ) -> dict[str, Tensor]:
        """Features (B, N, D) of all tokens of the student, after the final norm; ``modalities`` are the student's.

        ``size``: side of the pictures that it sees, None: its own.
        """

    def maps(
        self,
        inputs: Mapping[str, ModalityInput],
        modalities: Mapping[str, Modality],
        size: int | None,
        layers: Sequence[int],
    ) -> dict[str, list[Tensor]]:
        """Features of the inner ``layers``, (B, N', D') each, on grids of the network's own; without layers those of
        :meth:`features`. Raises :class:`MaemmError` for layers that it does not have."""
        if layers:
            raise MaemmError(f"{type(self).__name__} has no features of inner layers (layers); leave it out")
        return {name: [x] for name, x in self.features(inputs, modalities, size).items()}

    def digest(self) -> bytes:
        """32 bytes that depend on every weight."""
        digest = hashlib.sha256()
        for key, value in sorted(self.state_dict().items()):
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.digest()


# ----------------------------------------------------------------------------------------------------- maemm
class Ours(Network):
    """The encoder of a model of maemm, or of published weights that maemm reads."""

    def __init__(self, model: Model):
        super().__init__()
        model.decoder = model.head = None
        model.objectives, model.targets = nn.ModuleDict(), nn.ModuleDict()  # type: ignore[assignment]
        self.model, self.dim = model, model.encoder.dim
        self.scales: dict[str, Scale | None] = {}

    def features(
        self, inputs: Mapping[str, ModalityInput], modalities: Mapping[str, Modality], size: int | None
    ) -> dict[str, Tensor]:
        names = {name: self._own_name(name) for name in inputs}
        if len(set(names.values())) == len(names):
            return self._pass(inputs, modalities, names, size)  # all of them in one sequence
        return {name: self._pass({name: x}, modalities, {name: names[name]}, size)[name] for name, x in inputs.items()}

    def _own_name(self, name: str) -> str:
        own = list(self.model.modalities)
        if name not in own and len(own) > 1:
            raise MaemmError(
                f"the teacher has no modality {name!r}, it has {', '.join(own)} (target: teacher); give another model"
            )
        return name if name in own else own[0]

    def _pass(
        self,
        inputs: Mapping[str, ModalityInput],
        modalities: Mapping[str, Modality],
        names: Mapping[str, str],
        size: int | None,
    ) -> dict[str, Tensor]:
        own_inputs, latents = self.model.encode(self._batch(inputs, modalities, names, size))
        features = {}
        for name, x in inputs.items():
            own = own_inputs[names[name]]
            tokens = _in_order(latents.tokens[names[name]], own)
            features[name] = on_grid(tokens, own.tokens.grid, x.tokens.grid, x.tokens.count, name)
        return features

    def maps(
        self,
        inputs: Mapping[str, ModalityInput],
        modalities: Mapping[str, Modality],
        size: int | None,
        layers: Sequence[int],
    ) -> dict[str, list[Tensor]]:
        if not layers:
            return super().maps(inputs, modalities, size, layers)
        maps: dict[str, list[Tensor]] = {}
        for name, x in inputs.items():
            own = self._own_name(name)
            own_inputs, latents = self.model.encode(
                self._batch({name: x}, modalities, {name: own}, size), layers=layers
            )
            if missing := [layer for layer in layers if layer not in latents.layers]:
                raise MaemmError(f"the teacher has no blocks {missing} (layers); they count from 0")
            maps[name] = [_in_order(latents.layers[layer][own], own_inputs[own]) for layer in layers]
        return maps

    def _batch(
        self,
        inputs: Mapping[str, ModalityInput],
        modalities: Mapping[str, Modality],
        names: Mapping[str, str],
        size: int | None,
    ) -> dict[str, Preprocessed]:
        """The student's samples as this network takes them."""
        batch = {}
        for name, x in inputs.items():
            theirs = self.model.modalities[names[name]]
            signal = x.preprocessed.x.to(next(self.model.parameters()).dtype)
            if name not in self.scales:
                self.scales[name] = scale_between(modalities[name], theirs, signal)
            scale = self.scales[name]
            signal = signal if scale is None else scale(signal)
            sides = _sides(theirs, size)
            resized = resized_to(signal, sides, name) if sides is not None else signal
            if x.preprocessed.valid is not None and resized is not signal:
                raise MaemmError(
                    f"samples of {name!r} are padded, and the teacher takes them in another size (target: teacher); "
                    "give a teacher of the student's size"
                )
            batch[names[name]] = replace(x.preprocessed, x=resized)
        return batch


def _sides(modality: Modality, size: int | None) -> tuple[int, ...] | None:
    if not isinstance(modality, GridModality):
        return None
    return modality.size if size is None else (*modality.size[:-2], size, size)


def _in_order(latents: Tensor, inputs: ModalityInput) -> Tensor:
    """Latents of visible tokens (B, V, D), valid ones first, -> of all tokens in order; 0 where one is not valid."""
    plan = inputs.plan
    if plan.visible_valid is None:
        return latents
    index = plan.visible.masked_fill(~plan.visible_valid, inputs.tokens.count)
    whole = latents.new_zeros(len(latents), inputs.tokens.count + 1, latents.shape[-1])
    return whole.scatter(1, index[..., None].expand_as(latents), latents)[:, :-1]


# --------------------------------------------------------------------------------- from the student's input to theirs
class Scale:
    """``x * factor + shift``, both (C, 1, ...), on the device of the first signal."""

    def __init__(self, factor: Tensor, shift: Tensor, like: Tensor):
        self.factor, self.shift = (
            values.to(like.dtype).to(like.device, non_blocking=True) for values in (factor, shift)
        )

    def __call__(self, x: Tensor) -> Tensor:
        if self.factor.device != x.device or self.factor.dtype != x.dtype:
            self.factor, self.shift = (part.to(x.device, x.dtype) for part in (self.factor, self.shift))
        return x * self.factor + self.shift


def affine_of(modality: Modality, signal: Tensor) -> tuple[Tensor, Tensor]:
    """(shift, factor) (C, 1, ...) with which ``denormalize_input`` undoes the modality's normalisation."""
    shape = (signal.shape[1], *(1 for _ in signal.shape[2:]))
    shift, one = (modality.denormalize_input(torch.full(shape, value, device="cpu")) for value in (0.0, 1.0))
    return shift.reshape(shape), (one - shift).reshape(shape)


def scale_between(student: Modality, teacher: Modality, signal: Tensor) -> Scale | None:
    """From the student's normalisation to the teacher's; None where they are the same, or normalise nothing."""
    if signal.ndim < 3 or type(student).denormalize_input is Modality.denormalize_input:
        return None
    (shift, factor), (own_shift, own_factor) = affine_of(student, signal), affine_of(teacher, signal)
    if torch.equal(shift, own_shift) and torch.equal(factor, own_factor):
        return None
    return Scale(factor / own_factor, (shift - own_shift) / own_factor, signal)


def resized_to(signal: Tensor, sides: tuple[int, ...], name: str) -> Tensor:
    """(B, C, *sides of the student) -> (B, C, *sides), bicubic along the last two axes; the others must agree."""
    have = tuple(signal.shape[2:])
    if have == tuple(sides):
        return signal
    if len(have) != len(sides) or len(have) < 2 or have[:-2] != tuple(sides[:-2]):
        raise MaemmError(
            f"the teacher takes samples of {tuple(sides)}, those of {name!r} are {have} (target: teacher); give a "
            "teacher of that size"
        )
    flat = signal.movedim(1, -3).flatten(0, -4)  # (B * ..., C, H, W)
    flat = F.interpolate(flat.float(), sides[-2:], mode="bicubic", antialias=True).to(signal.dtype)
    return flat.unflatten(0, (len(signal), *have[:-2])).movedim(-3, 1)


def on_grid(
    tokens: Tensor, grid: tuple[int, ...] | None, wanted: tuple[int, ...] | None, count: int, name: str
) -> Tensor:
    """Features (B, N', D) on ``grid`` -> (B, N, D) on ``wanted``, bicubic along the last two axes."""
    if grid == wanted and tokens.shape[1] == count:
        return tokens
    if grid is None or wanted is None or len(grid) < 2 or grid[:-2] != wanted[:-2]:
        raise MaemmError(
            f"the teacher has {tokens.shape[1]} tokens on the grid {grid}, {name!r} has {count} on {wanted} (target: "
            "teacher); give a teacher with the same tokens"
        )
    maps = tokens.float().unflatten(1, (-1, *grid[-2:])).flatten(0, 1).permute(0, 3, 1, 2)
    maps = F.interpolate(maps, wanted[-2:], mode="bicubic")
    return maps.permute(0, 2, 3, 1).unflatten(0, (len(tokens), -1)).flatten(1, 3)


# ------------------------------------------------------------------------------------------------- opening them
@dataclass(frozen=True)
class Named(ABC):
    """What a teacher's options name. Subclasses say how the network is opened, and which file its weights are in."""

    model: str

    @property
    def file(self) -> Path:
        """The file or folder of its weights, if there is one of that name."""
        return expanded(self.model)

    @abstractmethod
    def open(self) -> Network:
        """The network. Raises :class:`MaemmError` where it is not there."""

    def key(self) -> tuple[Named, float]:
        """What is named, and when the newest of its files was written."""
        path = self.file
        files = [path, *path.rglob("*")] if path.is_dir() else [path] if path.exists() else []
        return self, max((file.stat().st_mtime for file in files), default=0.0)

    def network(self) -> Network:
        """:meth:`open`, frozen, on the CPU, without a random number that others would draw."""
        with seeded("teacher"), torch.device("cpu"), torch.inference_mode(False):
            return self.open().eval().requires_grad_(False)


class NamedOurs(Named):
    """A run folder or a weights file of maemm, or published weights that it reads."""

    def open(self) -> Network:
        return Ours(load_encoder(self.model))


def untrained(recipe: Mapping[str, Any], seed: int) -> Network:
    """A network like the student's encoder, with weights of its own that nothing has trained."""
    modalities = {name: {**spec, "target": None} for name, spec in recipe["modalities"].items()}
    bare = {**recipe, "modalities": modalities, "decoder": None, "objectives": {}, "head": None}
    with seeded("teacher", seed), torch.device("cpu"), torch.inference_mode(False):
        return Ours(build_model(bare)).eval().requires_grad_(False)
