"""Learning rates as pure functions of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from maemm.errors import MaemmError
from maemm.options import check

Curve = Callable[[float], float]  # epoch as a fraction -> learning rate


def cosine(peak: float, warmup: float, epochs: float, *, min_lr: float = 0.0) -> Curve:
    """Half a cosine from ``peak`` at the end of the warmup down to ``min_lr`` at ``epochs`` (MAE's lr_sched).

    Options
        min_lr: learning rate at the end
    """
    span = max(epochs - warmup, 1e-12)
    return lambda e: min_lr + (peak - min_lr) * 0.5 * (1.0 + math.cos(math.pi * (e - warmup) / span))


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


SCHEDULES: dict[str, Callable[..., Curve]] = {"cosine": cosine, "constant": constant, "step": step}


def learning_rate(train: Mapping[str, Any], steps_per_epoch: int, steps: int) -> Callable[[int], float]:
    """The learning rate set before each step, counted from 0: linear warmup from 0, then the schedule.

    ``train`` is that part of a recipe: ``schedule`` (a part; ``cosine``), ``lr`` or ``base_lr`` (times
    ``batch`` / 256), ``warmup_epochs``, ``min_lr``, ``lr_per`` ("step", or "epoch": constant within one).
    The formula is that of facebookresearch/mae, ``util/lr_sched.py``. Raises :class:`MaemmError`.
    """
    epochs, warmup = steps / steps_per_epoch, float(train.get("warmup_epochs") or 0.0)
    if warmup >= epochs > 0:
        raise MaemmError(
            f"the warmup takes {warmup:g} epochs of a training of {epochs:.3g} (train.warmup_epochs); "
            "train longer or lower it"
        )
    peak = peak_lr(train)
    curve = _curve(train, peak, warmup, epochs)
    whole_epochs = train.get("lr_per", "step") == "epoch"

    def at(number: int) -> float:
        e = number // steps_per_epoch if whole_epochs else number / steps_per_epoch
        return peak * e / warmup if e < warmup else curve(e)

    return at


def peak_lr(train: Mapping[str, Any]) -> float:
    """``train.lr``, or ``train.base_lr`` scaled with the global batch."""
    if train.get("lr") is not None:
        return float(train["lr"])
    if train.get("base_lr") is None:
        raise MaemmError("no learning rate is given; set train.base_lr (for a batch of 256) or train.lr")
    return float(train["base_lr"]) * train["batch"] / 256


def _curve(train: Mapping[str, Any], peak: float, warmup: float, epochs: float) -> Curve:
    part = train.get("schedule") or "cosine"
    options = {"type": part} if isinstance(part, str) else dict(part)
    name = options.pop("type", "cosine")
    if name not in SCHEDULES:
        raise MaemmError(f"unknown schedule {name!r} (train.schedule); choose {', '.join(SCHEDULES)}")
    if name == "cosine" and train.get("min_lr") is not None:
        options.setdefault("min_lr", float(train["min_lr"]))
    return SCHEDULES[name](peak, warmup, epochs, **check(SCHEDULES[name], options, "train.schedule"))
