"""The modality: groups and their validity, hostile clouds, features, the two ways to count batch statistics."""

import math

import numpy as np
import pytest
import torch

from maemm import Preprocessed
from maemm.config.options import check
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.registry import find
from maemm_plugins.pointcloud.modality import PointCloud

SMALL = {"groups": 8, "group_size": 5, "points": 24, "width": 16}


def cloud(points=24, columns=3, seed=0):
    return np.random.default_rng(seed).normal(size=(points, columns)).astype(np.float32)


def batch(rows=3, points=24, columns=3, seed=0):
    return torch.from_numpy(np.stack([cloud(points, columns, seed + row) for row in range(rows)]))


def connected(training=True, **options):
    torch.manual_seed(0)
    modality = PointCloud(**{**SMALL, **options})
    modality.connect(12, 12)
    return modality.train(training)


def tokens_of(modality, x, valid=None):
    return modality.tokenize(Preprocessed(x, valid))


# ------------------------------------------------------------------------------------------------------ groups
def test_a_group_is_its_points_around_its_centre():
    modality, x = PointCloud(**SMALL, features=2), batch(columns=5)
    tokens = tokens_of(modality, x)
    assert tokens.values.shape == (3, 8, 5, 5) and tokens.coords.shape == (3, 8, 3) and tokens.valid is None
    assert torch.equal(tokens.values[:, :, 0, :3], torch.zeros(3, 8, 3))  # a centre is its own nearest point
    whole = modality.untokenize(tokens.values, tokens)
    assert whole.shape == (3, 40, 5)
    apart = (whole[0, :, None] - x[0]).abs().amax(-1)  # features unchanged, coordinates back in place
    assert (apart.amin(1) < 1e-6).all()
    target = modality.target(tokens, tokens.all_indices())
    assert torch.equal(target.unflatten(-1, (5, 3)), tokens.values[..., :3])
    restored = modality.denormalize_target(target, tokens, tokens.all_indices())
    assert torch.equal(restored[..., :3], tokens.values[..., :3]) and restored[..., 3:].isnan().all()


def test_features_change_neither_groups_nor_target():
    modality, x = PointCloud(**SMALL, features=2), batch(columns=5)
    other = x.clone()
    other[..., 3:] *= -7
    one, two = tokens_of(modality, x), tokens_of(modality, other)
    every = one.all_indices()
    assert torch.equal(one.coords, two.coords)
    assert torch.equal(modality.target(one, every), modality.target(two, every))
    modality.connect(12, None)
    assert not torch.equal(modality.embed(one, every), modality.embed(two, every))


def test_a_padded_cloud_has_the_groups_of_the_cloud():
    modality, x = PointCloud(**SMALL), batch(2)
    counts = torch.tensor([24, 6])
    valid = torch.arange(24) < counts[:, None]
    padded = torch.where(valid[..., None], x, torch.nan)
    tokens = tokens_of(modality, padded, valid)
    assert tokens.valid.tolist() == [[True] * 8, [True] * 6 + [False] * 2]
    assert tokens.values.isfinite().all() and tokens.coords.isfinite().all()
    alone = tokens_of(modality, x[1:, :6])  # fewer points than groups: the rest is no token
    assert torch.equal(alone.valid[0], tokens.valid[1])
    assert torch.equal(alone.values[0], tokens.values[1]) and torch.equal(alone.coords[0], tokens.coords[1])
    assert torch.equal(tokens_of(modality, x[:1]).values[0], tokens.values[0])
    somewhere = valid[:, torch.randperm(24, generator=torch.Generator().manual_seed(0))]  # not at the end
    assert tokens_of(modality, torch.where(somewhere[..., None], x, torch.nan), somewhere).values.isfinite().all()


def test_fewer_points_than_a_group_takes():
    """Dropped points can leave that: the nearest stands in for the missing ones, and nothing is made up."""
    modality, x = PointCloud(**SMALL), batch(2)
    valid = torch.zeros(2, 24, dtype=torch.bool)
    valid[0, [3, 9, 20]] = True
    tokens = tokens_of(modality, x, valid)
    assert tokens.valid.sum(1).tolist() == [3, 0]
    whole = modality.untokenize(tokens.values, tokens)[0].view(8, 5, 3)[:3]
    apart = (whole.flatten(0, 1)[:, None] - x[0, [3, 9, 20]]).abs().amax(-1)
    assert (apart.amin(0) < 1e-6).all() and (apart.amin(1) < 1e-6).all()
    assert (tokens.values[1] == 0).all()


