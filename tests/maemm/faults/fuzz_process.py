"""Commands in a forked process that is used again, bounded in time and memory: crashes and hangs end it alone."""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import struct
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.maemm.faults.fuzz import LONGEST_LINE

SECONDS = 20.0  # of the processor; a command that waits gets WAITING times as long, as the machine may be busy
WAITING = 6
MOST_MEMORY = 10**9  # bytes that one command on tiny inputs may take
ROOM = 4 * 10**9  # bytes of address space beyond what the process has: protects the machine
ERROR, LIBRARY = "maemm: error: ", ("Warning: ", "Traceback (most recent")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    status: int | None  # of ``main``; None: the process died, or was ended
    out: str
    errors: str
    peak: int = 0  # bytes of memory that it took at most
    problem: str = ""  # a crash, a hang, an exception that left ``main``


class Commands:
    """A forked process in which commands run one after the other; a new one takes its place where one has ended.

    ``prepare`` is called in each new process.
    """

    def __init__(self, folder: Path, prepare: Callable[[], Any], environment: Mapping[str, str]):
        self.folder, self.prepare, self.environment = folder, prepare, dict(environment)
        self.streams = folder / "stdout", folder / "stderr"
        self.pid: int | None = None
        self.deaths = 0

    def run(self, argv: Sequence[str], cwd: Path) -> Ended:
        """Run ``maemm ARGV`` in the folder ``cwd``."""
        if self.pid is None:
            self._fork()
        self._write(self.requests, (list(argv), str(cwd)))
        problem = self._wait()
        if problem is None and (reply := self._read(self.replies)) is not None:
            status, peak, problem = reply
            return Ended(status, *self._said(), peak=peak, problem=problem)
        return Ended(None, *self._said(), problem=self._bury(problem))

    def close(self) -> None:
        """End the process."""
        if self.pid is not None:
            self._bury("closed")

    # ------------------------------------------------------------------------------------------ in the parent
    def _fork(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        ours, theirs = os.pipe(), os.pipe()  # requests, replies
        pid = os.fork()
        if pid == 0:
            try:
                os.close(ours[1])
                os.close(theirs[0])
                self.requests, self.replies = ours[0], theirs[1]
                self._serve()
            finally:
                os._exit(0)
        os.close(ours[0])
        os.close(theirs[1])
        self.pid, self.requests, self.replies = pid, ours[1], theirs[0]

    def _wait(self) -> str | None:
        """Wait for the reply; why none is to come, or None."""
        assert self.pid is not None
        start, processor = time.monotonic(), _processor_seconds(self.pid)
        while not select.select([self.replies], [], [], 0.1)[0]:
            if _processor_seconds(self.pid) - processor > SECONDS:
                return f"more than {SECONDS} s of work"
            if time.monotonic() - start > SECONDS * WAITING:
                return f"more than {SECONDS * WAITING} s"
        return None

    def _bury(self, problem: str | None) -> str:
        """End the process and all that it started; what has happened to it."""
        assert self.pid is not None
        self.deaths += 1
        for end in (lambda: os.killpg(self.pid, signal.SIGKILL), lambda: os.kill(self.pid, signal.SIGKILL)):
            if problem is not None:
                with suppress(ProcessLookupError):
                    end()
        _, status = os.waitpid(self.pid, 0)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        os.close(self.requests)
        os.close(self.replies)
        self.pid = None
        if problem is not None:
            return problem
        return f"ended by {signal.Signals(status & 127).name}" if status & 127 else f"left with {status >> 8}"

    def _said(self) -> tuple[str, str]:
        out, errors = (path.read_bytes().decode("utf-8", "replace") for path in self.streams)
        return out, errors

    # ------------------------------------------------------------------------------------------- in the child
    def _serve(self) -> None:
        os.setsid()
        for number, path in enumerate((Path(os.devnull), *self.streams)):
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            os.dup2(file, number)
            os.close(file)
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))  # noqa: SIM115
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(self.environment)
        warnings.resetwarnings()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_status_bytes("VmSize") + ROOM, hard))
        self.prepare()
        environment = dict(os.environ)
        while (request := self._read(self.requests)) is not None:
            self._write(self.replies, self._command(*request))
            os.environ.clear()
            os.environ.update(environment)

    def _command(self, argv: list[str], cwd: str) -> tuple[int | None, int, str]:
        from maemm.__main__ import main

        for number in (1, 2):
            os.ftruncate(number, 0)
        os.chdir(cwd)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before, status, problem = _status_bytes("VmRSS"), None, ""
        try:
            status = main(argv)
        except BaseException:
            problem = traceback.format_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        return status, _status_bytes("VmHWM") - before, problem

    # -------------------------------------------------------------------------------------------------- pipes
    @staticmethod
    def _write(pipe: int, value: Any) -> None:
        data = pickle.dumps(value)
        view = memoryview(struct.pack("<Q", len(data)) + data)
        with suppress(BrokenPipeError):
            while view:
                view = view[os.write(pipe, view) :]

    @staticmethod
    def _read(pipe: int) -> Any:
        """A value, or None where the other end is gone."""
        data, size = b"", None
        while size is None or len(data) < size:
            piece = os.read(pipe, 1 << 16)
            if not piece:
                return None
            data += piece
            if size is None and len(data) >= 8:
                size, data = struct.unpack("<Q", data[:8])[0], data[8:]
        return pickle.loads(data)


def complaint(ended: Ended, statuses: Sequence[int] = (0, 2)) -> str:
    """What a user may not see of how a command ended; "" if all is as it must be."""
    if ended.problem:
        return ended.problem
    lines = ended.errors.splitlines()
    if ended.status not in statuses:
        return f"exit status {ended.status}: {lines[-3:]}"
    if ended.peak > MOST_MEMORY:
        return f"{ended.peak / 1e6:.0f} MB of memory"
    if odd := [line for line in lines if any(mark in line for mark in (*LIBRARY, "internal:"))]:
        return f"not for a user: {odd[:3]}"
    told = [line.removeprefix(ERROR) for line in lines if line.startswith(ERROR)]
    if (ended.status == 2) != bool(told):
        return f"exit status {ended.status} with {len(told)} lines of errors: {lines[-3:]}"
    for line in told:
        if not (line.strip() and line.isprintable() and len(line) <= LONGEST_LINE):
            return f"not a line for a user: {line[:2000]!r}"
    return ""


def _processor_seconds(pid: int) -> float:
    """Of a process and of its children that have ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ProcessLookupError):
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    return 0
