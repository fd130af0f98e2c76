"""Multi-block masks: the published ones from their own draws, exact counts, and options that can never be met."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maemm import MaemmError, Rng
from maemm.config.options import check
from maemm.contract import Tokens
from maemm.contract.positions import lattice
from maemm.model.build import build_model
from maemm.model.masking import block_targets, block_unions
from maemm.model.masking.block_targets import BlockTargets
from maemm.model.masking.block_unions import Generator
from maemm.model.masking.each_modality import EachModality
from maemm.model.masking.multi_block import MultiBlock
from maemm.model.masking.multi_mask import MultiMask
from maemm.model.masking.rectangles import area_size, cells, indices, union

GOLDEN = Path(__file__).parents[1] / "golden"
IJEPA = json.loads((GOLDEN / "ijepa/ijepa_masks.json").read_text())["cases"]
VJEPA2 = json.loads((GOLDEN / "vjepa2/vjepa2_masks.json").read_text())["cases"]
V_PUBLISHED = [{"blocks": 8}, {"blocks": 2, "scale": [0.7, 0.7]}]


def golden(name):
    return {key: x.long() if x.dtype == torch.int16 else x for key, x in load_file(GOLDEN / name).items()}


def tokens_of(grid, batch=8, valid=None):
    count = torch.Size(grid).numel()
    return {"x": Tokens(torch.zeros(batch, count, 1), lattice(grid)[None], grid, valid)}


def rng(batch=8, step=0):
    return Rng((0, step), range(batch), batch)


def sets_of(masking, tokens, of):
    drawn = masking(tokens, of)
    return [plans["x"].check("x", tokens["x"]) for plans in (drawn if isinstance(drawn, list) else [drawn])]


# ------------------------------------------------------------------------------------------------- the published masks
@pytest.mark.parametrize("name", IJEPA)
def test_ijepa_masks_of_their_own_draws(name):
    case, data = IJEPA[name], golden("ijepa/ijepa_masks.safetensors")
    blocks = BlockTargets(
        (1, *case["grid"]),
        case["npred"],
        tuple(case["pred_scale"]),
        tuple(case["aspect"]),
        case["nenc"],
        tuple(case["enc_scale"]),
        case["min_keep"],
        case["allow_overlap"],
    )
    sizes = blocks.sizes(tuple(data[f"f64/{name}/u"].tolist()))
    assert [list(size) for size in sizes] == [case["target_block"], case["context_block"]]
    draws, batch = data[f"{name}/draws"], case["batch"]  # sample, kind, number, top, left, accepted, relaxed
    targets = draws[(draws[:, 1] == 0) & (draws[:, 5] == 1)][:, 3:5].view(batch, -1, 2)
    tries = torch.full((batch, case["nenc"], case["npred"] * block_targets.PATIENCE + 1, 2), 0)
    for sample in range(batch):
        for number in range(case["nenc"]):
            own = draws[(draws[:, 0] == sample) & (draws[:, 1] == 1) & (draws[:, 2] == number)]
            tries[sample, number, : len(own)] = own[:, 3:5]
    contexts, covered = block_targets.of_corners(blocks, sizes, targets, tries)
    for number in range(case["nenc"]):
        expected = data[f"{name}/context_before_truncation/{number}"]
        assert torch.equal(contexts[:, number].sum(-1), (expected >= 0).sum(-1))
        widest = expected.shape[1]
        shown = torch.where(expected >= 0, expected, 10**6)
        index = torch.where(contexts[:, number], torch.arange(contexts.shape[-1]), 10**6).sort(-1).values[:, :widest]
        assert torch.equal(index, shown)
    keep = int(contexts.sum(-1).min())
    assert torch.equal(indices(contexts, keep), data[f"{name}/context"])
    assert torch.equal(indices(covered, sizes[0][0] * sizes[0][1]), data[f"{name}/target"])


@pytest.mark.parametrize(
    ("name", "number"), [(name, k) for name, x in VJEPA2.items() for k in range(len(x["generators"]))]
)
def test_vjepa2_masks_of_their_own_draws(name, number):
    case, data = VJEPA2[name], golden("vjepa2/vjepa2_masks.safetensors")
    spec = dict(case["generators"][number])
    names = {"num_blocks": "blocks", "spatial_scale": "scale", "aspect_ratio": "aspect"}
    options = {names.get(key, key): x for key, x in spec.items() if names.get(key, key) in Generator.model_fields}
    generator, grid = Generator(**options), tuple(case["grid"])
    box = generator.box(grid, tuple(data[f"f64/{name}/{number}/u"].tolist()))
    assert list(box) == spec["block"]
    draws = data[f"{name}/{number}/draws"][:, 1:].view(case["batch"], generator.blocks, 3)
    hidden = block_unions.hidden_by(generator, grid, box, draws)
    assert [[int((~row).sum()), int(row.sum())] for row in hidden] == spec["before_truncation"]
    visible, predict = generator.lists(~hidden, hidden, block_unions.official_counts(generator, hidden))
    assert torch.equal(visible, data[f"{name}/{number}/visible"])
    assert torch.equal(predict, data[f"{name}/{number}/predict"])


def test_after_twenty_failures_one_more_target_is_not_subtracted():
    targets = torch.zeros(1, 2, 9, dtype=torch.bool)
    targets[0, 0, :3], targets[0, 1, 3:6] = True, True
    tries = torch.zeros(1, 1, 41, 9, dtype=torch.bool)
    tries[..., 1:6] = True  # two in the first target, three in the second
    left, chosen = block_targets.first_accepted(targets, tries, 3, False)
    assert chosen.item() == 20 and left[0, 0].nonzero()[:, 0].tolist() == [3, 4, 5]
    left, chosen = block_targets.first_accepted(targets, tries, 4, False)
    assert chosen.item() == 40 and left[0, 0].nonzero()[:, 0].tolist() == [1, 2, 3, 4, 5]
    tries[0, 0, 7, 6:] = True
    assert block_targets.first_accepted(targets, tries, 3, False)[1].item() == 7
    assert block_targets.first_accepted(targets, tries, 5, True)[1].item() == 0


# --------------------------------------------------------------------------------------------------------- exact counts
@pytest.mark.parametrize(
    ("grid", "options"),
    [
        ((14, 14), {}),
        ((14, 14), {"contexts": 2, "context_scale": (0.4, 0.6), "targets": 3}),
        ((8, 12), {"allow_overlap": True, "min_keep": 3}),
        ((3, 8, 8), {"keep": 0.3, "min_keep": 4}),
        ((120,), {"targets": 2}),
        ((1, 120), {"targets": 2}),
        ((7, 7), {"target_scale": (0.4, 0.6), "context_scale": (0.3, 0.5), "min_keep": 6}),
        ((8, 8, 8), {"generators": V_PUBLISHED}),
        ((4, 6, 6), {"generators": [{"blocks": 2, "temporal_scale": [0.4, 1.0], "max_temporal_keep": 0.5}]}),
        ((4, 6, 6), {"generators": [{"scale": [0.7, 0.7], "blocks": 1, "max_keep": 20, "full_complement": True}]}),
        ((4, 6, 6), {"generators": [{"blocks": 2, "pred_full_complement": True}, {"blocks": 2, "inv_block": True}]}),
        ((2, 3, 3), {"generators": [{"blocks": 8, "scale": [0.2, 0.2]}, {"blocks": 2, "scale": [0.7, 0.7]}]}),
        ((6, 10), {"generators": [{"blocks": 3, "keep": 0.5}]}),
    ],
)
def test_exact_plans_do_not_change_with_batch_or_ranks(grid, options):
    masking = MultiBlock(**options)
    for step in range(3):
        whole = sets_of(masking, tokens_of(grid), rng(8, step))
        part = sets_of(masking, tokens_of(grid, 2), Rng((0, step), [2, 5], 8))
        alone = sets_of(masking, tokens_of(grid, 1), Rng((0, step), [5], 8))
        assert len(whole) == max(1, len(options.get("generators", [])))
        for every, two, one in zip(whole, part, alone, strict=True):
            for role in ("visible", "predict", "counted"):
                rows = getattr(every, role).view(-1, 8, getattr(every, role).shape[1])
                assert torch.equal(getattr(two, role), rows[:, [2, 5]].flatten(0, 1))
                assert torch.equal(getattr(one, role), rows[:, 5])
            overlap = 1 - every.counted.mean()
            assert overlap == 0 or max(grid) == 7  # a context takes cells of targets where nothing else is left
    other = sets_of(masking, tokens_of(grid), rng(8, 99))
    assert not all(torch.equal(a.predict, b.predict) for a, b in zip(whole, other, strict=True))


def test_targets_of_a_context_share_a_pass():
    tokens = tokens_of((14, 14), 4)
    (plan,) = sets_of(MultiBlock(contexts=2, targets=3, context_scale=(0.5, 0.6)), tokens, rng(4))
    assert len(plan.visible) == 24 and len(plan.first) == 8
    assert torch.equal(plan.visible[plan.first[plan.passes]], plan.visible)
    assert torch.equal(plan.rows[plan.first[plan.passes]], plan.rows)
    assert len({tuple(row) for row in plan.visible.tolist()}) == 8
    for row, predict in zip(plan.rows.tolist(), plan.predict, strict=True):  # a rectangle each
        top, left = predict // 14, predict % 14
        assert len(predict) == (top.max() - top.min() + 1) * (left.max() - left.min() + 1), row
    assert plan.predict.max() < 13 * 14 and (plan.predict % 14 < 13).all()  # as published


def test_blocks_of_clips_span_all_frames():
    tokens = tokens_of((3, 8, 8))
    (plan,) = sets_of(MultiBlock(min_keep=4), tokens, rng())
    for index in (plan.visible, plan.predict):
        per_frame = index.view(len(index), 3, -1) - 64 * torch.arange(3)[:, None]
        assert torch.equal(per_frame, per_frame[:, :1].expand_as(per_frame))


def test_predicted_cells_lie_in_blocks_and_the_context_outside():
    grid, (generator,) = (6, 8, 8), MultiBlock(generators=[{"blocks": 2, "scale": [0.3, 0.3]}]).generators
    box = generator.box(grid, (0.3, 0.3, 0.3))
    counts = block_unions.exact_counts(generator, grid, box)
    rows = 64
    context, target, left = block_unions.exact(generator, grid, box, counts, "x", rng(rows), torch.device("cpu"))
    assert (context.sum(1) == counts[0]).all() and (target.sum(1) == counts[1]).all() and not (context & target).any()
    shown = context.view(rows, 6, 64).float().mean(1)
    assert ((shown == 0) | (shown == 1)).float().mean() > 0.98  # whole places are left out, not cells of them
    assert left.min() >= counts[0] and sum(counts) < 6 * 64


def test_draws_that_hide_everything_do_not_make_contexts_empty():
    """Two boxes as high as the frame cover it in one of nine draws, which are drawn again."""
    grid, (generator,) = (8, 16, 16), MultiBlock(generators=[{"blocks": 2, "scale": [0.7, 0.7]}]).generators
    boxes = ((8, 16, 11), (8, 16, 12))
    assert generator.box(grid, (0.5, 0.5, 0.99)) == boxes[0]
    for box in boxes:
        counts = block_unions.exact_counts(generator, grid, box)
        assert counts[0] == 128  # a column of tokens in all frames
        context, _, left = block_unions.exact(generator, grid, box, counts, "x", rng(64), torch.device("cpu"))
        assert (context.sum(1) == 128).all() and left.min() >= 128


def test_padded_rows_have_less():
    valid = torch.ones(8, 64, dtype=torch.bool)
    valid[1, 32:], valid[2] = False, False
    tokens = tokens_of((8, 8), valid=valid)
    for options in ({"min_keep": 4}, {"generators": [{"blocks": 3}, {"blocks": 2, "inv_block": True}]}):
        for plan in sets_of(MultiBlock(**options), tokens, rng()):
            rows = torch.arange(8) if plan.rows is None else plan.rows
            for index, good in ((plan.visible, plan.visible_valid), (plan.predict, plan.predict_valid)):
                assert good[rows == 0].all() and not good[rows == 2].any()
                assert valid[rows].gather(1, index)[good].all() and good[rows == 1].float().mean() < 1
            assert torch.equal(plan.counted > 0, plan.predict_valid)


def test_usual_contexts_are_what_nine_in_ten_draws_have():
    blocks = BlockTargets((1, 14, 14), 4, (0.15, 0.2), (0.75, 1.5), 1, (0.85, 1.0), 10, False)
    sizes = blocks.sizes((0.5, 0.5))
    keep = block_targets.usual_context(blocks, sizes)
    contexts, _ = block_targets.official(blocks, sizes, "x", rng(2000))
    assert 0.85 < (contexts.sum(-1) >= keep).float().mean() < 0.95


# ------------------------------------------------------------------------------------------------------------- official
def test_official_plans_are_cut_to_the_shortest_of_the_batch():
    tokens, masking = tokens_of((14, 14), 64), MultiBlock(count="official")
    (whole,) = sets_of(masking, tokens, rng(64))
    (part,) = sets_of(masking, tokens_of((14, 14), 2), Rng((0, 0), [2, 5], 64))
    assert part.visible.shape[1] > whole.visible.shape[1]  # fewer samples, a longer shortest
    assert torch.equal(part.visible[:2, : whole.visible.shape[1]], whole.visible[[2, 5]])  # the lowest indices stay
    assert torch.equal(part.predict, whole.predict.view(4, 64, -1)[:, [2, 5]].flatten(0, 1))
    (note,) = masking.notes(tokens, rng(64))["x"]
    assert "count: official, here for a batch of 64; it changes with the batch and the number of ranks" in note
    assert f"context of {whole.visible.shape[1]} tokens, of {whole.visible.shape[1]} to " in note
    short, long = MultiBlock(count="official", generators=V_PUBLISHED)(tokens_of((4, 16, 16)), rng())
    assert (short["x"].visible[:, -1] < 1024).all() and short["x"].predict.shape != long["x"].predict.shape


def test_official_clips_always_show_something():
    generator = {"blocks": 40, "scale": [0.5, 0.5], "temporal_scale": [0.5, 0.9]}
    for plan in sets_of(MultiBlock(generators=[generator], count="official"), tokens_of((4, 4, 4), 64), rng(64)):
        assert plan.visible.shape[1] >= 1


# --------------------------------------------------------------------------------------------------- within other parts
def test_sets_of_one_modality_beside_a_single_plan_of_another():
    from maemm.model.masking.random import Random

    tokens = {"x": tokens_of((4, 6, 6))["x"], "y": tokens_of((6, 6))["x"]}
    masking = EachModality({"x": MultiBlock(generators=V_PUBLISHED), "y": Random()})
    sets = masking(tokens, rng())
    assert len(sets) == 2 and torch.equal(sets[0]["y"].visible, sets[1]["y"].visible)
    assert sets[0]["x"].predict.shape != sets[1]["x"].predict.shape and len(masking.notes(tokens, rng())["x"]) == 2
    three = MultiBlock(generators=[*V_PUBLISHED, {}])
    with pytest.raises(MaemmError, match="2 and 3 sets of plans"):
        EachModality({"x": MultiBlock(generators=V_PUBLISHED), "y": three})(tokens, rng())


def test_several_masks_of_a_sample_keep_shared_passes_and_sets():
    tokens = tokens_of((14, 14), 3)
    (plan,) = sets_of(MultiMask(masks_per_sample=2, masking={"type": "multi_block"}), tokens, rng(3))
    assert plan.rows.tolist() == [0, 1, 2] * 8 and len(plan.first) == 6
    assert torch.equal(plan.visible[plan.first[plan.passes]], plan.visible)
    assert torch.equal(plan.rows[plan.first[plan.passes]], plan.rows)
    masking = MultiMask(masks_per_sample=2, masking={"type": "multi_block", "generators": V_PUBLISHED})
    sets = sets_of(masking, tokens_of((4, 6, 6), 3), rng(3))
    assert [plan.rows.tolist() for plan in sets] == [[0, 1, 2] * 2] * 2


def test_a_model_learns_from_them():
    masking = {"type": "multi_block", "min_keep": 1}
    recipe = {
        "modalities": {"image": {"size": 32, "patch": 4, "masking": masking}},
        "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
        "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    }
    model = build_model(recipe)
    out = model({"image": torch.randn(2, 3, 32, 32)}, rng=rng(2))
    out.total.backward()
    assert out.loss["image"].shape[0] == 8 and out.total.isfinite()


# ------------------------------------------------------------------------------------------------------ hostile options
@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ((8, 8), {}, "a target block may have 9 of 64 tokens, not more than min_keep 10 .*lower min_keep"),
        ((8, 8), {"min_keep": 64}, "not more than min_keep 64"),
        ((14, 14), {"context_scale": (0.02, 0.03)}, "a context block may have . of 196 tokens"),
        ((4, 4), {"min_keep": 0, "target_scale": (0.01, 0.02)}, "a target block may have 0 of 16"),
        (None, {}, "needs tokens on a grid of 1 to 3 axes, these are on no grid"),
        ((2, 2, 2, 2), {}, "a grid of 4 axes"),
        ((4, 4), {"generators": [{"scale": [0.01, 0.05]}]}, "a box may have no token.*raise scale"),
        ((4, 4, 4), {"generators": [{"scale": [1.0, 1.0], "aspect": [1.0, 1.0]}]}, "may cover all of the grid"),
        ((4, 4, 4), {"generators": [{"full_complement": True, "pred_full_complement": True}]}, "exclude each other"),
        ((4, 4, 4), {"generators": [{}], "min_keep": 3}, "min_keep is for blocks that are predicted one by one"),
    ],
)
@pytest.mark.parametrize("count", ["exact", "official"])
def test_what_can_never_be_met_is_refused(grid, options, message, count):
    shape = grid or (16,)
    tokens = tokens_of(shape)
    if grid is None:
        tokens = {"x": Tokens(tokens["x"].values, tokens["x"].coords)}
    with pytest.raises(MaemmError, match=message) as caught:
        for step in range(8):  # sizes are those of a step
            MultiBlock(**options, count=count)(tokens, rng(8, step))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options",
    [
        {"target_scale": [0.2, 0.1]},
        {"target_scale": [0.0, 0.1]},
        {"target_scale": [0.5, 1.5]},
        {"aspect": [0, 1]},
        {"targets": 0},
        {"contexts": 0},
        {"min_keep": -1},
        {"keep": 0},
        {"generators": []},
        {"generators": [{"blocks": 0}]},
        {"generators": [{"scale": [0.7]}]},
        {"generators": [{"max_keep": 0}]},
        {"generators": [{"npred": 2}]},
        {"count": "exakt"},
    ],
)
def test_wrong_options(options):
    with pytest.raises(MaemmError, match="masking") as caught:
        check(MultiBlock, options, "masking")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("grid", "options", "message"),
    [
        ((14, 14), {"keep": 0.9}, "a context of 176 places does not fit .*lower keep"),
        ((7, 7), {"target_scale": (0.7, 0.8), "min_keep": 20, "context_scale": (0.9, 1.0)}, "lower min_keep"),
        ((14, 14), {"keep": 0.3, "count": "official"}, "keep is for exact counts"),
        ((14, 14), {"generators": [{"keep": 0.3}], "count": "official"}, "keep is for exact counts"),
    ],
)
def test_contexts_that_do_not_fit(grid, options, message):
    with pytest.raises(MaemmError, match=message):
        MultiBlock(**options)(tokens_of(grid), rng())


def test_official_refuses_padding():
    valid = torch.ones(8, 196, dtype=torch.bool)
    with pytest.raises(MaemmError, match="has padding.*set count: exact"):
        MultiBlock(count="official")(tokens_of((14, 14), valid=valid), rng())


def test_sizes():
    assert area_size(14, 14, (0.15, 0.2), (0.75, 1.5), (0.5, 0.5), 1) == (6, 5)
    assert area_size(14, 14, (1.0, 1.0), (1.0, 1.0), (0.0, 0.0), 1) == (13, 13)
    assert area_size(14, 14, (1.0, 1.0), (1.0, 1.0), (0.0, 0.0), 0) == (14, 14)
    assert area_size(1, 40, (0.5, 0.5), (0.75, 1.5), (0.0, 0.0), 1) == (1, 20)
    assert area_size(40, 1, (1.0, 1.0), (0.75, 1.5), (0.0, 0.0), 1) == (39, 1)


@pytest.mark.parametrize("grid", [(7,), (5, 6), (3, 4, 5)])
@pytest.mark.parametrize("count", [1, 2, 8])
def test_a_union_is_that_of_its_boxes(grid, count):
    generator = torch.Generator().manual_seed(0)
    corner = torch.stack([torch.randint(-1, side + 1, (4, 3, count), generator=generator) for side in grid], -1)
    size = tuple(max(1, side // 2) for side in grid)
    boxes = cells(grid, size, corner)
    places = torch.stack(torch.meshgrid(*map(torch.arange, grid), indexing="ij"), -1).flatten(0, -2)
    inside = (places >= corner[..., None, :]) & (places < corner[..., None, :] + torch.tensor(size))
    assert torch.equal(boxes, inside.all(-1)) and boxes.any()
    assert torch.equal(union(grid, size, corner), boxes.any(-2))
