"""Ratios that are drawn for each batch, and random masks by axes and by groups."""

import math

import pytest
import torch

from maemm import MaemmError, Rng
from maemm.config.options import check
from maemm.contract import Tokens
from maemm.contract.positions import lattice
from maemm.model.build import build_model
from maemm.model.masking.multi_mask import MultiMask
from maemm.model.masking.random import Random
from maemm.model.masking.ratio import NormalRatio, ratio_of, read_ratio
from maemm.registry.make import make
from maemm.tasks._shared.scoring import PerSampleRng

RANGE, NORMAL = (0.5, 0.9), {"mean": 0.6, "std": 0.25, "low": 0.4, "high": 0.6}
WITH_RATIO = ["random", "block", "blocks", "inverse_block", "scan", "scattered_blocks"]


def tokens_of(grid, batch=4, valid=None):
    count = torch.Size(grid).numel()
    return Tokens(torch.zeros(batch, count, 1), lattice(grid)[None], grid, valid)


def rng(batch=4, step=0):
    return Rng((0, step), range(batch), batch)


def whole(plan, tokens):
    plan.check("x", tokens)
    assert torch.equal(torch.cat([plan.visible, plan.predict], 1).sort(1).values, tokens.all_indices())
    return (
        torch.ones(tokens.batch, tokens.count, dtype=torch.bool).scatter_(1, plan.predict, False).view(-1, *tokens.grid)
    )


# ------------------------------------------------------------------------------------------------- ratios of a batch
@pytest.mark.parametrize("name", WITH_RATIO)
@pytest.mark.parametrize("ratio", [RANGE, list(RANGE), NORMAL])
def test_a_ratio_is_that_of_the_whole_batch(name, ratio):
    masking, tokens = make("maskings", {"type": name, "ratio": ratio}), {"x": tokens_of((8, 8))}
    counts = []
    for step in range(12):
        plan = masking(tokens, rng(4, step))["x"]
        part = masking({"x": tokens_of((8, 8), 2)}, Rng((0, step), [1, 3], 4))["x"]
        assert torch.equal(part.visible, plan.visible[[1, 3]])  # other micro-batches and ranks have the same
        (line,) = masking.notes(tokens, rng(4, step))["x"]
        drawn = float(line.split()[1].rstrip(","))
        assert abs(plan.predict.shape[1] - 64 * drawn) <= 1 and "drawn for each batch from" in line
        counts.append(plan.predict.shape[1])
    low, high = (0.4, 0.6) if ratio == NORMAL else RANGE
    assert len(set(counts)) > 5 and 64 * low - 1 <= min(counts) and max(counts) <= 64 * high + 1


def test_ratios_are_distributed_as_said():
    uniform = torch.tensor([ratio_of(RANGE, "x", rng(1, step)) for step in range(2000)])
    assert abs(uniform.mean() - 0.7) < 0.01 and abs(uniform.std() - 0.4 / math.sqrt(12)) < 0.005
    normal = read_ratio({"mean": 0.5, "std": 0.1, "low": 0.1, "high": 0.9})
    drawn = torch.tensor([ratio_of(normal, "x", rng(1, step)) for step in range(2000)])
    assert abs(drawn.mean() - 0.5) < 0.01 and abs(drawn.std() - 0.1) < 0.005
    assert NormalRatio(**NORMAL).at(0.0) == pytest.approx(0.4) and NormalRatio(**NORMAL).at(1.0) == pytest.approx(0.6)
    published = torch.tensor([ratio_of(read_ratio(NORMAL), "x", rng(1, step)) for step in range(2000)])
    assert ((published >= 0.4) & (published <= 0.6)).all() and published.mean() > 0.5  # more of them near the mode
    assert NormalRatio(mean=0.0, std=0.001, low=0.8, high=0.9).at(0.3) == 0.8  # nearly all of it is cut


def test_fixed_ratios_are_as_before_and_say_nothing():
    tokens = tokens_of((8, 8))
    fixed, narrow = Random(ratio=0.75), Random(ratio=(0.75, 0.75))
    assert torch.equal(fixed.plan("x", tokens, rng()).visible, narrow.plan("x", tokens, rng()).visible)
    assert fixed.notes({"x": tokens}, rng()) == {}


