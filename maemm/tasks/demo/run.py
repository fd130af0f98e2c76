"""``maemm demo``: short pre-training on the sample set of every plugin, offline, with one page of results."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maemm import registry
from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError
from maemm.data.locks import folder_locked
from maemm.tasks._shared.run_files import RunContents, read_run
from maemm.tasks._shared.run_page import page_data
from maemm.tasks.demo.pairs import pair_of, retrieval
from maemm.train.distributed import one_line
from maemm.train.signals import Interrupted
from maemm.ui.page import render, write_html

LINE_EVERY_S = 15.0  # seconds between two lines about a training
EPOCHS = 8  # of each recipe
HELD_OUT = 0.1  # fraction of the samples of a recipe that aligns two modalities, for retrieval
_BAR = 20  # characters


@dataclass(frozen=True)
class Show:
    """What one plugin shows in the demo."""

    name: str  # of the plugin
    recipe: str
    samples: str | None  # its sample set; None: its recipe pairs the sample sets of other plugins


def demo(
    out: str | os.PathLike = "runs/demo",
    *,
    overrides: Sequence[str] = (),
    say: Callable[[str], Any] = print,
) -> Path:
    """Train the demo recipe of every plugin below ``out`` and write ``out/report.html``; returns its path.

    Each recipe is trained for at most :data:`EPOCHS` epochs. The sample sets go to ``out/data/NAME``, the runs to
    ``out/NAME``. Called again, unfinished runs continue, and the page is written anew. ``overrides`` change the recipes
    (``train.steps=4``). A plugin that fails is left out with a line; :class:`MaemmError` is raised only when all fail.
    """
    from maemm.data.threads import one_thread

    folder, began = expanded(out), time.monotonic()
    shows = _shows()
    if not shows:
        raise MaemmError("no plugin has a demo; see: maemm plugins")
    modalities = "1 modality" if len(shows) == 1 else f"{len(shows)} modalities"
    say(f"maemm demo: {modalities}, {os.cpu_count()} CPU cores; about three minutes on two cores")
    runs: dict[str, RunContents] = {}
    failed: dict[str, str] = {}
    with folder_locked(folder, user="demo", log=say), one_thread():
        for show in shows:
            try:
                runs[show.name] = _train(show, folder, list(overrides), say)
            except (Interrupted, MemoryError):
                raise
            except Exception as error:  # whatever a plugin raises: the others are shown
                failed[show.name] = one_line(error)
                say(f"{show.name:<12}left out: {failed[show.name]}")
    if not runs:
        raise MaemmError(next(iter(failed.values())))
    page = write_html(folder / "report.html", _page(runs, failed))
    say(
        f"Done in {time.monotonic() - began:.0f} s. Open {page}: input | visible | reconstruction for every modality, "
        "the curves, and commands to try next."
    )
    return page


def _shows() -> list[Show]:
    shows = []
    for entry in registry.all_plugins():
        if entry.plugin and entry.plugin.demo:
            sets = entry.plugin.samples
            samples = entry.name if entry.name in sets else next(iter(sets), None)
            shows.append(Show(entry.name, entry.plugin.demo, samples))
    return shows


def _train(show: Show, out: Path, overrides: list[str], say: Callable[[str], Any]) -> RunContents:
    """Write the sample set, train, and print the summary."""
    from maemm import config
    from maemm.tasks.pretrain.run import train_recipe

    folder = out / show.name
    recipe = _shortened(config.load(show.recipe, overrides, training=True))
    recipe["data"]["root"], recipe["out"] = str(_data(show, recipe, out / "data", say)), str(folder)
    if pair_of(recipe):
        recipe["data"]["validation"] = HELD_OUT  # what the page retrieves
        recipe["train"]["validate_every"] = 10**9  # once, at the end
    before = read_run(folder).last("seconds") or 0.0
    train_recipe(recipe, echo=_Sparse(show.name, say))
    run = read_run(folder)
    say(summary(show.name, run, before))
    return run


def _data(show: Show, recipe: Mapping[str, Any], home: Path, say: Callable[[str], Any]) -> Path:
    """The folder of the samples, which are written unless they exist: one set, or one for each part of a pair."""
    if show.samples is not None:
        sets, data = {home / show.name: show.samples}, home / show.name
    else:
        sets, data = {home / name: name for name in (recipe["data"].get("source") or {}).get("parts", {})}, home
    if not sets:
        raise MaemmError(f"the plugin has a demo and no sample set ({show.recipe}); add samples to its manifest")
    for path, name in sets.items():
        if not path.exists():
            say(f"{show.name:<12}writing the sample set to {path}")
        registry.find("samples", name)(path)
    return data


def _shortened(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with at most :data:`EPOCHS` epochs: all demos together take about three minutes on two cores."""
    train = dict(recipe["train"])
    if not train.get("steps") and (train.get("epochs") or 0) > EPOCHS:
        train["warmup_epochs"] = min(train.get("warmup_epochs") or 0, 1)
        train["epochs"] = EPOCHS
    return {**recipe, "train": train}


class _Sparse:
    """Passes on what was left out of a run, and a line of progress every :data:`LINE_EVERY_S` seconds."""

    def __init__(self, name: str, say: Callable[[str], Any]):
        self.name, self.say, self.last = name, say, time.monotonic()

    def __call__(self, line: str) -> None:
        if line.startswith("no "):  # "no pictures ...", "no report ...": the page lacks them
            self.say(f"{self.name:<12}{line}")
        elif line.startswith("epoch ") and time.monotonic() - self.last > LINE_EVERY_S:
            self.last = time.monotonic()
            self.say(f"{self.name:<12}{line}")


def summary(name: str, run: RunContents, before: float = 0.0) -> str:
    """One line: a bar, steps, loss and the loss of predicting the mean, seconds without those ``before``."""
    step, steps = (run.rows[-1]["step"], run.last("steps") or 0) if run.rows else (0, 0)
    loss, baseline = run.last("loss"), run.last("baseline")
    filled = round(_BAR * step / steps) if steps else 0
    comparison = "" if baseline is None else f" (predicting the mean: {baseline:.3f})"
    result = "no loss yet" if loss is None else f"loss {loss:.3f}{comparison}"
    seconds = (run.last("seconds") or 0.0) - before
    spent = f"{seconds:.0f} s" if seconds >= 0.5 else "finished before"
    return f"{name:<12}{'█' * filled}{'░' * (_BAR - filled)}  {step}/{steps:.0f}  {result}   {spent}"


def _page(runs: Mapping[str, RunContents], failed: Mapping[str, str]) -> str:
    lead = (
        "Small masked autoencoders, each trained for some seconds on synthetic objects. "
        "They show that everything works here, not what the method can do with more data and time."
    )
    data = {name: {**page_data(run), "pairs": _pairs(run)} for name, run in runs.items()}
    return str(render("demo.html", title="maemm demo", lead=lead, runs=data, failed=failed))


def _pairs(run: RunContents) -> dict[str, Any] | None:
    """Retrieval among the held-out samples; None for recipes that align no pair."""
    pair = pair_of(run.recipe) if run.recipe.get("modalities") else None
    if pair is None or not (run.recipe.get("data") or {}).get("validation"):
        return None
    from maemm.data.open import open_parts
    from maemm.weights import load

    held_out = open_parts(run.recipe)[1]
    return None if held_out is None else retrieval(load(run.folder), held_out, pair)
