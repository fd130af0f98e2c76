"""Exports of point clouds: the choice of centres and neighbours is in the graph."""

import pytest
import torch

from maemm import MaemmError
from maemm.model.build import build_model
from maemm.tasks.export.inference_model import inference_model
from maemm.tasks.export.run import export


def small(**more):
    cloud = {"type": "pointcloud", "groups": 3, "group_size": 4, "points": 40, "width": 16, **more}
    encoder = {"type": "vit", "dim": 16, "depth": 1, "heads": 2, "prefix": 0, "position_every_block": True}
    torch.manual_seed(0)
    return build_model({"modalities": {"pointcloud": cloud}, "encoder": encoder}).eval()


def test_groups_are_made_inside_the_graph(tmp_path):
    model = small()
    made = export(model, tmp_path / "cloud.pt2", to="torch")
    assert made.inputs == {"pointcloud": ["batch", 40, 3]}
    x = torch.randn(5, 40, 3, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        (found,) = torch.export.load(tmp_path / "cloud.pt2").module()(x)
        wanted = model.embed({"pointcloud": x})["pointcloud"]
    assert torch.allclose(found, wanted, atol=1e-5)


def test_clouds_of_any_size_need_a_shape(tmp_path):
    with pytest.raises(MaemmError, match="have no fixed shape.*add --shape pointcloud="):
        export(small(points=None), tmp_path / "cloud.pt2", to="torch")
    assert inference_model(small(points=None), "it", shape="24,3").shapes == {"pointcloud": (24, 3)}
