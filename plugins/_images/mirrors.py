"""What is stored for the tokens of pictures and clips, mirrored where they were."""

from __future__ import annotations

import torch
from torch import Tensor

from maemm.contract import Preprocessed, Tokens

MIRRORED = "mirrored"  # in ``Preprocessed.info``: (B,) bool


def mirrored_with(stored: Tensor, tokens: Tokens, preprocessed: Preprocessed) -> Tensor:
    """stored (B, N) of whole samples, mirrored along the last axis of the grid where ``preprocess`` mirrored them."""
    mirrored = preprocessed.info.get(MIRRORED)
    if mirrored is None:
        return stored
    assert tokens.grid is not None  # pictures and clips have one
    rows = stored.unflatten(1, tokens.grid)
    return torch.where(mirrored.view(-1, *(1 for _ in tokens.grid)), rows.flip(-1), rows).flatten(1)


def map_mirrored_with(stored: Tensor, preprocessed: Preprocessed) -> Tensor:
    """Maps (B, ..., width) of pictures, mirrored where ``preprocess`` mirrored them."""
    mirrored = preprocessed.info.get(MIRRORED)
    if mirrored is None:
        return stored
    return torch.where(mirrored.view(-1, *(1 for _ in stored.shape[1:])), stored.flip(-1), stored)
