"""What ``maemm show`` is about, as its page and its picture read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Modality, Plan, Preprocessed, Tokens
from maemm.data.bad_samples import BadSample
from maemm.tasks._shared.opened_data import Opened
from maemm.tasks._shared.sample_facts import element_valid
from maemm.ui.picture_rows import Rows


@dataclass
class Shown:
    """What :func:`show` wrote, and what it is about."""

    opened: Opened
    path: Path
    ids: list[str]  # of the samples, top to bottom
    labels: list[int | None]
    refused: list[BadSample]
    parts: dict[str, Part] = field(default_factory=dict)

    def __str__(self) -> str:
        refused = f", {len(self.refused):,} refused" if self.refused else ""
        first = f"{self.opened.title}: {len(self.ids):,} of {len(self.opened.source):,} samples{refused} -> {self.path}"
        return "\n".join([first, *(f"  refused {one.id}: {one.reason}" for one in self.refused)])


@dataclass
class Part:
    """One modality of the samples shown."""

    modality: Modality
    facts: list[dict[str, Any]]  # of each sample, about what the source read
    loaded: list[list[str]]  # of each sample, the arrays that ``load`` returned
    preprocessed: Preprocessed
    tokens: Tokens
    plan: Plan | None  # None: the masking asks a trained encoder
    target: Tensor | None
    rows: Rows
    augmented: Rows  # augmented
    notes: list[str]


def figures(values: Tensor, valid: Tensor | None = None) -> dict[str, str]:
    """Shape, type, range, mean and std of a tensor in words, of its valid values alone."""
    known = values.float() if valid is None else values.float()[valid]
    text = {"shape": " x ".join(map(str, values.shape)), "type": str(values.dtype).removeprefix("torch.")}
    if not known.numel():
        return {**text, "range": "no values"}
    wrong = int((~torch.isfinite(known)).sum())
    known = known[torch.isfinite(known)]
    if known.numel():
        text["range"] = f"{known.min():.4g} .. {known.max():.4g}"
        text["mean"], text["std"] = f"{known.double().mean():.4g}", f"{known.double().std(correction=0):.4g}"
    return {**text, "not finite": f"{wrong:,}"} if wrong else text


def padding(preprocessed: Preprocessed) -> float:
    """Share of the elements that are padding."""
    return 0.0 if preprocessed.valid is None else 1 - float(element_valid(preprocessed).float().mean())
