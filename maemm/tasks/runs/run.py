"""``maemm runs``: run folders as a table, the best checkpoint among them, and some of them side by side."""

from __future__ import annotations

import os
from pathlib import Path

from maemm.config.paths import expanded
from maemm.contract.errors import MaemmError
from maemm.data.locks import writes
from maemm.tasks.runs.best import BestCheckpoint, best_checkpoint
from maemm.tasks.runs.compare import Comparison, compared
from maemm.tasks.runs.folders import RunSummary, runs_below

FOLDER = "runs"


def runs(folder: str | os.PathLike[str] = FOLDER) -> list[RunSummary]:
    """Every run in a folder and below it, sorted by path: runs of stages with their stages, trials of ``maemm ablate``.

    Of ``metrics.jsonl`` only the end is read, so that thousands of runs take seconds. A run that cannot be read is
    among them, with ``state`` "broken" and the reason in ``note``. Raises :class:`maemm.MaemmError` where there is no
    such folder.
    """
    return runs_below(expanded(folder))


def runs_best(
    folder: str | os.PathLike[str] = FOLDER, by: str | None = None, *, highest: bool | None = None
) -> BestCheckpoint:
    """The checkpoint on the disk, of all runs below a folder, that has the best value of a column of metrics.jsonl.

    ``by``: ``loss``, ``validation.accuracy``, ``monitor.image.knn``, or the end of such a name; None: the validation
    metric that decides, or else the loss. ``highest``: whether the highest value is the best; None: as the name says.
    Raises :class:`maemm.MaemmError` where nothing has the column, or no checkpoint of those that have it is whole.
    """
    return best_checkpoint([run for run in runs_below(expanded(folder)) if not run.stages], by, highest)


def runs_compare(*folders: str | os.PathLike[str], page: str | os.PathLike[str] | None = None) -> Comparison:
    """What differs between the recipes of two or more runs, and what they measured at equal steps.

    ``page``: an HTML file with their curves, that is written. Raises :class:`maemm.MaemmError` where a folder holds no
    run, or the page cannot be written.
    """
    return _compare(folders, None if page is None else Path(page))


@writes("page")
def _compare(folders: tuple[str | os.PathLike[str], ...], page: Path | None) -> Comparison:
    comparison = compared(folders)
    if page is not None:
        from maemm.tasks.runs.page import write_page

        path = expanded(page)
        if path.is_dir():
            raise MaemmError(f"{path} is a folder; give the name of a page, such as {path / 'compare.html'}")
        comparison.page = write_page(comparison, path)
    return comparison
