"""What may be added to a run from outside: pictures, a report. It never costs what the run learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from maemm.data.loader import Loader
from maemm.train.distributed import one_line
from maemm.train.run_folder import RunFolder
from maemm.train.state import TrainState

T = TypeVar("T")


class Callback:
    """Hooks of a run; by default they do nothing.

    All but ``begin`` are called on rank 0 alone: no collectives there. The others wait for ``draw_pictures``,
    ``finish`` and ``finish_stage``.
    """

    def begin(self, train_state: TrainState, loader: Loader, folder: RunFolder, log: Callable[[str], Any]) -> None:
        """Before the first step, on every rank; ``log`` prints a line."""

    def resume(self, step: int) -> None:
        """Before the first step of this start, after ``step`` steps: what was written beyond them has been dropped."""

    def logged(self, row: Mapping[str, Any]) -> None:
        """After a line of metrics.jsonl: losses, validation, monitor, alarms."""

    def draw_pictures(self, step: int) -> None:
        """After ``step`` steps: every ``train.picture_every`` steps and at the end."""

    def finish(self) -> Path | None:
        """After the last checkpoint. Returns a file for the last line of the run, or None."""
        return None

    def end(self, state: str) -> None:
        """However this start ends: ``finished``, ``stopped`` by a signal, or ``failed``."""

    def finish_stage(self, folder: Path) -> Path | None:
        """After each stage of a run of several in ``folder``, on rank 0 alone; as :meth:`finish`, for all of them."""
        return None


def side_product(log: Callable[[str], Any], title: str, make: Callable[[], T], otherwise: T) -> T:
    """``make()``, or where that fails a line and ``otherwise``: what a run shows never costs what it learns."""
    try:
        return make()
    except (Exception, SystemExit) as error:
        log(f"no {title} ({one_line(error)})")
        return otherwise
