"""Which of the others belongs to this one? Answers of a model of two modalities, as pictures in a table."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import torch

from maemm.contract import Modality, Source
from maemm.contract.rng import Rng
from maemm.data.single_pass import each
from maemm.model.model import Model
from maemm.tasks._shared.features import features
from maemm.tasks.retrieve.run import Ranks, both_ways
from maemm.ui.pictures import cell

QUERIES, SHOWN = 6, 4


def pair_of(recipe: Mapping[str, Any]) -> tuple[str, str] | None:
    """The two modalities that an objective of the recipe brings together; None: there is no such objective."""
    for spec in (recipe.get("objectives") or {}).values():
        pair = (spec or {}).get("pair") or ()
        if len(pair) == 2 and all(one in recipe["modalities"] for one in pair):
            return tuple(pair)
    return None


def retrieval(model: Model, source: Source, pair: Sequence[str]) -> str:
    """HTML: for some samples of ``source`` their first modality, and whose second ones the model finds nearest.

    All samples are candidates. The partner has a frame. Below it recall and rank in both directions.
    """
    found = features(model, source)
    first, second = (found[name].x for name in pair)
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (first, second)]
    scores = unit[0] @ unit[1].T
    asked = [row * len(scores) // QUERIES for row in range(min(QUERIES, len(scores)))]
    nearest = [(-scores[row]).argsort(kind="stable")[:SHOWN].tolist() for row in asked]
    ids = found[pair[0]].ids
    wanted = {ids[row] for row in asked} | {ids[one] for some in nearest for one in some}
    shown = _pictures(model, source, pair, wanted)
    rows = "".join(_row(ids, row, some, shown, pair) for row, some in zip(asked, nearest, strict=True))
    head = f"<tr><th>{escape(pair[0])}</th><th colspan={SHOWN}>nearest {escape(pair[1])} of {len(scores)}</th></tr>"
    told = "".join(f"<p>{escape(_said(one))}</p>" for one in both_ways(found, pair))
    return f'<div class="pairs"><style>{_STYLE}</style><table>{head}{rows}</table>{told}</div>'


_STYLE = (
    ".pairs img { width: 88px; display: block; } .pairs td { padding: 3px; } .pairs th { text-align: left; } "
    ".pairs .right { outline: 3px solid #2a8; } .pairs td:first-child { padding-right: 18px; }"
)


def _said(one: Ranks) -> str:
    shares = ", ".join(f"R@{k} {fraction:.2f} (chance {one.chance[k]:.2f})" for k, fraction in one.recall.items())
    return f"{one.direction}: {shares}; median rank {one.median:g} of {one.samples}."


def _row(ids: list[str], row: int, nearest: list[int], shown: Mapping[str, dict[str, str]], pair: Sequence[str]) -> str:
    cells = [f"<td>{shown[ids[row]][pair[0]]}</td>"]
    for one in nearest:
        cells.append(f"<td><div{' class=right' if one == row else ''}>{shown[ids[one]][pair[1]]}</div></td>")
    return f"<tr>{''.join(cells)}</tr>"


@torch.no_grad()
def _pictures(model: Model, source: Source, names: Sequence[str], wanted: set[str]) -> dict[str, dict[str, str]]:
    """{id: {modality: <img>}} of the samples ``wanted``."""
    found: dict[str, dict[str, str]] = {}
    device = next(model.parameters()).device
    for batch in each(source, dict(model.modalities), batch=32):
        rows = [row for row, id in enumerate(batch.ids) if id in wanted]
        if not rows:
            continue
        inputs = model.plan(
            model.preprocess(batch.to(device).raw, None), Rng((0,), range(len(batch.ids)), len(batch.ids))
        )
        for name in names:
            tokens, modality = inputs[name].tokens, model.modalities[name]
            signal = modality.untokenize(tokens.values.float(), tokens)
            for row in rows:
                found.setdefault(batch.ids[row], {})[name] = _image(modality, signal[row].cpu())
    return found


def _image(modality: Modality, signal: torch.Tensor) -> str:
    text = base64.b64encode(cell(modality, signal)).decode()
    return f'<img alt="" src="data:image/png;base64,{text}">'
