"""Rows in a process of their own, which is ended where a row or its part takes too long, crashes, or hangs.

The child writes a JSON line to a pipe when a row begins, when it has something to keep, and when it ends. A device that
failed in one row is of no use to the next, so that such a child ends, and another does the rest.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from _evidence_rows import Row, plain

TIME_IS_UP: dict[str, Any] = {}
Report = Callable[[Row, str, dict[str, Any]], None]  # row, outcome, what else is known of it
BROKEN = ("CUDA error", "device-side assert", "CUBLAS_STATUS", "illegal memory access")  # a device lost to its process


@dataclass(frozen=True)
class Place:
    """Where a row runs."""

    device: str  # "cuda" or "cpu"
    work: Path  # folder for data and runs, shared by the rows
    keep: Callable[[Mapping[str, Any]], None] = lambda answer: None  # what stays where the row is cut


# ------------------------------------------------------------------------------------------------- in the child
def do(row: Row, place: Place) -> tuple[str, dict[str, Any]]:
    """(outcome, answer or error) of a row, whatever it raises."""
    start = time.monotonic()
    try:
        module, _, function = row.function.partition(":")
        answer = getattr(importlib.import_module(module), function)(dict(row.settings), place)
        return "ok", {"answer": plain(answer), "seconds": round(time.monotonic() - start, 2)}
    except Exception as error:
        lines = traceback.format_exc().splitlines()
        text = f"{type(error).__name__}: {error}"
        return "error", {"error": text[:2000], "at": lines[-7:], "seconds": round(time.monotonic() - start, 2)}


def child(pipe: int) -> None:
    """Do the rows that stand on stdin, and report to ``pipe``."""
    task = json.load(sys.stdin)
    os.set_inheritable(pipe, False)
    threading.Thread(target=_end_with, args=(task["parent"],), daemon=True).start()
    messages = os.fdopen(pipe, "w")

    def say(**message: Any) -> None:
        print(json.dumps(message), file=messages, flush=True)

    for number, row in enumerate(task["rows"]):
        keep = partial(lambda number, answer: say(row=number, outcome="kept", answer=plain(answer)), number)
        place = Place(task["device"], Path(task["work"]), keep)
        say(row=number, outcome="begun")
        print(f"-- {row['part']}: {row['name']}", flush=True)
        outcome, more = do(Row(**row), place)
        say(row=number, outcome=outcome, **more)
        if outcome == "error" and any(text in more["error"] for text in BROKEN):
            return


def _end_with(parent: int) -> None:
    """End this process and all that it has started once its parent has ended, which may have been killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os.killpg(0, signal.SIGKILL)


# ------------------------------------------------------------------------------------------------ in the parent
def in_process(rows: list[Row], deadline: float, place: Place, log: Path, report: Report) -> None:
    """The rows one after the other in this process; nothing is cut, but none begins after the ``deadline``."""
    for row in rows:
        if time.monotonic() >= deadline:
            report(row, "left out", {"why": "no time was left"})
            continue
        kept: dict[str, Any] = {}
        outcome, more = do(row, Place(place.device, place.work, kept.update))
        report(row, outcome, more if outcome == "ok" or not kept else {"answer": plain(kept)} | more)


def in_children(rows: list[Row], deadline: float, place: Place, log: Path, report: Report) -> None:
    """The rows one after the other in child processes, each until its limit, all until ``deadline``."""
    todo = list(rows)
    while todo:
        if time.monotonic() >= deadline:
            for row in todo:
                report(row, "left out", {"why": "no time was left"})
            return
        todo = todo[_serve(todo, deadline, place, log, report) :]


def _serve(rows: list[Row], deadline: float, place: Place, log: Path, report: Report) -> int:
    """How many of the rows one child has brought to an outcome: all, or those up to the one with which it ended."""
    done, begun, kept = 0, time.monotonic(), dict[str, Any]()
    with _started(rows, place, log) as (process, messages):
        while True:
            message = messages.next(min(begun + rows[done].limit_s, deadline))
            seconds = {"seconds": round(time.monotonic() - begun, 2)}
            if message is TIME_IS_UP:
                why = "its own limit" if time.monotonic() < deadline else "the time of its part"
                report(rows[done], "cut", _kept(kept) | {"why": why} | seconds)
                return done + 1
            if message is None:
                status = process.wait()
                if done and not status:  # by itself, after a row that broke the device
                    return done
                error = f"the process ended with status {status}; see {log}"
                report(rows[done], "error", _kept(kept) | {"error": error} | seconds)
                return done + 1
            outcome, number = message.pop("outcome"), message.pop("row")
            if outcome == "begun":
                begun, kept = time.monotonic(), {}
            elif outcome == "kept":
                kept |= message["answer"]
            else:
                report(rows[number], outcome, (_kept(kept) if outcome == "error" else {}) | message)
                done, begun, kept = number + 1, time.monotonic(), {}
                if done == len(rows):
                    return done


def _kept(answer: dict[str, Any]) -> dict[str, Any]:
    return {"answer": answer} if answer else {}


@contextmanager
def _started(rows: list[Row], place: Place, log: Path) -> Iterator[tuple[subprocess.Popen, _Messages]]:
    """A child and its messages; at the end of the block it has ended, with all that it has started."""
    reading, writing = os.pipe()
    command = [sys.executable, str(Path(__file__).with_name("gpu_evidence.py")), "--child", str(writing)]
    task = {"rows": [vars(row) for row in rows], "device": place.device, "work": str(place.work), "parent": os.getpid()}
    with log.open("a") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=out, pass_fds=[writing], preexec_fn=os.setpgrp
        )
    os.close(writing)
    try:
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps(task).encode())
            process.stdin.close()
        yield process, _Messages(process, reading)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(reading)


class _Messages:
    """Lines of JSON that a child writes to a pipe."""

    def __init__(self, process: subprocess.Popen, pipe: int):
        self.process, self.pipe = process, pipe
        self.whole: deque[bytes] = deque()
        self.rest = b""

    def next(self, until: float) -> dict[str, Any] | None:
        """The next message; None where the child has ended, :data:`TIME_IS_UP` where that time has come."""
        while not self.whole:
            ended = self.process.poll() is not None  # asked first: what it wrote before its end is still read
            left = max(0.0, until - time.monotonic())
            if select.select([self.pipe], [], [], 0.0 if ended else min(left, 0.5))[0]:
                data = os.read(self.pipe, 1 << 16)
                if not data:
                    return None
                *lines, self.rest = (self.rest + data).split(b"\n")
                self.whole += lines
            elif ended:  # its workers may live on, and hold the pipe
                return None
            elif not left:
                return TIME_IS_UP
        return json.loads(self.whole.popleft())
