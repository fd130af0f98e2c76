"""``maemm modalities``: every subset of inputs under kNN and a linear probe, and the loss of every output from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_json
from maemm.data.locks import one_writer
from maemm.data.single_pass import Progress
from maemm.data.subset import Subset as SomeSamples
from maemm.tasks._shared.baselines import Show
from maemm.tasks._shared.comparison import Cell
from maemm.tasks._shared.inputs import Data, Weights, evenly_spaced, some_labels
from maemm.tasks.modalities.page import write_page
from maemm.tasks.modalities.results import CLASSIFIERS, KINDS, RESULTS, Modalities
from maemm.tasks.modalities.subsets import Subsets, check_inputs, losses_of, subsets_of
from maemm.tasks.probe.compare import Protocol, compare


def modalities(
    weights: Weights,
    data: Data = None,
    test: Data = None,
    *,
    inputs: Sequence[str] | None = None,
    visible: float = 0.5,
    samples: int | None = 2000,
    seeds: int = 1,
    batch: int = 64,
    workers: int | None = None,
    source: Any = None,
    pictures: int = 4,
    out: str | os.PathLike[str] | None = None,
    show: Show | None = None,
    on_progress: Progress | None = None,
    echo: Callable[[str], object] = print,
    **settings: Any,
) -> Modalities:
    """What each modality of a joint model is worth: all 2^n - 1 subsets of its inputs.

    ``weights``: a run or checkpoint folder, a weights file, or a model. ``data``: to fit classifiers on and to measure
    losses on; None: the data of its recipe. ``test``: to test on; None: folds of ``data``. ``inputs``: the modalities
    of which all subsets are given; None: all that are encoded. ``visible``: fraction of the tokens of the given
    modalities that is shown where losses are measured, in (0, 1]. ``samples``: at most so many of either part, at
    regular intervals. ``seeds``: of fits, and of untrained networks. ``out``: folder for ``results.json``, pictures and
    ``report.html``; None: nothing is written. Without labels, losses alone. Raises :class:`MaemmError`.
    """
    if not 0 < visible <= 1:
        raise MaemmError(f"visible is {visible:g}; give a fraction above 0, up to 1")
    if samples is not None and samples < 1:
        raise MaemmError(f"samples is {samples}; give 1 or more")
    subject = Subsets(
        weights, data, test, batch=batch, workers=workers, source=source, show=show, keep=False, **settings
    )
    names = check_inputs(subject.model, inputs)
    subject.subsets = subsets_of(names)
    if samples is not None:
        for part in (subject.train, subject.test):
            if part is not None and samples < len(part.source):
                part.source = SomeSamples(part.source, evenly_spaced(len(part.source), samples))
    cells, majority, tested, notes = _scored(subject, seeds)
    measured = (subject.test or subject.train).source
    losses = losses_of(
        subject.model, measured, subject.subsets, visible=visible, seed=0, batch=batch, workers=subject.train.workers,
        on_progress=on_progress,
    )  # fmt: skip
    result = Modalities(names, [*subject.subsets], losses, visible, cells, majority, tested, notes)
    if out is not None:
        folder = expanded(out)
        with one_writer(folder / RESULTS, echo):
            write_json(folder / RESULTS, result.as_dict(), "the results")
            result.page = write_page(result, subject.model, measured, folder, pictures)
    return result


def _scored(subject: Subsets, seeds: int) -> tuple[dict[tuple[str, str, str], Cell], float | None, int, list[str]]:
    parts = [part.source for part in (subject.train, subject.test) if part is not None]
    if not all(some_labels(part) for part in parts):
        return {}, None, 0, ["no accuracies: the data have no labels"]
    comparison = compare(subject, Protocol(CLASSIFIERS, seeds=seeds), kinds=KINDS)
    cells = {}
    for cell in comparison.cells:
        kind, _, subset = cell.features.partition(", ")
        cells[kind, cell.protocol, subset] = cell
    tested = int(comparison.data.get("test") or comparison.data["labelled"])
    return cells, comparison.data.get("majority", 0.0), tested, [*comparison.warnings, *comparison.notes]
