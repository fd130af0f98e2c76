"""Signals: remember the first one, and let the running step finish.

Exit statuses of a run: 0 where it is finished, 2 after what its user can mend, 1 after a fault of the program, and
128 + the signal's number once it has saved because of SIGINT (130), SIGTERM (143), SIGUSR1 (138) or SIGHUP (129).
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from maemm.ui.launchers import launcher_ended

REPEAT_S = 1.0  # torchrun forwards one Ctrl-C twice within milliseconds; a person takes longer
HANGUP = 1  # SIGHUP, which Windows does not have
# SIGUSR1: what batch systems send ahead of a time limit; SIGHUP: the terminal has been closed
_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")


class Interrupted(Exception):
    """A signal ended the run early, after a checkpoint. ``status`` is the exit status: 128 + the signal's number."""

    def __init__(self, signum: int, message: str = "interrupted"):
        super().__init__(message)
        self.signum, self.status = signum, 128 + signum


class Interrupts:
    """Calling it returns the number of the first signal received, or 0. A second Ctrl-C raises KeyboardInterrupt.

    A launcher (torchrun) that is gone is as a terminal that is: SIGHUP. Its ranks would train on unseen, and keep the
    folder of the run from the next start.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._received_at = 0.0

    def __call__(self) -> int:
        if not self.signum and launcher_ended():
            self.signum = HANGUP
        return self.signum

    def handle(self, signum: int, frame: FrameType | None) -> None:
        """The signal handler."""
        now = time.monotonic()
        if self.signum and signum == signal.SIGINT and now - self._received_at > REPEAT_S:
            raise KeyboardInterrupt
        if not self.signum:
            self.signum, self._received_at = signum, now


@contextmanager
def catch_signals() -> Iterator[Interrupts]:
    """Catch SIGINT, SIGTERM, SIGUSR1 and SIGHUP within the block, the last unless it is ignored (``nohup``).

    Outside the main thread signals stay as they are.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    numbers = [
        number for number in numbers
        if signal.Signals(number).name != "SIGHUP" or signal.getsignal(number) is not signal.SIG_IGN
    ]  # fmt: skip
    handlers = {number: signal.signal(number, interrupts.handle) for number in numbers}
    try:
        yield interrupts
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
