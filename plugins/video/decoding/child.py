"""The decoding process, ``python -m maemm_plugins.video.decoding.child``; requests and answers go through pipes.

It exits when its standard input closes, and also if a request takes too long, so that it never outlives its parent.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
from typing import Any, BinaryIO

HEADER = struct.Struct("<QQ")  # bytes of a pickled answer and of the pixels after it


def main() -> None:
    """Answer requests until the pipe closes: (reader, partial, path, index or None, seconds), or a call.

    ("call", function, arguments, seconds) is answered with what the function returns.
    """
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles interrupts
    serve(sys.stdin.buffer, answers)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """The loop of :func:`main`."""
    from .readers import READERS

    opened: tuple[Any, Any] = (None, None)
    while True:
        try:
            kind, *rest, seconds = pickle.load(requests)
        except EOFError:
            return
        _alarm(2 * seconds)  # the parent gives up after ``seconds``; this is for when it has died
        try:
            if kind == "call":
                function, arguments = rest
                _send(answers, ("object",), pickle.dumps(function(*arguments), protocol=5))
                _alarm(0)
                continue
            partial, path, index = rest
            if opened[0] != (kind, partial, path):
                opened = (None, None)
                opened = (kind, partial, path), READERS[kind](path, partial)
            answer = opened[1].times if index is None else opened[1].frames_at(index)
        except Exception as error:
            _send(answers, ("error", type(error).__name__, _reason(error)), None)
        else:
            _send(answers, ("array", answer.dtype.str, answer.shape), answer)
        _alarm(0)


def _alarm(seconds: float) -> None:
    """Let the kernel end this process after ``seconds``, even inside native code; 0: cancel."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name!r} is missing; run: pip install {error.name}"
    return getattr(error, "strerror", None) or str(error).strip().splitlines()[-1:][0] if str(error).strip() else ""


def _send(answers: BinaryIO, head: tuple[Any, ...], body: Any) -> None:
    """``body``: bytes, an array or None."""
    import numpy as np

    packed = pickle.dumps(head)
    data = body if isinstance(body, bytes) else b"" if body is None else np.ascontiguousarray(body).data
    body = memoryview(data).cast("B")
    for view in (memoryview(HEADER.pack(len(packed), len(body)) + packed), body):
        while len(view):
            view = view[answers.write(view) :]


if __name__ == "__main__":
    main()
