"""``maemm finetune`` as functions: one run, several seeds or folds, several numbers of labels.

The training loop is that of pre-training; only the recipe differs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from maemm.contract.errors import MaemmError
from maemm.tasks._shared.comparison import Comparison
from maemm.tasks._shared.inputs import Data
from maemm.tasks.finetune.recipe import recipe_for, scratch_or_tuned_recipe
from maemm.tasks.finetune.trials import ALL, SCRATCH, TUNED, Splits, train_and_evaluate
from maemm.tasks.pretrain import run as pretrain


def finetune(
    weights: str | os.PathLike,
    data: str | os.PathLike | None = None,
    *,
    scratch: bool = False,
    balanced: bool = False,
    echo: Callable[[str], Any] = print,
    **overrides: Any,
) -> Path:
    """Fine-tune a classifier; -> the run folder. Called again, it continues.

    ``finetune("runs/photos", "labelled/", **{"train.epochs": 20})``. ``weights`` and ``balanced``: see
    :func:`~maemm.tasks.finetune.recipe.recipe_for`. ``scratch``: the same network and recipe with fresh weights, in a
    folder of its own, to compare with. Raises :class:`MaemmError`.
    """
    recipe = scratch_or_tuned_recipe(weights, data, overrides, scratch=scratch, balanced=balanced)
    return pretrain.train_recipe(recipe, echo=echo)


def repeated(
    weights: str | os.PathLike,
    data: str | os.PathLike | None,
    *,
    test: Data = None,
    seeds: int = 1,
    folds: int | None = None,
    groups: str | None = None,
    test_options: Mapping[str, Any] | None = None,
    scratch: bool = False,
    balanced: bool = False,
    echo: Callable[[str], Any] = print,
    **overrides: Any,
) -> tuple[Comparison | None, Path]:
    """Fine-tune with several seeds, or on several folds; -> (metrics, folder).

    ``test``: data to evaluate on, with ``test_options`` of its source (see
    :func:`maemm.tasks._shared.inputs.open_part`). Without it, ``data`` are cut into ``folds``, or by ``groups``, a
    regular expression for ids, and each run is evaluated on the fold that it leaves out. ``seeds``: each draws weights,
    order, folds and the validation part. The folder is ``out``, by default WEIGHTS-runs; the runs are below it, and
    continue where they were interrupted. The metrics are None on ranks other than 0. The others as in
    :func:`finetune`. Raises :class:`MaemmError`.
    """

    def make_recipe(kind: str, changes: dict[str, Any], shots: str) -> dict[str, Any]:
        recipe = scratch_or_tuned_recipe(weights, data, changes, scratch=scratch, balanced=balanced)
        return {**recipe, "out": changes["out"]}  # this name says whether it is from scratch

    return train_and_evaluate(
        weights,
        "runs",
        kinds=(SCRATCH if scratch else TUNED,),
        shots=[ALL],
        seeds=seeds,
        splits=Splits(test, folds, groups, test_options),
        make_recipe=make_recipe,
        overrides=overrides,
        echo=echo,
    )


def label_efficiency(
    weights: str | os.PathLike,
    data: str | os.PathLike | None,
    *,
    test: Data = None,
    shots: Sequence[str | int],
    seeds: int = 1,
    folds: int | None = None,
    groups: str | None = None,
    test_options: Mapping[str, Any] | None = None,
    echo: Callable[[str], Any] = print,
    **overrides: Any,
) -> tuple[Comparison | None, Path]:
    """Fine-tune with each number of labels, and train the same network from fresh weights; -> (metrics, folder).

    ``shots``: labels of each class, such as 1, "10%", "all"; both networks get the same ones, and with one seed more
    shots include fewer. Nothing is chosen by the test part: the weights of the last step are evaluated. The folder,
    by default WEIGHTS-labels, has a page with the curve. The others as in :func:`repeated`.
    """
    if not shots:
        raise MaemmError("no numbers of labels are given (--shots); give at least one, such as 1,10%,all")

    def make_recipe(kind: str, changes: dict[str, Any], shots: str) -> dict[str, Any]:
        recipe = recipe_for(weights, data, {"data.validation": None, **changes, "data.shots": shots})
        if kind == SCRATCH:
            recipe.pop("init", None)
        elif not recipe.get("init"):
            raise MaemmError(
                f"{weights} starts from no weights, so there is nothing to compare; set init=RUN_OR_WEIGHTS"
            )
        return recipe

    return train_and_evaluate(
        weights,
        "labels",
        kinds=(TUNED, SCRATCH),
        shots=[str(count) for count in shots],
        seeds=seeds,
        splits=Splits(test, folds, groups, test_options),
        make_recipe=make_recipe,
        overrides=overrides,
        echo=echo,
    )
