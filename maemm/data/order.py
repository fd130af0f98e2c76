"""Which samples a step uses: a pure function of (seed, epoch), so that a run can start at any step.

A *row* is a position in the global batch of a step. With ``aug_repeats`` k every sample fills k neighbouring rows, read
once and augmented k times; ``batch`` counts rows. The rows are divided among ranks and micro-batches, so the number of
these does not change which samples a step uses.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from maemm.contract.errors import MaemmError
from maemm.contract.rng import derive
from maemm.data.index_order import IndexPermutation, ShardOrder
from maemm.data.memory import bytes_text, machine_memory

_ORDER_BYTES = 24  # of a sample while the order of an epoch is drawn
MOST_IN_TABLE = 2**24  # samples whose order is drawn as a table; that of more is computed by position


class Request(NamedTuple):
    """One row that a rank has to load."""

    epoch: int
    index: int  # type: ignore[assignment]  # of the sample in its source; hides tuple.index
    repeat: int  # 0 .. aug_repeats - 1
    row: int  # in the global batch of the step


class BatchOrder(Protocol):
    """What the loader needs of an order."""

    samples: int

    def micro_batches(self, step: int) -> list[list[Request]]:
        """The rows of this rank in ``step``, one list per micro-batch."""
        ...


def permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    """(n,) int64: the order of ``n`` samples in ``epoch``."""
    return np.random.default_rng(derive(seed, "order", epoch)).permutation(n)


def drawn(n: int, count: int, seed: int, epoch: int, weights: np.ndarray | None = None) -> np.ndarray:
    """(count,) int64: a random choice of ``n`` samples for ``epoch``, with probabilities like ``weights`` (n,).

    Without replacement where ``count`` is below ``n`` and at most the number of samples with positive weight.
    """
    generator = np.random.default_rng(derive(seed, "order", epoch))
    available = n if weights is None else int(np.count_nonzero(weights))
    probabilities = None if weights is None else weights / weights.sum()
    return generator.choice(n, count, replace=count >= n or count > available, p=probabilities)


class ShuffledBatches:
    """The training order: shuffled epochs of whole batches; samples that do not fill a last batch are left out.

    With ``epoch`` (samples per epoch) or ``weights`` (n,) the samples of an epoch are :func:`drawn`. The order of more
    than ``MOST_IN_TABLE`` samples takes no memory (:class:`~maemm.data.index_order.IndexPermutation`). With ``shards``
    (S,), the samples of each shard, ``mixed`` shards are shuffled at a time
    (:class:`~maemm.data.index_order.ShardOrder`).

    ``batch`` is the global batch, over all ranks, in rows. ``micro_batch`` is how many rows a rank processes at a time;
    None: all its rows of a step. Raises :class:`MaemmError` where these numbers do not divide each other.
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
        shards: np.ndarray | None = None,
        mixed: int = 1,
    ):
        _check_positive({"train.batch": batch, "aug_repeats": aug_repeats, "the number of ranks": world})
        if micro_batch is not None:
            _check_positive({"train.micro_batch": micro_batch})
        _check_divides(batch, aug_repeats, f"train.batch {batch}", f"the {aug_repeats} repeats of each sample")
        ranks = f"{world} ranks" + (f" with {aug_repeats} repeats of each sample" if aug_repeats > 1 else "")
        _check_divides(batch, world * aug_repeats, f"train.batch {batch}", ranks)
        own = batch // world
        micro = min(micro_batch or own, own)
        _check_divides(own, micro, f"the {own} rows of one rank", f"train.micro_batch {micro}")
        _check_divides(micro, aug_repeats, f"train.micro_batch {micro}", f"the {aug_repeats} repeats of each sample")
        _check_enough(samples if epoch is None else min(samples, 1) * epoch, batch // aug_repeats)
        if epoch is not None or weights is not None:
            _check_fits(epoch or samples)
        self.samples, self.batch, self.seed, self.aug_repeats = samples, batch, seed, aug_repeats
        self.micro_batch = micro
        self.accumulation = own // micro
        self.weights, self._drawn = weights, epoch
        self._shards, self._mixed = shards, mixed
        self.steps_per_epoch = (epoch or samples) // (batch // aug_repeats)
        #: samples of an epoch that fill no batch; others in each epoch
        self.left_out = (epoch or samples) % (batch // aug_repeats)
        self._first_row = rank * own
        self._cached: tuple[int, np.ndarray | IndexPermutation | ShardOrder] | None = None

    def epoch(self, step: int) -> int:
        """The epoch in which ``step`` lies."""
        return step // self.steps_per_epoch

    def micro_batches(self, step: int) -> list[list[Request]]:
        """The rows of this rank in ``step``: ``accumulation`` lists of ``micro_batch`` requests."""
        epoch, position = divmod(step, self.steps_per_epoch)
        rows = range(self._first_row, self._first_row + self.accumulation * self.micro_batch)
        first, last = rows.start // self.aug_repeats, (rows.stop - 1) // self.aug_repeats + 1
        start = position * (self.batch // self.aug_repeats)
        samples = self._order(epoch)[start + first : start + last].tolist()
        requests = []
        for row in rows:
            sample, repeat = divmod(row, self.aug_repeats)
            requests.append(Request(epoch, samples[sample - first], repeat, row))
        return [requests[i : i + self.micro_batch] for i in range(0, len(requests), self.micro_batch)]

    def _order(self, epoch: int) -> np.ndarray | IndexPermutation | ShardOrder:
        if self._cached is None or self._cached[0] != epoch:
            self._cached = epoch, self._new_order(epoch)
        return self._cached[1]

    def _new_order(self, epoch: int) -> np.ndarray | IndexPermutation | ShardOrder:
        if self._drawn is not None or self.weights is not None:
            return drawn(self.samples, self._drawn or self.samples, self.seed, epoch, self.weights)
        if self._shards is not None:
            return ShardOrder(self._shards, self._mixed, derive(self.seed, "order", epoch))
        if self.samples > MOST_IN_TABLE:
            return IndexPermutation(self.samples, derive(self.seed, "order", epoch))
        return permutation(self.samples, self.seed, epoch)


class SequentialBatches:
    """Every sample once, in the order of the source, for evaluation. The last batch may be shorter.

    Each batch is divided among the ranks: rank r gets the r-th contiguous part, which may be empty at the end. Here the
    row of a request is the index of its sample.
    """

    def __init__(self, samples: int, batch: int, *, rank: int = 0, world: int = 1):
        _check_positive({"the batch": batch, "the number of ranks": world})
        if samples == 0:
            raise MaemmError("there are no samples (data.root); give a data set that is not empty")
        self.samples, self.batch, self.rank, self.world = samples, batch, rank, world
        self.steps = -(-samples // batch)

    def micro_batches(self, step: int) -> list[list[Request]]:
        """One list with the rows of this rank in ``step``; no list where it has none."""
        start, stop = step * self.batch, min((step + 1) * self.batch, self.samples)
        own = -(-self.batch // self.world)
        start += self.rank * own
        rows = range(start, min(start + own, stop))
        return [[Request(0, row, 0, row) for row in rows]] if rows else []


def _check_positive(numbers: dict[str, int]) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise MaemmError(f"{name} is {value}; it must be at least 1")


def _check_divides(number: int, by: int, number_text: str, by_text: str) -> None:
    if number % by == 0:
        return
    if number_text.startswith("the "):  # a derived number: only the divisor can be changed
        divisors = [d for d in range(1, number + 1) if number % d == 0]
        advice = f"use one of its divisors, such as {min(divisors, key=lambda d: abs(d - by))}"
    else:
        lower, upper = number // by * by, (number // by + 1) * by
        advice = f"use {lower} or {upper}" if lower else f"use {upper}"
    raise MaemmError(f"{number_text} cannot be divided evenly among {by_text}; {advice}")


def _check_fits(count: int) -> None:
    available = machine_memory()
    if available is not None and count * _ORDER_BYTES > available:
        raise MaemmError(
            f"the order of {count:,} samples takes {bytes_text(count * _ORDER_BYTES)} (data.epoch); this machine has "
            f"{bytes_text(available)} of memory, lower data.epoch"
        )


def _check_enough(samples: int, needed: int) -> None:
    if samples == 0:
        raise MaemmError("there are no samples (data.root); give a data set that is not empty")
    if samples < needed:
        raise MaemmError(f"train.batch {needed} is larger than the {samples:,} samples (data.root); lower train.batch")
