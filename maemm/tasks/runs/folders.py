"""Run folders below a folder, and what each says of itself. Reads little of each, so that thousands take seconds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maemm.config import RECIPE, reader
from maemm.config.paths import check_regular
from maemm.contract.errors import MaemmError
from maemm.data.line_files import record_in
from maemm.data.locks import LOCK, is_locked
from maemm.tasks.runs.ends import End, flat, is_finite, step_of

METRICS, CHECKPOINTS, BEST, META, END = "metrics.jsonl", "checkpoints", "best", "meta.json", "end.json"
STEP = re.compile(r"step-(\d{6,})")
STATES = ("running", "finished", "stopped", "failed", "not begun", "broken")
_INSIDE = {CHECKPOINTS, BEST, "pictures", "tensorboard", "trackers", "evaluate"}  # of a run, where no others are
_MOST_TEXT = reader.MAX_BYTES


@dataclass
class RunSummary:
    """What is known of a run without reading all of it."""

    path: Path
    name: str  # the path below the folder that was searched
    state: str = "not begun"  # one of ``STATES``
    recipe: str = ""  # its name
    step: int = 0
    steps: int | None = None
    loss: float | None = None  # of the last line
    values: dict[str, float] = field(default_factory=dict)  # of the last line, with ``validation.loss`` and such
    validation: dict[str, float] = field(default_factory=dict)  # of the best weights, else the last
    best_step: int | None = None  # of the best weights
    monitor: dict[str, float] = field(default_factory=dict)  # the last measurement
    changed: float | None = None  # when something was last written, seconds since 1970
    bytes: int = 0  # on the disk, without runs inside it
    stages: list[str] = field(default_factory=list)
    note: str = ""  # why it is broken or has failed, and the like

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {**vars(self), "path": str(self.path)}


def runs_below(root: Path) -> list[RunSummary]:
    """Every run in a folder and below it, sorted by path. Broken ones are among them, with the reason.

    Links to folders are followed, and no folder is visited twice. Raises :class:`MaemmError` where there is no folder.
    """
    try:
        os.scandir(root).close()
    except OSError as error:
        raise MaemmError(f"cannot list the runs in {root} ({error.strerror}); give the folder of your runs") from None
    except ValueError as error:  # a NUL in its name
        raise MaemmError(f"cannot list the runs in {str(root)!r} ({error}); give the folder of your runs") from None
    found = {place.path: place for place in _places(root)}
    runs = {path: _summary(place, root) for path, place in found.items()}
    for path, run in runs.items():
        run.bytes, changed = _size(path, found)
        run.changed = changed or None
    for run in runs.values():
        if run.stages:
            _of_stages(run, [runs[run.path / name] for name in run.stages if run.path / name in runs])
    return [runs[path] for path in sorted(runs)]


@dataclass
class _Place:
    """A folder that looks like a run, or that cannot be read."""

    path: Path
    files: set[str]
    folders: set[str]
    error: str = ""


def _places(root: Path) -> Iterator[_Place]:
    visited: set[tuple[int, int]] = set()
    later = [root]  # links, after the folders themselves
    while later:
        pending, later = later, []
        while pending:
            path = pending.pop()
            try:
                about = os.stat(path)
                if (about.st_dev, about.st_ino) in visited:
                    continue
                visited.add((about.st_dev, about.st_ino))
                place, folders, links = _entries(path)
            except OSError as error:
                yield _Place(path, set(), set(), f"cannot be read ({error.strerror})")
                continue
            if _is_run(place):
                yield place
                folders = [name for name in folders if name not in _INSIDE]
                links = [name for name in links if name not in _INSIDE]
            pending += [path / name for name in folders if name[0] != "."]
            later += [path / name for name in links if name[0] != "."]


def _entries(path: Path) -> tuple[_Place, list[str], list[str]]:
    """(what is in a folder, names of folders, names of links to folders)."""
    place = _Place(path, set(), set())
    folders: list[str] = []
    links: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            try:
                if not entry.is_dir():
                    place.files.add(entry.name)
                    continue
                (links if entry.is_symlink() else folders).append(entry.name)
                place.folders.add(entry.name)
            except OSError:  # a link in a circle
                continue
    return place, folders, links


def _is_run(place: _Place) -> bool:
    if METRICS in place.files or RECIPE in place.files:
        return True
    return CHECKPOINTS in place.folders and bool(checkpoints_in(place.path))


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, the newest first."""
    try:
        names = [name for name in os.listdir(folder / CHECKPOINTS) if STEP.fullmatch(name)]
    except OSError:
        return []
    return sorted((folder / CHECKPOINTS / name for name in names), key=lambda path: int(path.name[5:]), reverse=True)


