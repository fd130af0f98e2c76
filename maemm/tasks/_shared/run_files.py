"""Reads a run folder. Tolerant: a page must come out of a run that broke, or has just begun."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maemm.config.paths import check_regular
from maemm.config.reader import MAX_BYTES
from maemm.data.line_files import lines_of, record_of

_MOST_STEPS = 2**53  # beyond it no number of steps is exact as a float
_MOST_LEVELS = 8  # of a line of metrics.jsonl; a run writes two


@dataclass
class RunContents:
    """What a run folder holds."""

    folder: Path
    rows: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl, one per step, ascending
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    bad: int = 0  # bad samples, each named once in bad_samples.jsonl
    pictures: list[Path] = field(default_factory=list)  # oldest first
    unread: list[str] = field(default_factory=list)  # what could not be read, in words

    def column(self, name: str) -> tuple[list[float], list[float]]:
        """(steps, values) of the rows that hold the number ``name``; not-finite values are NaN."""
        rows = [row for row in self.rows if row.get(name) is not None]
        return [float(row["step"]) for row in rows], [_number(row[name]) for row in rows]

    def last(self, name: str) -> float | None:
        """The newest finite value of a column."""
        values = [value for value in self.column(name)[1] if math.isfinite(value)]
        return values[-1] if values else None

    def most(self, name: str) -> float | None:
        """The largest finite value of a column."""
        return max((value for value in self.column(name)[1] if math.isfinite(value)), default=None)

    def names(self, prefix: str) -> list[str]:
        """Names of the columns that begin with ``prefix``, in the order of the log."""
        return list(dict.fromkeys(name for row in self.rows for name in row if name.startswith(prefix)))

    def terms(self) -> list[str]:
        """Names of the loss's terms, in the order of the log."""
        return self.names("terms.")

    def alarms(self) -> list[str]:
        """What the monitor said, a line for each alarm, with the step."""
        lines = []
        for row in self.rows:
            alarms = row.get("alarms")
            for alarm in alarms if isinstance(alarms, list) else []:
                text = alarm.get("text") if isinstance(alarm, dict) else None
                if isinstance(text, str):
                    lines.append(f"Step {row['step']:,}: {text}")
        return lines


def read_run(folder: str | Path) -> RunContents:
    """Read a run folder; files that are missing, empty or cut off leave their part of the run empty."""
    run = RunContents(Path(folder))
    by_step: dict[int, dict[str, Any]] = {}
    for row in read_lines(run.folder / "metrics.jsonl", run.unread):
        step = row.get("step")
        if isinstance(step, int) and not isinstance(step, bool) and abs(step) < _MOST_STEPS:
            by_step[step] = _flat(row)  # a resumed run writes some steps again: the later line wins
    run.rows = [by_step[step] for step in sorted(by_step)]
    run.bad = len(read_lines(run.folder / "bad_samples.jsonl", run.unread))
    run.pictures = sorted((run.folder / "pictures").glob("*.png"))
    run.recipe_text, run.recipe = _recipe(run.folder / "recipe.yaml", run.unread)
    return run


def read_lines(path: Path, unread: list[str]) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file without a half-written last line. Other bad lines are counted in ``unread``."""
    rows, bad = [], 0
    try:
        for line in lines_of(path):
            row = record_of(line)
            if row is not None:
                rows.append(row)
            elif line.strip():
                bad += line.endswith(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        unread.append(f"{path.name} cannot be read ({error.strerror})")
    if bad:
        unread.append(f"{bad} lines of {path.name} cannot be read")
    return rows


def _number(value: Any) -> float:
    """A logged value as a number; NaN where it is not a finite one."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        return math.nan


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"terms": {"a": 1}} -> {"terms.a": 1}."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict) and prefix.count(".") < _MOST_LEVELS:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _recipe(path: Path, unread: list[str]) -> tuple[str, dict[str, Any]]:
    import yaml

    try:
        check_regular(path)
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(MAX_BYTES)
    except FileNotFoundError:
        return "", {}
    except OSError as error:
        unread.append(f"{path.name} cannot be read ({error.strerror})")
        return "", {}
    try:
        recipe = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: of numbers and dates that are none
        unread.append(f"{path.name} is not valid YAML")
        return text, {}
    return text, recipe if isinstance(recipe, dict) else {}
