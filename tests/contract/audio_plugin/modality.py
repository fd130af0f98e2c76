"""Spectrograms (B, T, F): a grid of one channel without a channel axis."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from maemm.contract import Prepared, Tokens
from maemm.draws import Draw
from maemm.grid import GridModality


class Spectrogram(GridModality):
    """The generic grid, once the channel axis is there."""

    def tokenize(self, prepared: Prepared) -> Tokens:
        return super().tokenize(replace(prepared, x=prepared.x.unsqueeze(1)))

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor:
        return super().untokenize(values, tokens, index).squeeze(1)

    def example(self, batch: int, draw: Draw) -> Prepared:
        return Prepared(super().example(batch, draw).x.squeeze(1))
