"""The process of one tracker: reads what a run writes down, hands it on, and notes how far it has come.

``metrics.jsonl`` and the pictures are the queue. That the pipe to the run has closed says that the run has ended,
however it did. ``trackers/NAME.json`` says what the tracker has, from which a later start goes on. A process waits for
one of an earlier start that has not ended yet.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from maemm import registry
from maemm.config import RECIPE, reader
from maemm.contract.errors import MaemmError
from maemm.contract.tracking import TrackedRun, Tracker
from maemm.data.atomic import write_json
from maemm.data.line_files import lines_of, record_in, record_of
from maemm.data.locks import locked

FOLDER = "trackers"  # of a run folder
METRICS, PICTURES, END = "metrics.jsonl", "pictures", "end.json"  # what a run writes
POLL_S = 1.0
RETRY_S, MOST_RETRY_S = 5.0, 300.0  # seconds until a tracker that has failed is tried again, doubled each time


@dataclass
class Delivered:
    """What a tracker has taken, as a file of the run folder says it."""

    id: str | None = None
    step: int = 0  # of the last log line
    picture: int = 0  # step of the last picture
    end: str | None = None  # how the run had ended when it was told; None: it was not
    error: str | None = None  # why it takes nothing at present

    @classmethod
    def read(cls, path: Path) -> Delivered:
        """What a file says; nothing where it is missing or damaged."""
        values = record_in(path) or {}
        kept = {name: values[name] for name, kind in _KINDS.items() if isinstance(values.get(name), kind)}
        return cls(**kept)

    def write(self, path: Path, *, sync: bool = False) -> None:
        """Raises :class:`MaemmError`."""
        write_json(path, asdict(self), "what a tracker has taken", advice="free space", sync=sync)


_KINDS: dict[str, type] = {"id": str, "step": int, "picture": int, "end": str, "error": str}


def file_of(folder: Path, name: str) -> Path:
    """Where a run folder says what the tracker ``name`` has taken."""
    return folder / FOLDER / f"{name}.json"


def values_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a log line, those inside others as ``terms/NAME``; JSON has null for the others."""
    values: dict[str, float] = {}
    for name, value in row.items():
        pairs = value.items() if isinstance(value, Mapping) else [("", value)]
        for inner, number in pairs:
            if isinstance(number, int | float) and name != "step":
                values[f"{name}/{inner}" if inner else name] = number
    return values


