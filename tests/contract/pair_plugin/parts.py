"""The spectrogram modality of CAV-MAE (Gong et al. 2023)."""

from dataclasses import replace

from torch import Tensor

from maemm.contract import Prepared, Tokens
from maemm.grid import GridModality

__all__ = ["GridModality", "Spectrogram"]


class Spectrogram(GridModality):
    """(B, time, mel); tokens run along time first, then along frequency. ``size`` and ``patch`` are (mel, time)."""

    def tokenize(self, prepared: Prepared) -> Tokens:
        valid = None if prepared.valid is None else prepared.valid.transpose(1, 2)
        return super().tokenize(replace(prepared, x=prepared.x.transpose(1, 2).unsqueeze(1), valid=valid))

    def untokenize(self, values: Tensor, tokens: Tokens, index: Tensor | None = None) -> Tensor:
        return super().untokenize(values, tokens, index).squeeze(1).transpose(1, 2)
