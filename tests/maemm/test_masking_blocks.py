"""Rectangles of hidden tokens."""

from __future__ import annotations

import math

import pytest
import torch

from maemm.contract import MaemmError, Rng, Tokens
from maemm.contract.positions import lattice
from maemm.model.masking.blocks import TRIES, Blocks


def tokens_of(grid, batch=6, valid=None):
    count = torch.Size(grid).numel()
    return Tokens(torch.zeros(batch, count, 1), torch.zeros(1, count, len(grid)), grid, valid)


def rng(batch=6, step=0):
    return Rng((0, step), range(batch), batch)


def maps(masking, grid, batch=6):
    """(B, *grid) bool: what is hidden."""
    plan = masking.plan("image", tokens_of(grid, batch), rng(batch))
    hidden = torch.zeros(batch, torch.Size(grid).numel(), dtype=torch.bool).scatter_(1, plan.predict, True)
    assert plan.visible.shape[1] + plan.predict.shape[1] == hidden.shape[1]
    assert not hidden.gather(1, plan.visible).any()
    return hidden.unflatten(1, grid)


@pytest.mark.parametrize(("ratio", "least", "hidden"), [(0.4, 15, 78), (75.5 / 196, 16, 75), (0.9, 16, 176)])
def test_counts_are_exact(ratio, least, hidden):
    assert (maps(Blocks(ratio=ratio, least=least), (14, 14)).flatten(1).sum(1) == hidden).all()


def test_hidden_tokens_lie_together():
    """More of their neighbours are hidden than of those of tokens that are drawn one by one."""
    hidden = maps(Blocks(), (14, 14), 40)
    pairs = (hidden[:, 1:] & hidden[:, :-1]).sum() + (hidden[..., 1:] & hidden[..., :-1]).sum()
    random = 2 * 14 * 13 * 0.4**2 * 40
    assert pairs > 1.6 * random
    assert (hidden != hidden[:1]).any((1, 2))[1:].all()  # samples differ


def test_rectangles_have_the_wanted_areas_and_shapes():
    """One rectangle alone, since the next would hide too much."""
    masking = Blocks(ratio=0.5, least=18, most=20, aspect=(2.0, 2.0), draws=1)
    drawn = masking._rectangles(rng(50).uniform("x", 1, 4), 14, 14, 98)
    heights, widths = drawn.any(2).sum(1), drawn.any(1).sum(1)
    taken = heights > 0
    assert taken.float().mean() > 0.9 and (heights * widths == drawn.sum((1, 2))).all()
    assert set(heights[taken].tolist()) == {6} and set(widths[taken].tolist()) == {3}


def test_clips_have_the_same_rectangles_at_all_times():
    hidden = maps(Blocks(ratio=0.5, least=4), (3, 8, 8))
    assert (hidden == hidden[:, :1]).all() and (hidden.flatten(1).sum(1) == 3 * 32).all()


def test_padding_is_never_hidden():
    valid = torch.ones(6, 64, dtype=torch.bool)
    valid[:, 48:] = False
    plan = Blocks(ratio=0.25, least=4).plan("image", tokens_of((8, 8), valid=valid), rng())
    assert ((plan.predict < 48) | ~plan.predict_valid).all() and plan.predict_valid.all()


def test_a_row_does_not_depend_on_the_others():
    masking, tokens = Blocks(), tokens_of((14, 14))
    whole = masking.plan("image", tokens, rng())
    alone = masking.plan("image", tokens_of((14, 14), 1), Rng((0, 0), [4], 6))
    assert torch.equal(whole.predict[4:5], alone.predict)


def test_a_ratio_may_be_drawn_for_each_batch():
    masking, tokens = Blocks(ratio=(0.3, 0.6)), tokens_of((14, 14))
    counts = {masking.plan("image", tokens, rng(step=step)).predict.shape[1] for step in range(6)}
    assert len(counts) > 3 and all(58 <= count <= 118 for count in counts)


def test_sets_are_refused():
    with pytest.raises(MaemmError, match="grid of two axes"):
        Blocks().plan("points", Tokens(torch.zeros(1, 9, 1), torch.zeros(1, 9, 3)), rng(1))


def rectangles_by_the_definition(masking, uniform, height, width, wanted):
    """One rectangle after the other, as masks were first drawn here: what is stored of runs must stay theirs."""
    low, high = (math.log(value) for value in masking.aspect)
    aspect = torch.exp(low + uniform[..., 1] * (high - low))
    stretch, limits = torch.stack([aspect, 1 / aspect], -1), torch.tensor([height, width], dtype=torch.float32)
    free = torch.ones(len(uniform), height * width, dtype=torch.bool)
    left_over = torch.full((len(uniform), 1), wanted)
    failures = torch.zeros_like(left_over)
    for number in range(masking.draws):
        most = left_over if masking.most is None else left_over.clamp(max=masking.most)
        area = masking.least + uniform[:, number, :1] * (most - masking.least)
        sides = (area * stretch[:, number]).sqrt().round()
        start = (uniform[:, number, 2:] * (limits + 1 - sides)).floor()
        place = lattice((height, width)) - start[:, None]
        new = ((place >= 0) & (place < sides[:, None])).all(-1) & free
        size = new.sum(1, keepdim=True)
        taken = (sides < limits).all(1, keepdim=True) & (size > 0) & (size <= most) & (failures < TRIES)
        free = free ^ (new & taken)
        left_over = left_over - size * taken
        failures = torch.where(taken, 0, failures + 1)
    return ~free.unflatten(1, (height, width))


@pytest.mark.parametrize("options", [{}, {"least": 1, "most": 9}, {"aspect": (0.2, 0.9), "draws": 200}, {"least": 60}])
@pytest.mark.parametrize("grid", [(14, 14), (5, 70), (3, 2), (1, 9)])
def test_the_same_rectangles_as_one_by_one(options, grid):
    masking, cells = Blocks(**options), grid[0] * grid[1]
    for step, wanted in enumerate((0, 1, cells // 3, cells - 1)):
        uniform = rng(40, step).uniform("x", masking.draws, 4)
        expected = rectangles_by_the_definition(masking, uniform, *grid, wanted)
        assert torch.equal(masking._rectangles(uniform, *grid, wanted), expected)
