"""The first line of a run: what is going to run, where, and how large it is."""

from __future__ import annotations

from pathlib import Path

from maemm.data.mixture import MixtureBatches
from maemm.data.order import ShuffledBatches
from maemm.train.step import TrainState


def first_line(
    path: Path, train_state: TrainState, samples: int, order: ShuffledBatches | MixtureBatches, steps: int
) -> str:
    """What is going to run, where, and how large it is."""
    model, dist_context = train_state.model, train_state.dist_context
    inside, parameters = (sum(one.numel() for one in part.parameters()) for part in (model.encoder, model))
    one, more = ("GPU", "GPUs") if dist_context.device.type == "cuda" else ("CPU process", "CPU processes")
    devices = f"{dist_context.world} {more if dist_context.world > 1 else one}"
    precision = "bf16" if train_state.bf16 else "fp32"
    micro = f" in {order.accumulation} micro-batches" if order.accumulation > 1 else ""
    return (
        f"{path}   {count(parameters)} parameters (encoder {count(inside)})   {devices}, {precision}   "
        f"{samples:,} samples, batch {order.batch}{micro}   {order.steps_per_epoch} steps/epoch, {steps:,} steps"
    )


def count(number: int) -> str:
    """111907840 -> "111.9 M"."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
