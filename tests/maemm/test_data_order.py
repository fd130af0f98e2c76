import numpy as np
import pytest

from maemm.contract.errors import MaemmError
from maemm.data.order import SequentialBatches, ShuffledBatches, permutation


def all_rows(step, **options):
    """Requests of one step over all processes and micro-batches, by row."""
    world = options.pop("world", 1)
    found = [
        request
        for rank in range(world)
        for micro in ShuffledBatches(100, 12, 0, rank=rank, world=world, **options).micro_batches(step)
        for request in micro
    ]
    return sorted(found, key=lambda request: request.row)


def test_permutation_depends_on_seed_and_epoch_alone():
    first = permutation(1000, 3, 5)
    assert sorted(first) == list(range(1000))
    assert np.array_equal(first, permutation(1000, 3, 5))
    assert not np.array_equal(first, permutation(1000, 3, 6))
    assert not np.array_equal(first, permutation(1000, 4, 5))


def test_stored_permutation():
    """A change of the order would break the resume of runs that exist."""
    assert permutation(8, 0, 0).tolist() == [3, 4, 2, 7, 0, 5, 1, 6]


def test_an_epoch_takes_each_sample_at_most_once():
    slots = ShuffledBatches(100, 12, 0)
    assert slots.steps_per_epoch == 8
    for epoch in (0, 1):
        taken = [r.index for step in range(8 * epoch, 8 * epoch + 8) for r in slots.micro_batches(step)[0]]
        assert len(taken) == len(set(taken)) == 96
    assert slots.epoch(7) == 0 and slots.epoch(8) == 1
    assert {r.epoch for r in slots.micro_batches(8)[0]} == {1}


@pytest.mark.parametrize("step", [0, 7, 8, 12345])
@pytest.mark.parametrize("split", [{"world": 2}, {"world": 3, "micro_batch": 2}, {"micro_batch": 4}])
def test_the_split_changes_no_row(step, split):
    assert all_rows(step, **split) == all_rows(step)
    assert [r.row for r in all_rows(step)] == list(range(12))


def test_repeats_share_a_sample_and_stay_in_one_micro_batch():
    slots = ShuffledBatches(100, 12, 0, micro_batch=6, aug_repeats=3)
    assert slots.steps_per_epoch == 25
    first, second = slots.micro_batches(0)
    assert [r.repeat for r in first] == [0, 1, 2, 0, 1, 2]
    assert first[0].index == first[1].index == first[2].index != first[3].index
    assert {r.index for r in first}.isdisjoint({r.index for r in second})


@pytest.mark.parametrize(
    ("arguments", "options", "says"),
    [
        ((100, 256), {}, "train.batch 256 is larger than the 100 samples"),
        ((0, 8), {}, "no samples"),
        ((100, 0), {}, "train.batch is 0"),
        ((100, 8), {"world": 3}, "train.batch 8 cannot be divided evenly among 3 ranks; use 6 or 9"),
        ((100, 8), {"micro_batch": 3}, "train.micro_batch 3; use one of its divisors, such as 2"),
        ((100, 8), {"micro_batch": 0}, "train.micro_batch is 0"),
        ((100, 8), {"aug_repeats": 3}, "use 6 or 9"),
        ((100, 8), {"aug_repeats": 4, "micro_batch": 2}, "train.micro_batch 2 cannot be divided evenly"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(arguments, options, says):
    with pytest.raises(MaemmError) as error:
        ShuffledBatches(*arguments, 0, **options)
    assert says in str(error.value)


@pytest.mark.parametrize(("samples", "batch", "world"), [(10, 4, 1), (10, 4, 3), (3, 8, 4), (8, 4, 2)])
def test_once_takes_every_sample_exactly_once(samples, batch, world):
    orders = [SequentialBatches(samples, batch, rank=rank, world=world) for rank in range(world)]
    taken = [r.index for one in orders for step in range(one.steps) for micro in one.micro_batches(step) for r in micro]
    assert sorted(taken) == list(range(samples))


def test_once_refuses_an_empty_source():
    with pytest.raises(MaemmError, match="no samples"):
        SequentialBatches(0, 4)
