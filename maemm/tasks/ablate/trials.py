"""One run of a comparison: trained by the ordinary loop, then measured. What is done is not done again."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from maemm import config
from maemm.config import RECIPE
from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_json
from maemm.data.line_files import record_in
from maemm.data.loader import Loader
from maemm.tasks._shared.run_files import read_run
from maemm.tasks.ablate.measures import Measurer, of_log
from maemm.tasks.pretrain.report import Report
from maemm.train.distributed import one_line
from maemm.train.loop import train
from maemm.train.run_folder import RunFolder, is_free
from maemm.train.signals import Interrupted
from maemm.train.state import TrainState

RECORD = "ablate.json"  # in a run's folder: what was measured of it
LINE_EVERY_S = 30.0  # seconds between two lines about a training
NO_PICTURES = 10**9  # steps between pictures: those at the end are enough


@dataclass(frozen=True)
class Trial:
    """A variant with a seed."""

    variant: str
    seed: int
    folder: Path
    recipe: dict[str, Any] = field(repr=False)

    @property
    def title(self) -> str:
        """For lines that people read."""
        return f"{self.variant}, seed {self.seed}"


@dataclass
class Outcome:
    """What came of a trial."""

    variant: str
    seed: int
    folder: Path
    values: dict[str, float] = field(default_factory=dict)  # by measure
    error: str = ""  # why there are none
    notes: list[str] = field(default_factory=list)
    before: bool = False  # it was finished and measured when this start came to it


def trial_of(variant: str, seed: int, folder: Path, recipe: Mapping[str, Any]) -> Trial:
    """The trial of a resolved recipe, in ``folder``."""
    settings = {**recipe["train"], "seed": seed, "picture_every": NO_PICTURES}
    return Trial(variant, seed, folder, {**recipe, "train": settings, "out": str(folder)})


def refuse_another(trial: Trial) -> None:
    """Raises :class:`MaemmError` where the folder holds a run that is not this trial."""
    path = trial.folder / RECIPE
    if not path.is_file() or not any((trial.folder / "checkpoints").glob("step-*")):
        return
    old = config.load(path, training=True)
    changed = [line for line in config.diff(old, trial.recipe) if not is_free(line.partition(": ")[0])]
    if changed:
        more = f", and {len(changed) - 4} more keys" if len(changed) > 4 else ""
        raise MaemmError(
            f"{trial.folder} holds a run with another recipe ({', '.join(changed[:4])}{more}); choose another --out, "
            "or delete it"
        )


def run_trial(trial: Trial, measurer: Measurer, say: Callable[[str], Any]) -> Outcome:
    """Train and measure, or read what was measured before; whatever fails is told in the outcome.

    Raises :class:`~maemm.train.signals.Interrupted` where a signal ended the training, after a checkpoint.
    """
    outcome = Outcome(trial.variant, trial.seed, trial.folder)
    record = record_in(trial.folder / RECORD) or {}
    if record.get("protocol") == measurer.protocol() and isinstance(record.get("values"), dict):
        outcome.values, outcome.before = {**of_log(trial.folder), **record["values"]}, True
        outcome.notes = [str(note) for note in record.get("notes") or []]
        return outcome
    try:
        cost = {**(record.get("cost") or {}), **_trained(trial, say)}
        write_json(trial.folder / RECORD, {"cost": cost}, "the cost of the run")
        values = {**cost, **measurer.of(trial.folder)}
        outcome.notes = [*measurer.notes]
        about = {"cost": cost, "protocol": measurer.protocol(), "values": values, "notes": outcome.notes}
        write_json(trial.folder / RECORD, about, "the measures of the run")
        outcome.values = {**of_log(trial.folder), **values}
    except Interrupted:
        raise
    except Exception as error:  # of a part, or out of memory: the other trials go on
        outcome.error = one_line(error)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return outcome


def _trained(trial: Trial, say: Callable[[str], Any]) -> dict[str, float]:
    """Train, or continue; -> {"cpu_seconds_per_step"} on a CPU, of the steps of this start."""
    before = read_run(trial.folder).rows
    timed = Timed(int(before[-1]["step"]) if before else 0)
    train(trial.recipe, echo=Sparse(trial.title, say), callback=timed)
    return {} if timed.seconds_per_step is None else {"cpu_seconds_per_step": timed.seconds_per_step}


class Timed(Report):
    """The report of a run, and the CPU time of its steps: other programs on the machine do not change it.

    Worker processes that read samples are not counted. ``step``: about where this start begins.
    """

    def __init__(self, step: int):
        self.step, self.seconds_per_step = step, None
        self.began = time.process_time()

    seconds_per_step: float | None

    def begin(self, train_state: TrainState, loader: Loader, folder: RunFolder, log: Callable[[str], Any]) -> None:
        super().begin(train_state, loader, folder, log)
        self.on_cpu = train_state.dist_context.device.type == "cpu"
        self.began = time.process_time()

    def draw_pictures(self, step: int) -> None:
        """After the last step: pictures are no part of its cost."""
        if self.on_cpu and step > self.step:
            self.seconds_per_step = (time.process_time() - self.began) / (step - self.step)
        super().draw_pictures(step)


class Sparse:
    """Passes on warnings of a run, and a line of progress now and then."""

    def __init__(self, name: str, say: Callable[[str], Any]):
        self.name, self.say, self.last = name, say, time.monotonic()

    def __call__(self, line: str) -> None:
        if line.startswith(("no ", "warning")):
            self.say(f"{self.name}: {line}")
        elif line.startswith("epoch ") and time.monotonic() - self.last > LINE_EVERY_S:
            self.last = time.monotonic()
            self.say(f"{self.name}: {line}")
