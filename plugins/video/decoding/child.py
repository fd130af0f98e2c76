"""The process that decodes: ``python -m maemm_plugins.video.decoding.child``, spoken to through pipes.

It ends with its standard input, and also by itself when one request takes too long, so that it outlives nobody.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import sys
from typing import Any, BinaryIO

HEADER = struct.Struct("<QQ")  # lengths of a pickled answer and of the pixels behind it


def main() -> None:
    """Answer requests (reader, partial, path, index or None, seconds) until there are no more."""
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever libraries print must not get between the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the parent
    serve(sys.stdin.buffer, answers)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """The loop of :func:`main`."""
    from .readers import READERS

    opened: tuple[Any, Any] = (None, None)
    while True:
        try:
            kind, partial, path, index, seconds = pickle.load(requests)
        except EOFError:
            return
        _alarm(2 * seconds)  # the parent waits half as long; without it, this one ends by itself
        try:
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
    """The kernel ends this process after so long, also inside of native code; 0: never mind."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, seconds)


def _reason(error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the package {error.name!r} is missing; run: pip install {error.name}"
    return getattr(error, "strerror", None) or str(error).strip().splitlines()[-1:][0] if str(error).strip() else ""


def _send(answers: BinaryIO, head: tuple[Any, ...], pixels: Any) -> None:
    import numpy as np

    packed = pickle.dumps(head)
    body = b"" if pixels is None else memoryview(np.ascontiguousarray(pixels)).cast("B")
    for part in (HEADER.pack(len(packed), len(body)) + packed, body):
        view = memoryview(part)
        while len(view):
            view = view[answers.write(view) :]


if __name__ == "__main__":
    main()
