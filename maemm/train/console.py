"""What a run prints: lines, and a progress bar where the output is a terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from maemm.data.mixture import MixtureBatches
from maemm.data.order import ShuffledBatches
from maemm.train.figures import monitor_text
from maemm.train.state import TrainState
from maemm.ui.streams import is_terminal


class Console:
    """Prints lines through ``echo``, on a terminal above a progress bar. Silent on all ranks but rank 0."""

    def __init__(self, echo: Callable[[str], Any], is_rank0: bool):
        self._echo, self._is_rank0 = echo, is_rank0
        self._bar: Any = None

    def log(self, text: str) -> None:
        """Print a line."""
        if self._is_rank0:
            with nullcontext() if self._bar is None else self._bar.external_write_mode():
                self._echo(text)

    def begin(self, step: int, steps: int) -> None:
        """Show the progress bar, if stderr is a terminal."""
        if self._is_rank0 and is_terminal(sys.stderr):
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=step, unit="step", file=sys.stderr, dynamic_ncols=True, leave=False)

    def step(self) -> None:
        """Advance the progress bar by one step."""
        if self._bar is not None:
            self._bar.update()

    def metrics(self, row: Mapping[str, Any], epochs: int) -> None:
        """Show a line of metrics.jsonl: beside the bar, or as a line of its own."""
        if self._bar is not None:
            self._bar.set_postfix_str(metrics_text(row), refresh=False)
            return
        eta = duration((row["steps"] - row["step"]) * row["batch"] / max(row["samples_per_second"], 1e-9))
        position = f"epoch {math.ceil(row['epoch'])}/{epochs}  step {row['step']}"
        self.log(f"{position}  {metrics_text(row)}  ETA {eta}")

    def end(self) -> None:
        """Remove the progress bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def first_line(
    path: Path, train_state: TrainState, samples: int, order: ShuffledBatches | MixtureBatches, steps: int
) -> str:
    """What is going to run, where, and how large it is."""
    model, dist_context = train_state.model, train_state.dist_context
    encoder_size, size = (sum(p.numel() for p in module.parameters()) for module in (model.encoder, model))
    unit, units = ("GPU", "GPUs") if dist_context.device.type == "cuda" else ("CPU process", "CPU processes")
    devices = f"{dist_context.world_size} {units if dist_context.world_size > 1 else unit}"
    precision = ("bf16" if train_state.bf16 else "fp32") + (", compiled" if train_state.compiled else "")
    micro = f" in {order.accumulation} micro-batches" if order.accumulation > 1 else ""
    return (
        f"{path}   {short_count(size)} parameters (encoder {short_count(encoder_size)})   {devices}, {precision}   "
        f"{samples:,} samples, batch {order.batch}{micro}   {order.steps_per_epoch} steps/epoch, {steps:,} steps"
    )


def left_out_line(order: ShuffledBatches | MixtureBatches) -> str | None:
    """How many samples of an epoch fill no batch, if any."""
    if not (count := order.left_out):
        return None
    unit = "pass over the data sets" if isinstance(order, MixtureBatches) else "epoch"
    return (
        f"{count:,} sample{' is' if count == 1 else 's are'} left out of each {unit}, others each time, as batches are "
        f"of {order.batch:,}"
    )


def metrics_text(row: Mapping[str, Any]) -> str:
    """Loss, baseline, validation, monitor, speed, data wait, use of the device and memory of a log line."""
    baseline = row.get("baseline")
    mean_predictor = "" if baseline is None else f" (mean-predictor {baseline:.3f})"
    if names := row.get("without_baseline"):
        mean_predictor = f" (no baseline: the loss of {', '.join(names)} has none)"
    validation = "".join(f"  validation {name} {value:.4g}" for name, value in row.get("validation", {}).items())
    monitor = monitor_text(row.get("monitor", {}))
    mfu = f"  MFU {100 * row['mfu']:.3g} %" if "mfu" in row else ""
    memory = f"  memory {row['memory'] / 2**30:.1f} GiB" if row.get("memory") else ""
    return (
        f"loss {row['loss']:.4g}{mean_predictor}{validation}{monitor}  {row['samples_per_second']:,.0f} samples/s  "
        f"data-wait {100 * row['data_wait']:.0f} %{mfu}{memory}"
    )


def short_count(number: int) -> str:
    """111907840 -> "111.9 M"."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)


def duration(seconds: float) -> str:
    """Seconds in words: "11 h 40 min", "2 min 5 s", "9 s"."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600:,} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
