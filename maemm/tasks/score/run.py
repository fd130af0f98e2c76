"""``maemm score``: reconstruction errors of somebody's data as a table, and pictures of the worst."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maemm.contract import Preprocessed, Source
from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_whole
from maemm.data.loader import Loader
from maemm.data.order import Request
from maemm.data.single_pass import Progress
from maemm.model.model import Model
from maemm.tasks._shared.inputs import data_config, open_data, open_model
from maemm.tasks._shared.scoring import Scores, score_samples
from maemm.ui.picture_rows import Rows
from maemm.ui.pictures import draw_rows, make_rows, put_together

KINDS = (".csv", ".npz")
_WORST_TOKENS = 0.1  # share of a sample's tokens that its last picture shows


@dataclass(frozen=True)
class Scored:
    """What :func:`score_data` found and wrote."""

    scores: Scores
    path: Path | None = None
    pictures: Path | None = None

    def __str__(self) -> str:
        scores = self.scores
        low, middle, high = np.quantile(scores.samples, (0.01, 0.5, 0.99))
        skipped = f", {len(scores.skipped):,} skipped (first: {_why(scores)})" if scores.skipped else ""
        lines = [
            f"{len(scores):,} samples scored{skipped}" + (f" -> {self.path}" if self.path else ""),
            f"  median {middle:.4g}, 1 % below {low:.4g}, 1 % above {high:.4g}",
            *(f"  {scores.samples[row]:.4g}  {scores.ids[row]}" for row in scores.worst(5)),
        ]
        return "\n".join([*lines, f"  pictures of the worst -> {self.pictures}"] if self.pictures else lines)


def score_data(
    what: str | os.PathLike | Model,
    data: str | os.PathLike | Source | None = None,
    out: str | os.PathLike | None = None,
    *,
    pictures: int = 0,
    plans: int = 4,
    batch: int = 64,
    workers: int | None = None,
    seed: int = 0,
    list: str | None = None,
    source: str | dict[str, Any] | None = None,
    on_progress: Progress | None = None,
    **known: Any,
) -> Scored:
    """Score ``data`` (None: those of the run's recipe) with a run, a weights file or a model, and write ``out``.

    A .csv holds id, label and score of each sample in the order of the data; a .npz also the errors of the tokens;
    None writes nothing. ``pictures``: draw that many of the highest scores beside ``out``. ``workers``, ``list`` and
    ``source`` stand for those of the recipe's ``data``; for the rest see
    :func:`maemm.tasks._shared.scoring.score_samples`. ``known`` goes to :func:`maemm.load`. Raises :class:`MaemmError`.
    """
    path = None if out is None else Path(out)
    if path is not None and path.suffix.lower() not in KINDS:
        raise MaemmError(
            f"score writes .csv or .npz, not {path.suffix or path.name!r} ({out}); give such a name with -o"
        )
    if path is None and pictures:
        raise MaemmError("pictures lie beside the table of scores; give a file with -o too")
    model = open_model(what, **known)
    given = {"list": list, "source": source, "workers": workers}
    given = {key: value for key, value in given.items() if value is not None}
    opened = data if isinstance(data, Source) else open_data(model.recipe, data, **given)
    if workers is None:
        workers = 0 if isinstance(data, Source) else data_config(model.recipe, None)["workers"]
    settings = {"plans": plans, "batch": batch, "workers": workers, "seed": seed}
    scores = score_samples(model, opened, **settings, on_progress=on_progress)
    if path is None:
        return Scored(scores)
    write_whole(path, lambda file: (_csv if path.suffix.lower() == ".csv" else _npz)(scores, file), "the scores")
    drawn = draw_worst(model, opened, scores, path.with_name(f"{path.stem}-worst.png"), pictures, seed)
    return Scored(scores, path, drawn)


def score(
    what: str | os.PathLike | Model,
    data: str | os.PathLike | Source | None = None,
    out: str | os.PathLike | None = None,
    **options: Any,
) -> Scores:
    """Reconstruction error of every sample and token of ``data``; ``options`` are those of :func:`score_data`."""
    return score_data(what, data, out, **options).scores


def _why(scores: Scores) -> str:
    return f"{scores.skipped[0].id}: {scores.skipped[0].reason}"


# ------------------------------------------------------------------------------------------------ tables
def _csv(scores: Scores, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "label", "score"])
        for ident, label, value in zip(scores.ids, scores.labels.tolist(), scores.samples.tolist(), strict=True):
            table.writerow([ident, _label(scores, label), f"{value:.9g}"])


def _label(scores: Scores, label: int) -> str:
    if label < 0:
        return ""
    return str(scores.classes[label]) if scores.classes is not None and label < len(scores.classes) else str(label)


def _npz(scores: Scores, path: Path) -> None:
    arrays = {
        "scores": scores.samples,
        "tokens": scores.tokens,
        "ids": np.array(scores.ids),
        "labels": scores.labels,
        "modalities": np.array(list(scores.spans)),
        "spans": np.array(list(scores.spans.values()), np.int64),  # columns of ``tokens``, for each modality
    }
    if scores.classes is not None:
        arrays["classes"] = np.array(list(scores.classes))
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


# ------------------------------------------------------------------------------------------------ pictures
class _Chosen:
    """An order of one batch: the samples ``indices``."""

    def __init__(self, indices: np.ndarray):
        self.samples, self.indices = len(indices), indices

    def micro_batches(self, step: int) -> list[list[Request]]:
        return [[Request(0, int(index), 0, row) for row, index in enumerate(self.indices)]]


def draw_worst(model: Model, source: Source, scores: Scores, path: Path, count: int, seed: int = 0) -> Path | None:
    """Write a PNG of the ``count`` samples with the highest scores: as reconstructed, and their worst tokens."""
    worst = scores.worst(count)
    if not len(worst):
        return None
    order = _Chosen(scores.indices[worst])
    loader = Loader(source, dict(model.modalities), order, seed=seed, augment=False, substitute=False, pin=False)
    raw = next(loader.batches(0, 1)).to(next(model.parameters()).device).raw
    batch = model.preprocess(raw, None)
    made = make_rows(model, batch, seed, len(worst))
    for name, rows in made.items():
        if rows.columns:
            errors = torch.from_numpy(scores.tokens[worst, slice(*scores.spans[name])])
            _add_worst_tokens(model, name, rows, batch[name], errors)
            rows.names = [f"{scores.samples[row]:.3g}  {scores.ids[row][-22:]}" for row in worst]
    return draw_rows(model.modalities, made, path)


def _add_worst_tokens(model: Model, name: str, rows: Rows, preprocessed: Preprocessed, errors: torch.Tensor) -> None:
    modality = model.modalities[name]
    with torch.no_grad():
        tokens = modality.tokenize(preprocessed)
        errors = errors[:, : tokens.count].to(tokens.values.device)
        level = errors.nanquantile(1 - _WORST_TOKENS, dim=1, keepdim=True)
        shown = put_together(modality, tokens, (tokens.values.float(), tokens.everything(), errors >= level))
    rows.columns[f"the {100 * _WORST_TOKENS:.0f} % of the tokens\nthat are predicted worst"] = shown
