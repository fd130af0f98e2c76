"""The page of a diagnosis: each metric with its meaning, trained and untrained beside each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from maemm.contract import Modality
from maemm.tasks._shared.baselines import TRAINED
from maemm.tasks.diagnose.attention import draw_attention
from maemm.tasks.diagnose.diagnosis import Diagnosis, Findings
from maemm.tasks.diagnose.ratios import Losses
from maemm.ui.charts import Line, charts
from maemm.ui.page import embedded, render, write_html
from maemm.ui.pictures import png

_STYLES = ("main", "baseline dashed")  # of the networks, in their order
_SMALLEST = 1e-6  # of the largest singular value; smaller ones are not drawn
_DISTANCES = {  # rows of the table: attributes of Sphere
    "uniformity": "uniformity: log mean exp(-2 d²) of pairs of samples; 0: all equal, -4: evenly distributed",
    "alignment": "alignment: mean d² of two views of a sample",
    "sample_distance": "mean d² of two samples",
    "relative_alignment": "alignment / d² of two samples; 0: views are equal, 1: as far apart as two samples",
}


def write_page(diagnosis: Diagnosis, path: Path, modalities: Mapping[str, Modality]) -> Path:
    """Write the page to ``path``."""
    about, skipped = diagnosis.about, diagnosis.skipped
    notes = list(diagnosis.notes)
    if skipped:
        notes.append(f"{len(skipped):,} samples are left out (first: {skipped[0].id}: {skipped[0].reason}).")
    text = render(
        "diagnose.html",
        title="Diagnosis",
        lead=f"{diagnosis.samples:,} samples of {about['data']}, through the frozen encoder of {about['what']}.",
        notes=notes,
        modalities=[_modality_data(name, modalities[name], diagnosis) for name in diagnosis.findings[TRAINED]],
    )
    return write_html(path, text)


def _modality_data(name: str, modality: Modality, diagnosis: Diagnosis) -> dict[str, Any]:
    """What the template shows of one modality."""
    findings = {network: by_name[name] for network, by_name in diagnosis.findings.items()}
    trained = findings[TRAINED]
    sphere, limit = trained.sphere, trained.spectrum.limit
    distances = [
        [title, *(_number(getattr(x.sphere, attribute)) for x in findings.values())]
        for attribute, title in _DISTANCES.items()
    ]
    attention = {network: x.attention for network, x in findings.items() if x.attention.layers}
    return {
        "name": name,
        "tiles": [
            (f"{trained.spectrum.effective_rank:.1f} of {limit}", "effective rank of the features"),
            (_number(sphere.uniformity), "uniformity (0: all equal)"),
            (_number(sphere.alignment), "alignment of two views (0: equal)"),
            (_number(sphere.relative_alignment), "alignment / distance of two samples"),
        ],
        "spectrum": _spectrum_chart(findings),
        "ranks": ", ".join(f"{network} {x.spectrum.effective_rank:.1f}" for network, x in findings.items()),
        "limit": limit,
        "distances": [["", *findings], *distances],
        **_losses_data(name, diagnosis.losses),
        "attention": embedded(draw_attention(attention)) if TRAINED in attention else "",
        "attention_note": trained.attention.note,
        "clusters": [_clusters_data(network, x, name, modality) for network, x in findings.items()],
    }


def _spectrum_chart(findings: Mapping[str, Findings]) -> str:
    """log10 of the singular values, of the largest one; "" where all are 0."""
    lines = []
    for (network, x), style in zip(findings.items(), _STYLES, strict=False):
        values = x.spectrum.values
        if values.size and values[0] > 0:
            relative = values / values[0]
            y = np.where(relative > _SMALLEST, np.log10(np.maximum(relative, _SMALLEST)), math.nan)
            lines.append(Line(network, [float(k) for k in range(1, len(y) + 1)], y.tolist(), style))
    if not lines:
        return ""
    return charts(lines, x_label="direction", y_label="log10 of singular value / largest", width=1100, height=300)


def _losses_data(name: str, losses: Mapping[str, Losses]) -> dict[str, str]:
    trained = losses[TRAINED]
    if name not in trained.loss:
        note = trained.note or "nothing is predicted by this model"
        return {"losses": "", "losses_note": note, "other_losses": ""}
    lines = [Line(TRAINED, trained.ratios, trained.loss[name], "main")]
    if any(map(math.isfinite, trained.mean_predictor[name])):
        lines.append(Line("predicting the mean", trained.ratios, trained.mean_predictor[name], "baseline dashed"))
    chart = charts(lines, x_label="mask ratio", y_label="loss of a hidden token", width=1100, height=280)
    others = ""
    for network, other in losses.items():
        if network != TRAINED and name in other.loss:
            finite = [loss for loss in other.loss[name] if math.isfinite(loss)]
            others += f" Loss {network}: {min(finite):.3g} to {max(finite):.3g}." if finite else ""
    return {"losses": chart, "losses_note": "", "other_losses": others}


def _clusters_data(network: str, findings: Findings, name: str, modality: Modality) -> dict[str, str]:
    clusters = findings.clusters
    if not clusters.rows.columns:
        return {"network": network, "picture": "", "note": clusters.rows.note, "caption": ""}
    caption = f"{network}: k-means of the token features by cosine similarity; a column for each cluster."
    if math.isfinite(clusters.position_variance):
        caption += (
            f" {100 * clusters.position_variance:.0f} % of their variance is the mean of each position, which was "
            "subtracted first."
        )
    picture = embedded(png({name: modality}, {name: clusters.rows}))
    return {"network": network, "picture": picture, "note": "", "caption": caption}


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"
