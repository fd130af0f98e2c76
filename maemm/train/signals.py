"""Interrupts: remember them, and let the step that runs come to its end."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

AGAIN_S = 1.0  # torchrun passes one Ctrl-C on twice within milliseconds; a person takes longer
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # SIGUSR1: what batch systems send ahead of a time limit


class Interrupted(Exception):
    """A run that a signal ended early, after a checkpoint. ``status`` is the exit status: 128 + the signal."""

    def __init__(self, signum: int, message: str = "interrupted"):
        super().__init__(message)
        self.signum, self.status = signum, 128 + signum


class Interrupts:
    """The first signal that came, 0 before. A second Ctrl-C ends the program at once, without saving."""

    def __init__(self) -> None:
        self.signum = 0
        self._since = 0.0

    def __call__(self) -> int:
        return self.signum

    def _on(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signum and signum == signal.SIGINT and now - self._since > AGAIN_S:
            raise KeyboardInterrupt
        if not self.signum:
            self.signum, self._since = signum, now


@contextmanager
def listening() -> Iterator[Interrupts]:
    """Catch SIGINT, SIGTERM and SIGUSR1 while this is open; outside the main thread signals stay as they are."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    before = {number: signal.signal(number, interrupts._on) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
