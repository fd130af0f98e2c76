"""Learning rates as pure functions of the step, so that a checkpoint holds no state of a schedule.

A schedule of the registry is a function ``(peak, warmup, epochs, *, options)``, with the peak of the learning rate and
two numbers of epochs, that returns a :data:`Curve`: epoch, with its fraction -> learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from maemm import registry
from maemm.config.options import check
from maemm.contract.errors import MaemmError
from maemm.contract.options import NonNegative, Positive

Curve = Callable[[float], float]  # epoch, with its fraction -> learning rate


def cosine(
    peak: float,
    warmup: float,
    epochs: float,
    *,
    min_lr: NonNegative = 0.0,
    over: Positive | None = None,
    from_start: bool = False,
) -> Curve:
    """Half a cosine from ``peak`` at the end of the warmup to ``min_lr`` at ``epochs``, as in MAE (lr_sched.py).

    Options
        min_lr: learning rate at the end
        over: epoch at which it ends; null: the last one
        from_start: begin at epoch 0, where the warmup replaces it (timm without warmup_prefix)
    """
    first, last = 0.0 if from_start else warmup, epochs if over is None else over
    if last <= first:  # it has ended before it begins
        return lambda epoch: min_lr
    span = max(last - first, 1e-12)
    return lambda epoch: min_lr + (peak - min_lr) * 0.5 * (1.0 + math.cos(math.pi * (min(epoch, last) - first) / span))


def constant(peak: float, warmup: float, epochs: float) -> Curve:
    """``peak`` from the end of the warmup on."""
    return lambda epoch: peak


def step(
    peak: float, warmup: float, epochs: float, *, milestones: list[NonNegative], gamma: NonNegative = 0.1
) -> Curve:
    """``peak``, multiplied by ``gamma`` at each milestone.

    Options
        milestones: epochs at which the learning rate falls
        gamma: factor at each of them
    """
    return lambda epoch: peak * gamma ** sum(epoch >= milestone for milestone in milestones)


def learning_rate(train: Mapping[str, Any], steps_per_epoch: int, steps: int) -> Callable[[int], float]:
    """The learning rate set before each step, counted from 0: linear warmup, then the schedule.

    Keys of ``train``, that section of a recipe: ``schedule`` (default ``cosine``); ``lr``, or ``base_lr`` for a batch
    of 256; ``warmup_epochs``; ``warmup_lr``, at step 0 (default 0); ``min_lr``; ``lr_per``: "step" (default),
    "next_step" (that of the step after, as in code that steps its scheduler before the update: I-JEPA), "epoch"
    (constant within an epoch) or "epoch_before" (that of the previous epoch, as in code that steps its scheduler after
    each epoch with the number of that epoch). The formula is ``util/lr_sched.py`` of facebookresearch/mae.
    A warmup that is not shorter than the training is shortened, see :func:`warmup_epochs`.
    """
    epochs, warmup = steps / steps_per_epoch, warmup_epochs(train, steps_per_epoch, steps)
    peak = peak_lr(train)
    name, options = registry.part_of(train.get("schedule"), default="cosine")
    schedule = registry.find("schedules", name)
    if name == "cosine" and train.get("min_lr") is not None:
        options.setdefault("min_lr", float(train["min_lr"]))
    if float(options.get("min_lr") or 0.0) > peak:
        raise MaemmError(f"min_lr {options['min_lr']:g} is above the learning rate {peak:g} (train.min_lr); lower it")
    curve: Curve = schedule(peak, warmup, epochs, **check(schedule, options, "train.schedule"))
    per, first = train.get("lr_per", "step"), float(train.get("warmup_lr") or 0.0)

    def at_step(number: int) -> float:
        epoch = (number + (per == "next_step")) / steps_per_epoch
        if per in ("epoch", "epoch_before"):
            epoch = max(0, number // steps_per_epoch - (per == "epoch_before"))
        return first + (peak - first) * epoch / warmup if epoch < warmup else curve(epoch)

    return at_step


def decay_curve(train: Mapping[str, Any], start: float, steps: int) -> Callable[[int], float] | None:
    """The weight decay set before each step, counted from 0: half a cosine from ``start`` to
    ``train.final_weight_decay`` over all ``steps`` (I-JEPA, utils/schedulers.py). None: it stays as it is.

    ``train.lr_per: next_step`` takes that of the step after, here too.
    """
    end = train.get("final_weight_decay")
    if end is None:
        return None
    ahead = train.get("lr_per") == "next_step"
    return lambda step: end + (start - end) * 0.5 * (1.0 + math.cos(math.pi * min((step + ahead) / steps, 1.0)))


def warmup_epochs(train: Mapping[str, Any], steps_per_epoch: int, steps: int) -> float:
    """``train.warmup_epochs``; where the training is not longer than that, as many that its end has the peak rate."""
    warmup = float(train.get("warmup_epochs") or 0.0)
    if warmup < steps / steps_per_epoch:
        return warmup
    per = train.get("lr_per", "step")
    if per in ("step", "next_step"):
        return (steps - 1 + (per == "next_step")) / steps_per_epoch
    return float(max(0, (steps - 1) // steps_per_epoch - (per == "epoch_before")))


def shortened_warmup(train: Mapping[str, Any], steps_per_epoch: int, steps: int) -> str | None:
    """A line where :func:`warmup_epochs` is not what the recipe says."""
    warmup = float(train.get("warmup_epochs") or 0.0)
    if warmup_epochs(train, steps_per_epoch, steps) == warmup:
        return None
    return (
        f"the warmup of {warmup:g} epochs (train.warmup_epochs) is shortened to this training of "
        f"{steps / steps_per_epoch:.3g} ({steps:,} steps): the learning rate rises until its end"
    )


def peak_lr(train: Mapping[str, Any]) -> float:
    """``train.lr``, or ``train.base_lr`` times ``train.batch`` / 256. Raises :class:`MaemmError` without either."""
    if train.get("lr") is not None:
        return float(train["lr"])
    if train.get("base_lr") is None:
        raise MaemmError("there is no learning rate; set train.base_lr (for a batch of 256) or train.lr")
    return float(train["base_lr"]) * train["batch"] / 256
