"""How many labels a classifier needs: fine-tuned and from scratch, with few labels and with more."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maemm.errors import MaemmError
from maemm.evaluate.curves import draw_curves
from maemm.evaluate.evaluate import Answers, evaluate, shared_with_training
from maemm.evaluate.figures import Cell, Comparison, save_record
from maemm.evaluate.finetune import recipe_for

TUNED, SCRATCH = "fine-tuned", "from scratch"


def label_efficiency(
    what: str | os.PathLike,
    data: str | os.PathLike | None,
    *,
    test: str | os.PathLike,
    shots: Sequence[str | int],
    seeds: int = 1,
    echo: Callable[[str], Any] = print,
    **overrides: Any,
) -> tuple[Comparison, Path]:
    """Fine-tuning beside the same network from fresh weights, for each number of labels; -> (figures, folder).

    ``shots``: labels of each class, such as 1, "10%", "all"; the same ones for both, and those of a seed contain those
    of fewer shots. Nothing is chosen by the test part: the weights of the last step are asked. Runs lie below the
    folder (``out``; by default WHAT-labels), and go on where they were interrupted; its page has the curve. The rest
    as in :func:`maemm.evaluate.finetune.finetune`. Raises :class:`MaemmError`.
    """
    shots = [str(one) for one in shots]
    if not shots or seeds < 1:
        raise MaemmError(f"{len(shots)} numbers of labels and {seeds} seeds give no curve; give one of each at least")
    folder = Path(overrides.pop("out", None) or f"{str(what).rstrip('/')}-labels")
    found, run = Comparison(shots=shots, seeds=seeds), None
    for kind in (TUNED, SCRATCH):
        cells = {one: Cell(kind, "finetune", one) for one in shots}
        for seed in range(seeds):
            for one, cell in cells.items():
                run = _train(what, data, folder, kind, one, seed, overrides, echo)
                _take(cell, evaluate(run, test), seed, found)
        found.cells += cells.values()
    shared = shared_with_training(run, test)
    if shared is not None and shared.content:
        found.warnings.append(str(shared))
    written = save_record(found.record(), "labels", what, folder / "evaluate" / "labels.json")
    if len(shots) > 1:
        draw_curves(found, written.with_suffix(".png"))
    from maemm.report import write_page

    write_page(folder)
    return found, folder


def _train(
    what: str | os.PathLike,
    data: str | os.PathLike | None,
    folder: Path,
    kind: str,
    shots: str,
    seed: int,
    overrides: dict[str, Any],
    echo: Callable[[str], Any],
) -> Path:
    from maemm.train.loop import pretrain

    out = folder / "runs" / f"{kind.replace(' ', '-')}-{shots.replace('%', '-percent')}-seed-{seed}"
    given = {"data.validation": None, **overrides, "data.shots": shots, "train.seed": seed, "out": str(out)}
    recipe = recipe_for(what, data, given)
    if kind == SCRATCH:
        recipe.pop("init", None)
    elif not recipe.get("init"):
        raise MaemmError(f"{what} begins with no weights, so there is nothing to compare; set init=RUN_OR_WEIGHTS")
    return pretrain(recipe, echo=echo)


def _take(cell: Cell, answers: Answers, seed: int, found: Comparison) -> None:
    stream = next(iter(answers.logits))
    cell.values.append([next(iter(answers.figures(stream).values()))])
    if seed == 0 or answers.several:
        cell.add(answers.labels, answers.logits[stream], answers.classes, len(answers.classes))
    if not found.data:
        found.data = {"labelled": len(answers.labels), "skipped": len(answers.skipped)}
