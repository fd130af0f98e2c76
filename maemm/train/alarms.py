"""What looks wrong in a run, and the likely cause: a table of rules over what a monitor has measured.

A rule finds its evidence or not (:mod:`maemm.train.alarm_rules`); what that means, its likely cause and what to do
stand beside it in :data:`RULES`. It speaks once in a run.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from maemm.train import alarm_rules as rules
from maemm.train.alarm_rules import Course


@dataclass(frozen=True)
class Rule:
    """One cause."""

    cause: str  # its name in logs
    wrong: str  # what looks wrong
    likely: str  # what the cause is
    todo: str
    evidence: Callable[[Course], str | None]
    general: bool = False  # True: it only speaks where no rule with a cause of its own has spoken


@dataclass(frozen=True)
class Alarm:
    """A rule that speaks."""

    cause: str
    text: str


def alarms_of(course: Course, without: Collection[str] = ()) -> list[Alarm]:
    """The alarms that the newest row of ``course`` raises, but for the causes ``without``, of which it was told."""
    alarms: list[Alarm] = []
    for rule in RULES:
        if rule.cause in without or (rule.general and (alarms or without)):
            continue
        evidence = rule.evidence(course)
        if evidence is not None:
            alarms.append(Alarm(rule.cause, f"{rule.wrong} ({evidence}); likely {rule.likely}; {rule.todo}"))
    return alarms


RULES: Sequence[Rule] = (
    Rule(
        "same_samples",
        "most of the measured samples are copies of each other",
        "a source that reads the same sample for several names",
        "look at what it gives: maemm data check, maemm show",
        rules.same_samples,
    ),
    Rule(
        "same_batch",
        "steps repeat their samples",
        "an order or a loader that does not move on",
        "look at the source, and at the order if it is your own",
        rules.same_batch,
    ),
    Rule(
        "constant_channel",
        "a channel of the input says nothing",
        "an empty channel of the files, or one that preprocessing overwrites",
        "look at it with maemm show, leave it out or repair it",
        rules.constant_channel,
    ),
    Rule(
        "input_scale",
        "inputs are far from mean 0 and deviation 1",
        "a mean and std of another unit, or data that are normalised twice",
        "measure them with maemm data stats and set modalities.NAME.mean and std",
        rules.input_scale,
    ),
    Rule(
        "leak",
        "the encoder sees what it has to predict",
        "a masking whose visible and predicted tokens overlap, or an embedding that mixes tokens",
        "predict hidden tokens only, and embed each token by itself",
        rules.leak,
    ),
    Rule(
        "constant_target",
        "the targets are all the same",
        "a target that is broken, or normalised away",
        "look at modalities.NAME.target, or at the teacher's features (maemm diagnose)",
        rules.constant_target,
    ),
    Rule(
        "target_scale",
        "targets are too large",
        "features of a teacher or an average that are not normalised",
        "set layer_norm: true in modalities.NAME.target, or normalise them in your own",
        rules.target_scale,
    ),
    Rule(
        "no_positions",
        "predictions do not differ between places",
        "mask tokens without positions",
        "set modalities.NAME.position, or decoder.rotary",
        rules.no_positions,
    ),
    Rule(
        "frozen_encoder",
        "the encoder is hardly trained",
        "frozen parameters, or a layer decay that leaves no learning rate",
        "look at train.layer_decay and requires_grad, and say it with train.freeze where it is meant",
        rules.frozen_encoder,
    ),
    Rule(
        "skipped_steps",
        "many steps are skipped",
        "samples with values that are not finite, or an overflow",
        "look at the samples that the lines on skipped steps name, lower train.lr, or set train.precision=fp32",
        rules.skipped_steps,
    ),
    Rule(
        "clipping",
        "the gradient is always clipped to a small part of itself",
        "a train.clip_grad for another loss",
        "raise it to about the usual norm (grad_norm in metrics.jsonl), or leave it out",
        rules.clipping,
    ),
    Rule(
        "ema_momentum",
        "targets lose their variance",
        "an average that follows the model at once",
        "raise modalities.NAME.target.momentum to 0.99 or more",
        rules.ema_momentum,
    ),
    Rule(
        "weight_decay",
        "the weights shrink towards 0",
        "a weight decay too high for the learning rate",
        "lower train.optimizer.weight_decay: 0.05 is usual",
        rules.weight_decay,
    ),
    Rule(
        "learning_rate",
        "the network learns little and moves far",
        "a learning rate too high",
        "lower train.lr (or base_lr), lengthen the warmup, or set train.clip_grad",
        rules.learning_rate,
    ),
    Rule(
        "collapse",
        "targets or features collapse",
        "an objective that a constant solves, or a learning rate too high",
        "lower train.lr, or raise the momentum of a target that moves, or normalise it",
        rules.collapse,
        general=True,
    ),
)
