"""Orders that are computed by position are permutations, even, and alike on every rank."""

from __future__ import annotations

import numpy as np
import pytest

from maemm.contract.errors import MaemmError
from maemm.data.index_order import IndexPermutation, ShardOrder
from maemm.data.order import MOST_IN_TABLE, ShuffledBatches


@pytest.mark.parametrize("n", [1, 2, 3, 5, 16, 17, 1000, 4096, 4097])
def test_every_sample_comes_once(n):
    assert sorted(IndexPermutation(n, 3)[0:n].tolist()) == list(range(n))


def test_places_are_even():
    """Twenty parts of the order against twenty parts of the samples, over 300 orders."""
    n, parts = 1000, 20
    counts = np.zeros((parts, parts))
    for seed in range(300):
        np.add.at(counts, (np.arange(n) * parts // n, IndexPermutation(n, seed)[0:n] * parts // n), 1)
    expected = counts.mean()
    chi_square = ((counts - expected) ** 2 / expected).sum()
    assert 250 < chi_square < 480  # (20 - 1)^2 = 361 +- 27


def test_a_part_is_a_part_of_the_whole():
    order = IndexPermutation(10**9, 1)
    assert order[5 * 10**8 : 5 * 10**8 + 64].tolist()[10:20] == order[5 * 10**8 + 10 : 5 * 10**8 + 20].tolist()
    assert order[np.array([3, 1])].tolist() == order[0:4].tolist()[3:0:-2]
    assert IndexPermutation(10**9, 2)[0:8].tolist() != order[0:8].tolist()


def test_shards_come_whole_a_few_at_a_time():
    sizes = np.array([5, 3, 7, 2, 9])
    order = ShardOrder(sizes, 2, 7)[0:26]
    shard_of = np.searchsorted(np.cumsum(sizes), order, side="right")
    assert sorted(order.tolist()) == list(range(26))
    assert len({*np.flatnonzero(np.diff(shard_of))}) > 3  # mixed
    changes = [np.flatnonzero(shard_of == shard) for shard in range(5)]
    assert max(places[-1] - places[0] for places in changes) < 16  # of two shards together
    assert ShardOrder(sizes, 2, 7)[20:26].tolist() == order[20:26].tolist()
    assert ShardOrder(sizes, 2, 8)[0:26].tolist() != order.tolist()


@pytest.mark.parametrize("options", [{}, {"shards": np.full(100, 10**7), "mixed": 1}], ids=["exact", "shards"])
def test_ranks_and_micro_batches_share_an_order_of_a_billion(options):
    samples, step = 10**9, 777_777

    def rows(world, micro):
        orders = [
            ShuffledBatches(samples, 64, 0, rank=rank, world=world, micro_batch=micro, aug_repeats=2, **options)
            for rank in range(world)
        ]
        return [request for order in orders for requests in order.micro_batches(step) for request in requests]

    assert rows(1, None) == rows(4, 2) == rows(2, 8)
    assert len({request.index for request in rows(1, None)}) == 32


def test_small_sets_keep_the_order_that_they_had():
    order = ShuffledBatches(1000, 10, 5)
    assert [request.index for request in order.micro_batches(0)[0][:4]] == [890, 894, 941, 830]
    assert MOST_IN_TABLE == 2**24


def test_drawn_epochs_are_tables_still():
    with pytest.raises(MaemmError, match="the order of 1,000,000,000,000 samples takes"):
        ShuffledBatches(10, 2, 0, epoch=10**12)
