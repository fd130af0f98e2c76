"""Spectra of tokens: predictions are compared with the signal frequency by frequency."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from maemm.contract import Modality, ModalityInput, Target
from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality
from maemm.contract.means import mean_of_counted
from maemm.contract.options import Rate
from maemm.model.model import Model
from maemm.model.targets.rows import computed_of


class Frequency(Target):
    """The modality's own target, compared by the spectrum of each token: the mean of ``|FFT(pred - target)| ** gamma``.

    This is our reading of losses on spectra, not a published one: those transform a whole composed signal, this one the
    patch of each hidden token, so that only hidden tokens have a loss and a gradient. The transform is orthonormal:
    with ``gamma`` 2 and ``radius`` 0 the loss is the mean squared error. It is 0 where a prediction is the target. On a
    grid the transform runs along the axes of a patch, for each channel; elsewhere along the values of a token.

    Options
        gamma: power of the magnitude of each difference
        radius: leave out the frequencies below: 0: none; 0.5: those below half of the highest, by their distance from
            frequency 0 where the highest of each axis is 1
    """

    def __init__(self, names: list[str], encoder_dim: int, *, gamma: Annotated[float, Ge(1)] = 1.0, radius: Rate = 0.0):
        super().__init__()
        self.names, self.gamma, self.radius = names, gamma, radius

    def prepare(self, modalities: Mapping[str, Modality]) -> None:
        shapes = {_shape_of(modality) for modality in modalities.values()}
        if len(shapes) > 1:
            raise MaemmError(
                f"the patches of {', '.join(modalities)} differ, so they cannot share a target (target: frequency); "
                "give each of them another radius or gamma"
            )
        (self.shape,) = shapes  # (*patch, channels)
        self.register_buffer("kept", _mask(self.shape[:-1], self.radius)[..., None], persistent=False)
        self.kept: Tensor

    def output_dim(self) -> int:
        return torch.Size(self.shape).numel()

    def precompute(self, model: Model, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        own = {name: model.modalities[name].target(x.tokens, x.tokens.all_indices()) for name, x in inputs.items()}
        known = {name: x.tokens.known for name, x in inputs.items()}
        if any(part is not None for part in known.values()):
            raise MaemmError("values may be missing, which have no spectrum (target: frequency); set gaps to false")
        return own

    def forward(self, inputs: ModalityInput, index: Tensor) -> Tensor:
        return computed_of(inputs, index)

    def loss(self, pred: Tensor, target: Tensor) -> Tensor:
        """(R, M, O) twice -> (R, M) float32; see the class."""
        difference = (pred.float() - target).unflatten(-1, self.shape)
        if not difference.numel():  # a plan that predicts nothing
            return difference.flatten(2).sum(-1)
        axes = tuple(range(-len(self.shape), -1))
        # abs() of complex numbers has the gradient 0 at 0, a square root of squares has none
        magnitude = torch.fft.fftn(difference, dim=axes, norm="ortho").abs()
        kept = self.kept.to(magnitude.dtype)
        return (magnitude**self.gamma * kept).flatten(2).sum(-1) / (kept.sum() * self.shape[-1])

    def baseline(self, target: Tensor, counted: Tensor) -> Tensor | None:
        """For ``gamma`` 2, whose best constant is the mean; otherwise none is known."""
        if self.gamma != 2:
            return None
        return self.loss(mean_of_counted(target, counted).expand_as(target), target)


def _shape_of(modality: Modality) -> tuple[int, ...]:
    """(*patch, channels) of a token's own target."""
    width = modality.output_dim()
    if isinstance(modality, GridModality) and torch.Size(modality.patch).numel() * modality.channels == width:
        return (*modality.patch, modality.channels)
    return (width, 1)


def _mask(patch: tuple[int, ...], radius: float) -> Tensor:
    """(*patch) bool: the frequencies from ``radius`` on. Those of the corners, and so some, are always there."""
    distance = torch.zeros((), device="cpu")
    for axis, side in enumerate(patch):
        along = torch.fft.fftfreq(side, device="cpu").abs() * 2  # 1: the highest there is
        shape = [1] * len(patch)
        shape[axis] = side
        distance = distance + along.square().reshape(shape)
    return distance.sqrt() >= min(radius, float(distance.max().sqrt()))
