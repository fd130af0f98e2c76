"""The image sample set: ordinary files, written once, the same every time."""

import functools
import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maemm import MaemmError, Rng, registry
from maemm_plugins._objects.geometry import mesh, rotation_matrix
from maemm_plugins._objects.objects import COUNT, SHAPES, make_object, make_objects
from maemm_plugins._objects.render import render
from maemm_plugins._objects.store import MARK, write_once
from maemm_plugins.image.samples import write


def digest(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_ordinary_pictures_in_a_folder_per_shape(tmp_path):
    registry.find("samples", "image")(tmp_path / "set", count=24)
    pictures = sorted((tmp_path / "set").glob("*/*.png"))
    assert Counter(path.parent.name for path in pictures) == dict.fromkeys(SHAPES, 4)
    for path in pictures:
        with Image.open(path) as image:
            assert image.mode == "RGB" and image.size == (64, 64)
            assert np.asarray(image).std() > 10  # something is on it
    records = json.loads((tmp_path / "set" / ".objects.json").read_text())
    assert [one["shape"] for one in records] == [SHAPES[k % 6] for k in range(24)]


def test_the_same_bytes_every_time(tmp_path):
    write(tmp_path / "one", count=12)
    write(tmp_path / "two", count=12)
    write(tmp_path / "other", count=12, seed=1)
    one, two, other = (digest(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two and len(one) == 14
    assert not set(one.values()) & set(other.values())


def test_a_longer_list_begins_with_a_shorter_one():
    assert make_objects(20)[:5] == make_objects(5) and make_object(7) == make_objects(8)[7]
    assert len({repr(one) for one in make_objects(COUNT)}) == COUNT == 600


def test_a_second_call_touches_nothing(tmp_path):
    write(tmp_path / "set", count=6)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")}
    write(tmp_path / "set", count=6)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "set").rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]  # no temporary folder is left


@pytest.mark.parametrize("content", ["photo.jpg", MARK])
def test_foreign_files_are_neither_replaced_nor_mixed(tmp_path, content):
    (tmp_path / content).write_text("{}")
    with pytest.raises(MaemmError, match="choose another|delete it"):
        write(tmp_path, count=6)
    assert [path.name for path in tmp_path.iterdir()] == [content]


def test_an_empty_folder_is_filled_and_a_file_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    write(tmp_path / "set", count=6)
    assert len(list((tmp_path / "set").glob("*/*.png"))) == 6
    (tmp_path / "file").write_text("")
    with pytest.raises(MaemmError, match="a file is there"):
        write(tmp_path / "file", count=6)
    with pytest.raises(MaemmError, match="cannot write the sample set"):
        write(tmp_path / "file" / "below", count=6)


def test_a_failure_leaves_nothing(tmp_path):
    def fill(folder):
        (folder / "half").write_text("")
        raise OSError(28, "No space left on device")

    with pytest.raises(MaemmError, match="No space left"):
        write_once(tmp_path / "set", {"kind": "x"}, fill)
    assert list(tmp_path.iterdir()) == []


def test_another_process_may_be_faster(tmp_path):
    def fill(folder):  # while this one works, another finishes
        (folder / "a").write_text("slow")
        write_once(tmp_path / "set", {"kind": "x"}, lambda other: (other / "a").write_text("fast"))

    write_once(tmp_path / "set", {"kind": "x"}, fill)
    assert (tmp_path / "set" / "a").read_text() == "fast"
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_two_processes_at_once(tmp_path):
    call = f"write(Path({str(tmp_path)!r}) / 's', count=90)"
    code = f"from pathlib import Path; from maemm_plugins.image.samples import write; {call}"
    started = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(2)]
    errors = [one.communicate(timeout=120)[1] for one in started]
    assert errors == [b"", b""] and [one.returncode for one in started] == [0, 0]
    assert len(list((tmp_path / "s").glob("*/*.png"))) == 90
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_recipes_without_data_find_the_sample_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "mine", count=6)
    few = functools.partial(write, count=12)  # 600 take seconds
    monkeypatch.setattr("maemm_plugins.image.samples.write", few)
    opened = registry.find("sources", "image_samples")
    assert len(opened(str(tmp_path / "mine"), None, name="image")) == 6
    source = opened(None, None)
    assert (
        len(list(Path("runs/samples/image").glob("*/*.png"))) == len(source) == 12 and tuple(source.classes) == SHAPES
    )
    sample = source.read(1, Rng((0,)))
    assert sample.raw["image"].shape == (64, 64, 3) and source.classes[sample.label] in sample.id


@pytest.mark.parametrize("shape", SHAPES)
def test_meshes_fit_the_unit_sphere_and_look_outwards(shape):
    corners = mesh(shape).corners
    assert np.linalg.norm(corners, axis=-1).max() <= 1
    normals = np.cross(corners[:, 2] - corners[:, 0], corners[:, 3] - corners[:, 1])
    # Divergence theorem: outward faces enclose a positive volume, and a closed surface has no net area.
    assert (corners.mean(1) * normals).sum() / 6 > 0.4
    assert np.abs(normals.sum(0)).max() < 1e-9


def test_rotation_is_a_rotation_and_motion_moves():
    matrix = rotation_matrix(0.3, -0.2, 0.9)
    assert np.allclose(matrix @ matrix.T, np.eye(3)) and np.isclose(np.linalg.det(matrix), 1)
    thing = make_object(1)
    still, later = np.asarray(render(thing, 32), float), np.asarray(render(thing, 32, time=0.5), float)
    assert np.abs(still - later).max() > 20
    (position, rotation), (moved, turned) = thing.at(0.0), thing.at(1.0)
    assert np.allclose(np.subtract(moved, position), thing.velocity)
    assert np.allclose(np.subtract(turned, rotation), (thing.spin, 0, 0))


def test_writing_is_quick():
    start = time.process_time()
    for thing in make_objects(30):
        render(thing)
    assert time.process_time() - start < 3  # about 0.15 s; the whole set takes 20 times as long
