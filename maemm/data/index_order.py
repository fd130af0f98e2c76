"""Orders of an epoch that are computed by position: no table of all samples is ever made.

:class:`IndexPermutation` is exact: every order is a permutation of all samples. :class:`ShardOrder` mixes a few shards
at a time, so that a shard is read once, as a whole. Both are functions of (samples, seed), the same on every rank.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from maemm.contract.rng import derive

_ROUNDS = 8  # of one half by the other; four whole rounds, where Luby and Rackoff (1988) prove three to be enough
_FACTOR_1, _FACTOR_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # of splitmix64's finaliser
_GROUPS_KEPT = 2  # a step may reach from one group into the next


class IndexPermutation:
    """A random permutation of ``range(n)``; ``order[positions]`` takes O(len(positions)) time and O(1) memory.

    A Feistel network over the smallest number of bits that holds ``n``, walked on from values of ``n`` and above until
    they are below it (cycle walking, Black and Rogaway 2002), less than twice on average.
    """

    def __init__(self, n: int, seed: int):
        self.n = n
        bits = max(2, (n - 1).bit_length())
        self._right_bits = np.uint64(bits - bits // 2)
        self._left_mask, self._right_mask = np.uint64((1 << bits // 2) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
        self._keys = [np.uint64(derive(seed, "feistel", number)) for number in range(_ROUNDS)]

    def __getitem__(self, positions: slice | np.ndarray) -> np.ndarray:
        """The samples (int64) at ``positions``, a slice with both ends or an array, all in ``range(n)``."""
        if isinstance(positions, slice):
            positions = np.arange(positions.start, positions.stop)
        values = self._permuted(np.asarray(positions).astype(np.uint64))
        while (outside := np.flatnonzero(values >= self.n)).size:
            values[outside] = self._permuted(values[outside])
        return values.astype(np.int64)

    def _permuted(self, values: np.ndarray) -> np.ndarray:
        left, right = values >> self._right_bits, values & self._right_mask
        for number, key in enumerate(self._keys):
            if number % 2:
                right = right ^ (_mixed(left, key) & self._right_mask)
            else:
                left = left ^ (_mixed(right, key) & self._left_mask)
        return (left << self._right_bits) | right


def _mixed(words: np.ndarray, key: np.uint64) -> np.ndarray:
    words = words * _FACTOR_1 + key  # wraps around, as meant
    words = (words ^ (words >> np.uint64(30))) * _FACTOR_1
    words = (words ^ (words >> np.uint64(27))) * _FACTOR_2
    return words ^ (words >> np.uint64(31))


class ShardOrder:
    """Shards in random order, ``mixed`` of them at a time, whose samples are permuted together.

    ``sizes`` (S,): samples of each shard. Memory is that of one group and O(S). Every sample comes once; two samples of
    shards that are far apart in the order never meet in a batch, which is what the speed costs.
    """

    def __init__(self, sizes: np.ndarray, mixed: int, seed: int):
        self.seed, self.mixed = seed, mixed
        self._firsts = np.cumsum(sizes) - sizes  # the first sample of each shard
        self._sizes = np.asarray(sizes, np.int64)
        self._shards = np.random.default_rng(derive(seed, "shards")).permutation(len(sizes))
        groups = np.add.reduceat(self._sizes[self._shards], np.arange(0, len(sizes), mixed))
        self._group_ends = np.cumsum(groups)
        self._groups: OrderedDict[int, np.ndarray] = OrderedDict()

    def __getitem__(self, positions: slice | np.ndarray) -> np.ndarray:
        """The samples (int64) at ``positions``, a slice with both ends or an array, all in ``range(sum(sizes))``."""
        if isinstance(positions, slice):
            positions = np.arange(positions.start, positions.stop)
        positions = np.asarray(positions)
        group_of = np.searchsorted(self._group_ends, positions, side="right")
        samples = np.empty(len(positions), np.int64)
        for group in np.unique(group_of):
            own = group_of == group
            before = self._group_ends[group - 1] if group else 0
            samples[own] = self._group(int(group))[positions[own] - before]
        return samples

    def _group(self, number: int) -> np.ndarray:
        """All samples of a group, permuted."""
        if number not in self._groups:
            shards = self._shards[number * self.mixed : (number + 1) * self.mixed]
            samples = np.concatenate(
                [np.arange(self._firsts[shard], self._firsts[shard] + self._sizes[shard]) for shard in shards]
            )
            generator = np.random.default_rng(derive(self.seed, "group", number))
            self._groups[number] = generator.permutation(samples)
            while len(self._groups) > _GROUPS_KEPT:
                self._groups.popitem(last=False)
        return self._groups[number]