def test_a_million_points():
    modality = PointCloud(groups=8, group_size=4, points=1024)
    raw = np.random.default_rng(0).random((1_000_000, 3), np.float32)
    assert modality.load(raw, Rng((0,)))["x"].shape == (1024, 3)
    whole = PointCloud(groups=8, group_size=4, points=None)
    tokens = whole.tokenize(whole.preprocess(whole.collate([whole.load(raw, None)]), None))
    assert tokens.values.shape == (1, 8, 4, 3) and tokens.values.abs().max() < 0.1


# ----------------------------------------------------------------------------------------------- hostile clouds
HOSTILE = {
    "NaN": (np.where(np.arange(72).reshape(24, 3) == 40, np.nan, cloud()), "1 of 24 points are not finite"),
    "infinity": (np.where(np.arange(72).reshape(24, 3) > 68, np.inf, cloud()), "1 of 24 points are not finite"),
    "empty": (cloud(0), "no points"),
    "one point": (cloud(1), "a single point"),
    "all equal": (np.ones((24, 3)), "all 24 points are equal"),
    "too few": (cloud(4), "4 distinct points, a group needs 5"),
    "two places": (np.repeat(cloud(2), 12, 0), "2 distinct points, a group needs 5"),
    "two columns": (cloud(24, 2), "2 columns, 3 are needed"),
    "one axis": (cloud()[:, 0], "2 dimensions"),
    "three axes": (cloud()[None], "2 dimensions"),
    "complex": (cloud().astype(complex), "not real numbers"),
    "texts": (np.full((24, 3), "x"), "not real numbers"),
    "objects": (np.full((24, 3), None), "not real numbers"),
    "huge": (cloud().astype(np.float64) * 1e200, "too large for float32"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_clouds_are_refused_in_one_line(name):
    raw, reason = HOSTILE[name]
    for rng in (None, Rng((0, 1))):
        with pytest.raises(ValueError, match=reason) as told:
            PointCloud(**SMALL).load(raw, rng)
        assert "\n" not in str(told.value)


def test_few_places_are_as_many_groups():
    """Six places, four times each: six tokens, for a hidden group must not stand where a visible one does."""
    modality = PointCloud(**SMALL)
    loaded = modality.load(np.repeat(cloud(6), 4, 0), None)
    assert loaded["x"].shape == (6, 3)
    tokens = modality.tokenize(modality.preprocess(modality.collate([loaded, modality.load(cloud(), None)]), None))
    assert tokens.valid.sum(1).tolist() == [6, 8]
    assert len({tuple(one) for one in tokens.coords[0, :6].tolist()}) == 6


def test_wrong_batches_are_named():
    modality = PointCloud(**SMALL)
    for wrong in (batch(columns=4), batch()[0], batch()[None]):
        with pytest.raises(MaemmError, match=r"PointCloud expects \(B, N, 3\)"):
            tokens_of(modality, wrong)
    with pytest.raises(MaemmError, match="one bool per point"):
        tokens_of(modality, batch(), torch.ones(3, 5, dtype=torch.bool))
    with pytest.raises(MaemmError, match="cloud of 4 points is too small for groups of 5"):
        tokens_of(modality, batch(points=4))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"groups": 0}, "groups must be int >= 1"),
        ({"group_size": -1}, "group_size must be int >= 1"),
        ({"points": 6}, "points 6 is less than 8"),
        ({"features": -1}, "features must be 0 <= int <= 61"),
        ({"features": 2, "normals": True}, "3 or more, for normals"),
        ({"width": 30}, "int >= 8, a multiple of 4"),
    ],
)
def test_wrong_options_are_told(options, match):
    with pytest.raises(MaemmError, match=match):
        PointCloud(**{**SMALL, **check(PointCloud, options, "modalities.pointcloud")})


# --------------------------------------------------------------------------------------------- batch statistics
def embedded(modality, tokens, index):
    return modality.embed(tokens, index)


def test_hidden_groups_count_in_all_and_not_in_visible():
    x = batch()
    index = torch.tensor([[0, 3, 5], [1, 2, 7], [0, 1, 6]])
    moved = {}
    for stats in ("all", "visible"):
        modality = connected(stats=stats)
        tokens = tokens_of(modality, x)
        every = connected(stats=stats)
        expected = embedded(every, tokens, tokens.all_indices())
        found = embedded(modality, tokens, index)
        same = torch.allclose(found, expected.gather(1, index[..., None].expand(-1, -1, 12)), atol=1e-5)
        assert same == (stats == "all")
        assert modality.embedding.mix_norm.num_batches_tracked == 1
        moved[stats] = modality.embedding.first_norm.running_mean
        if stats == "all":
            assert torch.allclose(moved["all"], every.embedding.first_norm.running_mean, atol=1e-6)
    assert not torch.allclose(moved["all"], moved["visible"], atol=1e-4)


