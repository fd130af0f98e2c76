"""The result of a diagnosis, as text and as a JSON record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maemm.data.bad_samples import BadSample
from maemm.model.measures import Spectrum, Sphere
from maemm.tasks._shared.baselines import TRAINED
from maemm.tasks.diagnose.attention import Attention
from maemm.tasks.diagnose.clusters import Clusters
from maemm.tasks.diagnose.ratios import Losses


@dataclass(frozen=True)
class Findings:
    """What was measured of one modality's features in one network."""

    spectrum: Spectrum
    sphere: Sphere
    attention: Attention
    clusters: Clusters

    def record(self) -> dict[str, Any]:
        """For the JSON record."""
        return {
            "effective_rank": self.spectrum.effective_rank,
            "singular_values": self.spectrum.values,
            "uniformity": self.sphere.uniformity,
            "alignment": self.sphere.alignment,
            "distance_of_samples": self.sphere.sample_distance,
            "attention": {key: value for key, value in vars(self.attention).items() if key != "note"},
            "cluster_shares": self.clusters.fractions,
            "token_variance_of_place": self.clusters.position_variance,
        }


METRICS: dict[str, Callable[[Findings], float]] = {
    "effective rank": lambda findings: findings.spectrum.effective_rank,
    "uniformity": lambda findings: findings.sphere.uniformity,
    "alignment of two views": lambda findings: findings.sphere.alignment,
    "  / distance of two samples": lambda findings: findings.sphere.relative_alignment,
}


@dataclass
class Diagnosis:
    """What :func:`~maemm.tasks.diagnose.run.diagnose` found, by network ("trained", "untrained")."""

    findings: dict[str, dict[str, Findings]]  # {network: {modality: ...}}
    losses: dict[str, Losses]  # {network: ...}
    samples: int
    skipped: list[BadSample]
    about: dict[str, Any]  # the model, the data and the settings
    notes: list[str] = field(default_factory=list)
    path: Path | None = None  # of the page; the record lies beside it

    def __str__(self) -> str:
        lines = [f"{self.samples:,} samples" + (f", {len(self.skipped):,} skipped" if self.skipped else "")]
        for name in self.findings[TRAINED]:
            lines.append(f"{name:<12}{'':<20}" + "".join(f"{network:>12}" for network in self.findings))
            for title, metric in METRICS.items():
                values = "".join(f"{metric(by_name[name]):>12.4g}" for by_name in self.findings.values())
                lines.append(f"  {title:<30}{values}")
        lines += self.notes
        return "\n".join([*lines, f"-> {self.path} and {self.path.with_suffix('.json')}"] if self.path else lines)

    def record(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return _plain(
            {
                **self.about,
                "samples": self.samples,
                "skipped": len(self.skipped),
                "bad_samples": [asdict(bad) for bad in self.skipped],
                "notes": self.notes,
                "findings": {
                    network: {name: findings.record() for name, findings in by_name.items()}
                    for network, by_name in self.findings.items()
                },
                "loss_by_ratio": {network: vars(losses) for network, losses in self.losses.items()},
            }
        )


def _plain(value: Any) -> Any:
    """Arrays as lists, and NaN and infinity, which JSON does not have, as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(f"{value:.8g}") if np.isfinite(value) else None
    return value
