"""``maemm ablate`` as a function: equal short trainings of variants of a recipe, measured alike."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch

from maemm.config.paths import expanded
from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_json
from maemm.data.bad_samples import reason_of
from maemm.data.line_files import record_in
from maemm.data.locks import folder_locked
from maemm.data.open import open_parts
from maemm.tasks._shared.baselines import RAW, UNTRAINED
from maemm.tasks.ablate.measures import Measurer
from maemm.tasks.ablate.page import write_page
from maemm.tasks.ablate.results import ADVICE, BASELINES, PAGE, Ablation
from maemm.tasks.ablate.study import Study, make_study
from maemm.tasks.ablate.trials import Outcome, Trial, refuse_another, run_trial, trial_of
from maemm.train.distributed import DistContext
from maemm.train.loop import echo_line
from maemm.train.setup import make_order, make_train_state
from maemm.train.signals import Interrupted


def ablate(
    recipe: str | Path | Mapping[str, Any],
    data: str | os.PathLike | None = None,
    *,
    sets: Sequence[str] = (),
    variants: Mapping[str, Mapping[str, Any] | None] | None = None,
    one_at_a_time: bool = False,
    only: Sequence[str] | None = None,
    reference: str | None = None,
    seeds: int | None = None,
    steps: int | None = None,
    measures: Sequence[str] | None = None,
    test: str | os.PathLike | None = None,
    probe: str | os.PathLike | None = None,
    samples: int | None = None,
    baselines: bool = True,
    jobs: int = 1,
    out: str | os.PathLike | None = None,
    overrides: Mapping[str, Any] | Iterable[str] | None = None,
    say: Callable[[str], Any] = echo_line,
) -> Ablation:
    """Train variants of a recipe alike, measure them alike, and compare them with one of them.

    ``recipe``: a recipe, or a study: a file, or the name of a packaged one, whose values the arguments replace.
    ``data``: short for ``data.root``. ``sets``: ``["masking=random,scan:spiral", "decoder.depth=1,4"]``, all
    combinations of these values (``one_at_a_time``: each alone), see :mod:`maemm.tasks.ablate.grammar`; ``variants``:
    {name: {key: value}} beside them or in their place. ``only``: names of variants; the others are left out.
    ``reference``: the name of the variant that others are compared with, by default the recipe as it is, which is
    trained too. ``seeds``: runs of each variant (3); ``steps`` of each run, by default as the recipe says. ``measures``
    of the frozen features: linear, knn, rank; they are fitted on ``probe`` (by default the training data), in folds or
    tested on ``test``, on at most ``samples`` samples of either. ``baselines``: also raw values, and the reference
    untrained. ``jobs``: runs at a time, each in a process of its own (a script
    calls it below ``if __name__ == "__main__":``). ``overrides``: of the recipe, for all variants.

    Everything is checked before the first step. Each run is an ordinary run in ``out``/VARIANT/seed-K (by default
    ``runs/ablate-NAME``); called again, what is finished is not done again and the rest continues. A run that fails is
    named in the result, and the others go on. Writes results.json, results.csv and report.html into ``out``.

    Raises :class:`MaemmError` for anything wrong with the study, and where no run at all succeeds.
    """
    common = overrides if data is None else _with_data(overrides, data)
    study = make_study(
        recipe, common, sets=sets, variants=variants, one_at_a_time=one_at_a_time, only=only, reference=reference,
        seeds=seeds, steps=steps, measures=measures, samples=samples,
    )  # fmt: skip
    if jobs < 1:
        raise MaemmError(f"{jobs} jobs do nothing (--jobs); give 1 or more")
    folder = expanded(out or Path("runs", f"ablate-{re.sub(r'[^A-Za-z0-9_.-]+', '-', study.name)}"))
    trials = _trials(study, folder)
    _check(study, trials, folder)
    base = study.variants[0].recipe
    measurer = Measurer(base, study.measures, data=probe, test=test, samples=study.samples)
    ablation = Ablation(study, folder, measurer.protocol(), measurer.words(), notes=[*measurer.notes])
    with folder_locked(folder, user="ablation", log=say):
        _run_all(ablation, trials, measurer, jobs=jobs, baselines=baselines, say=say)
    if len(ablation.failed) == len(trials):
        raise MaemmError(f"all {len(trials)} runs failed (the first: {ablation.failed[0].error}); see {folder / PAGE}")
    return ablation


def _run_all(
    ablation: Ablation,
    trials: list[Trial],
    measurer: Measurer,
    *,
    jobs: int,
    baselines: bool,
    say: Callable[[str], Any],
) -> None:
    """Train and measure what is not done yet; results and the page are written in any case."""
    study = ablation.study
    try:
        if baselines:
            ablation.baselines = _baselines(ablation.folder, measurer, study.seeds)
            ablation.notes = [*measurer.notes]
        say(f"{ablation.folder}   {len(study.variants)} variants, {study.seeds} seeds: {len(trials)} runs")
        for outcome in _outcomes(trials, measurer, jobs, say):
            ablation.outcomes.append(outcome)
            ablation.notes += [note for note in outcome.notes if note not in ablation.notes]
            say(f"{len(ablation.outcomes)}/{len(trials)}  {_line(outcome)}")
            ablation.write()
    except (Interrupted, KeyboardInterrupt):
        done = sum(1 for outcome in ablation.outcomes if not outcome.error)
        say(f"Stopped: {done} of {len(trials)} runs are finished. The same command continues.")
        raise
    finally:
        ablation.outcomes.sort(key=lambda x: ([v.name for v in study.variants].index(x.variant), x.seed))
        _write_page(ablation, say)
    ablation.write()


def _with_data(overrides: Mapping[str, Any] | Iterable[str] | None, data: str | os.PathLike) -> Any:
    """Overrides with ``data.root``, in the form that they have."""
    import json

    root = os.fspath(data)
    if isinstance(overrides, Mapping):
        return {**overrides, "data.root": root}
    return [*(overrides or ()), f"data.root={json.dumps(root)}"]


def _trials(study: Study, folder: Path) -> list[Trial]:
    """Every variant with the first seed, then with the next: a table of all variants is there early."""
    return [
        trial_of(variant.name, seed, folder / variant.folder / f"seed-{seed}", variant.recipe)
        for seed in range(study.seeds)
        for variant in study.variants
    ]


# --------------------------------------------------------------------------------------- before the first step
def _check(study: Study, trials: Sequence[Trial], folder: Path) -> None:
    """Raises :class:`MaemmError` for every variant that cannot be built or read, and for folders of other runs."""
    if (folder / "checkpoints").is_dir():
        raise MaemmError(f"{folder} is the folder of a run; choose another --out")
    for trial in trials:
        refuse_another(trial)
    mistakes: list[str] = []
    opened: dict[str, Any] = {}  # sources by what they depend on
    for variant in study.variants:
        try:
            key = repr(
                (variant.recipe["data"], {name: x.get("type") for name, x in variant.recipe["modalities"].items()})
            )
            if key not in opened:
                opened[key] = open_parts(variant.recipe)[0]
            _begin(variant.recipe, opened[key])
        except MaemmError as error:
            mistakes += [f"variant {variant.name!r}: {line}" for line in str(error).splitlines()]
    if mistakes:
        raise MaemmError("\n".join(mistakes))


def _begin(recipe: dict[str, Any], source: Source) -> None:
    """All that a run does before its first step, but for reading samples. Raises :class:`MaemmError`."""
    dist_context = DistContext()
    order = make_order(recipe, source, dist_context)
    steps = recipe["train"].get("steps") or recipe["train"]["epochs"] * order.steps_per_epoch
    make_train_state(recipe, steps, order.accumulation, dist_context, steps_per_epoch=order.steps_per_epoch)


def _baselines(folder: Path, measurer: Measurer, seeds: int) -> dict[str, dict[int, dict[str, float]]]:
    """{kind: {seed: values}} of raw values and the untrained reference, kept in the folder for the next start."""
    if not measurer.names:
        return {}
    path, about = folder / BASELINES, {"protocol": measurer.protocol(), "recipe": measurer.recipe}
    kept = record_in(path) or {}
    if kept.get("about") != about:
        kept = {}
    measurer.notes += [note for note in kept.get("notes") or [] if note not in measurer.notes]
    stored: dict[str, dict[str, dict[str, float]]] = kept.get("values") or {}
    values = {kind: {int(seed): row for seed, row in (stored.get(kind) or {}).items()} for kind in (UNTRAINED, RAW)}
    if not values[RAW] and not kept:
        try:
            values[RAW] = {0: measurer.raw()}
        except MaemmError as error:
            if "no vector of one length" not in str(error):
                raise
            measurer.notes.append(f"no row of raw values: {error}")
    for seed in range(seeds):
        if seed not in values[UNTRAINED]:
            values[UNTRAINED][seed] = measurer.untrained(seed)
        write_json(path, {"about": about, "values": values, "notes": measurer.notes}, "the baselines", advice=ADVICE)
    return {kind: {seed: row for seed, row in rows.items() if seed < seeds} for kind, rows in values.items()}


# --------------------------------------------------------------------------------------------------- the runs
def _outcomes(trials: Sequence[Trial], measurer: Measurer, jobs: int, say: Callable[[str], Any]) -> Iterator[Outcome]:
    """What comes of each trial, as they end."""
    if jobs == 1:
        yield from (run_trial(trial, measurer, say) for trial in trials)
        return
    threads, waiting = max(1, torch.get_num_threads() // jobs), iter(trials)
    with ProcessPoolExecutor(min(jobs, len(trials)), get_context("spawn"), _ignore_interrupts) as pool:

        def begin(count: int) -> set[Future[Outcome]]:
            """No more than there are processes: what stands in their queue would still be begun after a Ctrl-C."""
            return {pool.submit(_in_process, trial, measurer, threads) for trial in islice(waiting, count)}

        try:
            running = begin(jobs)
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                running |= begin(len(done))
                for future in done:
                    yield future.result()
        except BrokenProcessPool:
            raise MaemmError(
                f"a process of the runs has died; set --jobs lower than {jobs}: the same command continues"
            ) from None
        except BaseException:
            for child in active_children():  # those that train save first
                if child.pid is not None:
                    os.kill(child.pid, signal.SIGTERM)
            raise


def _ignore_interrupts() -> None:
    """A Ctrl-C reaches all processes of a terminal: those that wait for work are ended by the first of them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _in_process(trial: Trial, measurer: Measurer, threads: int) -> Outcome:
    """:func:`run_trial` in a process of its own, which a signal ends."""
    torch.set_num_threads(threads)
    try:
        return run_trial(trial, measurer, echo_line)
    except Interrupted as stop:  # the run is saved, and there must be no other in this process
        os._exit(stop.status)


def _line(outcome: Outcome) -> str:
    """A trial in one line."""
    name = f"{outcome.variant}, seed {outcome.seed}"
    if outcome.error:
        return f"{name}: FAILED ({outcome.error}); the others go on"
    shown = [
        f"{key} {outcome.values[key]:.4g}" for key in outcome.values if key.split(" ")[0] in ("loss", "linear", "knn")
    ]
    return f"{name}: {', '.join(shown)}" + (" (finished before)" if outcome.before else "")


def _write_page(ablation: Ablation, say: Callable[[str], Any]) -> None:
    """The page is a side product: where it fails, the results are there all the same."""
    try:
        if ablation.outcomes:
            write_page(ablation)
    except Exception as error:
        say(f"no page ({reason_of(error)})")
