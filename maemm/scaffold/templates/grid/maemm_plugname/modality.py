"""The plugname modality: a signal on a grid, cut into patches."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from maemm.contract import Prepared
from maemm.draws import Draw
from maemm.grid import GridModality


class PlugName(GridModality):
    """A signal (B, channels, SIDES).

    A sample is an array (channels, SIDES). Of a longer one a random part is taken, in
    evaluation the middle. Patches, positions, targets and pictures come from GridModality.

    Options
        size: sides of the signal that the model sees, one number or one per axis
        patch: sides of a patch, one number or one per axis
        channels: channels of the signal
        mean: subtracted from all values
        std: then divided by, so that values are around 1
    """

    axes = 2

    def __init__(
        self,
        *,
        size: int | Sequence[int] = 32,
        patch: int | Sequence[int] = 4,
        channels: int = 1,
        mean: float = 0.0,
        std: float = 1.0,
        **grid: Any,
    ):
        super().__init__(size=size, patch=patch, channels=channels, **grid)
        self.mean, self.std = mean, std

    def prepare(self, raw: dict[str, Any], draw: Draw | None) -> Prepared:
        """Raw (B, channels, SIDES) -> what the model sees. ``draw=None``: no augmentation."""
        return Prepared((raw["x"].float() - self.mean) / self.std)

    def denormalize(self, signal: Tensor) -> Tensor:
        """Undo ``mean`` and ``std``."""
        return signal * self.std + self.mean
