"""Votes: a classifier asked about other points of a cloud each time."""

import numpy as np
import pytest
import torch

from maemm.config.options import check
from maemm.contract.errors import MaemmError
from maemm_plugins.pointcloud.modality import PointCloud

SMALL = {"groups": 4, "group_size": 8, "width": 16}


def cloud(count=200):
    return np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)


def test_votes_are_other_points_scaled_and_shifted():
    modality = PointCloud(points=50, votes=3, **SMALL)
    first, again = modality.load_tta_views(cloud()), modality.load_tta_views(cloud())
    assert len(first) == modality.tta_views == 3 and all(one["x"].shape == (50, 3) for one in first)
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0]["x"], first[1]["x"])
    assert {round(float(one["x"].norm(dim=1).max()), 3) for one in first} != {1.0}  # not in the unit sphere any more
    still = PointCloud(points=50, votes=2, augment=None, **SMALL).load_tta_views(cloud())
    assert float(still[0]["x"].norm(dim=1).max()) == pytest.approx(1) and not torch.equal(still[0]["x"], still[1]["x"])


def test_one_vote_is_the_cloud_as_it_is():
    modality = PointCloud(points=50, **SMALL)
    (one,) = modality.load_tta_views(cloud())
    assert torch.equal(one["x"], modality.load(cloud(), None)["x"])
    with pytest.raises(MaemmError, match="votes must be"):
        check(PointCloud, {"votes": 0}, "modalities.pointcloud")
