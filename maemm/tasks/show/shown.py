"""What ``maemm show`` shows, before it is laid out as a page or a picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maemm.contract import Label, Modality, Plan, Preprocessed, Tokens
from maemm.data.bad_samples import BadSample
from maemm.tasks._shared.opened_data import Opened
from maemm.tasks._shared.sample_facts import element_valid
from maemm.ui.picture_rows import Rows


@dataclass
class Shown:
    """What :func:`~maemm.tasks.show.run.show` wrote, and where."""

    opened: Opened
    path: Path
    ids: list[str]  # of the samples, top to bottom
    labels: list[Label | None]
    refused: list[BadSample]
    parts: dict[str, Part] = field(default_factory=dict)
    steps: str = ""  # whether steps of its training are compiled on a GPU
    spikes: str | None = None  # what becomes of steps whose loss jumps

    def __str__(self) -> str:
        refused = f", {len(self.refused):,} refused" if self.refused else ""
        first = f"{self.opened.title}: {len(self.ids):,} of {len(self.opened.source):,} samples{refused} -> {self.path}"
        steps = [f"  on a GPU steps are {self.steps}"] if self.steps else []
        steps += [f"  {self.spikes}"] if self.spikes else []
        return "\n".join([first, *steps, *(f"  refused {sample.id}: {sample.reason}" for sample in self.refused)])


@dataclass
class Part:
    """One modality of the samples."""

    modality: Modality
    facts: list[dict[str, Any]]  # of each sample, about what the source read
    loaded: list[list[str]]  # of each sample, the arrays that ``load`` returned
    preprocessed: Preprocessed
    tokens: Tokens
    plans: list[Plan]  # of each set of plans
    target: Tensor | None = None
    rows: Rows = field(default_factory=Rows)
    augmented: Rows = field(default_factory=Rows)
    notes: list[str] = field(default_factory=list)

    @property
    def plan(self) -> Plan:
        """The first set of plans."""
        return self.plans[0]


def statistics(values: Tensor, valid: Tensor | None = None) -> dict[str, str]:
    """Shape, type, range, mean and std of a tensor as texts; values that are not ``valid`` do not count."""
    counted = values.float() if valid is None else values.float()[valid]
    text = {"shape": " x ".join(map(str, values.shape)), "type": str(values.dtype).removeprefix("torch.")}
    if not counted.numel():
        return {**text, "range": "no values"}
    finite = counted[torch.isfinite(counted)]
    if finite.numel():
        text["range"] = f"{finite.min():.4g} .. {finite.max():.4g}"
        text["mean"], text["std"] = f"{finite.double().mean():.4g}", f"{finite.double().std(correction=0):.4g}"
    others = counted.numel() - finite.numel()
    return {**text, "not finite": f"{others:,}"} if others else text


def padding(preprocessed: Preprocessed) -> float:
    """The fraction of the elements that is padding."""
    return 0.0 if preprocessed.valid is None else 1 - float(element_valid(preprocessed).float().mean())
