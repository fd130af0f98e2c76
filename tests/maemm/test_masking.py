"""Exact counts, equal draws, ragged batches."""

import pytest
import torch

from maemm import MaemmError, Rng, Tokens
from maemm.config.options import check
from maemm.contract.positions import lattice
from maemm.model.masking.block import Block
from maemm.model.masking.counts import plan_from_hidden, visible_count
from maemm.model.masking.random import Random


def grid_tokens(grid=(4, 4), batch=3, valid=None):
    count = torch.Size(grid).numel()
    return Tokens(torch.zeros(batch, count, 2), lattice(grid)[None], grid, valid)


def rng(batch=3, step=0):
    return Rng((0, step), range(batch), batch)


@pytest.mark.parametrize("total, ratio, expected", [(196, 0.9, 19), (100, 0.9, 9), (50, 0.8, 9), (10, 0.9, 0)])
def test_floor_visible_truncates_in_double_precision(total, ratio, expected):
    assert visible_count(total, ratio, "floor_visible") == expected


@pytest.mark.parametrize("masking", [Random(ratio=0.7), Random(ratio=0.5, mask_block=2), Block(ratio=0.6)])
def test_plans_partition_the_tokens(masking):
    tokens = grid_tokens()
    plan = masking.plan("thing", tokens, rng()).check("thing", tokens)
    both = torch.cat([plan.visible, plan.predict], 1).sort(1).values
    assert torch.equal(both, tokens.all_indices())
    assert torch.equal(masking.plan("thing", tokens, rng()).visible, plan.visible)
    assert not torch.equal(masking.plan("thing", tokens, rng(step=1)).visible, plan.visible)


def test_every_token_is_hidden_equally_often():
    tokens = grid_tokens(batch=4000)
    plan = Random(ratio=0.75).plan("thing", tokens, rng(4000))
    fraction = torch.bincount(plan.visible.flatten(), minlength=16) / 4000
    assert (fraction - 0.25).abs().max() < 0.03


def test_mask_block_keeps_whole_blocks():
    plan = Random(ratio=0.75, mask_block=2).plan("thing", grid_tokens(), rng())
    for row in plan.visible:
        cells = {(int(i) // 4 // 2, int(i) % 4 // 2) for i in row}
        assert len(cells) == 1


def test_mask_block_needs_a_multiple():
    with pytest.raises(MaemmError, match="mask_block"):
        Random(mask_block=3).plan("thing", grid_tokens(), rng())


def test_block_hides_one_region():
    plan = Block(ratio=0.25, shape="square").plan("thing", grid_tokens(batch=40), rng(40))
    rows, columns = plan.predict // 4, plan.predict % 4
    assert (rows.amax(1) - rows.amin(1) <= 3).all() and plan.predict.shape == (40, 4)
    spread = (rows.float().var(1) + columns.float().var(1)).mean()
    scattered = Random(ratio=0.75).plan("thing", grid_tokens(batch=40), rng(40)).visible
    assert spread < 0.7 * ((scattered // 4).float().var(1) + (scattered % 4).float().var(1)).mean()


@pytest.mark.parametrize("masking", [Random(ratio=0.6), Block(ratio=0.6)])
def test_ragged_rows_keep_their_own_share(masking):
    valid = torch.ones(3, 16, dtype=torch.bool)
    valid[0, 10:], valid[1, :] = False, False
    tokens = grid_tokens(valid=valid)
    plan = masking.plan("thing", tokens, rng())
    for row, count in enumerate([10, 0, 16]):
        keep = visible_count(count, 0.6, masking.count)
        assert plan.visible_valid[row].sum() == keep and plan.predict_valid[row].sum() == count - keep
        seen = plan.visible[row][plan.visible_valid[row]].tolist() + plan.predict[row][plan.predict_valid[row]].tolist()
        assert sorted(seen) == valid[row].nonzero()[:, 0].tolist()
    assert plan.counted[1].sum() == 0


def test_rows_of_a_process_equal_those_of_the_whole_batch():
    tokens = grid_tokens(batch=4)
    whole = Random().plan("thing", tokens, rng(4)).visible
    part = Random().plan("thing", grid_tokens(batch=2), Rng((0, 0), [1, 3], 4)).visible
    assert torch.equal(part, whole[[1, 3]])


@pytest.mark.parametrize("ratio", [-0.1, 1.1, 2.0])
def test_bad_ratio(ratio):
    with pytest.raises(MaemmError, match="ratio"):
        check(Random, {"ratio": ratio}, "masking")


def test_a_plan_from_chosen_tokens():
    hidden = torch.tensor([[True, False, True, False], [False, True, True, False]])
    whole = plan_from_hidden(hidden, grid_tokens((4,), 2), 2, 2)
    assert whole.visible.tolist() == [[1, 3], [0, 3]] and whole.predict.tolist() == [[0, 2], [1, 2]]
    valid = torch.tensor([[True, True, True, True], [True, True, False, False]])
    ragged = plan_from_hidden(hidden, grid_tokens((4,), 2, valid), 2, 2).check("thing", grid_tokens((4,), 2, valid))
    assert ragged.visible.tolist() == [[1, 3], [0, 0]] and ragged.visible_valid.tolist() == [
        [True, True],
        [True, False],
    ]
    assert ragged.predict.tolist() == [[0, 2], [1, 1]] and ragged.counted.tolist() == [[1, 1], [1, 0]]
