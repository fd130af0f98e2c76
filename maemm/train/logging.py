"""The metrics of a run: means over steps, times and memory, written to metrics.jsonl."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError
from maemm.data.atomic import write_whole
from maemm.data.line_files import lines_of, record_of

WRITE_ADVICE = "free space: the same command continues"
HINT_FRACTION, HINT_AFTER_S = 0.1, 60.0  # the loader gets a hint if steps wait that long for it


# ------------------------------------------------------------------------------------------------- measuring
class Means:
    """Means of metrics over the steps since the last log line, kept on the device; bad steps do not count.

    Part of the checkpoint, so that the log of a resumed run equals that of an uninterrupted one.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._sums: dict[str, Tensor] = {}  # (sum, number of steps)

    def add(self, values: Mapping[str, Tensor], bad: Tensor) -> None:
        """Add the scalars of one step, unless the bool scalar ``bad`` is true. Never synchronises the host."""
        for name, value in values.items():
            pair = torch.stack([torch.where(bad, 0.0, value.detach()), (~bad).to(value.dtype)]).double()
            self._sums[name] = self._sums.get(name, 0) + pair

    def flush(self, beside: Mapping[str, Tensor]) -> tuple[dict[str, float], dict[str, float]]:
        """The means, NaN where no step counted, and the scalars ``beside`` them; then start anew.

        All of them come from the device in one copy, for which the host waits.
        """
        count = len(self._sums)
        read = _read([*self._sums.values(), *beside.values()])
        means = {
            name: total / steps if steps else math.nan
            for name, (total, steps) in zip(self._sums, read[:count], strict=True)
        }
        self._sums = {}
        return means, {name: value for name, (value,) in zip(beside, read[count:], strict=True)}

    def state_dict(self) -> dict[str, list[float]]:
        return dict(zip(self._sums, _read(list(self._sums.values())), strict=True))

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        self._sums = {name: torch.tensor(pair, dtype=torch.float64, device=self.device) for name, pair in state.items()}


def _read(tensors: Sequence[Tensor]) -> list[list[float]]:
    """The numbers of each of these tensors, by one copy from the device."""
    if not tensors:
        return []
    numbers = torch.cat([tensor.detach().reshape(-1).double() for tensor in tensors]).cpu()
    return [part.tolist() for part in numbers.split([tensor.numel() for tensor in tensors])]


class Clock:
    """Samples per second and the fraction of the time that steps wait for data, since the last log line."""

    def __init__(self, batch: int, seconds: float = 0.0):
        """``batch``: samples per step. ``seconds``: time in training before this start of the run."""
        self.batch, self._seconds_before, self._start = batch, seconds, time.monotonic()
        self._flushed_at, self._waited, self._steps = self._start, 0.0, 0
        self._waited_in_all, self._hinted = 0.0, False

    @property
    def seconds(self) -> float:
        """Time in training so far, over all starts of the run."""
        return self._seconds_before + time.monotonic() - self._start

    def step(self, waited: float) -> None:
        """Count a step that waited for its data for so many seconds."""
        self._steps += 1
        self._waited += waited
        self._waited_in_all += waited

    def flush(self) -> dict[str, float]:
        """The rates since the last call; then start anew."""
        now = time.monotonic()
        passed = max(now - self._flushed_at, 1e-9)
        rates = {
            "samples_per_second": self._steps * self.batch / passed,
            "data_wait": min(1.0, self._waited / passed),
            "seconds": self.seconds,
        }
        self._flushed_at, self._waited, self._steps = now, 0.0, 0
        return rates

    def hint(self, workers: int) -> str | None:
        """Advice on the loader, once, after a minute of which a good part was spent waiting for data."""
        passed = time.monotonic() - self._start
        if self._hinted or passed < HINT_AFTER_S or self._waited_in_all < HINT_FRACTION * passed:
            return None
        self._hinted = True
        percent = f"{100 * self._waited_in_all / passed:.0f} %"
        return f"waiting for data takes {percent} of the time; raise data.workers (now {workers}) or use faster storage"


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the most that tensors took since the last call, on a CPU that this process ever had."""
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        return peak
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --------------------------------------------------------------------------------------------------- writing
class MetricsFile:
    """metrics.jsonl: one JSON object per line, null for values that are not finite."""

    def __init__(self, path: Path):
        self.path = path

    def rewind(self, step: int) -> None:
        """Drop the lines after ``step``, which will be written again, and any line that was cut off."""
        if self.path.exists():
            try:
                text = b"".join(line for line in lines_of(self.path) if line.endswith(b"\n") and _step_of(line) <= step)
            except OSError as error:
                raise MaemmError(f"cannot read {self.path} ({error.strerror}); move it away") from error
            write_whole(self.path, lambda path: path.write_bytes(text), "the metrics of the run", advice=WRITE_ADVICE)

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a line."""
        text = json.dumps(_finite(row), allow_nan=False)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            raise MaemmError(f"cannot write {self.path} ({error.strerror}); {WRITE_ADVICE}") from error


def _step_of(line: bytes) -> float:
    """The step of a line; infinity where the line is not whole."""
    try:
        return float((record_of(line) or {})["step"])
    except (ValueError, KeyError, TypeError, OverflowError):
        return math.inf


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