def test_masks_of_a_sample_share_the_ratio_and_so_do_scored_samples():
    masking = MultiMask(masks_per_sample=3, masking={"type": "random", "ratio": list(RANGE)})
    tokens = {"x": tokens_of((8, 8))}
    plan = masking(tokens, rng())["x"]
    assert len(plan.visible) == 12 and len(masking.notes(tokens, rng())["x"]) == 1
    keys = PerSampleRng([(0, "score", k, 0) for k in range(4)], (0, "score", 0))
    assert len(Random(ratio=RANGE).plan("x", tokens["x"], keys).visible) == 4


def test_a_model_learns_with_a_ratio_of_each_batch():
    recipe = {
        "modalities": {"image": {"size": 16, "patch": 4, "masking": {"type": "random", "ratio": [0.4, 0.9]}}},
        "encoder": {"type": "vit", "dim": 16, "depth": 1, "heads": 2},
        "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
    }
    model = build_model(recipe)
    shapes = set()
    for step in range(4):
        out = model({"image": torch.randn(2, 3, 16, 16)}, rng=rng(2, step))
        out.total.backward()
        shapes.add(out.loss["image"].shape)
    assert len(shapes) > 1


@pytest.mark.parametrize("name", WITH_RATIO)
def test_wrong_ratios_are_refused_in_one_line(name):
    from maemm import registry

    part = registry.find("maskings", name)
    for ratio in (
        [0.9, 0.5],
        [0.5, 1.5],
        [-0.1, 0.5],
        [0.5],
        [],
        1.01,
        -1,
        {"mean": 0.5},
        {"std": 0, "mean": 0.5},
        {"start": 0.5},
        {"start": 0.5, "end": 2},
        {"start": 0.6, "end": 0, "of": 1},
    ):
        with pytest.raises(MaemmError, match="masking.ratio") as caught:
            check(part, {"ratio": ratio}, "masking")
        assert "\n" not in str(caught.value), ratio
    with pytest.raises(MaemmError, match=r"low 0.9 is above high 0.5 \(masking.ratio\)"):
        make("maskings", {"type": name, "ratio": {"mean": 0.5, "std": 0.1, "low": 0.9, "high": 0.5}})


# ------------------------------------------------------------------------------------------------- axes and groups
@pytest.mark.parametrize(("along", "drawn"), [([0], (1, 2)), ([1, 2], (0,)), ([2], (0, 1)), ([0, 2], (1,))])
def test_rows_along_axes_are_hidden_together(along, drawn):
    grid = (4, 5, 6)
    tokens = tokens_of(grid)
    visible = whole(Random(along=along, ratio=0.6).plan("x", tokens, rng()), tokens)
    for axis in along:
        assert torch.equal(visible, visible.narrow(1 + axis, 0, 1).expand_as(visible))
    places = math.prod(grid[axis] for axis in drawn)
    together = math.prod(grid[axis] for axis in along)
    assert (visible.flatten(1).sum(1) == int(places * (1 - 0.6)) * together).all()
    assert len({tuple(row) for row in visible.flatten(1).tolist()}) > 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_groups_keep_exact_counts_of_their_own(axis):
    grid = (3, 5, 4)
    tokens = tokens_of(grid)
    each = 60 // grid[axis]
    others = [1 + other for other in range(3) if other != axis]
    visible = whole(Random(groups=axis, ratio=0.7).plan("x", tokens, rng()), tokens)
    assert (visible.sum(others) == int(each * (1 - 0.7))).all()
    ratios = [k / grid[axis] for k in range(grid[axis])]
    visible = whole(Random(groups=axis, group_ratios=ratios).plan("x", tokens, rng()), tokens)
    assert visible.sum(others)[0].tolist() == [int(each * (1 - ratio)) for ratio in ratios]


