"""What a run says while it runs: metrics.jsonl, TensorBoard, a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maemm.contract.errors import MaemmError

WAIT_SHARE, HINT_AFTER_S = 0.1, 60.0  # from here on a hint about the loader is worth a line


# ------------------------------------------------------------------------------------------------- measuring
class Means:
    """Means of figures over the steps since the last line, kept on the device; steps that went bad do not count.

    Part of the checkpoint, so that the lines of a resumed run equal those of an uninterrupted one.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._sums: dict[str, Tensor] = {}  # (sum, number of steps)

    def add(self, values: Mapping[str, Tensor], bad: Tensor) -> None:
        """Add the scalars of one step. The host waits for nothing."""
        for name, value in values.items():
            kept = torch.stack([torch.where(bad, 0.0, value.detach()), (~bad).to(value.dtype)]).double()
            self._sums[name] = self._sums.get(name, 0) + kept

    def flush(self) -> dict[str, float]:
        """The means, NaN where no step counted; the next line begins."""
        found = {name: pair.tolist() for name, pair in self._sums.items()}
        self._sums = {}
        return {name: total / count if count else math.nan for name, (total, count) in found.items()}

    def state_dict(self) -> dict[str, list[float]]:
        return {name: pair.tolist() for name, pair in self._sums.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        self._sums = {name: torch.tensor(pair, dtype=torch.float64, device=self.device) for name, pair in state.items()}


class Clock:
    """Samples per second and the share of the time that steps waited for data, since the last line."""

    def __init__(self, batch: int, seconds: float = 0.0):
        self.batch, self._before, self._begin = batch, seconds, time.monotonic()
        self._since, self._waited, self._steps = self._begin, 0.0, 0
        self._all_waited, self._hinted = 0.0, False

    @property
    def seconds(self) -> float:
        """Time in training so far, over all starts of the run."""
        return self._before + time.monotonic() - self._begin

    def step(self, waited: float) -> None:
        self._steps += 1
        self._waited += waited
        self._all_waited += waited

    def flush(self) -> dict[str, float]:
        now = time.monotonic()
        passed = max(now - self._since, 1e-9)
        found = {
            "samples_per_second": self._steps * self.batch / passed,
            "data_wait": min(1.0, self._waited / passed),
            "seconds": self.seconds,
        }
        self._since, self._waited, self._steps = now, 0.0, 0
        return found

    def hint(self, workers: int) -> str | None:
        """Once, after a minute that was spent to a good part on waiting: what to do about it."""
        passed = time.monotonic() - self._begin
        if self._hinted or passed < HINT_AFTER_S or self._all_waited < WAIT_SHARE * passed:
            return None
        self._hinted = True
        fraction = f"{100 * self._all_waited / passed:.0f} %"
        return (
            f"waiting for data takes {fraction} of the time; raise data.workers (now {workers}) or use faster storage"
        )


def memory_bytes(device: torch.device) -> int:
    """Peak memory: of tensors on a GPU, of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --------------------------------------------------------------------------------------------------- writing
class MetricsFile:
    """metrics.jsonl: one JSON object per line, null where a figure is not finite."""

    def __init__(self, path: Path):
        self.path = path

    def rewind(self, step: int) -> None:
        """Drop the lines behind ``step``, which are about to be written again, and any that was cut off."""
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_bytes().splitlines() if _step_of(line) <= step]
        beside = self.path.with_name(f".{self.path.name}.tmp")
        try:
            beside.write_bytes(b"".join(line + b"\n" for line in kept))
            os.replace(beside, self.path)
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def write(self, row: Mapping[str, Any]) -> None:
        text = json.dumps(_finite(row), allow_nan=False)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(text + "\n")
        except OSError as error:
            raise _unwritable(self.path, error) from error


def _step_of(line: bytes) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(one) for name, one in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _unwritable(path: Path, error: OSError) -> MaemmError:
    return MaemmError(f"cannot write {path} ({error.strerror}); free space: the same command goes on")


def tensorboard(folder: Path, step: int) -> Any:
    """A TensorBoard writer that drops what it has beyond ``step``. Raises :class:`MaemmError` without the package."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise MaemmError(
            "train.tensorboard needs the package 'tensorboard'; run: pip install 'maemm[tensorboard]'"
        ) from error
    return SummaryWriter(str(folder), purge_step=step + 1)


def to_tensorboard(writer: Any, row: Mapping[str, Any]) -> None:
    """The figures of a line as scalars; nested ones as ``terms/NAME``."""
    for name, value in row.items():
        pairs = value.items() if isinstance(value, Mapping) else [("", value)]
        for inner, number in pairs:
            if isinstance(number, int | float) and name != "step":
                writer.add_scalar(f"{name}/{inner}" if inner else name, number, row["step"])
    writer.flush()


# -------------------------------------------------------------------------------------------------- speaking
class Console:
    """Lines through ``echo``, and on a terminal a bar below them. Silent in all processes but the first."""

    def __init__(self, echo: Callable[[str], Any], is_rank0: bool):
        self._echo, self._lead = echo, is_rank0
        self._bar: Any = None

    def say(self, text: str) -> None:
        if not self._lead:
            return
        with nullcontext() if self._bar is None else self._bar.external_write_mode():
            self._echo(text)

    def begin(self, step: int, steps: int) -> None:
        """Show the bar, if somebody is there to see it."""
        if self._lead and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=step, unit="step", file=sys.stderr, dynamic_ncols=True, leave=False)

    def step(self) -> None:
        if self._bar is not None:
            self._bar.update()

    def row(self, row: Mapping[str, Any], epochs: int) -> None:
        """The figures of a line of the log: beside the bar, or as a line of its own."""
        if self._bar is not None:
            self._bar.set_postfix_str(figures(row), refresh=False)
            return
        rest = duration((row["steps"] - row["step"]) * row["batch"] / max(row["samples_per_second"], 1e-9))
        place = f"epoch {math.ceil(row['epoch'])}/{epochs}  step {row['step']}"
        self.say(f"{place}  {figures(row)}  ETA {rest}")

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def figures(row: Mapping[str, Any]) -> str:
    """Loss, baseline, speed and data wait of a line."""
    baseline = row.get("baseline")
    beside = "" if baseline is None else f" (mean-predictor {baseline:.3f})"
    found = "".join(f"  validation {name} {value:.4g}" for name, value in row.get("validation", {}).items())
    return (
        f"loss {row['loss']:.4g}{beside}{found}  {row['samples_per_second']:,.0f} samples/s  "
        f"data-wait {100 * row['data_wait']:.0f} %"
    )


def duration(seconds: float) -> str:
    """Seconds in words: "11 h 40 min", "2 min 5 s", "9 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600:,} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
