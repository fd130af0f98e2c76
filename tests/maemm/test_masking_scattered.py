"""Small blocks around random centres, repaired to exact counts (data2vec 2.0)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maemm import MaemmError, Rng
from maemm.config.options import check
from maemm.contract import Tokens
from maemm.contract.positions import lattice
from maemm.model.masking.multi_mask import MultiMask
from maemm.model.masking.scattered_blocks import ScatteredBlocks

GOLDEN = Path(__file__).parents[1] / "golden/data2vec2"
CASES = json.loads((GOLDEN / "data2vec2_masks.json").read_text())["cases"]


def tokens_of(grid, batch=6, valid=None):
    count = torch.Size(grid).numel()
    return Tokens(torch.zeros(batch, count, 1), lattice(grid)[None], grid, valid)


def rng(batch=6, step=0):
    return Rng((0, step), range(batch), batch)


def hidden_of(plan, count):
    return torch.zeros(len(plan.predict), count, dtype=torch.bool).scatter_(1, plan.predict, True)


@pytest.mark.parametrize("name", CASES)
def test_blocks_and_counts_are_the_published_ones(name):
    case, data = CASES[name], load_file(GOLDEN / "data2vec2_masks.safetensors")
    masking = ScatteredBlocks(
        ratio=case["mask_prob"], side=case["mask_length"], adjust=case["mask_prob_adjust"], inverse=case["inverse"]
    )
    grid = (case["grid"], case["grid"])
    assert masking.centres(grid, case["mask_prob"]) == case["centres_per_image"]
    before = masking.cells(grid, data[f"{name}/centres"].long())
    assert torch.equal(before, data[f"{name}/blocks_before_repair"].bool())
    assert before.sum(1).tolist() == case["blocks_before_repair"]
    tokens = tokens_of(grid)
    plan = masking.plan("x", tokens, rng()).check("x", tokens)
    assert plan.visible.shape == data[f"{name}/visible"].shape and plan.predict.shape == data[f"{name}/predict"].shape
    # The repair takes random cells: of the published and of ours, only what is too much or too little.
    uniform = rng().uniform("mask/x/centre", case["centres_per_image"])
    ours = masking.cells(grid, (uniform * tokens.count).long())
    published = data[f"{name}/mask"].bool()  # True: hidden
    for blocks, hidden in ((before, published), (ours, hidden_of(plan, tokens.count))):
        inside = ~hidden if case["inverse"] else hidden
        more, fewer = (inside & ~blocks).any(1), (blocks & ~inside).any(1)
        assert not (more & fewer).any()
        assert torch.equal(inside.sum(1), torch.full((6,), case["kept_or_masked_by_blocks"]))


def test_the_repair_is_random():
    masking, tokens = ScatteredBlocks(ratio=0.5, adjust=0.0), tokens_of((6, 6), 4000)
    masking.cells = lambda grid, centres: torch.zeros(len(centres), 36, dtype=torch.bool)
    plan = masking.plan("x", tokens, rng(4000))
    share = torch.bincount(plan.visible.flatten(), minlength=36) / 4000
    assert (share - 0.5).abs().max() < 0.04


@pytest.mark.parametrize("grid", [(40,), (6, 9), (3, 6, 6)])
@pytest.mark.parametrize("side", [1, 2, 3, 5])
@pytest.mark.parametrize("inverse", [True, False])
def test_blocks_on_grids_of_any_axes(grid, side, inverse):
    tokens, masking = tokens_of(grid), ScatteredBlocks(ratio=0.7, side=side, inverse=inverse)
    plan = masking.plan("x", tokens, rng()).check("x", tokens)
    count = tokens.count
    assert plan.visible.shape[1] == (int(count * (1 - 0.7)) if inverse else count - int(count * 0.7))
    middle = torch.tensor([[sum(n // 2 * torch.Size(grid[k + 1 :]).numel() for k, n in enumerate(grid))]])
    assert masking.cells(grid, middle).sum() == torch.Size(min(side, n) for n in grid).numel()
    part = masking.plan("x", tokens_of(grid, 2), Rng((0, 0), [1, 4], 6))
    assert torch.equal(part.visible, plan.visible[[1, 4]])


def test_padded_rows_and_several_masks():
    valid = torch.arange(36).expand(6, -1) < torch.tensor([[36], [20], [9], [2], [1], [0]])
    plan = ScatteredBlocks(ratio=0.5).plan("x", tokens_of((6, 6), valid=valid), rng())
    assert plan.visible_valid.sum(1).tolist() == [18, 10, 4, 1, 0, 0]
    clones = MultiMask(masks_per_sample=4, masking={"type": "scattered_blocks"})({"x": tokens_of((14, 14))}, rng())["x"]
    assert clones.visible.shape == (24, 39) and len({tuple(row) for row in clones.visible.tolist()}) == 24


def test_what_cannot_be_done_is_refused():
    with pytest.raises(MaemmError, match="room for blocks of side 7, the tokens are on a grid 6 x 6 .*lower side"):
        ScatteredBlocks(side=7).plan("x", tokens_of((6, 6)), rng())
    with pytest.raises(MaemmError, match="on no grid"):
        ScatteredBlocks().plan("x", Tokens(torch.zeros(1, 4, 1), torch.zeros(1, 4, 1)), rng(1))
    for options in ({"side": 0}, {"adjust": -0.1}, {"ratio": 1.2}):
        with pytest.raises(MaemmError, match=f"masking.{next(iter(options))}"):
            check(ScatteredBlocks, options, "masking")