def test_whole_places_of_each_axis_are_hidden():
    tokens = tokens_of((4, 10))
    visible = whole(Random(axis_ratios=[0.5, 0.3]).plan("x", tokens, rng()), tokens)
    assert (visible.any(2).sum(1) == 2).all() and (visible.any(1).sum(1) == 7).all()
    assert (visible.flatten(1).sum(1) == 14).all()
    rows = whole(Random(axis_ratios=[0.5, 0.0]).plan("x", tokens, rng()), tokens)
    assert torch.equal(rows, rows[:, :, :1].expand_as(rows))


@pytest.mark.parametrize("options", [{"along": [0]}, {"groups": 0}, {"axis_ratios": [0.5, 0.5]}])
def test_ragged_rows_by_axes(options):
    valid = torch.ones(4, 4, 6, dtype=torch.bool)
    valid[1, :, 3:], valid[2, 2:], valid[3] = False, False, False
    tokens = tokens_of((4, 6), valid=valid.flatten(1))
    plan = Random(ratio=0.5, **options).plan("x", tokens, rng()).check("x", tokens)
    shown, hidden = plan.visible_valid.sum(1), plan.predict_valid.sum(1)
    assert (shown + hidden).tolist() == valid.flatten(1).sum(1).tolist()
    expected = {"along": [12, 4, 6, 0], "groups": [12, 4, 6, 0], "axis_ratios": [6, 2, 3, 0]}
    assert shown.tolist() == expected[next(iter(options))]
    for index, good in ((plan.visible, plan.visible_valid), (plan.predict, plan.predict_valid)):
        assert tokens.valid.gather(1, index)[good].all()
    same = Random(ratio=0.5, **options).plan("x", tokens, rng(4, 1))
    assert same.visible.shape == plan.visible.shape and same.predict.shape == plan.predict.shape


def test_rows_of_a_part_of_the_batch():
    for options in ({"along": [0]}, {"groups": 1}, {"axis_ratios": [0.5, 0.5]}):
        plan = Random(**options).plan("x", tokens_of((4, 6)), rng())
        part = Random(**options).plan("x", tokens_of((4, 6), 2), Rng((0, 0), [0, 2], 4))
        assert torch.equal(part.visible, plan.visible[[0, 2]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"along": [2]}, "along needs axes of a grid, tokens are on a grid 4 x 6 without axis 2"),
        ({"along": [0, 1]}, "would be hidden together, all of them"),
        ({"groups": 2}, "groups needs axes of a grid"),
        ({"groups": 0, "group_ratios": [0.5]}, "group_ratios has 1 numbers for the 4 places of axis 0"),
        ({"group_ratios": [0.5]}, "group_ratios needs the axis of the groups"),
        ({"axis_ratios": [0.5]}, "axis_ratios has 1 numbers for a grid of 2 axes"),
        ({"axis_ratios": [0.5] * 3}, "axis_ratios needs axes of a grid"),
        ({"along": [0], "groups": 0}, "along and groups exclude each other"),
        ({"mask_block": 2, "along": [0]}, "mask_block and along exclude each other"),
    ],
)
def test_axes_that_do_not_fit(options, message):
    with pytest.raises(MaemmError, match=message) as caught:
        Random(**options).plan("x", tokens_of((4, 6)), rng())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "options", [{"along": []}, {"along": [-1]}, {"groups": -1}, {"axis_ratios": [1.5]}, {"group_ratios": [-0.5]}]
)
def test_wrong_options(options):
    with pytest.raises(MaemmError, match=f"masking.{next(iter(options))}"):
        check(Random, options, "masking")


def test_the_suites_rules_hold_for_ratios_axes_and_sets_of_plans():
    from maemm import registry
    from maemm.testing.suite import checks_of, result_of

    names = ("plan_is_legal", "plan_is_repeatable", "randomness_is_counter_based")
    for part, options in {
        "maskings.random": {"ratio": [0.3, 0.7], "along": [0]},
        "maskings.scan": {"order": "peano", "ratio": {"mean": 0.5, "std": 0.2}},
        "maskings.multi_block": {"min_keep": 0, "contexts": 2, "keep": 0.3},
    }.items():
        own = [x for x in checks_of(registry.CORE, {part: options}) if f"maskings.{x.part}" == part and x.name in names]
        assert [result.message for result in map(result_of, own) if not result.passed] == [] and len(own) == 3
