"""The page of a diagnosis: what each figure says, trained and untrained beside each other."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping
from html import escape
from pathlib import Path

import numpy as np

from maemm.contract import Modality
from maemm.tasks._shared.baselines import TRAINED
from maemm.tasks.diagnose.heads import draw_heads
from maemm.tasks.diagnose.measure import Findings
from maemm.tasks.diagnose.record import Diagnosis
from maemm.ui.charts import Line, charts
from maemm.ui.page import document, write_html
from maemm.ui.pictures import png

_STYLES = ("main", "baseline")  # of the networks, in their order
_SMALLEST = 1e-6  # of the largest singular value, below which a curve says no more


def page(found: Diagnosis, modalities: Mapping[str, Modality]) -> Path:
    """Write ``found.path``."""
    about = found.about
    lead = f"{found.samples:,} samples of {about['data']}, through the frozen encoder of {about['what']}."
    parts = [f'<p class="note warn">{escape(one)}</p>' for one in found.notes] + [_skipped(found)]
    names = list(found.findings[TRAINED])
    for name in names:
        some = {kind: one[name] for kind, one in found.findings.items()}
        title = f"<h2>{escape(name)}</h2>" if len(names) > 1 else ""
        parts.append(title + _one(found, name, some, modalities[name]))
    assert found.path is not None
    return write_html(found.path, document("Diagnosis", lead, parts))


def _one(found: Diagnosis, name: str, some: Mapping[str, Findings], modality: Modality) -> str:
    return (
        _tiles(some)
        + _spectrum(some)
        + _sphere(some)
        + _ratios(found, name)
        + _heads(some)
        + _clusters(some, name, modality)
    )


def _tiles(some: Mapping[str, Findings]) -> str:
    one = some[TRAINED]
    tiles = [
        (f"{one.spectrum.effective_rank:.1f} of {one.spectrum.limit}", "effective rank of the features"),
        (_number(one.sphere.uniformity), "uniformity (0: all equal)"),
        (_number(one.sphere.alignment), "alignment of two views (0: the same)"),
        (_number(one.sphere.fraction), "of strangers' distance between two views"),
    ]
    cells = [f'<div class="tile"><b>{escape(value)}</b><span>{escape(label)}</span></div>' for value, label in tiles]
    return f'<div class="tiles">{"".join(cells)}</div>'


def _spectrum(some: Mapping[str, Findings]) -> str:
    lines = []
    for (kind, one), style in zip(some.items(), _STYLES, strict=False):
        values = one.spectrum.values
        if values.size and values[0] > 0:
            fraction = values / values[0]
            shown = np.where(fraction > _SMALLEST, np.log10(np.maximum(fraction, _SMALLEST)), math.nan)
            lines.append(Line(kind, [float(k) for k in range(1, len(shown) + 1)], shown.tolist(), style))
    if not lines:
        return '<h3>Which directions are used</h3><p class="note">None: all samples have the same features.</p>'
    drawn = charts(lines, x_label="direction", y_label="log10 of singular value / largest", width=1100, height=300)
    ranks = ", ".join(f"{kind} {one.spectrum.effective_rank:.1f}" for kind, one in some.items())
    text = (
        "Singular values of the features minus their mean (mean over the tokens behind the final norm). A curve that "
        "drops early has collapsed: only those directions tell samples apart. The effective rank (Roy and Vetterli "
        f"2007) counts them: {ranks}, of at most {some[TRAINED].spectrum.limit}."
    )
    return _chart("Which directions are used", drawn, text)


def _sphere(some: Mapping[str, Findings]) -> str:
    head = "".join(f"<td><b>{escape(kind)}</b></td>" for kind in some)
    rows = {
        "uniformity: log mean exp(-2 d²) of pairs of samples; 0: all equal, -4: spread evenly": "uniformity",
        "alignment: mean d² of two views of a sample": "alignment",
        "mean d² of two samples": "apart",
        "alignment as a share of that; 0: a sample is known by any view, 1: views share nothing": "fraction",
    }
    body = ""
    for title, key in rows.items():
        cells = "".join(f"<td>{_number(getattr(one.sphere, key))}</td>" for one in some.values())
        body += f"<tr><td>{escape(title)}</td>{cells}</tr>"
    text = (
        "On the unit sphere (Wang and Isola 2020). A view is the sample augmented and masked as in training, the mean "
        "of the tokens that stay visible. The first two are read together: features that are all equal align for free."
    )
    table = f'<div class="card scroll"><table><tr><td></td>{head}</tr>{body}</table></div>'
    return f'<h3>How samples and views lie</h3>{table}<p class="note">{escape(text)}</p>'


def _ratios(found: Diagnosis, name: str) -> str:
    title = "Loss by share of hidden tokens"
    losses = {kind: one for kind, one in found.losses.items() if name in one.loss}
    if TRAINED not in losses:
        note = found.losses[TRAINED].note or "nothing is predicted by this model"
        return f'<h3>{title}</h3><p class="note">{escape(note)}</p>'
    one = losses[TRAINED]
    lines = [Line(TRAINED, one.ratios, one.loss[name], "main")]
    lines.append(Line("predicting the mean", one.ratios, one.mean_predictor[name], "baseline"))
    drawn = charts(lines, x_label="share of tokens hidden", y_label="loss of a hidden token", width=1100, height=280)
    others = [f"{kind}: {_range(two.loss[name])}" for kind, two in losses.items() if kind != TRAINED]
    text = "The same samples, masked by the recipe's masking with other ratios. The dashed line answers every token "
    text += "with the mean target of its batch." + "".join(f" Loss {other}." for other in others)
    return _chart(title, drawn, text)


def _heads(some: Mapping[str, Findings]) -> str:
    title = "Where heads look"
    attention = {kind: one.attention for kind, one in some.items() if len(one.attention.layers)}
    if TRAINED not in attention:
        return f'<h3>{title}</h3><p class="note">{escape(some[TRAINED].attention.note)}</p>'
    text = (
        "One dot for each head. Distance: mean distance between a token and the tokens it attends to, in token "
        "coordinates (cells of the grid, or the unit of the centres). Entropy: of the attention of a token, in nats. "
        "The dotted line is a head that looks everywhere alike."
    )
    return f"<h3>{title}</h3>{_picture(draw_heads(attention), text)}"


def _clusters(some: Mapping[str, Findings], name: str, modality: Modality) -> str:
    parts = ["<h3>What tokens are alike</h3>"]
    for kind, one in some.items():
        if not one.clusters.rows.columns:
            parts.append(f'<p class="note">{escape(kind)}: {escape(one.clusters.rows.note)}</p>')
            continue
        text = f"{kind}: k-means of the token features of all samples looked at, by cosine; a column a cluster."
        if math.isfinite(one.clusters.of_place):
            text += (
                f" {100 * one.clusters.of_place:.0f} % of their variance is the mean of each place, taken off first."
            )
        drawn = _picture(png({name: modality}, {name: one.clusters.rows}), text)
        parts.append(drawn if kind == TRAINED else f"<details><summary>{escape(kind)}</summary>{drawn}</details>")
    return "".join(parts)


# ------------------------------------------------------------------------------------------------ pieces
def _skipped(found: Diagnosis) -> str:
    if not found.skipped:
        return ""
    first = found.skipped[0]
    text = f"{len(found.skipped):,} samples are left out (first: {first.id}: {first.reason})."
    return f'<p class="note warn">{escape(text)}</p>'


def _chart(title: str, drawn: str, text: str) -> str:
    return f"<h3>{escape(title)}</h3><figure>{drawn}<figcaption>{escape(text)}</figcaption></figure>"


def _picture(data: bytes, text: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    image = f'<img alt="{escape(text, quote=True)}" src="{source}">'
    return f'<figure><div class="scroll">{image}</div><figcaption>{escape(text)}</figcaption></figure>'


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "-"


def _range(values: list[float]) -> str:
    known = [one for one in values if math.isfinite(one)]
    return f"{min(known):.3g} to {max(known):.3g}" if known else "unknown"
