"""Several fine-tunings and one table: by seed, by fold, by number of labels, beside the same network from scratch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.folds import groups_of, usual_count
from maemm.data.open import open_fold, open_parts, open_source
from maemm.tasks._shared.comparison import Cell, Comparison
from maemm.tasks._shared.curves import draw_curves
from maemm.tasks._shared.inputs import Data, open_part
from maemm.tasks._shared.records import save_record
from maemm.tasks.evaluate.run import Answers, evaluate, shared_with_training
from maemm.tasks.finetune.run import beginning, recipe_for

TUNED, SCRATCH = "fine-tuned", "from scratch"
ALL = "all"  # labels, where nothing is said about their number


@dataclass
class _Trial:
    """One run of several: where its figure goes, and what it trains."""

    cell: Cell
    seed: int
    recipe: dict[str, Any]
    run: Path | None = None


@dataclass(frozen=True)
class Splits:
    """What runs are asked about: a test part, or the folds that they leave out."""

    test: Data = None
    folds: int | None = None
    groups: str | None = None
    options: Mapping[str, Any] | None = None  # of the test part: see :func:`maemm.tasks._shared.inputs.open_part`

    def __post_init__(self) -> None:
        if (self.test is None) == (self.folds is None and self.groups is None):
            raise MaemmError("several runs need something to ask about; give --test DATA, or --folds or --groups")

    def keys(self, recipe: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
        """What the recipes of one seed differ in; ``recipe`` makes the one that they begin with."""
        if self.test is not None:
            return [{}]
        count = self.folds
        if count is None:
            source = open_source(recipe())
            count = usual_count(groups_of([source.name(i) for i in range(len(source))], self.groups))
        return [{"data.fold": f"{number}/{count}", "data.groups": self.groups} for number in range(1, count + 1)]

    def asked(self, recipe: Mapping[str, Any]) -> Source:
        """The samples that a run of this recipe is asked about."""
        if self.test is not None:
            return open_part(recipe, self.test, self.options or {})
        return open_fold(recipe)[1]


def label_efficiency(
    what: str | os.PathLike,
    data: str | os.PathLike | None,
    *,
    test: Data = None,
    shots: Sequence[str | int],
    seeds: int = 1,
    folds: int | None = None,
    groups: str | None = None,
    options: Mapping[str, Any] | None = None,
    echo: Callable[[str], Any] = print,
    **overrides: Any,
) -> tuple[Comparison | None, Path]:
    """Fine-tuning beside the same network from fresh weights, for each number of labels; -> (figures, folder).

    ``shots``: labels of each class, such as 1, "10%", "all"; the same ones for both, and those of a seed contain those
    of fewer shots. Nothing is chosen by the test part: the weights of the last step are asked. The page of the folder
    has the curve. The rest as in :func:`repeated`.
    """
    shots = [str(one) for one in shots]
    if not shots:
        raise MaemmError("no numbers of labels are given (--shots); give one at least, such as 1,10%,all")

    def made(kind: str, given: dict[str, Any], some: str) -> dict[str, Any]:
        recipe = recipe_for(what, data, {"data.validation": None, **given, "data.shots": some})
        if kind == SCRATCH:
            recipe.pop("init", None)
        elif not recipe.get("init"):
            raise MaemmError(f"{what} begins with no weights, so there is nothing to compare; set init=RUN_OR_WEIGHTS")
        return recipe

    split = Splits(test, folds, groups, options)
    return _table(what, "labels", (TUNED, SCRATCH), shots, seeds, split, made, overrides, echo)


def repeated(
    what: str | os.PathLike,
    data: str | os.PathLike | None,
    *,
    test: Data = None,
    seeds: int = 1,
    folds: int | None = None,
    groups: str | None = None,
    options: Mapping[str, Any] | None = None,
    scratch: bool = False,
    balanced: bool = False,
    echo: Callable[[str], Any] = print,
    **overrides: Any,
) -> tuple[Comparison | None, Path]:
    """Fine-tuning with several seeds or on several folds; -> (figures, folder).

    ``test``: data to ask about, with ``options`` of its source (see :func:`maemm.tasks._shared.inputs.open_part`).
    Without, ``data`` are cut into ``folds``, or into those of ``groups``, a regular expression for ids, and each run is
    asked about the fold that it leaves out. ``seeds`` draw weights, order, folds and what is held out to validate with.
    Runs lie below the folder (``out``; by default WHAT-runs, of few labels WHAT-labels), and go on where they were
    interrupted. Only the first of several processes has figures, the others None. The rest as in
    :func:`maemm.tasks.finetune.run.finetune`. Raises :class:`MaemmError`.
    """

    def made(kind: str, given: dict[str, Any], some: str) -> dict[str, Any]:
        out = given["out"]  # the name says whether it is from scratch
        return {**beginning(what, data, given, scratch=scratch, balanced=balanced), "out": out}

    split = Splits(test, folds, groups, options)
    return _table(what, "runs", (SCRATCH if scratch else TUNED,), [ALL], seeds, split, made, overrides, echo)


def _table(
    what: str | os.PathLike,
    verb: str,
    kinds: Iterable[str],
    shots: list[str],
    seeds: int,
    split: Splits,
    made: Callable[[str, dict[str, Any], str], dict[str, Any]],
    overrides: dict[str, Any],
    echo: Callable[[str], Any],
) -> tuple[Comparison | None, Path]:
    """All runs, then the answers of all: processes that trained together leave before the first one asks."""
    from maemm.tasks.pretrain.run import train_recipe
    from maemm.train.distributed import joined

    if seeds < 1:
        raise MaemmError(f"{seeds} seeds give no figure (--seeds); give 1 or more")
    folder = Path(overrides.pop("out", None) or f"{str(what).rstrip('/')}-{verb}")
    own = {**overrides, "out": str(folder)}
    parts = split.keys(lambda: made(SCRATCH, own, ALL))
    trials, cells = [], []
    for kind in kinds:
        some = {one: Cell(kind, "finetune", one) for one in shots}
        cells += some.values()
        for seed in range(seeds):
            for one, cell in some.items():
                for part in parts:
                    out = folder / "runs" / _name(kind, one if verb == "labels" else None, seed, part)
                    given = {**overrides, **part, "train.seed": seed, "out": str(out)}
                    trials.append(_Trial(cell, seed, made(kind, given, one)))
    if trials and split.test is not None:
        split.asked(trials[0].recipe)  # a test part that cannot be opened is told before hours of training
    found = Comparison(shots=shots, seeds=seeds, folds=len(parts) if split.test is None else None, cells=cells)
    with joined() as dist_context:
        for trial in trials:
            trial.run = train_recipe(trial.recipe, echo=echo)
    if not dist_context.is_rank0:
        return None, folder
    _ask(trials, split, found)
    _write(found, verb, what, folder)
    return found, folder


def _name(kind: str, shots: str | None, seed: int, part: Mapping[str, Any]) -> str:
    """Of the folder of a run."""
    fold = part["data.fold"].partition("/")[0] if part else None
    pieces = [kind.replace(" ", "-"), shots and shots.replace("%", "-percent"), f"seed-{seed}", fold and f"fold-{fold}"]
    return "-".join(one for one in pieces if one)


def _ask(trials: list[_Trial], split: Splits, found: Comparison) -> None:
    for trial in trials:
        answers = evaluate(trial.run, split.asked(trial.recipe))
        stream = next(iter(answers.logits))
        cell, metric = trial.cell, next(iter(answers.metrics(stream).values()))
        while len(cell.values) <= trial.seed:
            cell.values.append([])
        cell.values[trial.seed].append(metric)
        if trial.seed == 0 or answers.multilabel:
            cell.add(answers.labels, answers.logits[stream], answers.classes, len(answers.classes))
        if trial.seed == 0 and cell is trials[0].cell:
            _count(answers, found)
    found.warnings += _overlaps(trials, split)


def _count(answers: Answers, found: Comparison) -> None:
    """Add what one run was asked; folds add up to all samples."""
    before = found.data or {"labelled": 0, "skipped": 0}
    found.data = {
        "labelled": before["labelled"] + len(answers.labels),
        "skipped": before["skipped"] + len(answers.skipped),
    }
    found.skipped += answers.skipped


def _overlaps(trials: list[_Trial], split: Splits) -> list[str]:
    """The worst of what is to be warned of: each set of training samples that no other one holds is looked at."""
    widest: dict[tuple[int, Any], tuple[Source, _Trial]] = {}
    for trial in trials:  # of a seed and fold the run with the most labels, which holds those of the others
        key, learned = (trial.seed, trial.recipe["data"].get("fold")), open_parts(trial.recipe)[0]
        if key not in widest or len(learned) > len(widest[key][0]):
            widest[key] = learned, trial
    sets = {learned.fingerprint(): trial for learned, trial in widest.values()}
    found = [shared_with_training(one.run, split.asked(one.recipe)) for one in sets.values()]
    worst = max((one for one in found if one is not None), key=lambda one: one.content, default=None)
    return [str(worst)] if worst is not None and worst.content else []


def _write(found: Comparison, verb: str, what: str | os.PathLike, folder: Path) -> None:
    written = save_record(found.record(), verb, what, folder / "evaluate" / f"{verb}.json")
    if len(found.shots) > 1:
        draw_curves(found, written.with_suffix(".png"))
    from maemm.tasks._shared.run_page import write_page

    write_page(folder)
