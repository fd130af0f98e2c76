"""Several masks of a sample, and masks that show a block."""

import pytest
import torch

import maemm
from maemm import MaemmError, Rng
from maemm.config.options import check
from maemm.contract import Tokens
from maemm.contract.positions import lattice
from maemm.model.build import build_model
from maemm.model.masking.block import InverseBlock
from maemm.model.masking.multi_mask import MultiMask
from maemm.model.masking.random import Random


def tokens_of(grid, rows=4, valid=None):
    count = torch.Size(grid).numel()
    return Tokens(torch.zeros(rows, count, 1), lattice(grid)[None], grid, valid)


def rng(rows=4, key=0):
    return Rng((key,), range(rows), rows)


@pytest.mark.parametrize("blocks", [1, 3])
def test_inverse_block_shows_what_is_near(blocks):
    tokens = tokens_of((9, 9))
    plan = InverseBlock(ratio=0.8, blocks=blocks).plan("x", tokens, rng()).check("x", tokens)
    assert plan.visible.shape == (4, 16) and plan.predict.shape == (4, 65)
    place = tokens.gather_coords(plan.visible)
    gaps = (place[:, :, None] - place[:, None]).abs().amax(-1) + 99 * torch.eye(16)
    assert (gaps.amin(-1) <= 1.5).float().mean() > 0.95  # hardly any token stands alone
    if blocks == 1:
        assert ((place.amax(1) - place.amin(1)) <= 5).all()


def test_inverse_block_of_ragged_rows():
    valid = torch.arange(81).expand(4, -1) < torch.tensor([[81], [40], [10], [1]])
    tokens = tokens_of((9, 9), valid=valid)
    plan = InverseBlock(ratio=0.5, blocks=2).plan("x", tokens, rng()).check("x", tokens)
    assert plan.visible_valid.sum(1).tolist() == [40, 20, 5, 0] and plan.predict_valid.sum(1).tolist() == [41, 20, 5, 1]


def test_several_plans_of_each_sample():
    tokens = {"x": tokens_of((6, 6))}
    plan = MultiMask(masks_per_sample=3, masking={"type": "random", "ratio": 0.75})(tokens, rng())["x"]
    plan.check("x", tokens["x"])
    assert plan.rows.tolist() == [0, 1, 2, 3] * 3 and plan.visible.shape == (12, 9)
    assert len({tuple(row.tolist()) for row in plan.visible}) == 12
    part = MultiMask(masks_per_sample=3)(tokens_part(), Rng((0,), (1, 2), 4))["x"]
    whole = MultiMask(masks_per_sample=3)(tokens, rng())["x"]
    assert torch.equal(part.visible, whole.visible.view(3, 4, -1)[:, 1:3].reshape(6, -1))


def tokens_part():
    return {"x": tokens_of((6, 6), rows=2)}


def test_one_plan_is_the_masking_itself_but_for_its_key():
    tokens = {"x": tokens_of((6, 6))}
    one = MultiMask(masks_per_sample=1)(tokens, rng())["x"]
    same = Random()({"x": tokens["x"]}, rng().fold_in("several", 0))["x"]
    assert torch.equal(one.visible, same.visible) and one.rows.tolist() == [0, 1, 2, 3]


def test_the_loss_is_that_of_copies_of_the_samples():
    multi_mask = {"type": "multi_mask", "masks_per_sample": 2}
    recipe = {
        "modalities": {"image": {"size": 16, "patch": 4, "masking": multi_mask}},
        "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
        "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    }
    torch.manual_seed(0)
    model = build_model(recipe)
    x = torch.randn(3, 3, 16, 16)
    out = model({"image": x}, rng=rng(3))
    plan = out.plans["image"]
    assert (
        out.loss["image"].shape == (6, 12) and model.counts(model.plan({"image": x}, rng(3)))["reconstruct.image"] == 72
    )
    copies = model({"image": x[plan.rows]}, plans={"image": maemm.Plan(plan.visible, plan.predict)})
    assert (copies.loss["image"] - out.loss["image"]).abs().max() < 1e-5


def test_wrong_options():
    with pytest.raises(MaemmError, match="masks_per_sample"):
        check(MultiMask, {"masks_per_sample": 0}, "masking")
    with pytest.raises(MaemmError, match=r"masking.masking.ratio must be 0 <= float <= 1 .*, got 3"):
        check(MultiMask, {"masking": {"type": "random", "ratio": 3}}, "masking")
    with pytest.raises(MaemmError, match="did you mean 'random'"):
        MultiMask(masking="randon")
    with pytest.raises(MaemmError, match="blocks"):
        check(InverseBlock, {"blocks": 0}, "masking")
