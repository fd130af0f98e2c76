"""SIGTERM and SIGHUP (a closed terminal) end a verb as Ctrl-C does, so that what is half written is cleared away."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

REPEAT_S = 1.0  # launchers send a signal twice within milliseconds; a person takes longer
_NAMES = ("SIGTERM", "SIGHUP")


class Stopped(KeyboardInterrupt):
    """A signal ends the verb. ``status``: the exit status, 128 + the signal's number."""

    def __init__(self, signum: int):
        super().__init__()
        self.status = 128 + signum


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Raise :class:`Stopped` at the first of these signals; a second one ends the process at once.

    Signals that are ignored (``nohup``) or handled already stay as they are, and so do all outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    began: list[float] = []  # when the first signal came

    def handle(signum: int, frame: FrameType | None) -> None:
        if not began:
            began.append(time.monotonic())
            raise Stopped(signum)
        if time.monotonic() - began[0] > REPEAT_S:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    numbers = [number for number in numbers if signal.getsignal(number) is signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
