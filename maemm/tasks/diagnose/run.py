"""``maemm diagnose``: read samples once, ask the model and the same network untrained, write a page and figures."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_whole
from maemm.data.single_pass import Progress
from maemm.data.subset import Subset
from maemm.model.model import Model
from maemm.tasks._shared.baselines import TRAINED, UNTRAINED, untrained
from maemm.tasks._shared.inputs import Weights, data_config, evenly_spaced, open_data, open_model
from maemm.tasks.diagnose.clusters import CLUSTERS
from maemm.tasks.diagnose.measure import LEAST, Findings, Measurement, Network
from maemm.tasks.diagnose.page import page
from maemm.tasks.diagnose.ratios import RATIOS, Losses
from maemm.tasks.diagnose.record import Diagnosis


def diagnose(
    what: Weights,
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
    _check(samples, ratios, clusters)
    path = _path(what, out)
    model = open_model(what, **known)
    given = {k: v for k, v in (("list", list), ("source", source), ("workers", workers)) if v is not None}
    opened = data if isinstance(data, Source) else open_data(model.recipe, data, **given)
    if workers is None:
        workers = 0 if isinstance(data, Source) else data_config(model.recipe, None)["workers"]
    # Evenly spread over the data, then mixed: the first of them stand for all where only a few are looked at.
    rows = np.random.default_rng(seed).permutation(evenly_spaced(len(opened), samples))
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


def _path(what: Weights, out: str | os.PathLike | None) -> Path:
    if out is not None:
        path = Path(out)
        if path.suffix.lower() not in (".html", ".htm"):
            raise MaemmError(f"diagnose writes a page, not {path.name!r} (-o); give a name that ends in .html")
        return path
    run = None if isinstance(what, Model) else Path(what)
    return (run if run is not None and (run / "checkpoints").is_dir() else Path()) / "diagnose.html"


def _name(what: Weights) -> str:
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


def _text(found: Diagnosis) -> str:
    return json.dumps(found.record(), indent=1) + "\n"
