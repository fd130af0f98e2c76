"""What ``maemm data check`` records of each sample: id, label, digest, number of tokens, moments of its channels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maemm.contract import Label, Modality, Preprocessed, Source
from maemm.contract.rng import Rng
from maemm.data.bad_samples import printable, reason_of
from maemm.data.loader import name_of
from maemm.tasks._shared.channel_statistics import moments

Row = dict[str, Any]  # of JSON types


class Looker:
    """Reads the samples of a task (start, stop) and turns each into a :data:`Row`, in a worker or in this process.

    A row holds ``id`` and either ``bad``, the reason why the sample cannot be used, or ``label``, ``digest`` (equal
    content, equal digest) and ``of``: {modality: {"facts", "loaded", "tokens", "moments"}}.
    """

    def __init__(self, source: Source, modalities: Mapping[str, Modality], seed: int = 0):
        self.source, self.modalities, self.seed = source, dict(modalities), seed
        self.lost: dict[int, str] = {}  # samples that must not be read again, such as one that killed a worker, and why
        self.at = torch.tensor(-1)  # the sample that is being read; -1: none

    def __call__(self, task: tuple[int, int]) -> list[Row]:
        try:
            return [self._row(index) for index in range(*task)]
        finally:
            self.at.fill_(-1)

    def _row(self, index: int) -> Row:
        self.at.fill_(index)
        try:
            if index in self.lost:
                raise _Lost(self.lost[index])
            return self._facts(index)
        except _Lost as error:
            return {"id": name_of(self.source, index), "bad": str(error)}
        except Exception as error:  # whatever a broken file does, also running out of memory
            return {"id": name_of(self.source, index), "bad": reason_of(error)}

    def _facts(self, index: int) -> Row:
        sample = self.source.read(index, Rng((self.seed, 0, index, 0)))
        state, of = hashlib.blake2b(digest_size=16), {}
        for name, modality in self.modalities.items():
            if name not in sample.raw:
                raise ValueError(f"the sample has no {name!r}, only {', '.join(map(repr, sample.raw)) or 'nothing'}")
            raw = sample.raw[name]
            loaded = modality.load(raw, None)
            state.update(name.encode())
            if not _update(state, raw):  # a path or a handle says nothing about the content
                _update(state, loaded)
            of[name] = {
                "facts": _json_types(modality.describe(raw)),
                "loaded": shapes(loaded),
                **_preprocessed(modality, loaded),
            }
        return {"id": printable(sample.id), "label": _json_label(sample.label), "digest": state.hexdigest(), "of": of}


def _json_label(label: Label | None) -> int | list[int] | None:
    if label is None:
        return None
    return [int(number) for number in label] if isinstance(label, tuple) else int(label)


class _Lost(Exception):
    """A sample that must not be read again."""


def _preprocessed(modality: Modality, loaded: dict[str, Any]) -> Row:
    """Number of tokens and the moments of the channels, as the model sees the sample without augmentation."""
    preprocessed = modality.preprocess(modality.collate([loaded]), None)
    count = not_finite(preprocessed)
    if count:
        raise ValueError(f"{count:,} of {preprocessed.x.numel():,} values are not finite numbers")
    tokens = modality.tokenize(preprocessed)
    count = tokens.count if tokens.valid is None else int(tokens.valid.sum())
    values = modality.by_channel(preprocessed)
    return {"tokens": count, "moments": None if values is None else moments(values)}


def not_finite(preprocessed: Preprocessed) -> int:
    """How many values are NaN or infinite, without padding."""
    broken = ~torch.isfinite(preprocessed.x)
    if not broken.any():
        return 0
    return int((broken & element_valid(preprocessed)).sum())


def element_valid(preprocessed: Preprocessed) -> Tensor:
    """``valid`` in the shape of ``x``; the axes that it lacks are the channels, or the last ones."""
    x, valid = preprocessed.x, preprocessed.valid
    if valid is None:
        return torch.ones_like(x, dtype=torch.bool)
    if valid.shape != x.shape[: valid.ndim] and valid.shape[1:] == x.shape[2 : 1 + valid.ndim]:
        valid = valid.unsqueeze(1)  # the same for all channels
    return valid.reshape(*valid.shape, *[1] * (x.ndim - valid.ndim)).expand_as(x)


def shapes(loaded: Any) -> list[str]:
    """The arrays in what ``load`` returned, in words: "x 3 x 224 x 224 uint8"."""
    texts = []
    for key, value in loaded.items() if isinstance(loaded, Mapping) else [("", loaded)]:
        if isinstance(value, Tensor | np.ndarray) and value.ndim:
            size = " x ".join(map(str, value.shape))
            texts.append(f"{key} {size} {str(value.dtype).removeprefix('torch.')}".strip())
    return texts


def _json_types(facts: Mapping[str, Any]) -> Row:
    """Facts as numbers and texts."""
    row: Row = {}
    for key, value in facts.items():
        value = value.item() if isinstance(value, np.generic | Tensor) else value
        row[str(key)] = value if isinstance(value, int | float | str) else str(value)
    return row


def _update(state: Any, value: Any) -> bool:
    """Update a hash with all arrays, numbers and bytes in ``value``; -> whether there was an array or bytes.

    Texts are left out: they are names more often than content.
    """
    if is_dataclass(value) and not isinstance(value, type):
        value = {entry.name: getattr(value, entry.name) for entry in fields(value)}
    if isinstance(value, Mapping):
        return any([_update(state, item) for _, item in sorted(value.items(), key=lambda pair: str(pair[0]))])
    if isinstance(value, list | tuple):
        return any([_update(state, item) for item in value])
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        state.update(f"{value.dtype.str}{value.shape}".encode())
        state.update(np.ascontiguousarray(value).data if value.size else b"")
        return True
    if isinstance(value, bytes | bytearray | memoryview):
        state.update(value)
        return True
    if isinstance(value, int | float | complex | np.generic):
        state.update(repr(value).encode())
    return False