class Delivery:
    """Hands the lines and pictures of a run to a tracker."""

    def __init__(self, folder: Path, name: str, spec: Any, start: int, grace_s: float):
        """``spec``: the tracker as in the recipe; ``start``: the step from which the run goes on; ``grace_s``: see
        :meth:`watch`."""
        self.folder, self.name, self.spec, self.start, self.grace_s = folder, name, spec, start, grace_s
        self.path = file_of(folder, name)
        self.delivered = Delivered.read(self.path)
        self.tracker: Tracker | None = None
        self.rewound = False
        self.ended = threading.Event()  # the run has
        self.progress_at = time.monotonic()

    def run(self) -> None:
        """Until the run has ended and the tracker has everything, or takes nothing any more."""
        self.delivered = Delivered.read(self.path)
        self.delivered.end = None
        self.offset, retry_s, retry_at = 0, RETRY_S, 0.0
        while True:
            if (self.folder / END).exists():  # forked workers of the run may keep the pipe open for a while
                self.ended.set()
            ended = self.ended.is_set()  # before looking: what was written before the end is seen
            if ended or time.monotonic() >= retry_at:
                try:
                    self._deliver()
                    if ended:
                        return self._end()
                    retry_s = RETRY_S
                except Exception as error:
                    self._note(error)
                    if ended:
                        return
                    retry_at, retry_s = time.monotonic() + retry_s, min(2 * retry_s, MOST_RETRY_S)
            self.ended.wait(POLL_S)

    def _deliver(self) -> None:
        if self.tracker is None:
            self.tracker = self._begun()
        items: list[tuple[int, int, Any]] = []
        for line in lines_of(self.folder / METRICS, self.offset):
            row = record_of(line)
            step = (row or {}).get("step")
            if line.endswith(b"\n") and isinstance(step, int):
                items.append((step, len(line), row))
            elif line.endswith(b"\n"):
                items.append((-1, len(line), None))
            else:
                break  # it is being written
        # Pictures of a step are written before the next line: all that belong between these lines are there.
        pictures = [(step, path) for step, path in _pictures(self.folder) if step > self.delivered.picture]
        for step, length, row in items:
            if row is not None and step > self.delivered.step:
                while pictures and pictures[0][0] < step:
                    self._picture(*pictures.pop(0))
                self._row(step, row)
            self.offset += length
        for step, path in pictures:
            if step <= max(self.delivered.step, self.start):
                self._picture(step, path)

    def _begun(self) -> Tracker:
        values, _ = reader.read(self.folder / RECIPE, str(self.folder / RECIPE))
        where = f"train.trackers.{self.name}"
        tracker: Tracker = registry.make("trackers", self.spec, default=self.name, where=where)
        delivered, files = self.delivered, self.path.parent
        if tracker.rewinds and not self.rewound:
            self.rewound = True
            delivered.step, delivered.picture = min(delivered.step, self.start), min(delivered.picture, self.start)
        run = TrackedRun(_title(self.folder), self.folder, files, values, delivered.id, delivered.step)
        new = delivered.id is None
        delivered.id = str(tracker.begin(run))
        holds = None if new else tracker.holds()
        if holds is not None:
            delivered.step, delivered.picture = min(delivered.step, holds), min(delivered.picture, holds)
        self.offset = 0
        self._save(sync=True)
        return tracker

    def _row(self, step: int, row: Mapping[str, Any]) -> None:
        assert self.tracker is not None
        self.tracker.log(step, values_of(row))
        for alarm in row.get("alarms") or ():
            self.tracker.alarm(step, str(alarm.get("cause")), str(alarm.get("text")))
        self.delivered.step = step
        self._save()

    def _picture(self, step: int, path: Path) -> None:
        assert self.tracker is not None
        self.tracker.picture(step, path)
        self.delivered.picture = step
        self._save()

    def _end(self) -> None:
        assert self.tracker is not None
        state = (record_in(self.folder / END) or {}).get("state") or "stopped"  # a killed run leaves no word
        self.tracker.end(str(state))
        self.delivered.end = str(state)
        self._save()

    def _save(self, *, sync: bool = False) -> None:
        self.delivered.error = None
        self.delivered.write(self.path, sync=sync)
        self.progress_at = time.monotonic()

    def _note(self, error: Exception) -> None:
        self.tracker, self.delivered.error = None, reason_of(error)
        with suppress(MaemmError):  # of a full disk; what is not noted is sent again
            self.delivered.write(self.path)

    def listen(self) -> None:
        """In a thread: wait until nobody holds the other end of the pipe."""
        with suppress(OSError, ValueError):
            while sys.stdin.buffer.read(1):
                pass
        self.ended.set()

    def watch(self) -> None:
        """In a thread: after the end of the run, end this process where the tracker takes nothing for ``grace_s``."""
        self.ended.wait()
        self.progress_at = time.monotonic()
        while time.monotonic() - self.progress_at < self.grace_s:
            time.sleep(min(POLL_S, self.grace_s))
        self.delivered.error = f"it has taken nothing for {self.grace_s:g} s"
        with suppress(MaemmError):
            self.delivered.write(self.path)
        leave(1)


def _pictures(folder: Path) -> Iterator[tuple[int, Path]]:
    """(step, file) of the pictures of a run, in order."""
    for path in sorted((folder / PICTURES).glob("step-*.png")):
        number = path.stem.removeprefix("step-")
        if number.isdigit():
            yield int(number), path


def _title(folder: Path) -> str:
    """runs/a/b -> a/b, and the last two parts of another path: a stage or a seed alone says little."""
    parts = folder.resolve().parts[1:]
    if "runs" in parts[:-1]:
        return "/".join(parts[len(parts) - parts[::-1].index("runs") :])
    return "/".join(parts[-2:])


def reason_of(error: BaseException) -> str:
    """An exception on one line."""
    text = " ".join(str(error).split())[:300] or type(error).__name__
    return text if isinstance(error, MaemmError) else f"{type(error).__name__}: {text}"


def leave(status: int) -> None:
    """End this process, and what a tracker has started, at once: libraries may wait for a network at the exit."""
    sys.stdout.flush()
    sys.stderr.flush()
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(status)


def main(argv: list[str]) -> None:
    """``FOLDER NAME SPEC STEP GRACE``: deliver to one tracker until the run has ended and everything has been sent."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1"):  # they are for the run, whose end is what counts here
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    folder, name, spec, step, grace = argv
    delivery, grace_s = Delivery(Path(folder), name, json.loads(spec), int(step), float(grace)), float(grace)
    for thread in (delivery.listen, delivery.watch):
        threading.Thread(target=thread, daemon=True).start()
    lock = delivery.path.parent / f".{name}.lock"
    until = time.monotonic() + grace_s + POLL_S
    while True:
        try:
            with locked(lock, f"tracker {name}", advice="wait", log=print):
                delivery.run()
            break
        except MaemmError as error:  # one of an earlier start is about to end
            if time.monotonic() > until:
                print(json.dumps({"error": str(error)}))
                break
            time.sleep(POLL_S)
    leave(0)
