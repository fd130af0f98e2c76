"""Worker processes that read batches ahead, in order.

Why not torch's DataLoader: its workers share one queue. A worker that is killed while it writes to the queue, or
while it holds one of the locks, leaves the main process waiting forever. Torch therefore installs a SIGCHLD handler
that raises anywhere in the main program, even while a checkpoint is written. Here every worker has its own pipe: its
death closes the pipe and is noticed where the main process waits for data, and nowhere else.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch
import torch.multiprocessing  # teaches pipes to pass tensors through shared memory
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.data import main_guard
from maemm.data.bad_samples import reason_of
from maemm.data.read_ahead import Stopped, asked_to_stop
from maemm.data.say import worker_name

_STOP_POLL_S = 0.2  # how often a thread that waits for data looks whether it is to end
_NOT_BEGUN = -2  # on the board of samples: the worker has not begun to serve


class Reader(Protocol):
    """What runs in a worker. It must be picklable where processes are not forked."""

    at: Tensor  # () int64 in shared memory: the index of the sample being read, -1: none

    def __call__(self, task: Any) -> Any:
        """Do one task; the result is sent back."""
        ...


class WorkerLost(MaemmError):
    """A worker died or took too long. ``index``: the sample it was reading, -1 for none; ``reason``: in a few words."""

    def __init__(self, text: str, index: int, reason: str):
        super().__init__(text)
        self.index, self.reason = index, reason


@dataclass(frozen=True)
class Failure:
    """An error in a worker, sent to the main process as the line that the user sees."""

    text: str


class Workers:
    """``count`` processes that do ``tasks`` (small picklable objects), each up to ``prefetch`` tasks ahead.

    ``name_of(index)``: the name of a sample in messages. ``timeout``: seconds that :meth:`next` waits at most.
    """

    def __init__(
        self,
        reader: Reader,
        tasks: Iterable[Any],
        count: int,
        *,
        prefetch: int,
        timeout: float,
        name_of: Callable[[int], str],
    ):
        main_guard.refuse_in_child()
        if reason := main_guard.unreadable_main():
            raise MaemmError(reason)
        self.tasks, self.timeout, self.name_of = iter(tasks), timeout, name_of
        # The sample that each worker reads; outlives the workers.
        self.board = torch.full((count,), _NOT_BEGUN, dtype=torch.int64).share_memory_()
        self.processes: list[Any] = []
        self.pipes: list[Connection] = []
        self.due: deque[int] = deque()  # the workers of the unfinished tasks, in order
        atexit.register(self.kill)
        for number in range(count):
            self._start(reader, number)
        for number in list(range(count)) * prefetch:
            self._give(number)

    def next(self) -> Any:
        """The result of the next task; None when all are done. Raises :class:`MaemmError`."""
        if not self.due:
            return None
        number = self.due[0]
        pipe = self.pipes[number]
        ready = self._wait_for(pipe)
        if not ready:
            reason = f"takes longer than {self.timeout:g} s"
            raise WorkerLost(self._timeout_text(), int(self.board[number]), reason)
        if ready != [pipe]:
            self._raise_death()
        try:
            result = pipe.recv()
        except Exception as error:  # the worker dies while it sends; or too many open files
            self._raise_death(wait_s=2)
            raise MaemmError(f"reading data failed ({reason_of(error)}); try data.workers=0") from error
        self.due.popleft()
        self._give(number)
        return result

    def close(self) -> None:
        """End the workers; those that are still busy after a second are killed."""
        for pipe in self.pipes:
            try:
                pipe.send(None)
            except OSError:  # dead already
                continue
        wait_until = time.monotonic() + 1
        for process in self.processes:
            process.join(timeout=max(0.0, wait_until - time.monotonic()))
        self.kill()
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.join(timeout=5)
            pipe.close()
        atexit.unregister(self.kill)

    def kill(self) -> None:
        """End the workers at once. They ignore gentler signals."""
        for process in self.processes:
            process.kill()

    # ---- internal
    def _wait_for(self, pipe: Connection) -> list[Any]:
        """``pipe``, once there is something in it, and the sentinels of workers that have died; [] after the timeout.

        Raises :class:`Stopped` in a thread that is to end.
        """
        sources = [pipe, *(process.sentinel for process in self.processes)]
        if asked_to_stop() is None:
            return wait(sources, self.timeout)
        end = time.monotonic() + self.timeout
        while not (ready := wait(sources, min(_STOP_POLL_S, max(0.0, end - time.monotonic())))):
            if asked_to_stop():
                raise Stopped
            if time.monotonic() >= end:
                break
        return ready

    def _start(self, reader: Reader, number: int) -> None:
        context = torch.multiprocessing.get_context()
        ours, theirs = context.Pipe()
        arguments = (theirs, reader, self.board[number], os.getpid())
        process = context.Process(target=_serve, args=arguments, name=worker_name(number), daemon=True)
        with warnings.catch_warnings(), _signals_held_back():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: threads do not survive a fork
            try:
                process.start()
            except (EOFError, OSError) as error:
                if context.get_start_method() != "forkserver":
                    raise
                # From Python 3.14 on the server itself imports the main module, and it has ended there.
                raise MaemmError(main_guard.text()) from error
        theirs.close()  # now only the worker has that end, and its death closes the pipe
        self.processes.append(process)
        self.pipes.append(ours)

    def _give(self, number: int) -> None:
        task = next(self.tasks, None)
        if task is None:
            return
        self.due.append(number)
        try:
            self.pipes[number].send(task)
        except OSError:  # its death is reported when its result is due, or before
            return

    def _raise_death(self, wait_s: float = 0.1) -> None:
        """Raise an error that names the sample of a dead worker, if there is one."""
        dead = wait([process.sentinel for process in self.processes], wait_s)
        for number, process in enumerate(self.processes):
            if process.sentinel in dead:
                process.join(timeout=2)  # the sentinel is a moment ahead of the exit status
                if process.exitcode == main_guard.STATUS:
                    raise MaemmError(main_guard.text()) from None
                how = _death(process.exitcode)
                if int(self.board[number]) == _NOT_BEGUN and process.exitcode and main_guard.imports_main():
                    raise MaemmError(
                        f"a data worker died of {how} while it ran the script again; {main_guard.ADVICE}"
                    ) from None
                raise WorkerLost(self._death_text(number, how), int(self.board[number]), f"killed its reader ({how})")

    def _death_text(self, number: int, how: str) -> str:
        index = int(self.board[number])
        where = f"while reading {self._sample(index)}" if index >= 0 else "between two samples"
        return f"a data worker died of {how} {where}; {_ADVICE.get(how, 'look at that sample, or try data.workers=0')}"

    def _timeout_text(self) -> str:
        names = [self._sample(index) for index in self.board.tolist() if index >= 0]
        where = f"workers are at {', '.join(names)}" if names else "workers are between two samples"
        return f"no data for {self.timeout:g} s ({where}); look at the storage, or raise data.timeout"

    def _sample(self, index: int) -> str:
        name = self.name_of(index)
        return name if name == f"sample {index}" else f"{name} (sample {index})"


def _death(code: int | None) -> str:
    return _NAMES.get(-code, f"signal {-code}") if code and code < 0 else f"exit status {code}"


# By workers: the main process handles them and then ends its workers. A closed terminal sends SIGHUP to all.
_IGNORED = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
_NAMES = {number.value: number.name for number in signal.Signals}
_ADVICE = {
    "SIGKILL": "if memory ran out, use fewer data.workers; else look at that sample",
    "SIGBUS": "shared memory (/dev/shm) may be full: enlarge it, or use fewer data.workers",
}


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """A worker that starts now inherits the mask, so that nothing ends it before it ignores these signals."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# ---------------------------------------------------------------------------------------------- in the worker
def _serve(pipe: Connection, reader: Reader, at: Tensor, parent: int) -> None:
    """The main function of a worker: do tasks until None is received, or the main process is gone."""
    # The main process handles interrupts: it saves and then ends its workers. Batch systems send SIGTERM to all.
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    threading.Thread(target=_end_with, args=(os.getppid(), parent), daemon=True).start()
    torch.set_num_threads(1)
    at.fill_(-1)
    reader.at = at
    try:
        while (task := pipe.recv()) is not None:
            _send(pipe, _done(reader, task))
    except (EOFError, OSError):  # the main process is gone
        return


def _send(pipe: Connection, result: Any) -> None:
    try:
        pipe.send(result)
    except OSError:
        raise
    except Exception as error:  # something in it cannot be pickled, or shared memory is full
        pipe.send(Failure(f"a batch cannot be sent to the main process ({reason_of(error)}); try data.workers=0"))


def _done(reader: Reader, task: Any) -> Any:
    try:
        return reader(task)
    except MaemmError as error:
        return Failure(str(error))
    except Exception as error:
        return Failure(f"reading data failed ({reason_of(error)}); try data.workers=0 and --traceback")


def _end_with(parent: int, main: int) -> None:
    """End this process soon after its parent. Other forks may keep the pipe open, so its closing is not reliable."""
    while os.getppid() == parent and _exists(main):
        time.sleep(2)
    os._exit(1)


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except OSError as error:
        return not isinstance(error, ProcessLookupError)
    return True
