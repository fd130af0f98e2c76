"""Choosing, normalising and augmenting clouds."""

import math

import numpy as np
import pytest
import torch

from maemm.config.options import check
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm_plugins.pointcloud.modality import PointCloud
from maemm_plugins.pointcloud.preprocess import (
    POINT_MAE,
    Augment,
    any_rotation,
    augment,
    axis_rotation,
    collate_clouds,
    load_cloud,
    normalized,
)

ROWS = 6
DRAW = Rng((0, 7), range(ROWS), ROWS)


def cloud(points=300, columns=3, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(points, columns)).astype(dtype)


def batch(points=50, columns=3):
    return torch.from_numpy(np.stack([cloud(points, columns, seed, np.float32) for seed in range(ROWS)]))


# ------------------------------------------------------------------------------------------------- one cloud
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32])
def test_unit_sphere(dtype):
    raw = (cloud() * 100 + 40).astype(dtype)
    x = load_cloud(raw, Rng((1,)), points=128)["x"]
    assert x.shape == (128, 3) and x.dtype == torch.float32
    assert x.mean(0).abs().max() < 1e-5 and x.norm(dim=1).max() == pytest.approx(1, abs=1e-5)


def test_normalisations_are_what_they_say():
    xyz = cloud() * [1, 2, 3] + [5, 6, 7]
    cube = normalized(xyz, "unit_cube")
    assert np.abs(cube).max() == pytest.approx(1) and np.allclose(cube.max(0) + cube.min(0), 0)
    assert np.allclose(normalized(xyz, "center"), xyz - xyz.mean(0))
    assert normalized(xyz, "none") is xyz
    sphere = normalized(xyz, "unit_sphere")
    assert np.allclose(sphere, (xyz - xyz.mean(0)) / np.linalg.norm(xyz - xyz.mean(0), axis=1).max())