def test_several_plans_of_a_cloud_count_it_once():
    x = batch(2)
    index = torch.tensor([[0, 3], [1, 2], [4, 6]])
    rows = torch.tensor([0, 0, 1])
    modality, plain = connected(), connected()
    tokens = tokens_of(modality, x)
    found = embedded(modality, type(tokens)(tokens.values, tokens.coords, rows=rows), index)
    every = embedded(plain, tokens, tokens.all_indices())
    expected = every[rows[:, None], index]
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(modality.embedding.mix_norm.running_var, plain.embedding.mix_norm.running_var)


@pytest.mark.parametrize("stats", ["all", "visible"])
def test_padding_counts_in_no_statistics(stats):
    """A ragged batch moves the statistics as its groups one behind the other do."""
    x = batch(2)
    valid = torch.arange(24) < torch.tensor([24, 6])[:, None]
    ragged, flat = connected(stats=stats), connected(stats=stats)
    tokens = tokens_of(ragged, x, valid)
    index = torch.tensor([[0, 2, 3, 7], [1, 4, 5, 5]])  # the last one is padding
    seen = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]).bool()
    found = embedded(ragged, tokens, index)
    if stats == "all":
        one = type(tokens)(tokens.values[tokens.valid][None], tokens.coords[tokens.valid][None])
        expected = embedded(flat, one, torch.tensor([[0, 2, 3, 7, 9, 12, 13]]))
    else:
        one = type(tokens)(tokens.gather(index)[seen][None], tokens.gather_coords(index)[seen][None])
        expected = embedded(flat, one, one.all_indices())
    torch.testing.assert_close(found[seen], expected[0], rtol=1e-4, atol=1e-5)
    for name in ("first_norm", "mix_norm"):
        for buffer in ("running_mean", "running_var"):
            one, other = (getattr(getattr(m.embedding, name), buffer) for m in (ragged, flat))
            torch.testing.assert_close(one, other)


def test_the_split_layer_is_the_concatenated_one():
    modality = connected(training=False)
    embedding, tokens = modality.embedding, tokens_of(modality, batch())
    point = embedding.point(embedding.first_norm(embedding.first(tokens.values)).relu())
    both = torch.cat([point.amax(2, keepdim=True).expand_as(point), point], -1)
    expected = embedding.last(embedding.mix_norm(embedding.mix(both)).relu()).amax(2)
    torch.testing.assert_close(modality.embed(tokens, tokens.all_indices()), expected)


# ------------------------------------------------------------------------------------------------ the whole way
def test_augmentation_stays_away_from_evaluation():
    modality = PointCloud(**SMALL)
    loaded = modality.collate([modality.load(cloud(), None)])
    assert torch.equal(modality.preprocess(loaded, None).x, loaded["x"])
    changed = modality.preprocess(loaded, Rng((0, 0))).x
    assert not torch.equal(changed, loaded["x"]) and changed.isfinite().all()
    assert math.isclose(loaded["x"].norm(dim=-1).max().item(), 1.0, rel_tol=1e-5)


def test_dropped_points_leave_tokens_that_are_told():
    modality = PointCloud(**{**SMALL, "groups": 20}, augment={"dropout": 0.9})
    raw = modality.collate([modality.load(cloud(seed=row), None) for row in range(4)])
    preprocessed = modality.preprocess(raw, Rng((0, 3), range(4), 4))
    tokens = modality.tokenize(preprocessed)
    assert torch.equal(tokens.valid.sum(1), preprocessed.valid.sum(1).clamp(max=20)) and not tokens.valid.all()


@pytest.mark.parametrize("size", [1.0, 1e-4])
def test_block_masking_hides_the_nearest_centres_whatever_the_unit(size):
    """Point-MAE's "block": the int(r G) centres nearest to one of them."""
    modality = PointCloud(**SMALL, normalize_cloud="none")
    masking = find("maskings", "block")(ratio=0.6)
    tokens = tokens_of(modality, batch(4) * size)
    plan = masking({"pointcloud": tokens}, Rng((0,), range(4), 4))["pointcloud"]
    assert plan.predict.shape == (4, 4) and plan.visible.shape == (4, 4)
    for centers, hidden in zip(tokens.coords.double(), plan.predict, strict=True):
        distance = torch.cdist(centers, centers)
        sets = [set(row.argsort()[:4].tolist()) for row in distance]
        assert set(hidden.tolist()) in sets