# --------------------------------------------------------------------------------------------------- one run
def _summary(place: _Place, root: Path) -> RunSummary:
    path = place.path
    name = str(path.relative_to(root)) if path != root else path.resolve().name or str(path)
    run = RunSummary(path, name)
    if place.error:
        run.state, run.note = "broken", place.error
        return run
    notes = _read_recipe(run) if RECIPE in place.files else [f"no {RECIPE}"]
    problem = _read_metrics(run) if METRICS in place.files else ""
    if BEST in place.folders:
        _read_best(run)
    notes += [problem] if problem else []
    if problem or (notes and not run.step):
        run.state = "broken"
    else:
        run.state, reason = _state(run)
        notes += [reason] if reason else []
        if run.step and run.loss is None:
            notes.append("the loss is not finite")
            run.state = "failed" if run.state == "stopped" else run.state
    run.note = "; ".join(notes)
    return run


def _read_recipe(run: RunSummary) -> list[str]:
    """Its name and stages, of which a recipe as maemm writes it has lines of their own. Returns what is wrong."""
    path = run.path / RECIPE
    try:
        check_regular(path)
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(_MOST_TEXT)
    except OSError as error:
        return [f"{RECIPE} cannot be read ({error.strerror})"]
    if not re.search(r"^modalities:", text, re.M):
        return [f"{RECIPE} is {'no recipe' if text.strip() else 'empty'}"]
    plain = re.search(r"^name: ([A-Za-z][\w/.-]*)$", text, re.M)
    stages = re.search(r"^stages:", text, re.M)
    if plain and plain[1] not in ("null", "true", "false") and not stages:
        run.recipe = plain[1]
        return []
    if not stages and re.search(r"^name: null$", text, re.M):
        return []
    try:
        values = reader.parse(text, RECIPE)[0]
    except MaemmError as error:
        return [str(error)]
    run.recipe = str(values.get("name") or "")
    run.stages = list(values["stages"]) if isinstance(values.get("stages"), dict) else []
    return []


def _read_metrics(run: RunSummary) -> str:
    """The newest lines. Returns what is wrong."""
    try:
        end = End(run.path / METRICS)
    except OSError as error:
        return f"{METRICS} cannot be read ({error.strerror})"
    last = next(end.rows(), None)
    if last is None:
        return "" if end.empty else f"{METRICS} has no line of a run"
    run.step, steps = step_of(last) or 0, last.get("steps")
    run.steps = steps if isinstance(steps, int) else None
    run.values = flat(last)
    run.loss = run.values.get("loss")
    for name, kept in (("validation", run.validation), ("monitor", run.monitor)):
        row = next((row for row in end.rows(name) if isinstance(row.get(name), dict)), {})
        kept |= {key: value for key, value in row.get(name, {}).items() if is_finite(value)}
        run.values |= {f"{name}.{key}": value for key, value in kept.items()}
    return ""


def _read_best(run: RunSummary) -> None:
    about = record_in(run.path / BEST / META) or {}
    values = about.get("validation")
    if isinstance(values, dict) and step_of(about) is not None:
        run.best_step = step_of(about)
        run.validation = {key: value for key, value in values.items() if is_finite(value)}


def _state(run: RunSummary) -> tuple[str, str]:
    """(state, reason) of a run that can be read."""
    if is_locked(run.path / LOCK):
        return "running", ""
    end = record_in(run.path / END) or {}
    step = step_of(end)
    if step is not None and step >= run.step and end.get("state") in STATES:
        run.step = step
        return str(end["state"]), str(end.get("reason") or "")
    if run.steps is not None and run.step >= run.steps:
        return "finished", ""
    return ("stopped" if run.step or checkpoints_in(run.path) else "not begun"), ""


def _of_stages(run: RunSummary, begun: list[RunSummary]) -> None:
    """The state of a run of several stages, of those of its stages that have begun."""
    run.note = "; ".join(filter(None, [f"stages {', '.join(run.stages)}", run.note]))
    if run.state in ("running", "broken") or not begun:
        return
    states = [stage.state for stage in begun]
    done = len(begun) == len(run.stages) and all(state == "finished" for state in states)
    worst = next((state for state in ("running", "broken", "failed") if state in states), "stopped")
    run.state = "finished" if done else worst


def _size(path: Path, others: dict[Path, _Place]) -> tuple[int, float]:
    """(bytes, time of the last change) of what is in a folder and below it, but for links and other runs."""
    total, changed = 0, 0.0
    pending = [path]
    while pending:
        folder = pending.pop()
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        inner = folder / entry.name
                        if inner not in others:
                            pending.append(inner)
                    elif entry.is_file(follow_symlinks=False):
                        about = entry.stat(follow_symlinks=False)
                        total += about.st_size
                        changed = max(changed, about.st_mtime) if entry.name != LOCK else changed
    return total, changed
