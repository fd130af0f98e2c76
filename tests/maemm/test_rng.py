"""Random numbers are hashes of what they are for: the same bits everywhere, even, and independent."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from maemm.contract.rng import Rng, derive
from tests.pretended_gpu.device import gpu

STEP = Rng((0, 5), range(256), 256)


def test_numbers_are_these_bits():
    """A change of them needs another RNG_VERSION: runs that go on would draw other masks."""
    numbers = Rng((3, 1), range(2), 2).uniform("mask/image", 3)
    assert (numbers * 2**24).long().tolist() == [[1891479, 11828113, 15193178], [15075541, 7748030, 1819916]]
    assert derive(3, 1, "mask/image") == 4925306775106166923


def test_every_way_to_draw_gives_the_same():
    """Python's integers for a few numbers, NumPy on the CPU, tensors on a device."""
    large, few = STEP.uniform("noise", 7, 30), Rng((0, 5), [9], 256)
    assert few.floats("noise", 12) == few.uniform("noise", 12)[0].tolist() == large[9].flatten()[:12].tolist()
    with gpu():
        on_device = STEP.uniform("noise", 7, 30, device="cuda")
        assert torch.equal(on_device.cpu(), large)
        scattered = Rng((0, 5), [200, 3, 77], 256).uniform("noise", 7, 300, device="cuda")
        assert torch.equal(scattered.cpu(), STEP.uniform("noise", 7, 300)[[200, 3, 77]])


def launches(rng: Rng, size: int) -> int:
    """On the pretended GPU, where the draw makes nobody wait."""
    with gpu() as seen:
        values = rng.uniform("noise", size, device="cuda")
        assert not seen.waits and not seen.blocking_copies
        assert len(seen.copies) == 1
        total = sum(number for name, number in seen.launches.items() if "view" not in name and "unsqueeze" not in name)
        assert torch.equal(values.cpu(), rng.uniform("noise", size))
    return total


@pytest.mark.parametrize("rows", [range(1), range(3), range(100), range(50, 150), [7, 3, 90], range(9000)])
def test_launches_of_a_draw(rows):
    """One where a row has few numbers, which are copied; else always as many, whatever the sizes."""
    rng = Rng((0, 5), rows, 9000)
    assert launches(rng, 1) == 1 and launches(rng, 41) == launches(rng, 200) == 15


def test_many_numbers_are_not_copied():
    assert launches(Rng((0, 5), range(600), 600), 32) == 15


def test_numbers_at_places():
    """A number of rows of a draw, each at a place of its own, without the others."""
    rows, places = torch.tensor([4, 0, 4, 255, 9]), torch.tensor([0, 11, 209, 3, 0])
    expected = STEP.uniform("noise", 210)[rows, places]
    assert torch.equal(STEP.uniform_at("noise", rows, places), expected)
    with gpu() as seen:
        on_device = [index.to("cuda", non_blocking=True) for index in (rows, places)]
        values = STEP.uniform_at("noise", *on_device)
        assert not seen.waits and not seen.blocking_copies and torch.equal(values.cpu(), expected)
    assert STEP.uniform_at("noise", rows[:0], places[:0]).shape == (0,)


def test_a_longer_draw_begins_with_a_shorter_one():
    assert torch.equal(STEP.uniform("noise", 100)[:, :10], STEP.uniform("noise", 10))


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("micro", [1, 3, 64])
def test_ranks_and_micro_batches_draw_what_one_process_draws(ranks, micro):
    own = 256 // ranks
    parts = [
        Rng((0, 5), range(start, min(start + micro, (rank + 1) * own)), 256).uniform("noise", 5)
        for rank in range(ranks)
        for start in range(rank * own, (rank + 1) * own, micro)
    ]
    assert torch.equal(torch.cat(parts), STEP.uniform("noise", 5))


def test_no_rows_and_no_numbers():
    assert Rng((0,), range(0), 0).uniform("noise", 4).shape == (0, 4)
    assert Rng((0,), range(3), 3).uniform("noise", 0).shape == (3, 0)
    assert Rng((0,), range(3), 3).uniform("noise").shape == (3,)


# ---------------------------------------------------------------------------------------------------- statistics
# Thresholds are those of a false alarm in ten thousand; keys are fixed, so that a test fails for ever or never.
def chi_square(counts: np.ndarray) -> float:
    """In standard deviations above its mean."""
    expected, freedom = counts.sum() / counts.size, counts.size - 1
    return (float(np.square(counts - expected).sum() / expected) - freedom) / (2 * freedom) ** 0.5


def test_numbers_are_even():
    values = Rng((1, 2), range(1000), 1000).uniform("noise", 1000).numpy()
    assert values.min() >= 0 and values.max() < 1
    assert abs(chi_square(np.histogram(values, 4096, (0, 1))[0])) < 4
    bits = (values * 2**24).astype(np.int64)
    assert all(abs(float((bits >> bit & 1).mean()) - 0.5) < 0.002 for bit in range(24))


def pairs():
    """Numbers that stand beside each other in some way: they must know nothing of each other."""
    draw = Rng((1, 2), range(500), 500)
    x = draw.uniform("noise", 500)
    yield "places", x[:, 1:], x[:, :-1]
    yield "rows", x[1:], x[:-1]
    yield "diagonal", x[1:, 1:], x[:-1, :-1]
    yield "purposes", x, draw.uniform("noisf", 500)
    yield "steps", x, Rng((1, 3), range(500), 500).uniform("noise", 500)
    yield "seeds", x, Rng((2, 2), range(500), 500).uniform("noise", 500)
    yield "keys", x, draw.fold_in("image").uniform("noise", 500)
    samples = torch.tensor([Rng((0, 0, index, 0)).floats("crop", 4) for index in range(20000)])
    yield "samples", samples[1:], samples[:-1]
    yield "repeats", samples, torch.tensor([Rng((0, 0, index, 1)).floats("crop", 4) for index in range(20000)])


def test_neighbours_are_independent():
    for what, a, b in pairs():
        a, b = a.flatten().numpy(), b.flatten().numpy()
        assert abs(np.corrcoef(a, b)[0, 1]) * len(a) ** 0.5 < 4, what
        assert abs(chi_square(np.histogram2d(a, b, 32, [[0, 1], [0, 1]])[0])) < 4, what


def test_there_is_no_lattice():
    """No wave stands out in two dimensions of a draw, and triples of neighbours fill the cube evenly."""
    values = Rng((1, 2), range(512), 512).uniform("noise", 512).numpy() - 0.5
    power = np.square(np.abs(np.fft.rfft2(values))) * 12 / values.size
    assert power.max() < 3 * np.log(power.size)  # the largest of exponential variables is near log n
    triples = np.histogramdd(np.stack([values[:, k : k + 510].ravel() for k in range(3)], 1), 12)[0]
    assert abs(chi_square(triples)) < 12  # overlapping, so not independent of each other


def test_orders_of_noise_are_even():
    """What maskings do with it: each of 24 orders of four tokens is as likely."""
    orders = Rng((7, 7), range(48000), 48000).uniform("mask/image", 4).argsort(1)
    number = {order: index for index, order in enumerate(itertools.permutations(range(4)))}
    counts = np.bincount([number[tuple(order)] for order in orders.tolist()], minlength=24)
    assert abs(chi_square(counts)) < 4
