"""Whether samples of a modality can be padded or have gaps: seen from what its own methods return."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maemm.contract.data import Preprocessed, Tokens
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng


def validity_by_trial(modality: Any, x: Tensor) -> Tensor | None:
    """All True, shaped as the modality's ``valid`` for x (B, ...); None where it gives no ``valid``.

    It does where ``example`` has one, or where ``collate`` and ``preprocess`` make one of two samples {"x": a row of
    x}, one of them shorter along an axis or with a NaN. Where they accept no such samples, it may: then ``tokenize``
    decides, which passes it on or not.
    """
    accepted = False
    with contextlib.suppress(MaemmError):  # it has no example
        example = modality.example(1, Rng(("shape",)))
        if example.valid is not None:
            return _whole(modality, example, x)
    for preprocessed in _batches(modality, x[0]):
        accepted = True
        if preprocessed.valid is not None:
            return _whole(modality, preprocessed, x)
    return None if accepted else _passed_on(modality, x)


def _batches(modality: Any, sample: Tensor) -> Iterator[Preprocessed]:
    """Batches that may hold padding or gaps, as far as the modality accepts their samples."""
    others = [sample.narrow(axis, 0, side - 1) for axis, side in enumerate(sample.shape) if side > 1]
    others.append(sample.flatten().index_fill(0, torch.tensor([0]), torch.nan).view_as(sample))
    for other in others:
        try:
            preprocessed = modality.preprocess(modality.collate([{"x": sample}, {"x": other}]), None)
        except Exception:  # whatever a plugin does with samples that it did not load
            continue
        if isinstance(preprocessed, Preprocessed):
            yield preprocessed


def _passed_on(modality: Any, x: Tensor) -> Tensor | None:
    """All True in the shape in which ``tokenize`` accepts ``valid`` and makes tokens invalid by it."""
    for shape in (x.shape[:2], (x.shape[0], *x.shape[2:]), x.shape):
        with contextlib.suppress(Exception):  # it expects another shape
            tokens = modality.tokenize(Preprocessed(x, torch.zeros(shape, dtype=torch.bool)))
            valid = tokens.valid if isinstance(tokens, Tokens) else None
            if valid is not None and valid.shape == tokens.values.shape[:2] and not valid.any():
                return torch.ones(shape, dtype=torch.bool)
    return None


def _whole(modality: Any, preprocessed: Preprocessed, x: Tensor) -> Tensor:
    """Ones for ``x``, of the shape that ``valid`` has for the ``x`` of ``preprocessed``."""
    assert preprocessed.valid is not None
    own, valid = tuple(preprocessed.x.shape), tuple(preprocessed.valid.shape)
    if valid == own[: len(valid)]:  # of everything, or of the elements of a set
        return torch.ones(x.shape[: len(valid)], dtype=torch.bool)
    if valid == (own[0], *own[2:]):  # the same for all channels
        return torch.ones(x.shape[0], *x.shape[2:], dtype=torch.bool)
    raise MaemmError(
        f"{type(modality).__name__}: what valid {valid} means for x {own} cannot be told; override validity()"
    )
