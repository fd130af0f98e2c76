"""``maemm diagnose``: read samples once, ask the model and the same network untrained, write a page and figures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maemm.contract import Source
from maemm.data.bad_samples import BadSample
from maemm.data.once import Progress
from maemm.data.subset import Subset
from maemm.diagnose.clusters import CLUSTERS
from maemm.diagnose.measure import LEAST, Findings, Measurement, Network
from maemm.diagnose.ratios import RATIOS, Losses
from maemm.errors import MaemmError
from maemm.evaluate.compare import TRAINED, UNTRAINED, untrained
from maemm.evaluate.inputs import What, data_config, open_data, open_model, spread
from maemm.model import Model
from maemm.report.files import write_whole


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
    "  share of strangers' distance": lambda one: one.sphere.share,
}


def diagnose(
    what: What,
    data: str | os.PathLike | Source | None = None,
    out: str | os.PathLike | None = None,
    *,
    samples: int = 512,
    beside: bool = True,
    ratios: Sequence[float] = RATIOS,
    clusters: int = CLUSTERS,
    batch: int = 32,
    workers: int | None = None,
    seed: int = 0,
    list: str | None = None,
    source: str | dict[str, Any] | None = None,
    on_progress: Progress | None = None,
    **known: Any,
) -> Diagnosis:
    """Diagnose the model of a run or of weights on ``samples`` of ``data`` (None: those of the run), evenly spread.

    Writes the page ``out`` (None: ``diagnose.html`` in the run's folder, or here) and the figures beside it as JSON.
    ``beside``: also the same network with fresh weights. ``ratios``: shares of hidden tokens at which the loss is
    taken. Everything drawn depends on ``seed`` and the samples alone. ``workers``, ``list`` and ``source`` stand for
    those of the recipe's ``data``; ``known`` goes to :func:`maemm.load`.

    Raises :class:`MaemmError` where fewer than 16 samples have finite features.
    """
    from maemm.diagnose.page import page

    _check(samples, ratios, clusters)
    path = _path(what, out)
    model = open_model(what, **known)
    given = {k: v for k, v in (("list", list), ("source", source), ("workers", workers)) if v is not None}
    opened = data if isinstance(data, Source) else open_data(model.recipe, data, **given)
    if workers is None:
        workers = 0 if isinstance(data, Source) else data_config(model.recipe, None)["workers"]
    # Evenly spread over the data, then mixed: the first of them stand for all where only a few are looked at.
    rows = np.random.default_rng(seed).permutation(spread(len(opened), samples))
    chosen = Subset(opened, rows)
    models = {TRAINED: model, **({UNTRAINED: untrained(model, seed)} if beside else {})}
    work = Measurement(models, chosen, batch=batch, workers=workers, seed=seed)
    networks = {kind: Network(one, seed, ratios) for kind, one in models.items()}
    work.run(networks, on_progress)
    findings = {kind: one.findings(clusters) for kind, one in networks.items()}
    losses = {kind: one.losses.found() for kind, one in networks.items()}
    found = Diagnosis(findings, losses, work.count, work.skipped, {}, _notes(findings, losses))
    found.about = {"what": _name(what), "data": _data_name(data), "seed": seed, "width": model.encoder.dim}
    found.path = path
    write_whole(path.with_suffix(".json"), lambda file: file.write_text(_text(found)), "the figures")
    page(found, model.modalities)
    return found


def _check(samples: int, ratios: Sequence[float], clusters: int) -> None:
    if samples < LEAST:
        raise MaemmError(f"{samples} samples say little (--samples); give {LEAST} or more")
    if clusters < 2:
        raise MaemmError(f"{clusters} clusters (--clusters); give 2 or more")
    wrong = [one for one in ratios if not 0 < one < 1]
    if wrong or not ratios:
        raise MaemmError(
            f"ratios {', '.join(map(str, wrong)) or 'are missing'} (--ratios); give shares between 0 and 1"
        )


def _path(what: What, out: str | os.PathLike | None) -> Path:
    if out is not None:
        path = Path(out)
        if path.suffix.lower() not in (".html", ".htm"):
            raise MaemmError(f"diagnose writes a page, not {path.name!r} (-o); give a name that ends in .html")
        return path
    run = None if isinstance(what, Model) else Path(what)
    return (run if run is not None and (run / "checkpoints").is_dir() else Path()) / "diagnose.html"


def _name(what: What) -> str:
    return "a model" if isinstance(what, Model) else os.fspath(what)


def _data_name(data: str | os.PathLike | Source | None) -> str:
    return "the data of the run" if data is None else "a source" if isinstance(data, Source) else os.fspath(data)


# ------------------------------------------------------------------------------------------------ in words
def _notes(findings: Mapping[str, Mapping[str, Findings]], losses: Mapping[str, Losses]) -> list[str]:
    notes = []
    for name, one in findings[TRAINED].items():
        found = one.spectrum
        if found.effective_rank == 0:
            notes.append(
                f"{name}: all samples have the same features: the encoder has collapsed, or the data are equal"
            )
        elif found.limit < found.width:
            notes.append(
                f"{name}: {found.samples} samples cannot show more than {found.limit} of {found.width} directions"
            )
        notes += [f"{name}: {one.attention.note}"] if one.attention.note else []
    notes += [losses[TRAINED].note] if losses[TRAINED].note else []
    return notes


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


def _text(found: Diagnosis) -> str:
    return json.dumps(found.record(), indent=1) + "\n"
