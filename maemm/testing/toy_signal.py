"""The modality of the suite's own toy plugin."""

from __future__ import annotations

from maemm.grid import GridModality


class Signal(GridModality):
    """A map of 8 x 8 elements in 16 patches.

    Options
        size: sides of the map
        patch: sides of a patch
    """

    def __init__(self, *, size: int = 8, patch: int = 2):
        super().__init__(size=size, patch=patch, channels=2)
