"""Steps of a loader on the device, without a wait of the host.

On a GPU a thread takes the next step from the worker processes and pins it, while the step before runs. Its copies to
the device run on a stream of their own, beside the computation, which waits for them on the device alone.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import torch

from maemm.data.loader import Batch
from maemm.data.read_ahead import ReadAhead


@dataclass(frozen=True)
class StepOnDevice:
    """The micro-batches of a step."""

    step: int
    host: list[Batch]
    device: list[Batch]  # the same, on the device; the current stream has been told to wait for them


@dataclass(frozen=True)
class _Copied:
    """A step whose copies have been started, and the event after them."""

    step: StepOnDevice
    event: torch.cuda.Event | None = None


class StepsOnDevice:
    """An iterator over ``steps`` of a loader, which copies one step ahead and reads three; see :meth:`Loader.steps`.

    ``in_thread``: read on a thread, where ``device`` is a GPU. Only for a loader with worker processes: without them
    the thread itself would read the source, and validation and pictures read the same source at the same time. The
    first step is read in the calling thread, which so starts the workers. On a CPU nothing is read ahead or copied.

    At most two steps are on the device and four in pinned memory. Errors come in the order of the steps, as they were
    raised. :meth:`close` it to end the thread and the workers.
    """

    def __init__(self, steps: Generator[tuple[int, list[Batch]]], device: torch.device, *, in_thread: bool):
        self._steps, self._device = steps, device
        self._in_thread = in_thread and device.type == "cuda"
        self._copies: torch.cuda.Stream | None = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pinned = map(_pin, steps) if device.type == "cuda" else steps
        self._ahead: ReadAhead[tuple[int, list[Batch]]] | None = None  # the same, from the second step on
        self._copied: _Copied | None = None  # the next step, if its copies have been started already

    def __iter__(self) -> StepsOnDevice:
        return self

    def __next__(self) -> StepOnDevice:
        """The next step. Raises what the loader raises."""
        copied, self._copied = self._copied or self._copy(*next(self._ahead or self._pinned)), None
        if self._in_thread and self._ahead is None:
            self._ahead = ReadAhead(self._pinned, self._device, "reads ahead", depth=2)
        if self._ahead is not None and self._ahead.ready:
            self._copied = self._copy(*next(self._ahead))
        self._arrive(copied)
        return copied.step

    def close(self) -> None:
        """End the thread and the workers."""
        if self._ahead is not None:
            self._ahead.close()
        self._steps.close()

    def _copy(self, step: int, batches: list[Batch]) -> _Copied:
        """Start the copies of a step."""
        if self._copies is None:
            return _Copied(StepOnDevice(step, batches, batches))
        with torch.cuda.stream(self._copies):
            on_device = [batch.to(self._device) for batch in batches]
            event = torch.cuda.Event()
            event.record(self._copies)
        return _Copied(StepOnDevice(step, batches, on_device), event)

    def _arrive(self, copied: _Copied) -> None:
        """Let the computation wait for the copies of a step: on the device, the host goes on."""
        if copied.event is None:
            return
        stream = torch.cuda.current_stream(self._device)
        stream.wait_event(copied.event)
        for batch in copied.step.device:
            batch.record_stream(stream)  # so that their memory is not given away while the computation needs it


def _pin(step: tuple[int, list[Batch]]) -> tuple[int, list[Batch]]:
    """The same step in page-locked memory, from which copies are asynchronous."""
    number, batches = step
    return number, [batch.pin_memory() for batch in batches]
