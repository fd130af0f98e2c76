"""Exports of point clouds: the choice of centres and neighbours is in the graph."""

import pytest
import torch

from maemm import MaemmError
from maemm.contract import Preprocessed
from maemm.model.build import build_model
from maemm.tasks.export.inference_model import inference_model
from maemm.tasks.export.run import export


def small(encoder=None, **more):
    cloud = {"type": "pointcloud", "groups": 3, "group_size": 4, "points": 40, "width": 16, **more}
    encoder = encoder or {"type": "vit", "dim": 16, "depth": 1, "heads": 2, "prefix": 0, "position_every_block": True}
    torch.manual_seed(0)
    return build_model({"modalities": {"pointcloud": cloud}, "encoder": encoder}).eval()


def test_groups_are_made_inside_the_graph(tmp_path):
    model = small()
    made = export(model, tmp_path / "cloud.pt2", to="torch")
    some = "pointcloud elements"
    assert made.inputs == {"pointcloud": ["batch", some, 3], "pointcloud_valid": ["batch", some]}
    graph = torch.export.load(tmp_path / "cloud.pt2").module()
    for points in (40, 17):  # on a lattice: many points are equally far, and some twice there; padding may be anything
        x = torch.randint(-2, 3, (5, points, 3), generator=torch.Generator().manual_seed(2)).float()
        valid = torch.arange(points) < torch.tensor([points, points // 2, 9, 3, 1])[:, None]
        x = torch.where(valid[..., None], x, torch.nan)
        with torch.no_grad():
            (features,) = graph(x, valid)
            expected = model.embed({"pointcloud": Preprocessed(x, valid)})["pointcloud"]
        assert torch.allclose(features, expected, atol=1e-5)


def test_centres_are_predicted_by_encoders_that_are_exported_too(tmp_path):
    made = export(small({"type": "pcp", "dim": 16, "depth": 1, "heads": 2}), tmp_path / "cloud.pt2", to="torch")
    assert max(made.differences.values()) < 1e-5 and len(made.differences) > 5


def test_clouds_of_any_size_need_a_shape(tmp_path):
    with pytest.raises(MaemmError, match="have no fixed shape.*add --shape pointcloud="):
        export(small(points=None), tmp_path / "cloud.pt2", to="torch")
    assert inference_model(small(points=None), "it", shape="24,3").shapes == {"pointcloud": (24, 3)}
