"""Learning rates as pure functions of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from maemm import registry
from maemm.config.options import check
from maemm.contract.errors import MaemmError

Curve = Callable[[float], float]  # epoch as a fraction -> learning rate


def cosine(
    peak: float,
    warmup: float,
    epochs: float,
    *,
    min_lr: float = 0.0,
    over: float | None = None,
    from_start: bool = False,
) -> Curve:
    """Half a cosine from ``peak`` at the end of the warmup down to ``min_lr`` at ``epochs`` (MAE's lr_sched).

    Options
        min_lr: learning rate at the end
        over: epochs over which it is laid out; null: those of the training
        from_start: it begins at epoch 0, and the warmup hides its beginning (timm without warmup prefix)
    """
    first, last = 0.0 if from_start else warmup, epochs if over is None else over
    span = max(last - first, 1e-12)
    return lambda e: min_lr + (peak - min_lr) * 0.5 * (1.0 + math.cos(math.pi * (min(e, last) - first) / span))


def constant(peak: float, warmup: float, epochs: float) -> Curve:
    """``peak`` after the warmup."""
    return lambda e: peak


def step(peak: float, warmup: float, epochs: float, *, milestones: list[float], gamma: float = 0.1) -> Curve:
    """``peak`` times ``gamma`` for every milestone passed.

    Options
        milestones: epochs at which the learning rate falls
        gamma: factor at each of them
    """
    return lambda e: peak * gamma ** sum(e >= one for one in milestones)


def learning_rate(train: Mapping[str, Any], steps_per_epoch: int, steps: int) -> Callable[[int], float]:
    """The learning rate set before each step, counted from 0: linear warmup, then the schedule.

    ``train`` is that part of a recipe: ``schedule`` (a part; ``cosine``), ``lr`` or ``base_lr`` (times
    ``batch`` / 256), ``warmup_epochs``, ``warmup_lr`` (where it begins; 0), ``min_lr``, ``lr_per`` ("step";
    "epoch": constant within one; "epoch_before": that of the epoch before, as code has it that steps its scheduler
    behind each epoch with the epoch's number). The formula is that of facebookresearch/mae, ``util/lr_sched.py``.
    Raises :class:`MaemmError`.
    """
    epochs, warmup = steps / steps_per_epoch, float(train.get("warmup_epochs") or 0.0)
    if warmup >= epochs > 0:
        raise MaemmError(
            f"the warmup takes {warmup:g} epochs of a training of {epochs:.3g} (train.warmup_epochs); "
            "train longer or lower it"
        )
    peak = peak_lr(train)
    curve = _curve(train, peak, warmup, epochs)
    per, first = train.get("lr_per", "step"), float(train.get("warmup_lr") or 0.0)

    def at(number: int) -> float:
        e = number / steps_per_epoch
        if per != "step":
            e = max(0, number // steps_per_epoch - (per == "epoch_before"))
        return first + (peak - first) * e / warmup if e < warmup else curve(e)

    return at


def peak_lr(train: Mapping[str, Any]) -> float:
    """``train.lr``, or ``train.base_lr`` scaled with the global batch."""
    if train.get("lr") is not None:
        return float(train["lr"])
    if train.get("base_lr") is None:
        raise MaemmError("no learning rate is given; set train.base_lr (for a batch of 256) or train.lr")
    return float(train["base_lr"]) * train["batch"] / 256


def _curve(train: Mapping[str, Any], peak: float, warmup: float, epochs: float) -> Curve:
    name, options = registry.part_of(train.get("schedule"), default="cosine")
    schedule = registry.find("schedules", name)
    if name == "cosine" and train.get("min_lr") is not None:
        options.setdefault("min_lr", float(train["min_lr"]))
    return schedule(peak, warmup, epochs, **check(schedule, options, "train.schedule"))
