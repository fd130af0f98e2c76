"""Which samples a step takes: a pure function of (seed, epoch), so any step can be started without the earlier ones.

A *row* is a place in the global batch of a step. With ``aug_repeats`` k every sample fills k neighbouring rows, read
once and augmented k times; ``batch`` counts rows. Processes and micro-batches share out the rows, so their number
changes nothing in which samples a step takes.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from maemm.contract.errors import MaemmError
from maemm.contract.rng import derive


class Request(NamedTuple):
    """One row that a process has to load."""

    epoch: int
    index: int  # of the sample in its source
    repeat: int  # 0 .. repeats - 1
    row: int  # in the global batch of the step


class BatchOrder(Protocol):
    """What the loader asks of an order."""

    samples: int

    def micro_batches(self, step: int) -> list[list[Request]]:
        """The rows of this process in ``step``, one list for each micro-batch."""
        ...


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) int64: the order of ``n`` samples in ``epoch``."""
    return np.random.default_rng(derive(seed, "order", epoch)).permutation(n)


def drawn(n: int, count: int, seed: int, epoch: int, weights: np.ndarray | None = None) -> np.ndarray:
    """(count,) int64 of ``n`` samples, drawn anew in each epoch, with chances like ``weights`` (n,) where given.

    No sample comes twice where an epoch is shorter than the data; otherwise samples are put back.
    """
    generator = np.random.default_rng(derive(seed, "order", epoch))
    able = n if weights is None else int(np.count_nonzero(weights))
    chance = None if weights is None else weights / weights.sum()
    return generator.choice(n, count, replace=count >= n or count > able, p=chance)


class ShuffledBatches:
    """The training order: shuffled epochs of whole batches; what does not fill a last batch waits for another epoch.

    With ``epoch`` (samples) or ``weights`` (n,) an epoch is :func:`drawn` from the samples.

    ``batch`` is the global batch, over all processes, in rows. ``micro_batch`` is how many rows one process takes at
    a time; None: all its rows of a step at once. Raises :class:`MaemmError` where these numbers do not divide.
    """

    def __init__(
        self,
        samples: int,
        batch: int,
        seed: int,
        *,
        rank: int = 0,
        world: int = 1,
        micro_batch: int | None = None,
        aug_repeats: int = 1,
        epoch: int | None = None,
        weights: np.ndarray | None = None,
    ):
        _check_positive({"train.batch": batch, "aug_repeats": aug_repeats, "the number of processes": world})
        if micro_batch is not None:
            _check_positive({"train.micro_batch": micro_batch})
        _check_divides(batch, aug_repeats, f"train.batch {batch}", f"the {aug_repeats} repeats of each sample")
        _check_divides(batch, world * aug_repeats, f"train.batch {batch}", _split_text(world, aug_repeats))
        own = batch // world
        micro = min(micro_batch or own, own)
        _check_divides(own, micro, f"the {own} rows of one process", f"train.micro_batch {micro}")
        _check_divides(micro, aug_repeats, f"train.micro_batch {micro}", f"the {aug_repeats} repeats of each sample")
        _check_enough(samples if epoch is None else min(samples, 1) * epoch, batch // aug_repeats)
        self.samples, self.batch, self.seed, self.aug_repeats = samples, batch, seed, aug_repeats
        self.micro_batch = micro
        self.accumulation = own // micro
        self.weights, self._drawn = weights, epoch
        self.steps_per_epoch = (epoch or samples) // (batch // aug_repeats)
        self._first_row = rank * own
        self._cached: tuple[int, np.ndarray] | None = None

    def epoch(self, step: int) -> int:
        """The epoch in which ``step`` lies."""
        return step // self.steps_per_epoch

    def micro_batches(self, step: int) -> list[list[Request]]:
        """The rows of this process in ``step``: ``accumulation`` lists of ``micro_batch`` requests."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order = self._order(epoch)
        start = place * (self.batch // self.aug_repeats)
        first = self._first_row
        requests = []
        for row in range(first, first + self.accumulation * self.micro_batch):
            sample, repeat = divmod(row, self.aug_repeats)
            requests.append(Request(epoch, int(order[start + sample]), repeat, row))
        return [requests[i : i + self.micro_batch] for i in range(0, len(requests), self.micro_batch)]

    def _order(self, epoch: int) -> np.ndarray:
        if self._cached is None or self._cached[0] != epoch:
            self._cached = epoch, self._new_order(epoch)
        return self._cached[1]

    def _new_order(self, epoch: int) -> np.ndarray:
        if self._drawn is None and self.weights is None:
            return permutation(self.samples, self.seed, epoch)
        return drawn(self.samples, self._drawn or self.samples, self.seed, epoch, self.weights)


class SequentialBatches:
    """Every sample once, in the order of the source, for evaluation. The last batch may be shorter.

    Processes take turns within each batch: process r gets the r-th contiguous part, which may be empty at the end.
    Here a row counts through the whole pass and equals the index of the sample.
    """

    def __init__(self, samples: int, batch: int, *, rank: int = 0, world: int = 1):
        _check_positive({"the batch": batch, "the number of processes": world})
        if samples == 0:
            raise MaemmError("there are no samples (data.root); give a data set that is not empty")
        self.samples, self.batch, self.rank, self.world = samples, batch, rank, world
        self.steps = -(-samples // batch)

    def micro_batches(self, step: int) -> list[list[Request]]:
        """One list with the rows of this process in ``step``; no list where it has none."""
        start, stop = step * self.batch, min((step + 1) * self.batch, self.samples)
        own = -(-self.batch // self.world)
        start += self.rank * own
        rows = range(start, min(start + own, stop))
        return [[Request(0, row, 0, row) for row in rows]] if rows else []


def _check_positive(numbers: dict[str, int]) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise MaemmError(f"{name} is {value}; it must be at least 1")


def _check_divides(number: int, by: int, what: str, by_what: str) -> None:
    if number % by:
        lower, upper = number // by * by, (number // by + 1) * by
        near = f"{lower} or {upper}" if lower else f"{upper}"
        raise MaemmError(f"{what} cannot be shared out evenly over {by_what}; {_advice(what, near, number, by)}")


def _advice(what: str, near: str, number: int, by: int) -> str:
    if not what.startswith("the "):
        return f"use {near}"
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    return f"use one of its divisors, such as {min(divisors, key=lambda d: abs(d - by))}"


def _split_text(world: int, aug_repeats: int) -> str:
    return f"{world} processes" + (f" with {aug_repeats} repeats of each sample" if aug_repeats > 1 else "")


def _check_enough(samples: int, needed: int) -> None:
    if samples == 0:
        raise MaemmError("there are no samples (data.root); give a data set that is not empty")
    if samples < needed:
        raise MaemmError(f"train.batch {needed} is larger than the {samples:,} samples (data.root); lower train.batch")
