"""A decoder that cannot hang: files are decoded in a separate process, which is killed after a time limit.

A timeout in Python would not help: decoders were seen to loop in native code while holding the GIL. A decoder that
crashes costs only one file, and the process is replaced after some hundred files in case one leaks memory.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from .child import HEADER

Result = TypeVar("Result")

_FILES = 500  # decoded by a process before it is replaced
_PIPE = 2**20  # capacity of a pipe in bytes, if the system allows it


@dataclass(frozen=True)
class Decoder:
    """How files are decoded. All decoders of a process share one decoding process, started on first use.

    ``open`` and ``frames_at`` raise ValueError or OSError (such as TimeoutError) for files that cannot be read.
    """

    reader: str = "av"  # av, decord or torchcodec
    seconds: float | None = 30.0  # time limit of a request; None: decode in this process, without one
    partial: bool = False  # read what there is of files that end too early

    def open(self, path: str) -> np.ndarray:
        """(n,) float64: the seconds at which the frames of a file appear."""
        return self._ask(path, None)

    def frames_at(self, path: str, index: list[int]) -> np.ndarray:
        """(n, H, W, 3) uint8 of the frames ``index``, ascending without repeats."""
        return self._ask(path, index)

    def _ask(self, path: str, index: list[int] | None) -> np.ndarray:
        _check_regular(path)
        if self.seconds is None or not hasattr(select, "poll"):  # Windows cannot wait for pipes
            from .readers import READERS

            reader = READERS[self.reader](path, self.partial)
            return reader.times if index is None else reader.frames_at(index)
        return _child().ask((self.reader, self.partial, path, index, self.seconds))


def call(function: Callable[..., Result], path: str, *arguments: Any, seconds: float | None = 30.0) -> Result:
    """``function(path, *arguments)`` in the decoding process: a function of a module that imports no torch.

    What it returns is pickled. Raises ValueError or OSError as a :class:`Decoder` does.
    """
    _check_regular(path)
    if seconds is None or not hasattr(select, "poll"):
        return function(path, *arguments)
    return _child().ask(("call", function, (path, *arguments), seconds))


class Child:
    """The decoding process."""

    def __init__(self):
        command = [sys.executable, "-m", f"{__package__}.child"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.requests, self.answers = self.process.stdin, self.process.stdout
        self.owner, self.files = os.getpid(), 0
        os.set_blocking(self.answers.fileno(), False)
        with contextlib.suppress(ImportError, AttributeError, OSError):
            import fcntl

            fcntl.fcntl(self.answers, fcntl.F_SETPIPE_SZ, _PIPE)

    def ask(self, request: tuple[Any, ...]) -> Any:
        """The answer to a request of :mod:`.child`. After a TimeoutError or its death the process is gone."""
        *_, index, seconds = request
        self.files += index is None or request[0] == "call"
        until = time.monotonic() + seconds
        try:
            pickle.dump(request, self.requests)
            self.requests.flush()
            head, body = HEADER.unpack(self._read(HEADER.size, until).data)
            kind, *rest = pickle.loads(self._read(head, until).data)
            answer = self._read(body, until)
        except TimeoutError:
            self.end()
            raise TimeoutError(f"the decoder took longer than {seconds:g} s and was killed") from None
        except (BrokenPipeError, EOFError):
            raise OSError(f"the decoder died of {self._cause()}") from None
        except BaseException:  # an interrupt would leave half an answer in the pipe
            self.end()
            raise
        if kind == "error":
            raise _error(*rest)
        if kind == "object":
            return pickle.loads(answer.data)
        dtype, shape = rest
        return answer.view(dtype).reshape(shape)

    def end(self) -> None:
        """Kill the process, unless this is a fork of the process that owns it."""
        if self.owner != os.getpid():
            return
        self.process.kill()
        self.process.wait()
        for pipe in (self.requests, self.answers):
            with contextlib.suppress(OSError):
                pipe.close()

    def usable(self) -> bool:
        """Whether it is this process's own, alive, and not yet due for replacement."""
        return self.owner == os.getpid() and self.files < _FILES and self.process.poll() is None

    def _read(self, size: int, until: float) -> np.ndarray:
        """``size`` bytes of the answer. Raises TimeoutError, or EOFError if the process is gone."""
        data = np.empty(size, np.uint8)
        view, pipe = data.data, self.answers.fileno()
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        while len(view):
            left = until - time.monotonic()
            if left <= 0 or not poll.poll(1000 * left):
                raise TimeoutError
            count = os.readv(pipe, [view])
            if not count:
                raise EOFError
            view = view[count:]
        return data

    def _cause(self) -> str:
        try:
            code = self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            code = None
        self.end()
        return f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"


_current: Child | None = None


def _child() -> Child:
    """The decoding process of this process; a forked worker starts its own."""
    global _current
    if _current is None or not _current.usable():
        close()
        _current = Child()
    return _current


@atexit.register
def close() -> None:
    """End the decoding process of this process, if there is one."""
    global _current
    child, _current = _current, None
    if child is not None:
        child.end()


def _check_regular(path: str) -> None:
    """Raises OSError or ValueError for empty files and for what is no regular file: reading a pipe could block."""
    if not os.path.isfile(path):
        os.stat(path)  # its error says why, if nothing is there
        raise ValueError("not a regular file")
    if not os.path.getsize(path):
        raise ValueError("empty file (0 bytes)")


def _error(name: str, text: str) -> Exception:
    """An error of the decoding process, as an exception to raise here."""
    types = {"ValueError": ValueError, "MemoryError": MemoryError, "ModuleNotFoundError": ImportError}
    return types.get(name, OSError)(text or name)
