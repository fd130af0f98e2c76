"""The plugname modality: a signal on a grid, cut into patches."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Preprocessed
from maemm.contract.grid import GridModality
from maemm.contract.options import Channels, Positive, PositiveInt
from maemm.contract.rng import Rng


class PlugName(GridModality):
    """A signal (B, channels, SIDES).

    A sample is an array (channels, SIDES). A longer one is cropped at random, in evaluation
    to its middle. Patches, positions, targets and pictures come from GridModality; so do its options position,
    decoder_position, normalize and gaps (values may be missing: NaN in what is read).

    Options
        size: sides of the signal that the model sees, one number or one per axis
        patch: sides of a patch, one number or one per axis
        channels: channels of the signal
        mean: subtracted from all values, one number or one per channel
        std: values are then divided by it, one number or one per channel
    """

    axes = 2

    def __init__(
        self,
        *,
        size: PositiveInt | Sequence[PositiveInt] = 32,
        patch: PositiveInt | Sequence[PositiveInt] = 4,
        channels: Channels = 1,
        mean: float | Sequence[float] = 0.0,
        std: Positive | Sequence[Positive] = 1.0,
        **grid: Any,
    ):
        super().__init__(size=size, patch=patch, channels=channels, **grid)
        self.mean, self.std = mean, std

    def preprocess(self, raw: dict[str, Any], rng: Rng | None) -> Preprocessed:
        """Loaded (B, channels, SIDES) -> preprocessed. Augment here; not where ``rng`` is None."""
        x = raw["x"].float()
        x = (x - self._as_channels(self.mean, x)) / self._as_channels(self.std, x)
        return super().preprocess({"x": x}, rng)  # marks missing values, if the option gaps allows them

    def denormalize_input(self, signal: Tensor) -> Tensor:
        """Undo ``mean`` and ``std``."""
        return signal * self._as_channels(self.std, signal) + self._as_channels(self.mean, signal)

    def _as_channels(self, value: float | Sequence[float], like: Tensor) -> Tensor:
        """One number, or one per channel, for broadcasting to (..., channels, SIDES)."""
        values = torch.tensor(value, dtype=like.dtype).reshape(-1, *(1,) * len(self.size))
        return values.to(like.device, non_blocking=True)
