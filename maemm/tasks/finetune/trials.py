"""Several training runs and the table of their metrics: by seed, by fold, by number of labels."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maemm.config.paths import expanded
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.folds import groups_of, usual_count
from maemm.data.open import open_fold, open_parts, open_source
from maemm.tasks._shared.comparison import Cell, Comparison
from maemm.tasks._shared.inputs import Data, open_part
from maemm.tasks._shared.records import save_record
from maemm.tasks._shared.run_page import write_page
from maemm.tasks.evaluate.run import evaluate, shared_with_training
from maemm.tasks.pretrain import run as pretrain
from maemm.train.distributed import joined

TUNED, SCRATCH = "fine-tuned", "from scratch"
ALL = "all"  # number of labels, where it is not limited

# (TUNED or SCRATCH, overrides, number of labels) -> the recipe of a run
MakeRecipe = Callable[[str, dict[str, Any], str], dict[str, Any]]


@dataclass
class Trial:
    """One run of several, and the cell of the table that its metric goes to."""

    cell: Cell
    seed: int
    recipe: dict[str, Any]
    run: Path | None = None  # its folder, once it is trained

    @property
    def folder(self) -> Path:
        """:attr:`run` of a trained one."""
        assert self.run is not None
        return self.run


@dataclass(frozen=True)
class Splits:
    """What runs are evaluated on: one test part, or for each run the fold that it leaves out."""

    test: Data = None
    folds: int | None = None
    groups: str | None = None
    test_options: Mapping[str, Any] | None = None  # see :func:`maemm.tasks._shared.inputs.open_part`

    def __post_init__(self) -> None:
        if (self.test is None) == (self.folds is None and self.groups is None):
            raise MaemmError("several runs need one way to evaluate them; give either --test DATA, or --folds/--groups")
        if self.folds is not None and self.folds < 2:
            raise MaemmError(f"{self.folds} folds leave no test part (--folds); give 2 or more")

    def overrides(self, make_recipe: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
        """What makes the recipe of each split; ``make_recipe``: the recipe before, to count the groups of its data."""
        if self.test is not None:
            return [{}]
        recipe, count = make_recipe(), self.folds
        if count is None:
            assert self.groups is not None
            source = open_source(recipe)
            count = usual_count(groups_of([source.name(i) for i in range(len(source))], self.groups))
        else:  # more folds than samples are refused before there is a run for each
            open_fold({**recipe, "data": {**recipe["data"], "fold": f"1/{count}", "groups": self.groups}})
        return [{"data.fold": f"{number}/{count}", "data.groups": self.groups} for number in range(1, count + 1)]

    def test_part(self, recipe: Mapping[str, Any]) -> Source:
        """The samples that a run of this recipe is evaluated on."""
        if self.test is not None:
            return open_part(recipe, self.test, self.test_options or {})
        fold = open_fold(recipe)[1]
        assert fold is not None  # the recipe has data.fold
        return fold


def train_and_evaluate(
    weights: str | os.PathLike,
    verb: str,
    *,
    kinds: Iterable[str],
    shots: list[str],
    seeds: int,
    splits: Splits,
    make_recipe: MakeRecipe,
    overrides: Mapping[str, Any],
    echo: Callable[[str], Any],
) -> tuple[Comparison | None, Path]:
    """Train a run for each kind, seed, number of labels and split, then evaluate all; -> (metrics, folder).

    Evaluation begins after the last training: ranks that train together leave before rank 0 evaluates. The metrics are
    None on the other ranks. ``verb``: of the record and of the default folder, labels or runs.
    """
    if seeds < 1:
        raise MaemmError(f"{seeds} seeds give no metrics (--seeds); give 1 or more")
    folder = expanded(overrides.get("out") or f"{str(weights).rstrip('/')}-{verb}")
    parts = splits.overrides(lambda: make_recipe(SCRATCH, {**overrides, "out": str(folder)}, ALL))
    trials: list[Trial] = []
    cells: list[Cell] = []
    for kind in kinds:
        by_shots = {count: Cell(kind, "finetune", count) for count in shots}
        cells += by_shots.values()
        for seed in range(seeds):
            for count, cell in by_shots.items():
                for part in parts:
                    out = folder / "runs" / _run_name(kind, count if verb == "labels" else None, seed, part)
                    changes = {**overrides, **part, "train.seed": seed, "out": str(out)}
                    trials.append(Trial(cell, seed, make_recipe(kind, changes, count)))
    if trials and splits.test is not None:
        splits.test_part(trials[0].recipe)  # one that cannot be opened is reported before hours of training
    comparison = Comparison(shots=shots, seeds=seeds, folds=len(parts) if splits.test is None else None, cells=cells)
    with joined() as dist_context:
        for trial in trials:
            trial.run = pretrain.train_recipe(trial.recipe, echo=echo)
    if not dist_context.is_rank0:
        return None, folder
    for trial in trials:
        _evaluate(trial, splits, comparison)
    comparison.warnings += _overlaps(trials, splits)
    save_record(comparison.record(), verb, weights, folder / "evaluate" / f"{verb}.json")
    write_page(folder)
    return comparison, folder


def _run_name(kind: str, shots: str | None, seed: int, part: Mapping[str, Any]) -> str:
    """The folder name of a run."""
    words = [kind.replace(" ", "-"), shots and shots.replace("%", "-percent"), f"seed-{seed}"]
    words.append(f"fold-{part['data.fold'].partition('/')[0]}" if part else None)
    return "-".join(word for word in words if word)


def _evaluate(trial: Trial, splits: Splits, comparison: Comparison) -> None:
    """Add the metric of a trained run to its cell."""
    answers = evaluate(trial.folder, splits.test_part(trial.recipe))
    stream = next(iter(answers.logits))
    cell = trial.cell
    while len(cell.values) <= trial.seed:
        cell.values.append([])
    cell.values[trial.seed].append(next(iter(answers.metrics(stream).values())))
    if trial.seed == 0 or answers.multilabel:
        cell.add(answers.labels, answers.logits[stream], answers.classes, len(answers.classes))
    if trial.seed == 0 and cell is comparison.cells[0]:  # every sample is counted once; folds add up to all samples
        counts = comparison.data or {"labelled": 0, "skipped": 0}
        comparison.data = {
            "labelled": counts["labelled"] + len(answers.labels),
            "skipped": counts["skipped"] + len(answers.skipped),
        }
        comparison.skipped += answers.skipped


def _overlaps(trials: list[Trial], splits: Splits) -> list[str]:
    """A warning of the run that shares the most samples with its test part.

    Of each seed and fold, only the run with the most labels is looked at: its training set includes the others'.
    """
    largest: dict[tuple[int, Any], tuple[Source, Trial]] = {}
    for trial in trials:
        key, training_set = (trial.seed, trial.recipe["data"].get("fold")), open_parts(trial.recipe)[0]
        if key not in largest or len(training_set) > len(largest[key][0]):
            largest[key] = training_set, trial
    different = {training_set.fingerprint(): trial for training_set, trial in largest.values()}
    overlaps = [shared_with_training(trial.folder, splits.test_part(trial.recipe)) for trial in different.values()]
    worst = max((overlap for overlap in overlaps if overlap is not None), key=lambda seen: seen.content, default=None)
    return [str(worst)] if worst is not None and worst.content else []
