"""Streams and events of the pretended GPU, as bookkeeping: what is used before it is there, or may be freed too early.

Every stream counts its operations. A tensor belongs to the stream that wrote it last; another stream may use it once
it has waited for an event that was recorded there after that, and must be recorded on the tensor, as the allocator
gives memory away in the order of the stream that it was made on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from .arrivals import Arrivals


class Stream:
    """``torch.cuda.Stream``."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.now = 0  # operations so far
        self.waited: dict[Stream, int] = {}  # by stream: the operation up to which it has been waited for

    def record_event(self, event: Event | None = None) -> Event:
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: Event) -> None:
        for stream, time in event.reached.items():
            self.waited[stream] = max(time, self.waited.get(stream, 0))

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.record_event())


LAST = "an event of the newest work"


class Event:
    """``torch.cuda.Event``. For the host it is a wait where nothing was done on its stream afterwards."""

    streams: Streams

    def __init__(self, *args: Any, **kwargs: Any):
        self.reached: dict[Stream, int] = {}  # by stream: the operation up to which all has been done once it passes
        self.stream: Stream | None = None  # on which it was recorded
        self.copies: list[Any] = []  # to the host, that are done once it passes

    def record(self, stream: Stream | None = None) -> None:
        stream = stream or Event.streams.current
        self.reached = {**stream.waited, stream: stream.now}
        self.stream, self.copies = stream, list(Event.streams.arrivals.coming)

    def wait(self, stream: Stream | None = None) -> None:
        (stream or Event.streams.current).wait_event(self)

    def synchronize(self) -> None:
        if self.stream is not None and self.reached[self.stream] == self.stream.now:
            Event.streams.wait(LAST)
        Event.streams.arrivals.arrive(self.copies)


class Streams:
    """The streams of one pretended GPU. ``note(text)`` makes a record of a fault, with the line that made it, and
    ``wait(text)`` notes that the host waits."""

    def __init__(self, note: Callable[[str], Any], wait: Callable[[str], Any]):
        self.wait, self.arrivals = wait, Arrivals()
        self.default = self.current = Stream()
        self.note = note
        self.too_early: list[Any] = []  # uses on a stream that has not waited for the tensor
        self._uses: list[tuple[Any, Stream, Any]] = []  # on a stream that is not the tensor's
        Event.streams = self

    @property
    def unrecorded(self) -> list[Any]:
        """Uses on another stream of tensors that were not told so (``record_stream``)."""
        return [where for x, stream, where in self._uses if stream not in getattr(x, "_streams", ())]

    def clear(self) -> None:
        self.too_early.clear()
        self._uses.clear()

    def used(self, x: Any) -> None:
        """The current stream reads or writes a tensor."""
        stream, time = getattr(x, "_written", (self.current, 0))
        if stream is self.current:
            return
        if self.current.waited.get(stream, 0) < time:
            self.too_early.append(self.note("used before it is there"))
        self._uses.append((x, self.current, self.note("used on another stream")))

    def written(self, x: Any) -> None:
        self.current.now += 1
        x._written = (self.current, self.current.now)

    @contextlib.contextmanager
    def on(self, stream: Stream) -> Iterator[None]:
        """``torch.cuda.stream``."""
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before


def record_stream(x: Any, stream: Stream) -> None:
    """``Tensor.record_stream``."""
    x._streams = {*getattr(x, "_streams", ()), stream}
