"""Trackers: services and libraries of experiments that a run reports to, such as TensorBoard or Weights & Biases.

A tracker lives in a process of its own beside the run (:mod:`maemm.train.delivery`), which reads what the run writes
down and hands it on. So it may wait for a network, fail or hang: the run neither waits for it nor ends by it. What it
has not taken stands in the run folder, and is handed to it later.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker learns of a run when it begins."""

    name: str  # for people
    folder: Path  # the run folder
    files: Path  # folder for files of the tracker's own; it exists
    recipe: Mapping[str, Any]  # as in recipe.yaml
    id: str | None  # what ``begin`` returned at the first start; None: this is the first
    step: int  # the tracker has taken everything up to this step; what comes after it is handed to it next


class Tracker(ABC):
    """A place that runs are reported to; its keyword-only parameters are options, as of any part.

    Steps come in ascending order. Any method may raise: the tracker is then dropped, and made and begun anew a little
    later. The module of a tracker should import the package that it needs in ``begin``: the training process imports
    the module, and needs nothing but the names of its options.
    """

    packages: ClassVar[Mapping[str, str]] = {}  # {module that must be installed: what ``pip install`` calls it}
    rewinds: ClassVar[bool] = False  # whether ``begin`` drops what was taken after ``run.step``: it is then sent anew

    @abstractmethod
    def begin(self, run: TrackedRun) -> str:
        """Open the run, or go on with the one called ``run.id``. Returns the id under which it can go on."""

    def holds(self) -> int | None:
        """After ``begin``: the last step that has arrived, where the tracker can tell; None: what was sent has."""
        return None

    @abstractmethod
    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers of a log line: ``loss``, ``terms/NAME``, ``validation/NAME``, ``monitor/NAME``. All finite."""

    def alarm(self, step: int, cause: str, text: str) -> None:
        """What the monitor says looks wrong after ``step``."""
        return None

    def picture(self, step: int, file: Path) -> None:
        """A PNG of reconstructions after ``step``."""
        return None

    def end(self, state: str) -> None:
        """The start has ended: ``finished``, ``stopped`` (the run can go on) or ``failed``. Send what is left."""
        return None
