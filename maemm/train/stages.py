"""A run of several stages: each is a run in a folder of its own, which begins with the weights of one before it.

Nothing is noted down about the border: what stands in the folders says where a run goes on. A stage is over for good
when a later one has a checkpoint. Before that its own last checkpoint says whether it has ended, and the next one
begins from that anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from maemm import config
from maemm.config import RECIPE
from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_text
from maemm.data.locks import folder_locked
from maemm.data.open import open_parts, with_class_names
from maemm.model.build import build_model
from maemm.train import distributed
from maemm.train.callback import Callback, side_product
from maemm.train.console import Console
from maemm.train.initialize import initialize_from
from maemm.train.loop import echo_line, train
from maemm.train.run_folder import LENGTH, compare, has_checkpoints, stored_recipe, with_stored_classes
from maemm.train.signals import catch_signals


@dataclass
class Stage:
    """One stage of a run."""

    name: str
    recipe: dict[str, Any]
    over: bool  # a later one has begun: it is not trained any more


def train_stages(
    recipe: dict[str, Any],
    *,
    echo: Callable[[str], Any] = echo_line,
    make_callback: Callable[[], Callback] = Callback,
) -> Path:
    """Train the stages of a resolved recipe in order, in folders inside ``recipe["out"]``, and return that folder.

    Called again, it goes on where it stopped, as :func:`~maemm.train.loop.train` does, bit for bit, also at a border.
    Before the first step the data of all stages that are to come are opened, and the weights of each are compared with
    what the next one loads. Each has a callback of its own, as one may hold the model. Raises what ``train`` raises.
    """
    if not recipe.get("out"):
        raise MaemmError("the recipe has no out; add out=runs/NAME, the folder of the run")
    folder = Path(recipe["out"])
    with ExitStack() as stack:
        dist_context = stack.enter_context(distributed.joined())
        console = Console(echo, dist_context.is_rank0)
        interrupts = stack.enter_context(catch_signals())

        def begin() -> list[Stage]:
            stack.enter_context(folder_locked(folder, user="run", log=console.log))
            return _begin(folder, recipe, console.log)

        stages = dist_context.on_rank0(begin)
        for number, stage in enumerate(stages, 1):
            title = f"stage {number} of {len(stages)}: {stage.name}"
            if stage.over:
                console.log(f"{title} is finished")
                continue
            console.log(title)
            callback = make_callback()
            train(stage.recipe, echo=echo, callback=callback, goes_on=number < len(stages))
            write = partial(callback.finish_stage, folder)
            page = dist_context.on_rank0(partial(side_product, console.log, "report of all stages", write, None))
            del callback, write  # and with them the model, before the next one is built
            dist_context.on_all_ranks(lambda: None, stop=interrupts)
        names = ", ".join(stage.name for stage in stages)
        console.log(f"Finished the stages {names} in {folder}{f'; open {page}' if page else ''}")
    return folder


# ------------------------------------------------------------------------------------------------- before training
def _begin(folder: Path, recipe: Mapping[str, Any], log: Callable[[str], Any]) -> list[Stage]:
    """The stages, checked against what the folder holds and against each other. Writes the recipe of the whole."""
    recipes = config.stages_of(recipe)
    _refuse_other_runs(folder, recipes)
    begun = [name for name in recipes if has_checkpoints(folder / name)]
    over = list(recipes)[: list(recipes).index(begun[-1])] if begun else []
    stages: list[Stage] = []
    for name, values in recipes.items():
        with _named(name):
            stage = Stage(name, _with_classes(folder / name, values), name in over)
            if stage.over:
                _refuse_changes(folder / name, stage, begun[-1], log)
            elif stages and name not in begun:
                _check_ahead(stage, {other.recipe["out"]: other for other in stages})
        stages.append(stage)
    text = config.dump(recipe)
    write_text(folder / RECIPE, text, "the recipe of the run", advice="free space or choose another out=")
    return stages


@contextmanager
def _named(stage: str) -> Iterator[None]:
    """An error of a stage names it, also where it comes before its turn."""
    try:
        yield
    except MaemmError as error:
        raise MaemmError(f"stage {stage}: {error}") from None


def _refuse_other_runs(folder: Path, recipes: Mapping[str, Any]) -> None:
    """Raises :class:`MaemmError` where the folder holds a run without stages, or with others in another order."""
    if has_checkpoints(folder):
        raise MaemmError(f"{folder} holds a run without stages; choose another out=, or delete it")
    stored = stored_recipe(folder)
    old = list((stored or {}).get("stages") or ())
    begun = [name for name in old if has_checkpoints(folder / name)]
    if begun and list(recipes)[: old.index(begun[-1]) + 1] != old[: old.index(begun[-1]) + 1]:
        raise MaemmError(
            f"{folder} holds a run with the stages {', '.join(old)}, not {', '.join(recipes)}; choose another out=, or "
            "delete it"
        )


def _refuse_changes(path: Path, stage: Stage, later: str, log: Callable[[str], Any]) -> None:
    """Raises :class:`MaemmError` where a stage that is over has another recipe now, or another length."""
    stored = stored_recipe(path)
    if stored is None:
        raise MaemmError(f"stage {later} has begun, and {path} holds no {RECIPE}; choose another out=")
    changed = [line for line in config.diff(stored, stage.recipe) if line.partition(": ")[0] in LENGTH]
    if changed:
        raise MaemmError(
            f"it is over, as {later} has begun with its weights ({', '.join(changed)}); leave its "
            "length as it was, or choose another out="
        )
    compare(path, stored, stage.recipe, log)


def _with_classes(path: Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with the names of its data's classes, as its folder has them, or else as its data have them."""
    return with_stored_classes(path, recipe) if has_checkpoints(path) else with_class_names(recipe)


def _check_ahead(stage: Stage, before: Mapping[str, Stage]) -> None:
    """Find now what would end the run at the border: data that cannot be opened, weights that do not fit.

    ``before``: {folder: stage}. Raises :class:`MaemmError`.
    """
    open_parts(stage.recipe)
    init = stage.recipe.get("init")
    init = dict(init) if isinstance(init, dict) else {"weights": init}
    source = before.get(init["weights"] or "")
    if source is not None:
        _compare_weights(stage.recipe, {**init, "weights": source.recipe})


def _compare_weights(recipe: dict[str, Any], init: dict[str, Any]) -> None:
    """:func:`initialize_from` with models that have shapes alone; what is only built with values is not compared."""
    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            new, old = build_model(recipe), build_model(init["weights"])
            initialize_from(new, {**init, "weights": old})
    except MaemmError:
        raise
    except Exception:  # some part makes no sense without values: the border itself will tell
        return
