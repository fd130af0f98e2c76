"""A decoder that cannot hang: files are decoded in a process of their own, which is killed after a set time.

A Python timeout would not do: decoders were seen to loop in native code while they hold the interpreter's lock.
A decoder that crashes costs one file, too, and one that leaks is replaced after some thousand files.
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
from dataclasses import dataclass

import numpy as np

from .child import HEADER

_FILES = 500  # that one process decodes before another takes its place
_PIPE = 2**20  # bytes that a pipe holds, where the system allows it


@dataclass(frozen=True)
class Decoder:
    """How files are decoded. One decoding process serves all decoders of a process; it starts when it is needed.

    ``open`` and ``frames_at`` raise ValueError and OSError (TimeoutError is one) for files that cannot be read.
    """

    reader: str = "av"  # av, decord or torchcodec
    seconds: float | None = 30.0  # that a file may take; None: decode in this process, without a watchdog
    partial: bool = False  # take what can be read of files that end too early

    def open(self, path: str) -> np.ndarray:
        """(n,) float64: the seconds at which the frames of a file appear."""
        return self._ask(path, None)

    def frames_at(self, path: str, index: list[int]) -> np.ndarray:
        """(n, H, W, 3) uint8 of frames in an ascending list without repeats."""
        return self._ask(path, index)

    def _ask(self, path: str, index: list[int] | None) -> np.ndarray:
        _ordinary(path)
        if self.seconds is None or not hasattr(select, "poll"):  # Windows waits for no pipes
            from .readers import READERS

            reader = READERS[self.reader](path, self.partial)
            return reader.times if index is None else reader.frames_at(index)
        return _child().ask((self.reader, self.partial, path, index, self.seconds))


class Child:
    """The decoding process."""

    def __init__(self):
        command = [sys.executable, "-m", f"{__package__}.child"]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(one for one in sys.path if one)}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
        )
        self.owner, self.files = os.getpid(), 0
        os.set_blocking(self.process.stdout.fileno(), False)
        with contextlib.suppress(ImportError, AttributeError, OSError):
            import fcntl

            fcntl.fcntl(self.process.stdout, fcntl.F_SETPIPE_SZ, _PIPE)

    def ask(self, request: tuple) -> np.ndarray:
        """The answer to a request, see ``child``. The process is gone after TimeoutError and after its death."""
        *_, index, seconds = request
        self.files += index is None
        until = time.monotonic() + seconds
        try:
            pickle.dump(request, self.process.stdin)
            self.process.stdin.flush()
            head, body = HEADER.unpack(self._read(HEADER.size, until))
            kind, *rest = pickle.loads(self._read(head, until))
            answer = self._read(body, until)
        except TimeoutError:
            self.end()
            raise TimeoutError(f"the decoder took longer than {seconds:g} s and was killed") from None
        except (BrokenPipeError, EOFError):
            raise OSError(f"the decoder died of {self._cause()}") from None
        except BaseException:  # an interrupt in between would leave half an answer in the pipe
            self.end()
            raise
        if kind == "error":
            raise _error(*rest)
        dtype, shape = rest
        return answer.view(dtype).reshape(shape)

    def end(self) -> None:
        """Kill the process, unless it is another one's: a fork has it, too, but has no right to it."""
        if self.owner != os.getpid():
            return
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()

    def usable(self) -> bool:
        """Of this process, alive, and not used for too many files."""
        return self.owner == os.getpid() and self.files < _FILES and self.process.poll() is None

    def _read(self, size: int, until: float) -> np.ndarray:
        """``size`` bytes of the answer, or TimeoutError, or EOFError where the process is gone."""
        data = np.empty(size, np.uint8)
        view, pipe = memoryview(data), self.process.stdout.fileno()
        waiting = select.poll()
        waiting.register(pipe, select.POLLIN)
        while len(view):
            left = until - time.monotonic()
            if left <= 0 or not waiting.poll(1000 * left):
                raise TimeoutError
            got = os.readv(pipe, [view])
            if not got:
                raise EOFError
            view = view[got:]
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
    """The decoding process of this process; a worker that was forked starts its own."""
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


def _ordinary(path: str) -> None:
    """Raises OSError or ValueError for what is not a file with something in it; a pipe would be waited for."""
    if not os.path.isfile(path):
        os.stat(path)  # says what is wrong, if nothing is there
        raise ValueError("not an ordinary file")
    if not os.path.getsize(path):
        raise ValueError("empty file (0 bytes)")


def _error(name: str, text: str) -> Exception:
    """The decoding process's error as one of this process's."""
    kinds = {"ValueError": ValueError, "MemoryError": MemoryError, "ModuleNotFoundError": ImportError}
    return kinds.get(name, OSError)(text or name)
