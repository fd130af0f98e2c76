"""Monitors: what features, targets and losses on held-out samples are every so many steps, and a line where they look
wrong (:mod:`maemm.train.alarms`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from maemm.contract import Source
from maemm.contract.errors import MaemmError
from maemm.contract.rng import derive
from maemm.data.mixture import Mixture
from maemm.data.open import open_source
from maemm.data.subset import Subset
from maemm.data.transfer import on_host
from maemm.model.targets.ema import EMA
from maemm.train.alarm_rules import Course, Setting
from maemm.train.alarms import Alarm, alarms_of
from maemm.train.measuring import measure
from maemm.train.sharding import total_norm
from maemm.train.state import MicroBatches, TrainState

KEPT = 40  # measurements that rules look at, beside the first
SLOW = 0.01  # of the fastest learning rate: a parameter below it hardly moves
# What a log line says to the rules, and as what.
OF_ROW = {
    "step": "step",
    "lr": "lr",
    "loss": "train_loss",
    "baseline": "train_baseline",
    "grad_norm": "grad_norm",
    "nonfinite_steps": "nonfinite_steps",
}


class Monitor:
    """Measures every ``train.monitor.every`` steps. Without ``train.monitor`` it does nothing and costs nothing.

    Its state is part of a checkpoint, so that a resumed run measures, compares and says what an uninterrupted one does.
    """

    def __init__(
        self,
        recipe: Mapping[str, Any],
        train_state: TrainState,
        source: Source,
        held_out: Source | None,
        warmup: float,
        log: Callable[[str], Any],
    ):
        """``source``: training samples; ``held_out``: those of ``data.validation``; ``warmup``: steps of it."""
        self.options: Mapping[str, Any] | None = recipe["train"].get("monitor")
        self.recipe, self.train_state, self.log = recipe, train_state, log
        self.samples: Source | None = None
        self.start: dict[str, float] = {}  # figures before the first step
        self.rows: list[dict[str, Any]] = []  # of the last measurements
        self.alarms: dict[str, str] = {}  # {cause: line} of those that have been told
        self.steps, self.repeated, self.last_batch = 0, 0, 0  # since the last measurement
        if self.options is not None:
            self.samples = _samples(recipe, self.options, source, held_out)
            self.counts_repeated = len(source) > 2 * recipe["train"]["batch"]
            self.setting = _setting(recipe, train_state, len(self.samples), warmup)

    # ------------------------------------------------------------------------------------------------ in the loop
    def begin(self, step: int) -> None:
        """Before the next step, after ``step`` steps: measure what later figures are compared with, if nothing is."""
        if self.samples is not None and not self.start:
            self.start = self._figures(step)

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to measure after ``step`` of ``steps`` steps."""
        return self.options is not None and (step % self.options["every"] == 0 or step == steps)

    def add(self, micro_batches: MicroBatches) -> None:
        """Count a step. Nothing is read from the device."""
        if self.samples is None:
            return
        batch = derive(*sorted(id_ for ids in micro_batches.ids for id_ in ids))
        self.steps, self.repeated = self.steps + 1, self.repeated + (batch == self.last_batch)
        self.last_batch = batch

    def measure(self, step: int) -> dict[str, float]:
        """The figures after ``step`` for a log line, the same on all ranks, which call this together."""
        figures = self._figures(step)
        figures["repeated_batches"] = self.repeated / max(self.steps, 1) if self.counts_repeated else 0.0
        self.steps = self.repeated = 0
        return figures

    def judge(self, row: Mapping[str, Any]) -> list[Alarm]:
        """What looks wrong for the first time, given a log line whose ``monitor`` holds the figures of :meth:`measure`.

        All ranks call this, and all get the answer of rank 0.
        """
        seen = {name: row[key] for key, name in OF_ROW.items() if row.get(key) is not None} | dict(row["monitor"])
        self.rows = [*self.rows, seen][-KEPT:]
        course = Course(self.setting, self.start, self.rows)
        alarms = self.train_state.dist_context.on_rank0(lambda: alarms_of(course, without=self.alarms))
        for alarm in alarms:
            self.alarms[alarm.cause] = alarm.text
            self.log(f"alarm after step {row['step']}: {alarm.text}")
        return alarms

    @property
    def should_stop(self) -> bool:
        """Whether ``train.monitor.stop_on_alarm`` ends the run."""
        return self.options is not None and self.options["stop_on_alarm"] and bool(self.alarms)

    def stopped(self, step: int, path: object) -> MaemmError:
        """The error of a run that :attr:`should_stop`, saved in ``path``."""
        first = next(iter(self.alarms.values()))
        return MaemmError(
            f"stopped at step {step} (train.monitor.stop_on_alarm), saved to {path}: {first}; to go on all the "
            "same set train.monitor.stop_on_alarm=false"
        )

    def _figures(self, step: int) -> dict[str, float]:
        assert self.samples is not None
        state = self.train_state
        with state.gathered(averaged=True) as model, state.eager():
            figures = measure(model, self.samples, self.recipe, bf16=state.bf16, ranks=state.dist_context)
        return figures | _of_weights(state, step)

    # -------------------------------------------------------------------------------------------------- checkpoints
    def state_dict(self) -> dict[str, Any]:
        if self.samples is None:
            return {}
        return {
            "samples": self.samples.fingerprint(),
            "start": self.start,
            "rows": self.rows,
            "alarms": self.alarms,
            "counts": [self.steps, self.repeated, self.last_batch],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """``state`` of :meth:`state_dict`; empty where the run had no monitor until then.

        What was measured of other samples (``train.monitor`` has changed since) is not compared with.
        """
        if not state or self.samples is None:
            return
        self.alarms = dict(state["alarms"])
        self.steps, self.repeated, self.last_batch = state["counts"]
        if state["samples"] == self.samples.fingerprint():
            self.start, self.rows = dict(state["start"]), list(state["rows"])


def _samples(recipe: Mapping[str, Any], options: Mapping[str, Any], source: Source, held_out: Source | None) -> Source:
    """``monitor.samples`` samples, evenly spaced, of ``monitor.data``, or the validation part, or the training part."""
    if options["data"] is not None:
        if recipe["data"].get("mix"):
            raise MaemmError(
                "train.monitor.data is other data, which cannot be combined with data.mix; leave it out: samples are "
                "then those of data.validation, or of the training part"
            )
        data = {**recipe["data"], "root": options["data"], "list": None, "fold": None}
        source = open_source({**recipe, "data": data})
    elif held_out is not None:
        source = held_out
    if isinstance(source, Mixture):
        each = max(2, options["samples"] // len(source.parts))
        return Mixture({name: replace(part, source=evenly(part.source, each)) for name, part in source.parts.items()})
    return evenly(source, options["samples"])


def evenly(source: Source, count: int) -> Source:
    """At most ``count`` samples, evenly spaced."""
    if len(source) <= count:
        return source
    return Subset(source, [number * len(source) // count for number in range(count)])


def _setting(recipe: Mapping[str, Any], state: TrainState, samples: int, warmup: float) -> Setting:
    train = recipe["train"]
    rates = {
        id(parameter): group["lr_scale"] for group in state.optimizer.param_groups for parameter in group["params"]
    }
    slowest = max(rates.values()) * SLOW
    encoder = list(state.model.encoder.parameters())
    trained = sum(p.numel() for p in encoder if p.requires_grad and rates.get(id(p), 0.0) > slowest)
    return Setting(
        steps=state.steps,
        warmup=warmup,
        clip=state.clip,
        masked=state.model.masked,
        samples=samples,
        adaptive=any("adam" in base.__name__.lower() for base in type(state.optimizer).__mro__),
        trained_encoder=trained / max(sum(p.numel() for p in encoder), 1),
        freezes=bool(train.get("freeze")) or (train.get("trainable") or "all") != "all",
    )


def _of_weights(state: TrainState, step: int) -> dict[str, float]:
    """The root mean square of the weights that decay, by how much that is, and the momentum of an average that is
    predicted."""
    groups = state.optimizer.param_groups
    matrices = [p for group in groups for p in group["params"] if p.ndim > 1]
    figures = {"weight_decay": max((float(group.get("weight_decay", 0.0)) for group in groups), default=0.0)}
    if matrices:
        total = total_norm(p.detach() for p in matrices)
        size = float(on_host(total)) / math.sqrt(sum(p.numel() for p in matrices))
        figures["weights"] = size
    averages = [target for target in state.model.all_targets() if isinstance(target, EMA)]
    if averages:
        figures["momentum"] = min(target.momentum_at(step) for target in averages)
    return figures
