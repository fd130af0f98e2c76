"""Histograms of oriented gradients of the tokens of a picture: the target of MaskFeat."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import einops
import torch
import torch.nn.functional as F
from annotated_types import Ge
from torch import Tensor

from maemm.contract import Modality, ModalityInput, Target
from maemm.contract.data import gather_tokens
from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality
from maemm.contract.options import NonNegativeInt, PositiveInt
from maemm.model.model import Model


class HOG(Target):
    """HOG of the normalised picture, token by token (MaskFeat, Wei et al. 2022, section 3.2 and its published code).

    Sobel gradients behind a reflected border; the magnitude, weighted by Gaussian windows that tile the picture, goes
    whole into the bin of its orientation modulo pi; bins are summed in cells, for each channel by itself, and each
    histogram is divided by its L2 norm. A token has the histograms of its cells, in the order channel, bin, frame (of
    clips, whose frames are pictures), row and column of the cell: 108 values of 16 x 16 pixels in three colours. The
    loss is the mean squared error.

    Options
        bins: orientations of a histogram
        cell: side of a cell in pixels; both sides of a patch must be multiples
        window: side of the Gaussian windows in pixels, whose std is half of it; 0: no weights
    """

    def __init__(
        self,
        names: list[str],
        encoder_dim: int,
        *,
        bins: Annotated[int, Ge(2)] = 9,
        cell: PositiveInt = 8,
        window: NonNegativeInt = 16,
    ):
        super().__init__()
        self.names, self.bins, self.cell, self.window = names, bins, cell, window
        smooth = torch.tensor([1.0, 2.0, 1.0], device="cpu")
        difference = torch.tensor([1.0, 0.0, -1.0], device="cpu")
        horizontal = smooth[:, None] * difference
        self.register_buffer("sobel", torch.stack([horizontal, horizontal.T])[:, None], persistent=False)
        self.register_buffer("weights", gaussian(window) if window else None, persistent=False)
        self.sobel: Tensor
        self.weights: Tensor | None

    def prepare(self, modalities: Mapping[str, Modality]) -> None:
        self.patches = {name: patch_of(name, modality) for name, modality in modalities.items()}
        widths = {name: self._width(name, modality) for name, modality in modalities.items()}
        if len(set(widths.values())) > 1:
            sizes = ", ".join(f"{name} {width}" for name, width in widths.items())
            raise MaemmError(
                f"tokens have different numbers of values ({sizes}; target: hog); write an option of one of them out, "
                "bins: 9, so that each has a target of its own"
            )
        self.width = next(iter(widths.values()))

    def _width(self, name: str, modality: Any) -> int:
        patch = *frames, height, width = self.patches[name]
        if height % self.cell or width % self.cell:
            raise MaemmError(
                f"patch {patch} is not a multiple of cells of {self.cell} pixels "
                f"(modalities.{name}.target.cell); use a divisor of {math.gcd(height, width)}"
            )
        cells = math.prod(frames) * (height // self.cell) * (width // self.cell)
        return modality.channels * self.bins * cells

    def output_dim(self) -> int:
        return self.width

    def precompute(self, model: Model, inputs: dict[str, ModalityInput]) -> dict[str, Any]:
        return {name: self.of_tokens(x.preprocessed.x, self.patches[name]) for name, x in inputs.items()}

    def forward(self, inputs: ModalityInput, index: Tensor) -> Tensor:
        if inputs.computed is None:
            raise MaemmError("HOG has computed nothing for these inputs; make them with model.plan(batch, rng)")
        return gather_tokens(inputs.computed, index, inputs.tokens.rows)

    def of_tokens(self, x: Tensor, patch: tuple[int, ...]) -> Tensor:
        """Pictures (B, C, H, W) or clips (B, C, T, H, W) -> (B, N, O) float32, tokens in raster order."""
        *frames, height, width = patch
        count = math.prod(frames)
        channels = x.shape[1]
        pictures = x.unsqueeze(2) if x.ndim == 4 else x
        if pictures.shape[2] == 1 < count:  # a still picture fills the frames of its tokens
            pictures = pictures.expand(-1, -1, count, -1, -1)
        histograms = self.histograms(einops.rearrange(pictures, "b c t h w -> (b t) c h w"))
        return einops.rearrange(
            histograms,
            "(b t f) (c k) (gh ph) (gw pw) -> b (t gh gw) (c k f ph pw)",
            b=len(x), f=count, c=channels, ph=height // self.cell, pw=width // self.cell,
        )  # fmt: skip

    def histograms(self, x: Tensor) -> Tensor:
        """Pictures (B, C, H, W) -> (B, C * bins, H / cell, W / cell) float32."""
        batch, channels, height, width = x.shape
        x = x.to(self.sobel.dtype).flatten(0, 1)[:, None]
        gradient = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.sobel)
        across, down = gradient[:, 0], gradient[:, 1]
        magnitude = gradient.norm(dim=1)
        if self.weights is not None:
            down_by, right_by = -(-height // self.window), -(-width // self.window)
            magnitude = magnitude * self.weights.repeat(down_by, right_by)[:height, :width]
        bins = (torch.atan2(across, down) / math.pi * self.bins).floor() % self.bins
        cells = [F.avg_pool2d(torch.where(bins == k, magnitude, 0.0), self.cell) for k in range(self.bins)]
        histograms = F.normalize(torch.stack(cells, 1) * self.cell**2, dim=1)
        return histograms.unflatten(0, (batch, channels)).flatten(1, 2).float()


def patch_of(name: str, modality: Modality) -> tuple[int, ...]:
    """(height, width) of a patch of pictures, (frames, height, width) of clips. Raises :class:`MaemmError`."""
    if not isinstance(modality, GridModality) or len(modality.patch) not in (2, 3):
        raise MaemmError(f"HOG is of pictures and clips, {name!r} is neither (modalities.{name}.target); leave it out")
    return modality.patch


def gaussian(side: int) -> Tensor:
    """(side, side) weights of unit sum, a Gaussian with std ``side / 2`` around the middle."""
    offset = torch.arange(side, dtype=torch.float32, device="cpu") - (side - 1) / 2
    weights = torch.exp(-0.5 * (offset / (side / 2)).square())
    square = weights[:, None] * weights
    return square / square.sum()
