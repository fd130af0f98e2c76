import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from maemm.contract.errors import MaemmError
from maemm_plugins.pointcloud import grouping
from maemm_plugins.pointcloud.grouping import farthest_points, gather_points, neighbours

spec = importlib.util.spec_from_file_location("oracles", Path(__file__).with_name("oracles.py"))
oracles = importlib.util.module_from_spec(spec)
spec.loader.exec_module(oracles)
GOLDEN = load_file(Path(__file__).parents[2] / "golden/pointmae/fps_knn.safetensors")
NAMES = sorted({key.split("/")[0] for key in GOLDEN})


def clouds(kind, count, rows=2):
    """Clouds with ties, duplicates and points at the origin."""
    generator = torch.Generator().manual_seed(count)
    x = torch.rand(rows, count, 3, generator=generator) * 2 - 1
    if kind == "lattice":
        x = (x * 2).round() / 2
    elif kind == "duplicates":
        x = x[:, torch.randint(0, max(1, count // 4), (count,), generator=generator)]
    elif kind == "origin":
        x[:, ::3] *= 0.01
    elif kind == "equal":
        x = x[:, :1].expand(-1, count, -1).contiguous()
    return x, torch.rand(rows, count, generator=generator) < 0.7


KINDS = ["random", "lattice", "duplicates", "origin", "equal"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 37, 128])
@pytest.mark.parametrize("skip_origin", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_farthest_points_equal_the_oracle(kind, count, skip_origin, ragged):
    x, valid = clouds(kind, count)
    valid = valid if ragged else None
    index, gap = farthest_points(x, 24, valid, skip_origin=skip_origin)
    for row in range(len(x)):
        mask = None if valid is None else valid[row].numpy()
        assert index[row].tolist() == oracles.farthest(x[row].numpy(), 24, mask, skip_origin).tolist()
    places = torch.stack([row[i] for row, i in zip(x, index, strict=True)])
    for row in range(len(x)):
        if valid is None or valid[row].any():
            seen = set()
            for place, far in zip(map(tuple, places[row].tolist()), gap[row].tolist(), strict=True):
                assert skip_origin or (place not in seen) == (far > 0)
                seen.add(place)


@pytest.mark.parametrize("name", NAMES)
def test_published_indices(name):
    """Where ties do not decide, those of the CUDA kernel; ties go to the lowest index here."""
    x, published = GOLDEN[f"{name}/points"], GOLDEN[f"{name}/fps_cuda"]
    count = published.shape[1]
    skipping = farthest_points(x, count, skip_origin=True)[0]
    assert torch.equal(farthest_points(x, count)[0], GOLDEN[f"{name}/fps_plain"])
    assert torch.equal(skipping, GOLDEN[f"{name}/fps_skip_lowest_index"])
    if name.startswith(("n", "origin", "zero", "all")):
        assert torch.equal(skipping, published)
    if f"{name}/knn_index" not in GOLDEN:
        return
    expected = GOLDEN[f"{name}/knn_index"]
    centers = gather_points(x, published[..., None])[:, :, 0]
    index = neighbours(x, centers, expected.shape[-1])
    assert torch.equal(index, expected)
    distance = (gather_points(x, index) - centers[:, :, None]).square().sum(-1).sqrt()
    torch.testing.assert_close(distance, GOLDEN[f"{name}/knn_distance"], rtol=0, atol=1e-6)


def test_another_start_is_noticed():
    x = GOLDEN["n1024_g64/points"]
    other = farthest_points(x.roll(1, 1), 64)[0]
    assert (other != GOLDEN["n1024_g64/fps_plain"]).float().mean() > 0.9


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ragged", [False, True])
def test_neighbours_equal_the_oracle(kind, ragged, monkeypatch):
    x, valid = clouds(kind, 40)
    valid[0, 3:] = False  # fewer points than a group takes
    valid[:, 0] = True
    valid = valid if ragged else None
    centers = torch.cat([x[:, ::7], x[:, :1] + 0.25], 1)
    index = neighbours(x, centers, 12, valid)
    for row in range(len(x)):
        mask = None if valid is None else valid[row].numpy()
        for center, found in zip(centers[row], index[row], strict=True):
            assert found.tolist() == oracles.nearest(x[row].numpy(), center.numpy(), 12, mask).tolist()
    monkeypatch.setattr(grouping, "_AT_ONCE", 100)  # a few centres at a time
    assert torch.equal(neighbours(x, centers, 12, valid), index)


def test_half_precision_signals_are_grouped_in_float32():
    x = clouds("random", 64)[0]
    with torch.autocast("cpu", torch.bfloat16):
        index, gap = farthest_points(x.double(), 8)
        near = neighbours(x.double(), x[:, :4].double(), 5)
    assert torch.equal(index, farthest_points(x, 8)[0]) and gap.dtype == torch.float32
    assert torch.equal(near, neighbours(x, x[:, :4], 5))
    assert not gap[0, 0].isfinite() and gap[0, 0] == math.inf


def test_mistakes():
    with pytest.raises(MaemmError, match="no points to choose 4 from"):
        farthest_points(torch.zeros(2, 0, 3), 4)
    with pytest.raises(MaemmError, match="cloud of 5 points is too small for groups of 6.*group_size"):
        neighbours(torch.zeros(2, 5, 3), torch.zeros(2, 1, 3), 6)


def test_a_million_points():
    x = torch.from_numpy(np.random.default_rng(0).random((1, 1_000_000, 3), np.float32))
    index, gap = farthest_points(x, 8)
    assert len(set(index[0].tolist())) == 8 and (gap[0, 1:] > 0).all()
    near = neighbours(x, gather_points(x, index[..., None])[:, :, 0], 4)
    assert torch.equal(near[..., 0], index)


@pytest.mark.gpu(real=True)  # a kernel that is compiled
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 37, 1024, 5000])
@pytest.mark.parametrize("ragged", [False, True])
def test_the_kernel_on_a_gpu(kind, count, ragged):
    pytest.importorskip("triton")
    from maemm_plugins.pointcloud import fps_triton

    assert grouping._kernel() is fps_triton.sample
    x, valid = clouds(kind, count, rows=5)
    valid = valid if ragged else None
    expected = farthest_points(x, 64, valid)
    found = farthest_points(x.cuda(), 64, None if valid is None else valid.cuda())
    assert torch.equal(found[0].cpu(), expected[0]) and torch.equal(found[1].cpu(), expected[1])
    centers = gather_points(x, expected[0][..., None])[:, :, 0]
    if count >= 16:
        near = neighbours(x.cuda(), centers.cuda(), 16, None if valid is None else valid.cuda())
        assert torch.equal(near.cpu(), neighbours(x, centers, 16, valid))
