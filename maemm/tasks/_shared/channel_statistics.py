"""Mean and std of the values of many samples; neither their order nor an interruption changes a digit."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

Moment = tuple[int, float, float, float, float]  # count, mean, sum of squared deviations, lowest, highest


def moments(values: Tensor | np.ndarray) -> list[Moment]:
    """One :data:`Moment` per channel of ``values`` (C, n), in float64; NaN does not count."""
    # NumPy's sums do not depend on the number of threads, torch's do.
    values = values.detach().double().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values, np.float64)
    return [_moment(channel[~np.isnan(channel)]) for channel in values]


def _moment(values: np.ndarray) -> Moment:
    if not values.size:
        return 0, 0.0, 0.0, math.inf, -math.inf
    mean = float(values.sum() / values.size)
    return values.size, mean, float(np.square(values - mean).sum()), float(values.min()), float(values.max())


class ChannelStatistics:
    """Sums up the moments of many samples. Every sum is exact (``math.fsum``), hence the same in any order."""

    def __init__(self) -> None:
        self._channels: list[tuple[array, ...]] = []  # for each channel: counts, means, squares
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, sample: Iterable[Sequence[float]]) -> None:
        """Add the moments of one sample; samples may differ in their number of channels."""
        for channel, (count, mean, squares, low, high) in enumerate(sample):
            if channel == len(self._channels):
                self._channels.append((array("d"), array("d"), array("d")))
                self.low.append(math.inf)
                self.high.append(-math.inf)
            if count:
                for column, value in zip(self._channels[channel], (count, mean, squares), strict=True):
                    column.append(value)
                self.low[channel], self.high[channel] = min(self.low[channel], low), max(self.high[channel], high)

    def __len__(self) -> int:
        """Number of channels."""
        return len(self._channels)

    @property
    def mean(self) -> list[float]:
        """Mean of all values of each channel; NaN where there is none."""
        return [_mean(counts, means) for counts, means, _ in self._channels]

    @property
    def std(self) -> list[float]:
        """Standard deviation of all values of each channel (population: divided by n)."""
        return [_std(*columns) for columns in self._channels]


def _mean(counts: array, means: array) -> float:
    total = math.fsum(counts)
    return math.fsum(n * mean for n, mean in zip(counts, means, strict=True)) / total if total else math.nan


def _std(counts: array, means: array, squares: array) -> float:
    total = math.fsum(counts)
    if not total:
        return math.nan
    mean = _mean(counts, means)
    between = math.fsum(n * (part - mean) ** 2 for n, part in zip(counts, means, strict=True))
    return math.sqrt((math.fsum(squares) + between) / total)
