"""Retrieval by a model of two modalities, as pictures in a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch

from maemm.contract import Modality, Source
from maemm.contract.rng import Rng
from maemm.data.loader import Batch
from maemm.data.single_pass import each
from maemm.data.transfer import Work, overlapped
from maemm.model.model import Model
from maemm.tasks._shared.embedding import features
from maemm.tasks.retrieve.run import Ranks, both_ways
from maemm.ui.page import embedded
from maemm.ui.pictures import cell

QUERIES, SHOWN = 6, 4
_WIDTH = 176  # pixels of a picture, twice what the style sheet gives it


def pair_of(recipe: Mapping[str, Any]) -> tuple[str, str] | None:
    """The two modalities that an objective of the recipe aligns; None where there is no such objective."""
    for spec in (recipe.get("objectives") or {}).values():
        match (spec or {}).get("pair"):
            case [first, second] if first in recipe["modalities"] and second in recipe["modalities"]:
                return first, second
    return None


def retrieval(model: Model, source: Source, pair: Sequence[str]) -> dict[str, Any]:
    """For some samples of ``source`` the pictures of their first modality and of the nearest second ones.

    All samples are candidates. What ``demo.html`` shows: ``rows`` of a query and its nearest samples, of which the
    partner is marked, and recall and rank in both directions.
    """
    embeddings = features(model, source)
    first, second = (embeddings[name].x for name in pair)
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (first, second)]
    scores = unit[0] @ unit[1].T
    queries = [row * len(scores) // QUERIES for row in range(min(QUERIES, len(scores)))]
    nearest = [(-scores[row]).argsort(kind="stable")[:SHOWN].tolist() for row in queries]
    ids = embeddings[pair[0]].ids
    pictures = _pictures(model, source, pair, {ids[row] for row in {*queries, *sum(nearest, [])}})
    rows = [
        {
            "id": ids[query],
            "query": pictures[ids[query]][pair[0]],
            "nearest": [{"id": ids[row], "uri": pictures[ids[row]][pair[1]], "right": row == query} for row in answers],
        }
        for query, answers in zip(queries, nearest, strict=True)
    ]
    metrics = [_metrics(ranks) for ranks in both_ways(embeddings, pair)]
    return {"pair": tuple(pair), "samples": len(scores), "rows": rows, "metrics": metrics}


def _metrics(ranks: Ranks) -> str:
    recalls = ", ".join(f"R@{k} {recall:.2f} (chance {ranks.chance[k]:.2f})" for k, recall in ranks.recall.items())
    return f"{ranks.direction}: {recalls}; median rank {ranks.median:g} of {ranks.samples}."


@torch.no_grad()
def _pictures(model: Model, source: Source, names: Sequence[str], chosen: set[str]) -> dict[str, dict[str, str]]:
    """{id: {modality: data URI}} of the samples whose ids are ``chosen``; "" for modalities without pictures."""
    pictures: dict[str, dict[str, str]] = {}
    device = next(model.parameters()).device
    modalities = cast("dict[str, Modality]", dict(model.modalities))

    def signals(batch: Batch) -> Work[tuple[Batch, dict[str, Any]]]:
        if chosen.isdisjoint(batch.ids):
            return batch, {}
        rng = Rng((0,), range(len(batch.ids)), len(batch.ids))
        inputs = model.plan(model.preprocess(batch.to(device).raw, None), rng)
        tokens = {name: inputs[name].tokens for name in names}
        return batch, (yield {name: modalities[name].untokenize(x.values.float(), x) for name, x in tokens.items()})

    for batch, by_name in overlapped(map(signals, each(source, modalities, batch=32))):
        for name, signal in by_name.items():
            for row, id in enumerate(batch.ids):
                if id in chosen:
                    uri = "" if signal is None else embedded(cell(modalities[name], signal[row]), _WIDTH)
                    pictures.setdefault(id, {})[name] = uri
    return pictures
