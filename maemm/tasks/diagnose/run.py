"""``maemm diagnose``: measure the features of a model beside those of the same network untrained."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np

from maemm.config.paths import expanded
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_json
from maemm.data.bad_samples import reason_of
from maemm.data.locks import one_writer, writes
from maemm.data.single_pass import Progress
from maemm.data.subset import Subset
from maemm.model.model import Model
from maemm.tasks._shared.baselines import TRAINED, UNTRAINED, untrained
from maemm.tasks._shared.inputs import Data, Weights, data_config, evenly_spaced, open_data, open_model
from maemm.tasks.diagnose.clusters import CLUSTERS
from maemm.tasks.diagnose.collect import LEAST, Collector, Network
from maemm.tasks.diagnose.diagnosis import Diagnosis, Findings
from maemm.tasks.diagnose.page import write_page
from maemm.tasks.diagnose.ratios import RATIOS, Losses
from maemm.ui.streams import warn
from maemm.weights.checkpoints import run_of


@writes("out")
def diagnose(
    weights: Weights,
    data: Data = None,
    out: str | os.PathLike | None = None,
    *,
    samples: int = 512,
    baseline: bool = True,
    ratios: Sequence[float] = RATIOS,
    clusters: int = CLUSTERS,
    batch: int = 32,
    workers: int | None = None,
    seed: int = 0,
    list: str | None = None,
    source: str | dict[str, Any] | None = None,
    on_progress: Progress | None = None,
    **settings: Any,
) -> Diagnosis:
    """Diagnose a model on ``samples`` samples of ``data`` (None: the data of the run), at regular intervals.

    Writes the page ``out`` (None: ``diagnose.html`` in the run's folder, or in the current one) and a JSON record
    beside it. ``baseline``: also measure the same network with fresh weights. ``ratios``: mask ratios at which the loss
    is taken. ``clusters``: of token features. ``batch``: samples at a time. All random choices depend on ``seed`` and
    the samples alone. ``workers``, ``list`` and ``source`` replace those of the recipe's ``data``; ``settings`` go to
    :func:`maemm.load`.

    Raises :class:`MaemmError` where fewer than 16 samples have finite features.
    """
    _check_options(samples, ratios, clusters)
    path = _page_path(weights, out)
    model = open_model(weights, **settings)
    replaced = {"list": list, "source": source, "workers": workers}
    replaced = {key: value for key, value in replaced.items() if value is not None}
    opened = open_data(model.recipe, data, **replaced)
    if workers is None:
        workers = 0 if isinstance(data, Source) else data_config(model.recipe, data)["workers"]
    # At regular intervals, then shuffled: the first of them are a fair selection where only a few are looked at.
    rows = np.random.default_rng(seed).permutation(evenly_spaced(len(opened), samples))
    models = {TRAINED: model, **({UNTRAINED: untrained(model, seed)} if baseline else {})}
    networks = {kind: Network(network, seed, ratios) for kind, network in models.items()}
    collector = Collector([*networks.values()], Subset(opened, rows), batch=batch, workers=workers, seed=seed)
    collector.run(on_progress)
    findings = {kind: network.findings(clusters) for kind, network in networks.items()}
    losses = {kind: network.losses.result() for kind, network in networks.items()}
    about = {
        "what": "a model" if isinstance(weights, Model) else os.fspath(weights),
        "data": _data_name(data),
        "seed": seed,
        "width": model.encoder.dim,
    }
    notes = _notes(findings[TRAINED], losses[TRAINED])
    diagnosis = Diagnosis(findings, losses, collector.samples, collector.skipped, about, notes, path)
    try:
        with one_writer(path) if out is None else nullcontext():
            write_json(path.with_suffix(".json"), diagnosis.record(), "the metrics")
            write_page(diagnosis, path, model.modalities)
    except Exception as error:
        if out is not None:
            raise
        # Nobody asked for this file: a run that may only be read, or a picture that fails, does not cost the result.
        warn(f"the page was not kept ({reason_of(error)}); add -o FILE to keep it elsewhere")
        diagnosis.path = None
    return diagnosis


def _check_options(samples: int, ratios: Sequence[float], clusters: int) -> None:
    if samples < LEAST:
        raise MaemmError(f"{samples} samples are too few (--samples); give {LEAST} or more")
    if clusters < 2:
        raise MaemmError(f"{clusters} clusters are too few (--clusters); give 2 or more")
    if not ratios:
        raise MaemmError("no mask ratios are given (--ratios); give ratios between 0 and 1, such as 0.5,0.75")
    wrong = [ratio for ratio in ratios if not 0 < ratio < 1]
    if wrong:
        raise MaemmError(f"mask ratios {', '.join(map(str, wrong))} (--ratios); give ratios between 0 and 1")


def _page_path(weights: Weights, out: str | os.PathLike | None) -> Path:
    if out is not None:
        path = expanded(out)
        if path.suffix.lower() not in (".html", ".htm"):
            raise MaemmError(f"diagnose writes a page, not {path.name!r} (-o); give a name that ends in .html")
        return path
    run = None if isinstance(weights, Model) else run_of(expanded(weights))
    return (run if run is not None and (run / "checkpoints").is_dir() else Path()) / "diagnose.html"


def _data_name(data: Data) -> str:
    if isinstance(data, (str, os.PathLike)):
        return os.fspath(data)
    return "the data of the run" if data is None else f"a {type(data).__name__}"


def _notes(by_modality: Mapping[str, Findings], losses: Losses) -> list[str]:
    """What a reader must know before comparing the trained network's metrics."""
    notes = []
    for name, findings in by_modality.items():
        spectrum = findings.spectrum
        if spectrum.effective_rank == 0:
            notes.append(
                f"{name}: all samples have the same features: the encoder has collapsed, or the data are equal"
            )
        elif spectrum.limit < spectrum.width:
            notes.append(
                f"{name}: {spectrum.samples} samples cannot show more than {spectrum.limit} of {spectrum.width} "
                "directions"
            )
        if findings.attention.note:
            notes.append(f"{name}: {findings.attention.note}")
    if losses.note:
        notes.append(losses.note)
    return notes
