"""Depth: distances from the camera, brought to a common scale sample by sample."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Lt
from torch import Tensor

from maemm.contract import Preprocessed
from maemm.contract.grid import VARIANCE_EPS
from maemm.contract.rng import Rng

from .modality import Interpolation, Map

WHITE = {np.dtype(np.uint8): 256.0, np.dtype(np.uint16): 65536.0}  # 16 bits as published: divided by 2^16


class Depth(Map):
    """Depth (B, 1, height, width) of the picture, in any unit: 16-bit PNG, EXR, .npy.

    Each sample, after its crop, is standardised by the mean and the variance of its values without the lowest and the
    highest tenth (MultiMAE, section 4.1; run_pretraining_multimae.py), so that units and far backgrounds do not matter.
    That is the model's input and its target.

    Options
        size: height and width of the picture that the model sees, one number or two
        patch: height and width of a patch on the picture, one number or two
        stride: pixels of the picture for one of the map
        trim: fraction of the lowest and of the highest values that mean and variance leave out; null: depth as it is
        missing: the value of pixels without a measurement, often 0, which with NaN and infinity are in no loss; null:
            every pixel has one
        interpolation: bicubic, bilinear or nearest; where pixels may be missing it is nearest
        loss: of the values of a token: l1 or mse
    """

    key = "depth"

    def __init__(
        self,
        *,
        trim: Annotated[float, Ge(0), Lt(0.5)] | None = 0.1,
        missing: float | None = None,
        interpolation: Interpolation = "bilinear",
        loss: Literal["l1", "mse"] = "l1",
        normalize: Literal["patch", "none"] | None = "none",
        gaps: bool = False,
        **maps: Any,
    ):
        super().__init__(
            channels=1,
            interpolation=interpolation,
            loss=loss,
            normalize=normalize,
            gaps=gaps or missing is not None,
            **maps,
        )
        self.trim, self.missing = trim, missing

    def _pixels(self, raw: np.ndarray) -> Tensor:
        """(H, W, 1) -> (1, H, W) float32, NaN where nothing was measured."""
        x = torch.from_numpy(raw.astype(np.float32)).permute(2, 0, 1)
        if self.missing is not None:
            x = x.masked_fill(x == self.missing, float("nan"))
        return x / WHITE.get(raw.dtype, 1.0)

    def preprocess(self, raw: Mapping[str, Tensor], rng: Rng | None) -> Preprocessed:
        """{"x": (B, 1, H, W)} -> float32, mirrored and standardised; missing values are 0 and not valid."""
        x, info = self._moved(raw["x"].float(), rng)
        if self.trim is not None:
            x = _standardised_known(x, self.trim) if self.gaps else standardised(x, self.trim)
        return self._known(x, info)

    def denormalize_input(self, signal: Tensor) -> Tensor:
        """As it is: the unit is gone."""
        return signal.float()

    def plot(self, axes: Any, signal: Tensor) -> None:
        """Near is yellow, far is blue."""
        super().plot(axes, -signal)


def standardised(x: Tensor, trim: float) -> Tensor:
    """x (B, ...) float32: of each sample (x - mean) / sqrt(var + 1e-6), mean and unbiased variance of its sorted values
    from int(trim n) to int((1 - trim) n)."""
    count = x[0].numel()
    kept = x.flatten(1).sort(1).values[:, int(trim * count) : int((1 - trim) * count)]
    shape = (-1, *(1 for _ in x.shape[1:]))
    mean, variance = kept.mean(1).view(shape), kept.var(1).view(shape)
    return (x - mean) / (variance + VARIANCE_EPS).sqrt()


def _standardised_known(x: Tensor, trim: float) -> Tensor:
    """The same of the values that are finite; the others stay as they are."""
    known = x.isfinite()
    ordered = torch.where(known, x, torch.inf).flatten(1).sort(1).values
    count = known.flatten(1).sum(1, keepdim=True).double()
    place = torch.arange(ordered.shape[1], device=x.device)
    kept = (place >= (trim * count).floor()) & (place < ((1 - trim) * count).floor())
    number = kept.sum(1, keepdim=True)
    mean = torch.where(kept, ordered, 0.0).sum(1, keepdim=True) / number.clamp(min=1)
    variance = torch.where(kept, ordered - mean, 0.0).square().sum(1, keepdim=True) / (number - 1).clamp(min=1)
    shape = (-1, *(1 for _ in x.shape[1:]))
    return (x - mean.view(shape)) / (variance + VARIANCE_EPS).sqrt().view(shape)
