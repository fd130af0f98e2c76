"""Digests of what a modality loaded: the same content is found again under another name."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maemm.contract import Modality


def digest(value: Any) -> int:
    """A 63-bit number (int64, not negative) of all tensors, arrays, numbers and texts in ``value``."""
    state = hashlib.blake2b(digest_size=8)
    _update(state, value)
    return int.from_bytes(state.digest(), "little") >> 1


def _update(state: Any, value: Any) -> None:
    if isinstance(value, Mapping):
        for key in sorted(value, key=str):
            state.update(str(key).encode())
            _update(state, value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            _update(state, item)
    elif isinstance(value, Tensor | np.ndarray):
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else value
        state.update(f"{array.dtype}{array.shape}".encode())
        state.update(np.ascontiguousarray(array).tobytes())
    else:
        state.update(repr(value).encode())


class DigestingModality:
    """A modality in a worker whose batches are ``{"raw": the batch of the modality, "digest": (B,) int64}``."""

    side_inputs: Sequence[str] = ()  # features need none ...
    whole_samples = False  # ... so that nothing is asked of how samples are read

    def __init__(self, modality: Modality):
        self.modality = modality

    def load(self, raw: Any, rng: Any) -> tuple[dict[str, Any], int]:
        loaded = self.modality.load(raw, rng)
        return loaded, digest(loaded)

    def collate(self, samples: list[tuple[dict[str, Any], int]]) -> dict[str, Any]:
        raw = self.modality.collate([loaded for loaded, _ in samples])
        return {"raw": raw, "digest": torch.tensor([number for _, number in samples])}


def combined(digests: Sequence[Tensor]) -> np.ndarray:
    """Digests (B,) of each modality -> (B,) int64 of the samples."""
    whole = digests[0].numpy()
    for values in digests[1:]:
        whole = whole * np.int64(1_000_003) ^ values.numpy()
    return whole
