"""The point cloud sample set: ordinary PLY files of the same objects as the other sample sets."""

import functools
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from maemm import MaemmError, Rng, registry
from maemm_plugins._objects.geometry import mesh, on_surface, rotation_matrix
from maemm_plugins._objects.objects import COLOURS, SHAPES, make_object
from maemm_plugins.pointcloud.samples import POINTS, surface, write
from maemm_plugins.pointcloud.sources import open_pointclouds


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_ordinary_files_in_a_folder_per_shape(tmp_path):
    registry.find("samples", "pointcloud")(tmp_path / "set", count=12)
    files = sorted((tmp_path / "set").glob("*/*.ply"))
    assert Counter(path.parent.name for path in files) == dict.fromkeys(SHAPES, 2)
    records = json.loads((tmp_path / "set" / ".objects.json").read_text())
    assert [one["shape"] for one in records] == [SHAPES[k % 6] for k in range(12)]
    source = open_pointclouds(str(tmp_path / "set"))
    for index in range(len(source)):
        sample = source.read(index, Rng((0,)))
        number = int(Path(sample.id).stem)
        points, colours = surface(make_object(number))
        assert sample.raw["pointcloud"].shape == (POINTS, 6)
        assert np.allclose(sample.raw["pointcloud"][:, :3], points, atol=1e-6)
        assert np.allclose(sample.raw["pointcloud"][:, 3:], colours, atol=1 / 255)


def test_other_programs_read_them(tmp_path):
    trimesh = pytest.importorskip("trimesh")
    write(tmp_path / "set", count=6)
    cloud = trimesh.load(next((tmp_path / "set").glob("torus/*.ply")))
    assert cloud.vertices.shape == (POINTS, 3) and cloud.colors.shape == (POINTS, 4)


def test_the_same_bytes_every_time_and_written_once(tmp_path):
    write(tmp_path / "one", count=6)
    write(tmp_path / "two", count=6)
    write(tmp_path / "other", count=6, seed=1)
    one, two, other = (digest(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two and len(one) == 8 and not set(one.values()) & set(other.values())
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")}
    write(tmp_path / "one", count=6)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*")} == before
    with pytest.raises(MaemmError, match="another version"):
        write(tmp_path / "one", count=12)


def test_recipes_without_data_find_the_sample_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few = functools.partial(write, count=12)
    monkeypatch.setattr("maemm_plugins.pointcloud.samples.write", few)
    opened = registry.find("sources", "pointcloud_samples")
    source = opened(None, None)
    assert len(source) == len(list(Path("runs/samples/pointcloud").glob("*/*.ply"))) == 12
    assert tuple(source.classes) == SHAPES
    write(tmp_path / "mine", count=6)
    assert len(opened(str(tmp_path / "mine"), None, name="cloud")) == 6


def test_objects_stand_on_the_floor_where_their_pictures_show_them():
    thing = make_object(9)
    points, colours = surface(thing)
    assert points[:, 1].min() == pytest.approx(0) and np.linalg.norm(points - points.mean(0), axis=1).max() < 2
    middle = (points.max(0) + points.min(0)) / 2
    assert np.abs(middle[[0, 2]] - np.array(thing.position)[[0, 2]]).max() < 0.35
    base = np.array(COLOURS[thing.colour])
    ratio = colours / base
    assert np.allclose(ratio, ratio[:, :1]) and set(np.round(ratio[:, 0], 2)) <= {1.0, 0.45, 0.5}
    turned = thing.size * mesh(thing.shape).corners.reshape(-1, 3) @ rotation_matrix(*thing.rotation).T
    assert np.ptp(points, axis=0) == pytest.approx(np.ptp(turned, axis=0), rel=0.08)


@pytest.mark.parametrize("shape", SHAPES)
def test_points_lie_on_the_surface_by_area(shape):
    points, face = on_surface(shape, 6000, np.random.default_rng(0))
    corners = mesh(shape).corners
    normal = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    length = np.linalg.norm(normal, axis=1)
    off = np.abs(((points - corners[face, 0]) * (normal / length[:, None])[face]).sum(1))
    assert off.max() < 0.02  # a quadrilateral is two triangles, which are nearly in one plane
    fraction = length / length.sum()
    half = np.flatnonzero(corners.mean(1)[:, 1] > 0)
    assert np.isin(face, half).mean() == pytest.approx(fraction[half].sum(), abs=0.03)
