"""The best checkpoint of some runs, by a column of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maemm.contract.errors import MaemmError, advice
from maemm.data.line_files import record_in
from maemm.tasks.runs.ends import End, flat, offset_after, step_of
from maemm.tasks.runs.folders import BEST, META, METRICS, RunSummary, checkpoints_in
from maemm.train.figures import HIGHER_IS_BETTER, MONITORED, higher_is_better
from maemm.ui.text import number

VALIDATION, MONITOR = "validation", "monitor"
_LISTED = 16  # names in a message


@dataclass(frozen=True)
class BestCheckpoint:
    """A checkpoint that is on the disk, and what was measured of it."""

    path: Path
    run: Path
    key: str
    value: float
    step: int  # of the checkpoint
    measured: int  # the step of the line that the value is of: the last one up to the checkpoint
    runs: int  # that have such a value

    def __str__(self) -> str:
        measured = "" if self.measured == self.step else f", measured at step {self.measured:,}"
        runs = "1 run has it" if self.runs == 1 else f"the best of {self.runs:,} runs"
        return f"{self.key} {number(self.value)} at step {self.step:,}{measured}: {runs}"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "path": str(self.path), "run": str(self.run)}


def best_checkpoint(runs: Sequence[RunSummary], by: str | None, highest: bool | None) -> BestCheckpoint:
    """``by``: a column, or the end of its name; ``highest``: None where the name says which is better.

    Raises :class:`MaemmError` where no checkpoint has such a value.
    """
    key = _column(runs, by)
    direction = higher_is_better(key) if highest is None else highest
    if direction is None:
        raise MaemmError(f"whether a higher {key} is better is not known (--by {by}); add --max or --min")
    candidates = [candidate for run in runs for candidate in _candidates(run, key)]
    if not candidates:
        raise MaemmError(f"no run with {key} has a whole checkpoint that it was measured of; train one further")
    sign = 1 if direction else -1
    path, run, value, step, measured = max(candidates, key=lambda candidate: sign * candidate[2])
    return BestCheckpoint(path, run, key, value, step, measured, len({candidate[1] for candidate in candidates}))


def _column(runs: Sequence[RunSummary], by: str | None) -> str:
    """The full name of a column."""
    names = list(dict.fromkeys(name for run in runs for name in [*run.values, *_of_best(run)] if name != "step"))
    if by is None:
        by = VALIDATION if any(name.startswith(f"{VALIDATION}.") for name in names) else "loss"
    if by in names:
        return by
    if by == VALIDATION:
        wanted = [f"{VALIDATION}.{name}" for name in (*HIGHER_IS_BETTER, "loss")]
        matches = [name for name in wanted if name in names][:1]
    else:
        matches = [name for name in names if name.endswith(f".{by}")]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise MaemmError(f"{by} may be {', '.join(matches[:_LISTED])} (--by); write one of them")
    if not names:
        raise MaemmError("no run has a line of metrics yet; give the folder of others")
    shown = [name for name in names if name.partition(".")[0] in ("loss", VALIDATION, "terms")]
    shown += [name for name in names if name.startswith(MONITOR) and name.rpartition(".")[2] in MONITORED]
    raise MaemmError(f"no run has {by} (--by); {advice(by, names, 'there are ' + ', '.join(shown[:_LISTED]))}")


def _of_best(run: RunSummary) -> list[str]:
    return [f"{VALIDATION}.{name}" for name in run.validation]


def _candidates(run: RunSummary, key: str) -> Iterator[tuple[Path, Path, float, int, int]]:
    """(checkpoint, run, value, its step, step of the line) of every whole checkpoint that has the value."""
    name = key.removeprefix(f"{VALIDATION}.")
    places = [(run.path / BEST, run.best_step), *((path, int(path.name[5:])) for path in checkpoints_in(run.path))]
    for path, step in places:
        if step is None or not is_whole(path):
            continue
        if path.name == BEST and name != key and name in run.validation:
            yield path, run.path, run.validation[name], step, step
        elif (measured := value_at(run.path, key, step)) is not None:
            yield path, run.path, measured[0], step, measured[1]


def value_at(folder: Path, key: str, step: int) -> tuple[float, int] | None:
    """(value, step) of a column in the last line up to ``step`` that holds it; None where there is none near."""
    with suppress(OSError):
        path = folder / METRICS
        for row in End(path, offset_after(path, step)).rows(key.split(".", 1)[-1]):
            if key in (values := flat(row)):
                return values[key], step_of(row) or 0
    return None


def is_whole(checkpoint: Path) -> bool:
    """Whether the files of a checkpoint have the sizes that it was written with; their contents are not read."""
    files = (record_in(checkpoint / META) or {}).get("files")
    if not isinstance(files, dict) or not files:
        return False
    try:
        return all((checkpoint / name).stat().st_size == stamp["bytes"] for name, stamp in files.items())
    except (OSError, KeyError, TypeError, ValueError):
        return False
