"""``maemm score``: the reconstruction error of every sample as a table, and pictures of the worst samples."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maemm.config.paths import expanded
from maemm.contract import Modality, Source, Tokens
from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_whole
from maemm.data.loader import Loader
from maemm.data.locks import writes
from maemm.data.order import Request
from maemm.data.single_pass import Progress
from maemm.data.transfer import module_on_host, on_host
from maemm.model.model import Model, as_preprocessed
from maemm.tasks._shared.inputs import Data, Weights, data_config, open_data, open_model
from maemm.tasks._shared.scoring import Scores, score_samples
from maemm.ui.picture_rows import Rows
from maemm.ui.pictures import draw_rows, make_rows, put_together

ENDINGS = (".csv", ".npz")
_WORST_TOKENS = 0.1  # fraction of a sample's tokens that its last picture shows


@dataclass(frozen=True)
class Scored:
    """The scores that :func:`score_data` computed, and the files that it wrote."""

    scores: Scores
    path: Path | None = None
    pictures: Path | None = None

    def __str__(self) -> str:
        scores = self.scores
        low, middle, high = np.quantile(scores.samples, (0.01, 0.5, 0.99))
        lines = [f"{len(scores):,} samples scored"]
        if scores.skipped:
            first = scores.skipped[0]
            lines[0] += f", {len(scores.skipped):,} skipped (first: {first.id}: {first.reason})"
        if self.path:
            lines[0] += f" -> {self.path}"
        lines.append(f"  median {middle:.4g}, 1 % below {low:.4g}, 1 % above {high:.4g}")
        lines += [f"  {scores.samples[row]:.4g}  {scores.ids[row]}" for row in scores.worst(5)]
        if self.pictures:
            lines.append(f"  pictures of the worst -> {self.pictures}")
        return "\n".join(lines)


@writes("out")
def score_data(
    weights: Weights,
    data: Data = None,
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
    **settings: Any,
) -> Scored:
    """Score the samples of ``data`` (None: those of the run's recipe) and write the scores to ``out``.

    ``out``: a .csv with id, label and score of each sample in the order of the data; a .npz with the errors of the
    tokens too; None: no file. ``pictures``: draw that many of the highest scores to a PNG beside ``out``. ``workers``,
    ``list`` and ``source`` replace those of the recipe's ``data``; ``plans``, ``batch`` and ``seed``: see
    :func:`maemm.tasks._shared.scoring.score_samples`. ``settings`` go to :func:`maemm.load`. Raises
    :class:`MaemmError`.
    """
    path = None if out is None else expanded(out)
    if path is not None and path.suffix.lower() not in ENDINGS:
        raise MaemmError(
            f"score writes .csv or .npz, not {path.suffix or path.name!r} ({out}); give such a name with -o"
        )
    if path is None and pictures:
        raise MaemmError("pictures are written beside the table of scores; give a file with -o too")
    model = open_model(weights, **settings)
    replaced = {"list": list, "source": source, "workers": workers}
    replaced = {key: value for key, value in replaced.items() if value is not None}
    opened = open_data(model.recipe, data, **replaced)
    if workers is None:
        workers = 0 if isinstance(data, Source) else data_config(model.recipe, data)["workers"]
    scores = score_samples(model, opened, plans=plans, batch=batch, workers=workers, seed=seed, on_progress=on_progress)
    if path is None:
        return Scored(scores)
    write = _write_csv if path.suffix.lower() == ".csv" else _write_npz
    write_whole(path, lambda file: write(scores, file), "the scores")
    drawn = draw_worst(model, opened, scores, path.with_name(f"{path.stem}-worst.png"), pictures, seed)
    return Scored(scores, path, drawn)


def score(
    weights: Weights,
    data: Data = None,
    out: str | os.PathLike | None = None,
    **options: Any,
) -> Scores:
    """Reconstruction error of every sample and token of ``data``; ``options`` are those of :func:`score_data`."""
    return score_data(weights, data, out, **options).scores


# ------------------------------------------------------------------------------------------------ tables
def _write_csv(scores: Scores, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["id", "label", "score"])
        for id, label, value in zip(scores.ids, scores.labels.tolist(), scores.samples.tolist(), strict=True):
            table.writerow([id, _label_text(scores, label), f"{value:.9g}"])


def _label_text(scores: Scores, label: int) -> str:
    if label < 0:
        return ""
    return str(scores.classes[label]) if scores.classes is not None and label < len(scores.classes) else str(label)


def _write_npz(scores: Scores, path: Path) -> None:
    arrays: dict[str, Any] = {
        "scores": scores.samples,
        "tokens": scores.tokens,
        "ids": np.array(scores.ids),
        "labels": scores.labels,
        "modalities": np.array([*scores.spans]),
        "spans": np.array([*scores.spans.values()], np.int64),  # columns of ``tokens``, for each modality
    }
    if scores.classes is not None:
        arrays["classes"] = np.array([*scores.classes])
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


# ------------------------------------------------------------------------------------------------ pictures
class _OneBatch:
    """An order of a single batch: the samples ``indices``."""

    def __init__(self, indices: np.ndarray):
        self.samples, self.indices = len(indices), indices

    def micro_batches(self, step: int) -> list[list[Request]]:
        return [[Request(0, int(index), 0, row) for row, index in enumerate(self.indices)]]


def draw_worst(model: Model, source: Source, scores: Scores, path: Path, count: int, seed: int = 0) -> Path | None:
    """Write a PNG of the ``count`` samples with the highest scores: reconstructions, and their worst tokens.

    Returns ``path``, or None where there is no sample to draw.
    """
    worst = scores.worst(count)
    if not len(worst):
        return None
    order = _OneBatch(scores.indices[worst])
    loader = Loader(source, dict(model.modalities), order, seed=seed, augment=False, substitute=False)
    raw = next(loader.batches(0, 1)).to(next(model.parameters()).device).raw
    batch = model.preprocess(raw, None)
    rows_by_name = make_rows(model, batch, seed, len(worst))
    drawn = [name for name, rows in rows_by_name.items() if rows.columns]
    with torch.no_grad():
        tokens = on_host({name: model.modalities[name].tokenize(as_preprocessed(batch[name])) for name in drawn})
    for name, rows in rows_by_name.items():
        if rows.columns:
            errors = torch.from_numpy(scores.tokens[worst, slice(*scores.spans[name])])
            _add_worst_tokens(module_on_host(model.modalities[name]), rows, tokens[name], errors)
            rows.names = [f"{scores.samples[row]:.3g}  {scores.ids[row][-22:]}" for row in worst]
    return draw_rows(model.modalities, rows_by_name, path)


def _add_worst_tokens(modality: Modality, rows: Rows, tokens: Tokens, errors: torch.Tensor) -> None:
    """Add a column with the tokens of the highest ``errors`` (B, N)."""
    with torch.no_grad():
        errors = errors[:, : tokens.count]
        threshold = errors.nanquantile(1 - _WORST_TOKENS, dim=1, keepdim=True)
        picture = put_together(modality, tokens, (tokens.values.float(), tokens.all_indices(), errors >= threshold))
    rows.columns[f"the {100 * _WORST_TOKENS:.0f} % of the tokens\nthat are predicted worst"] = picture