def test_points_are_drawn_without_repetition_and_repeatably():
    raw = cloud(500)
    one, same, other = (load_cloud(raw, Rng((k,)), points=200, normalize="none")["x"] for k in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert len(np.unique(one.numpy(), axis=0)) == 200
    still = load_cloud(raw, None, points=200)["x"]
    assert torch.equal(still, load_cloud(raw, None, points=200)["x"])
    whole = load_cloud(raw, Rng((1,)), points=None, normalize="none")["x"]
    assert np.array_equal(whole.numpy(), raw.astype(np.float32))
    assert len(load_cloud(raw, Rng((1,)), points=1000)["x"]) == 500  # never repeated to fill up


def test_far_away_clouds_keep_their_shape():
    near = cloud(100)
    far = near + [665187.5, 5648349.9, 241.8]
    assert torch.allclose(load_cloud(far, None)["x"], load_cloud(near, None)["x"], atol=1e-6)
    with pytest.raises(ValueError, match="lose their shape in float32; set normalize_cloud"):
        load_cloud(far, None, normalize="none")


def test_features_come_along_and_others_do_not():
    raw = cloud(64, 7)
    x = load_cloud(raw, None, points=None, features=2, normalize="none")["x"]
    assert x.shape == (64, 5) and np.array_equal(x.numpy(), raw[:, :5].astype(np.float32))
    with pytest.raises(ValueError, match="3 columns, 6 are needed"):
        load_cloud(cloud(64), None, features=3)


def nan_in(column, columns=3):
    raw = cloud(50, columns)
    raw[[3, 9], column] = np.nan, np.inf
    return raw


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (nan_in(1), "2 of 50 points are not finite"),
        (cloud(0), "no points"),
        (cloud(1), "a single point"),
        (np.full((64, 3), 0.1), "all 64 points are equal"),
        (np.full((64, 3), 5648349.9), "all 64 points are equal"),
        (cloud(9, 2), "2 columns, 3 are needed"),
        (cloud(9).astype(complex), "not real numbers"),
        (np.array([["a", "b", "c"]] * 5), "not real numbers"),
        (cloud(9)[None], "2 dimensions"),
        (cloud(9) * 1e200, "too large"),
        (np.array([[1.7e308] * 3, [-1.7e308] * 3]), "too large"),
        (np.array([[0.0, 0, 0], [1e-300, 0, 0]]), None),  # small, but a shape
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_cannot_be_learned_from(raw, says):
    if says is None:
        assert load_cloud(raw, None)["x"].isfinite().all()
        return
    with pytest.raises(ValueError, match=says):
        load_cloud(raw, None)


def test_nan_in_a_column_that_is_not_used_does_no_harm():
    assert load_cloud(nan_in(4, 5), None, points=None)["x"].isfinite().all()
    with pytest.raises(ValueError, match="not finite"):
        load_cloud(nan_in(4, 5), None, features=2)


def test_a_million_points():
    raw = cloud(1_000_000, dtype=np.float32)
    x = load_cloud(raw, Rng((1,)), points=1024)["x"]
    assert x.shape == (1024, 3) and len(np.unique(x.numpy(), axis=0)) == 1024


# ---------------------------------------------------------------------------------------------------- batches
def test_clouds_of_one_length_need_no_padding():
    same = collate_clouds([{"x": torch.ones(5, 3)}, {"x": torch.zeros(5, 3)}])
    assert set(same) == {"x"} and same["x"].shape == (2, 5, 3)
    ragged = collate_clouds([{"x": torch.ones(5, 3)}, {"x": torch.ones(2, 3)}])
    assert ragged["x"].shape == (2, 5, 3) and ragged["valid"].tolist() == [[True] * 5, [True] * 2 + [False] * 3]
    assert not ragged["x"][1, 2:].any()


def test_without_a_draw_nothing_changes():
    x = batch()
    for rng, how in ((None, POINT_MAE), (DRAW, None)):
        out, valid = augment(x, None, rng, how)
        assert out is x and valid is None


def test_scale_and_shift_stay_in_their_ranges():
    x = batch()
    out, valid = augment(x, None, DRAW, POINT_MAE)
    assert valid is None
    slope = (out[:, 1:] - out[:, :-1]) / (x[:, 1:] - x[:, :-1])
    factor = slope.median(1).values
    assert torch.allclose(slope, factor[:, None].expand_as(slope), atol=2e-3)  # one factor for each cloud and axis
    assert factor.min() >= 2 / 3 and factor.max() <= 1.5 and factor.std() > 0.1
    shift = out[:, 0] - factor * x[:, 0]
    assert shift.abs().max() <= 0.2 + 1e-5 and shift.std() > 0.05
    one, _ = augment(x, None, DRAW, Augment(per_axis=False, shift=0.0))
    ratio = one / x
    assert torch.allclose(ratio, ratio[:, :1, :1].expand_as(ratio), atol=1e-4)


def test_rows_do_not_depend_on_the_split_into_processes():
    x, how = batch(), Augment(rotate="so3", jitter=0.01, dropout=0.5)
    whole, kept = augment(x, None, DRAW, how)
    part, mine = augment(x[4:], None, Rng((0, 7), range(4, 6), ROWS), how)
    assert torch.equal(whole[4:], part) and torch.equal(kept[4:], mine)


@pytest.mark.parametrize("rotate", ["x", "y", "z", "so3"])
def test_rotations_keep_distances(rotate):
    x = batch()
    out, _ = augment(x, None, DRAW, Augment(scale=None, shift=0.0, rotate=rotate))
    assert torch.allclose(out.norm(dim=-1), x.norm(dim=-1), atol=1e-4) and not torch.allclose(out, x, atol=0.1)
    if rotate != "so3":
        at = "xyz".index(rotate)
        assert torch.allclose(out[..., at], x[..., at], atol=1e-6)


def test_rotation_matrices():
    turns = any_rotation(torch.rand(500, 3, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(turns @ turns.transpose(-1, -2), torch.eye(3).expand(500, 3, 3), atol=1e-5)
    assert torch.allclose(torch.linalg.det(turns), torch.ones(500), atol=1e-5)
    assert turns.mean(0).abs().max() < 0.1  # no direction is preferred
    quarter = axis_rotation(torch.tensor([0.25]), "z")[0]
    assert torch.allclose(quarter @ torch.tensor([1.0, 0, 0]), torch.tensor([0.0, 1, 0]), atol=1e-6)
    assert torch.allclose(
        axis_rotation(torch.tensor([0.25]), "y")[0] @ torch.tensor([0.0, 0, 1]), torch.eye(3)[0], atol=1e-6
    )


def test_shift_happens_before_the_turn():
    """PCP-MAE scales and shifts, then turns about y: the shifted centre turns along."""
    x = torch.zeros(ROWS, 4, 3)
    moved, _ = augment(x, None, DRAW, Augment(scale=None, shift=0.2))
    turned, _ = augment(x, None, DRAW, Augment(scale=None, shift=0.2, rotate="y"))
    turn = axis_rotation(DRAW.uniform("rotate"), "y")
    assert torch.allclose(turned, moved @ turn.transpose(-1, -2), atol=1e-6)


def test_normals_stay_upright_on_the_surface():
    tangents, normal = torch.tensor([[1.0, 1, 0], [0, 0, 1]]), torch.tensor([1.0, -1, 0]) / math.sqrt(2)
    points = torch.cat([torch.zeros(1, 3), tangents]).expand(ROWS, 3, 3)
    x = torch.cat([points, normal.expand(ROWS, 3, 3)], -1)
    out, _ = augment(x, None, DRAW, Augment(rotate="so3"), normals=True)
    sides = out[:, 1:, :3] - out[:, :1, :3]
    assert (sides * out[:, 1:, 3:]).sum(-1).abs().max() < 1e-5
    assert torch.allclose(out[..., 3:].norm(dim=-1), torch.ones(ROWS, 3), atol=1e-5)
    plain, _ = augment(x, None, DRAW, Augment(rotate="so3"))
    assert torch.equal(plain[..., 3:], x[..., 3:])


def test_jitter_is_small_and_normal():
    x = torch.zeros(ROWS, 4000, 3)
    out, _ = augment(x, None, DRAW, Augment(scale=None, shift=0.0, jitter=0.01, jitter_clip=0.03))
    assert out.abs().max() <= 0.03 and out.std().item() == pytest.approx(0.01, rel=0.02)
    assert abs(out.mean().item()) < 2e-4


def test_dropout_takes_points_away():
    x = batch(400)
    valid = torch.ones(ROWS, 400, dtype=torch.bool)
    valid[0, 3:] = False
    out, kept = augment(x, valid, DRAW, Augment(scale=None, shift=0.0, dropout=0.8))
    assert not (kept & ~valid).any() and kept.sum(1).min() >= 2
    assert torch.equal(out[kept], x[kept]) and not out[~kept].any()
    shares = 1 - kept[1:].float().mean(1)
    assert shares.max() < 0.9 and shares.std() > 0.05  # an own share for each cloud


@pytest.mark.parametrize(
    "options",
    [{"scale": (1.5, 0.5)}, {"scale": (0.0, 1.0)}, {"shift": -1.0}, {"jitter": math.inf}, {"dropout": 1.0}],
)
def test_options_that_make_no_sense(options):
    with pytest.raises(MaemmError, match="modalities.pointcloud.augment"):
        check(PointCloud, {"augment": options}, "modalities.pointcloud")
    with pytest.raises(MaemmError, match="points must be int >= 2"):
        check(PointCloud, {"points": 1}, "modalities.pointcloud")
