"""The first line of a run: what is going to run, where, and how large it is."""

from __future__ import annotations

from pathlib import Path

from maemm.data.mixture import Turns
from maemm.data.order import Slots
from maemm.train.step import Learner


def first_line(path: Path, learner: Learner, samples: int, order: Slots | Turns, steps: int) -> str:
    """What is going to run, where, and how large it is."""
    model, team = learner.model, learner.team
    inside, parameters = (sum(one.numel() for one in part.parameters()) for part in (model.encoder, model))
    one = "GPU" if team.device.type == "cuda" else "CPU process"
    devices = f"{team.world} {one}{'s' if team.world > 1 and one == 'GPU' else 'es' if team.world > 1 else ''}"
    precision = "bf16" if learner.bf16 else "fp32"
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
