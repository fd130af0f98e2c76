"""``maemm demo``: every modality learns a little from its sample set, offline, and one page shows it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from maemm import registry
from maemm.contract.errors import MaemmError
from maemm.tasks._shared.run_files import Run, read_run
from maemm.tasks._shared.run_page import brief, commands, name_of
from maemm.tasks.demo.pairs import pair_of, retrieval
from maemm.ui.page import document, write_html

SIGN_OF_LIFE = 15.0  # seconds between two lines where no bar is shown
EPOCHS = 8  # of each recipe
HELD_OUT = 0.1  # of the samples of a recipe that brings pairs together
_BAR = 20


@dataclass(frozen=True)
class Show:
    """What one plugin brings to the demo."""

    name: str  # of the plugin
    recipe: str
    samples: str | None  # name of its sample set; None: its recipe pairs the sample sets of others


def demo(
    out: str | os.PathLike = "runs/demo",
    *,
    overrides: Sequence[str] = (),
    say: Callable[[str], Any] = print,
) -> Path:
    """Train the demo recipe of every plugin below ``out`` and write ``out/report.html``; returns its path.

    A recipe is cut to :data:`EPOCHS` epochs. The sample sets go to ``out/data/NAME``, the runs to ``out/NAME``. Called
    again it goes on where it stopped, and a finished one only writes its page anew. ``overrides`` change the recipes
    (``train.steps=4``). What one plugin cannot do costs a line, and :class:`MaemmError` is raised only when none
    succeeds.
    """
    from maemm.data.threads import one_thread

    out, began = Path(out), time.monotonic()
    shows = _shows()
    if not shows:
        raise MaemmError("no plugin has a demo; see: maemm plugins")
    modalities = "1 modality" if len(shows) == 1 else f"{len(shows)} modalities"
    say(f"maemm demo: {modalities}, {os.cpu_count()} CPU cores; about three minutes on two cores")
    runs: dict[str, Run] = {}
    failed: dict[str, str] = {}
    with one_thread():
        for show in shows:
            try:
                runs[show.name] = _train(show, out, list(overrides), say)
            except MaemmError as error:
                failed[show.name] = str(error)
                say(f"{show.name:<12}left out: {error}")
    if not runs:
        raise MaemmError(next(iter(failed.values())))
    page = write_html(out / "report.html", _page(runs, failed))
    say(
        f"Done in {time.monotonic() - began:.0f} s. Open {page}: input | visible | reconstruction for every modality, "
        "the curves, and the commands to go on."
    )
    return page


def _shows() -> list[Show]:
    found = []
    for one in registry.all():
        if one.plugin and one.plugin.demo:
            sets = one.plugin.samples
            found.append(Show(one.name, one.plugin.demo, one.name if one.name in sets else next(iter(sets), None)))
    return found


def _train(show: Show, out: Path, overrides: list[str], say: Callable[[str], Any]) -> Run:
    """Sample set, training, and the line that sums it up."""
    from maemm import config
    from maemm.tasks.pretrain.run import train_recipe

    folder = out / show.name
    recipe = _shortened(config.load(show.recipe, overrides, training=True))
    recipe["data"]["root"], recipe["out"] = str(_data(show, recipe, out / "data", say)), str(folder)
    if pair_of(recipe):
        recipe["data"]["validation"] = HELD_OUT  # asked for their partners
        recipe["train"]["validate_every"] = 10**9  # once, at the end
    before = read_run(folder).last("seconds") or 0.0
    train_recipe(recipe, echo=_Sparse(show.name, say))
    run = read_run(folder)
    say(summary(show.name, run, before))
    return run


def _data(show: Show, recipe: Mapping[str, Any], home: Path, say: Callable[[str], Any]) -> Path:
    """The folder of the samples, written where they are not there: a set, or one for each part of a pair."""
    if show.samples is not None:
        sets, data = {home / show.name: show.samples}, home / show.name
    else:
        sets, data = {home / name: name for name in (recipe["data"].get("source") or {}).get("parts", {})}, home
    if not sets:
        raise MaemmError(f"the plugin has a demo and no sample set ({show.recipe}); add samples to its manifest")
    for place, name in sets.items():
        if not place.exists():
            say(f"{show.name:<12}writing the sample set to {place}")
        registry.find("samples", name)(place)
    return data


def _partners(run: Run) -> str:
    """Whose partner is whose, of the samples that were held out; nothing for recipes that bring no pair together."""
    pair = pair_of(run.recipe) if run.recipe.get("modalities") else None
    if pair is None or not (run.recipe.get("data") or {}).get("validation"):
        return ""
    from maemm.data.open import open_parts
    from maemm.weights import load

    told = "Samples that it has not learned from. A green frame: the one that belongs to it."
    table = retrieval(load(run.folder), open_parts(run.recipe)[1], pair)
    return f'<h3>What belongs together</h3><p class="note">{told}</p>{table}'


def _shortened(recipe: dict[str, Any]) -> dict[str, Any]:
    """At most :data:`EPOCHS`, so that all demos together take about three minutes on two cores."""
    train = dict(recipe["train"])
    if not train.get("steps") and (train.get("epochs") or 0) > EPOCHS:
        train["warmup_epochs"] = min(train.get("warmup_epochs") or 0, 1)
        train["epochs"] = EPOCHS
    return {**recipe, "train": train}


class _Sparse:
    """Of the lines of a training, a sign of life now and then, and whatever is neither progress nor routine."""

    def __init__(self, name: str, say: Callable[[str], Any]):
        self.name, self.say, self.last = name, say, time.monotonic()

    def __call__(self, line: str) -> None:
        if line.startswith("no "):  # no pictures, no report: the page would lack them without a word
            self.say(f"{self.name:<12}{line}")
        elif line.startswith("epoch ") and time.monotonic() - self.last > SIGN_OF_LIFE:
            self.last = time.monotonic()
            self.say(f"{self.name:<12}{line}")


def summary(name: str, run: Run, before: float = 0.0) -> str:
    """One line: a bar, steps, loss beside the baseline, seconds of this start."""
    step, steps = (run.rows[-1]["step"], run.last("steps") or 0) if run.rows else (0, 0)
    loss, baseline = run.last("loss"), run.last("baseline")
    filled = round(_BAR * step / steps) if steps else 0
    beside = "" if baseline is None else f" (predicting the mean: {baseline:.3f})"
    learned = "no loss yet" if loss is None else f"loss {loss:.3f}{beside}"
    seconds = (run.last("seconds") or 0.0) - before
    spent = f"{seconds:.0f} s" if seconds >= 0.5 else "finished before"
    return f"{name:<12}{'█' * filled}{'░' * (_BAR - filled)}  {step}/{steps:.0f}  {learned}   {spent}"


def _page(runs: dict[str, Run], failed: dict[str, str]) -> str:
    lead = (
        "Small masked autoencoders, each trained for some seconds on made-up objects. "
        "They show that everything works here, not what the method can do with more data and time."
    )
    links = "".join(f'<a href="#{escape(name)}">{escape(name)}</a>' for name in runs)
    parts = [f'<nav class="jump">{links}<a href="#go-on">go on</a></nav>' if len(runs) > 1 else ""]
    for name, run in runs.items():
        told = f"Recipe {name_of(run)}, run folder {run.folder}."
        parts.append(
            f'<h2 id="{escape(name)}">{escape(name)}</h2><p class="lead">{escape(told)}</p>{_partners(run)}{brief(run)}'
        )
    for name, reason in failed.items():
        parts.append(f'<h2>{escape(name)}</h2><p class="note warn">Left out: {escape(reason)}</p>')
    ways = "".join(f"<h3>{escape(name)}</h3>{commands(run, heading=False)}" for name, run in runs.items())
    parts.append(f'<h2 id="go-on">Go on</h2>{ways}')
    return document("maemm demo", lead, parts)
