"""The rules of the alarm (:mod:`maemm.train.alarms`): each is a function of the :class:`Course` of a run that returns
its evidence in words, or None.

Thresholds and their reasons are in the docstrings; where one is not a matter of definition it was set on runs of the
tiny recipes, on other seeds than those of the table in ``benchmarks/README.md``. A figure that is not there is no
evidence.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Setting:
    """What a run is, as far as rules ask."""

    steps: int  # of the whole training
    warmup: float  # steps until the learning rate is at its peak
    clip: float | None  # norm to which the gradient is clipped
    masked: bool  # whether something is hidden and predicted
    samples: int  # that are measured
    adaptive: bool  # whether the optimiser moves each weight by about the learning rate (Adam and its kin)
    trained_encoder: float  # share of the encoder's parameters that have a learning rate to speak of
    freezes: bool = False  # whether the recipe freezes parts on purpose (train.freeze, train.trainable)


@dataclass(frozen=True)
class Course:
    """What has been measured of a run.

    ``start``: the figures of :func:`maemm.train.measuring.measure` before the first step; ``rows``: those of each
    measurement, with ``step``, ``lr``, ``nonfinite_steps``, ``train_loss``, ``train_baseline`` and ``grad_norm`` (of
    the log line), ``weights`` (root mean square of matrices), ``weight_decay``, ``momentum`` (of an average that is
    predicted) and ``repeated_batches`` (share of the steps that had the samples of the step before).
    """

    setting: Setting
    start: Mapping[str, float]
    rows: Sequence[Mapping[str, Any]]

    @property
    def now(self) -> Mapping[str, Any]:
        """The newest row."""
        return self.rows[-1]

    @property
    def step(self) -> int:
        """Steps that have been done."""
        return int(self.now["step"])

    def of_modalities(self, figure: str) -> dict[str, float]:
        """{modality: its newest figure}, of those that have it, where it is finite."""
        values = {name.rpartition(".")[0]: x for name, x in self.now.items() if name.rpartition(".")[2] == figure}
        return {name: x for name, x in values.items() if name and isinstance(x, int | float) and math.isfinite(x)}

    def since_start(self, figure: str) -> dict[str, tuple[float, float]]:
        """{modality: (its figure before the first step, the newest)}, where the first is above 0."""
        pairs = {name: (self.start.get(f"{name}.{figure}", 0.0), x) for name, x in self.of_modalities(figure).items()}
        return {name: pair for name, pair in pairs.items() if pair[0] > 0}

    def column(self, name: str, count: int = 2) -> list[float]:
        """The last ``count`` values of a figure, oldest first; [] where there are fewer, or one is not finite."""
        values = [row.get(name) for row in self.rows[-count:]]
        numbers = [float(x) for x in values if isinstance(x, int | float) and math.isfinite(x)]
        return numbers if len(numbers) == count else []


# ------------------------------------------------------------------------------------------ what the samples are
def same_samples(course: Course) -> str | None:
    """Fewer than half of the measured samples differ, where at least 16 were measured.

    Copies are told by two sums over each sample, to five digits. Data sets with some copies are common; that half of a
    few evenly spaced samples are copies needs a source with fewer contents than were measured.
    """
    few = {name: share for name, share in course.of_modalities("different").items() if share < 0.5}
    return _listed(few, "{:.0%} of the samples differ") if few and course.setting.samples >= 16 else None


def same_batch(course: Course) -> str | None:
    """Half of the steps or more had the samples of the step before. Epochs that are shuffled never do, unless the data
    set is hardly larger than a batch, and then this is not counted."""
    share = course.now.get("repeated_batches", 0.0)
    return f"{share:.0%} of the steps had the samples of the step before" if share >= 0.5 else None


def constant_channel(course: Course) -> str | None:
    """A channel that is the same number in all samples and places, beside others that are not: its standard deviation
    is below 1e-5 of its size, which is rounding."""
    dead = {name: count for name, count in course.of_modalities("constant_channels").items() if count}
    channels = course.of_modalities("channels")
    some = {name: count for name, count in dead.items() if count < channels.get(name, 0)}
    return _listed(some, "{:.0f} of its channels the same everywhere") if some else None


def input_scale(course: Course) -> str | None:
    """Standard deviation of the inputs outside of 0.05 .. 10, or a mean more than 5 of them away from 0.

    Networks are made for inputs of mean 0 and deviation 1. Those of packaged recipes have 0.3 to 1.4; pictures
    normalised twice are at about 4 of the second mean away, values of 0 .. 255 taken for 0 .. 1 at 60 and more.
    """
    means, wrong = course.of_modalities("input_mean"), {}
    for name, std in course.of_modalities("input_std").items():
        if std and (not 0.05 <= std <= 10 or abs(means.get(name, 0.0)) > 5 * std):
            wrong[name] = f"mean {means.get(name, 0.0):.3g}, deviation {std:.3g}"
    return ", ".join(f"{name}: {text}" for name, text in wrong.items()) or None


# ------------------------------------------------------------------------------------------ what the task is
def leak(course: Course) -> str | None:
    """The encoder's output changes by more than 1e-4 of its size when predicted tokens are exchanged for those of
    another sample. By construction it does not change at all: this is no matter of degree."""
    seen = {name: change for name, change in course.of_modalities("leak").items() if change > 1e-4}
    return _listed(seen, "the encoder's output changes by {:.2g} with the hidden tokens") if seen else None


def constant_target(course: Course) -> str | None:
    """The variance of the targets over samples and places is below 1e-6 of their mean square, or 0, from the start on.

    Targets that become constant later are a collapse of the network that makes them.
    """
    dead = {}
    for name, variance in course.of_modalities("target_variance").items():
        before = course.start.get(f"{name}.target_variance", 0.0)
        size = max(course.now.get(f"{name}.target_mean_square", 0.0), 1e-12)
        if max(variance, before) <= 1e-6 * size:
            dead[name] = variance
    return _listed(dead, "variance of the targets {:.2g}") if dead else None


def target_scale(course: Course) -> str | None:
    """The mean variance of a dimension of the targets is above 100, or above 25 times that before the first step.

    Losses are made for targets of a variance about 1: normalised pixels, layer-normalised features; those of packaged
    recipes lie below 2. Features that are not normalised grow with the network that makes them.
    """
    large = {}
    for name, variance in course.of_modalities("target_variance").items():
        before = course.start.get(f"{name}.target_variance", 0.0)
        if variance > 100 or (before > 0.01 and variance > 25 * before):
            large[name] = variance
    return _listed(large, "variance of the targets {:.3g}") if large else None


def no_positions(course: Course) -> str | None:
    """Predictions for different places of a sample are equal: less than 1e-6 of the variance of predictions lies
    between places, from the start on. A decoder that is told places differs by far more before its first step."""
    equal = {
        name: share
        for name, share in course.of_modalities("prediction_spread").items()
        if share < 1e-6 and course.start.get(f"{name}.prediction_spread", 1.0) < 1e-6
    }
    return _listed(equal, "{:.1g} of the variance of predictions lies between places") if equal else None


# ------------------------------------------------------------------------------------------ how it is trained
def frozen_encoder(course: Course) -> str | None:
    """Less than a tenth of the encoder's parameters are trained at 1 % or more of the fastest learning rate, although
    something is hidden and predicted, which is pre-training, and the recipe says nothing of frozen parts."""
    setting, share = course.setting, course.setting.trained_encoder
    if not setting.masked or setting.freezes or share >= 0.1:
        return None
    return f"{share:.0%} of the encoder's parameters have a learning rate to speak of"


def skipped_steps(course: Course) -> str | None:
    """More than 5 % of the steps were skipped since their loss or gradient was not finite, and at least 3."""
    skipped = course.now.get("nonfinite_steps", 0)
    return f"{skipped} of {course.step} steps" if skipped >= 3 and skipped > 0.05 * course.step else None


def clipping(course: Course) -> str | None:
    """The norm of the gradient is above 100 times ``train.clip_grad`` in two measurements in a row, after the warmup.

    Recipes clip what sticks out. With a gradient that is always cut by a factor, the learning rate has another meaning,
    and with the eps of Adam above what is left, the network hardly moves.
    """
    norms = course.column("grad_norm")
    clip = course.setting.clip
    if clip is None or not norms or course.step <= course.setting.warmup or min(norms) < 100 * clip:
        return None
    return f"norm {norms[-1]:.2g}, train.clip_grad {clip:g}"


def ema_momentum(course: Course) -> str | None:
    """The average that is predicted follows the model with a momentum below 0.5, and the variance of the targets is
    below half of what it was before the first step.

    Published momenta are 0.99 and above (BYOL, table 5: with 0 the features collapse), data2vec's tiny recipe has 0.98.
    """
    momentum = course.now.get("momentum")
    if momentum is None or momentum >= 0.5:
        return None
    lost = _lost(course, 0.5)
    return f"momentum {momentum:g}, {lost}" if lost else None


def weight_decay(course: Course) -> str | None:
    """The root mean square of the matrices is below 0.4 of that before the first step, and the weight decay takes more
    than 0.5 % of a weight in each step (lr x decay). Healthy recipes take 0.01 % and their weights grow."""
    before, after = course.start.get("weights", 0.0), course.now.get("weights", math.inf)
    rate = course.now.get("lr", 0.0) * course.now.get("weight_decay", 0.0)
    if not before or after > 0.4 * before:
        return None
    peak = max(row.get("lr", 0.0) * row.get("weight_decay", 0.0) for row in course.rows)
    return f"{after / before:.2g} of their first size, decay {max(rate, peak):.1%} a step" if peak > 0.005 else None


def learning_rate(course: Course) -> str | None:
    """A step of Adam moves each weight by about the learning rate: where the largest so far is more than a tenth of the
    first root mean square of the matrices, and after the warmup the loss is no better than 0.98 of predicting the mean,
    or the effective rank of the features is below half of its first value.

    Healthy recipes stay below 0.06. Either half alone says little: published recipes of wide networks come to 0.15, and
    a hard task is slow.
    """
    size = course.start.get("weights", 0.0)
    if not course.setting.adaptive or not size or course.step <= course.setting.warmup:
        return None
    share = max(row.get("lr", 0.0) for row in course.rows) / size
    if share <= 0.1:
        return None
    moves = f"a step moves a weight by up to {share:.0%} of its first size"
    loss = course.now.get("relative_loss", 0.0)
    if loss >= 0.98:
        return f"{moves}, the loss is {loss:.2f} of that of predicting the mean"
    for name, (before, after) in course.since_start("effective_rank").items():
        if after < 0.5 * before:
            return f"{moves}, effective rank {name} from {before:.3g} to {after:.3g}"
    return None


def collapse(course: Course) -> str | None:
    """In two measurements in a row the variance of the targets is below a tenth of what it was before the first step,
    or the effective rank of the features below 1.5.

    The variance of features says nothing by itself: in healthy runs of the tiny recipes it falls to a millionth (clouds
    at 50 steps), to 3 % for hundreds of steps (videos), or for good while the loss falls (data2vec, 2 %). Nor does the
    rank before it is nearly 1: clouds of ten shapes have 2.4 in the end.
    """
    if len(course.rows) < 2:
        return None
    before = Course(course.setting, course.start, course.rows[:-1])
    return _collapsed(course) if _collapsed(before) else None


def _collapsed(course: Course) -> str | None:
    low = {name: rank for name, rank in course.of_modalities("effective_rank").items() if rank < 1.5}
    return _listed(low, "effective rank {:.3g}") if low else _lost(course, 0.1)


def _lost(course: Course, share: float) -> str | None:
    """In words where the variance of the targets is below ``share`` of what it was before the first step."""
    lost = {name: pair for name, pair in course.since_start("target_variance").items() if pair[1] < share * pair[0]}
    texts = [
        f"variance of the targets {name} from {before:.2g} to {after:.2g}" for name, (before, after) in lost.items()
    ]
    return ", ".join(texts) or None


def _listed(values: Mapping[str, float], unit: str) -> str:
    """Values by modality in words."""
    return ", ".join(f"{name}: {unit.format(x)}" for name, x in values.items())
