"""What a diagnosis found, in words and as plain values for a JSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maemm.data.bad_samples import BadSample
from maemm.tasks._shared.baselines import TRAINED
from maemm.tasks.diagnose.measure import Findings
from maemm.tasks.diagnose.ratios import Losses


@dataclass
class Diagnosis:
    """What :func:`diagnose` found: {"trained" or "untrained": {modality: ...}}."""

    findings: dict[str, dict[str, Findings]]
    losses: dict[str, Losses]
    samples: int
    skipped: list[BadSample]
    about: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    path: Path | None = None

    def __str__(self) -> str:
        lines = [f"{self.samples:,} samples" + (f", {len(self.skipped):,} skipped" if self.skipped else "")]
        for name in self.findings[TRAINED]:
            lines.append(f"{name:<12}{'':<20}" + "".join(f"{kind:>12}" for kind in self.findings))
            for title, value in FIGURES.items():
                values = "".join(f"{value(found[name]):>12.4g}" for found in self.findings.values())
                lines.append(f"  {title:<30}{values}")
        lines += self.notes
        return "\n".join([*lines, f"-> {self.path} and {self.path.with_suffix('.json')}"] if self.path else lines)

    def record(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        found = {kind: {name: _record(one) for name, one in some.items()} for kind, some in self.findings.items()}
        losses = {kind: {**vars(one)} for kind, one in self.losses.items()}
        skipped = [{"id": one.id, "reason": one.reason} for one in self.skipped]
        about = {**self.about, "samples": self.samples, "skipped": skipped, "notes": self.notes}
        return _plain({**about, "findings": found, "loss_by_ratio": losses})


FIGURES = {
    "effective rank": lambda one: one.spectrum.effective_rank,
    "uniformity": lambda one: one.sphere.uniformity,
    "alignment of two views": lambda one: one.sphere.alignment,
    "  share of strangers' distance": lambda one: one.sphere.fraction,
}


def _record(one: Findings) -> dict[str, Any]:
    attention = {key: value for key, value in vars(one.attention).items() if key != "note"}
    return {
        "effective_rank": one.spectrum.effective_rank,
        "singular_values": one.spectrum.values,
        "uniformity": one.sphere.uniformity,
        "alignment": one.sphere.alignment,
        "distance_of_samples": one.sphere.apart,
        "attention": attention,
        "cluster_shares": one.clusters.shares,
        "token_variance_of_place": one.clusters.of_place,
    }


def _plain(value: Any) -> Any:
    """Arrays as lists, and what is not finite as null, which JSON has no number for."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.8g}") if np.isfinite(value) else None
    return value
