"""An iterator that a thread reads ahead."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import torch

T = TypeVar("T")


class Stopped(Exception):
    """Ends what a :class:`ReadAhead` waits for, once nobody wants it any more."""


class _Outcome(NamedTuple):
    """An item, or how the items ended: an error, StopIteration too."""

    item: Any
    error: BaseException | None = None


class ReadAhead(Generic[T]):
    """An iterator that a thread reads ahead: up to ``depth`` items have been begun and not been taken.

    Items and errors come in the order of ``items``. Nobody else may read ``items`` until :meth:`close` has returned.
    What waits for long in ``items`` should ask :func:`asked_to_stop` now and then, and raise :class:`Stopped`.
    ``device``: the GPU that the thread works for.
    """

    def __init__(self, items: Iterator[T], device: torch.device, name: str, depth: int):
        self._items, self._device = items, device
        self._wanted = threading.Semaphore(depth)  # items to read
        self._outcomes: queue.SimpleQueue[_Outcome] = queue.SimpleQueue()
        self._peeked: _Outcome | None = None
        self._stop = threading.Event()
        # A daemon, so that the interpreter never waits for it.
        self._thread = threading.Thread(target=self._read, name=name, daemon=True)
        self._thread.stop = self._stop  # type: ignore[attr-defined]
        self._thread.start()

    def __iter__(self) -> ReadAhead[T]:
        return self

    def __next__(self) -> T:
        """The next item; waits for it. Raises what reading it raised, again and again."""
        outcome, self._peeked = self._peeked or self._outcomes.get(), None
        if outcome.error is not None:
            self._peeked = outcome
            raise outcome.error
        self._wanted.release()
        return outcome.item

    @property
    def ready(self) -> bool:
        """Whether the next item has been read. An error has to wait for its turn."""
        if self._peeked is None:
            try:
                self._peeked = self._outcomes.get_nowait()
            except queue.Empty:
                return False
        return self._peeked.error is None

    def close(self) -> None:
        """End the thread, and wait until it has ended."""
        self._stop.set()
        self._wanted.release()
        self._thread.join()

    def _read(self) -> None:
        torch.cuda.set_device(self._device)  # else what it pins would make a context on the first GPU
        while True:
            self._wanted.acquire()
            if self._stop.is_set():
                return
            try:
                outcome = _Outcome(next(self._items))
            except BaseException as error:
                outcome = _Outcome(None, error)
            self._outcomes.put(outcome)
            if outcome.error is not None:
                return


def asked_to_stop() -> bool | None:
    """In the thread of a :class:`ReadAhead`: whether it is being closed. None in any other thread."""
    stop: threading.Event | None = getattr(threading.current_thread(), "stop", None)
    return None if stop is None else stop.is_set()
