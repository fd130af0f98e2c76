"""Checkpoints in a second place: a new machine goes on from there, and a place that refuses costs a line."""

import shutil
import sys
from pathlib import Path

import pytest
import torch

from maemm.contract.errors import MaemmError
from maemm.train.mirror import Mirror

sys.path.insert(0, str(Path(__file__).parents[1] / "shards"))

CONFIG = {"options": {}, "keep": 2, "patience": 0.5}
SHORT = {"train__epochs": 3, "train__save_every": 4}


def recipe(toys, out, mirror, **overrides):
    return toys.recipe(out, **{**SHORT, "train__mirror": {"url": str(mirror), "patience": 0.5}, **overrides})


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def stopped_half_way(toys, out, mirror):
    """A run whose last checkpoint, of step 12, has never been: in its mirror either."""
    toys.train(recipe(toys, out, mirror))
    whole = toys.weights(out)
    for folder in (out, mirror):
        shutil.rmtree(folder / "checkpoints" / "step-000012")
    return whole


def test_a_new_machine_goes_on_from_the_mirror(toys, tmp_path):
    whole = stopped_half_way(toys, tmp_path / "run", tmp_path / "mirror")
    figures = toys.metrics(tmp_path / "run")
    assert {path.name for path in (tmp_path / "mirror" / "checkpoints").iterdir()} == {"step-000008"}
    toys.train(recipe(toys, tmp_path / "elsewhere", tmp_path / "mirror"))
    assert any(line.startswith("step-000008 has been copied from") for line in toys.lines)
    assert "resuming from step 8" in toys.lines
    assert same(toys.weights(tmp_path / "elsewhere"), whole) and toys.metrics(tmp_path / "elsewhere") == figures


def test_a_run_folder_that_is_newer_stays(toys, tmp_path):
    toys.train(recipe(toys, tmp_path / "run", tmp_path / "mirror"))
    shutil.rmtree(tmp_path / "mirror" / "checkpoints" / "step-000012")
    toys.train(recipe(toys, tmp_path / "run", tmp_path / "mirror", train__epochs=4))
    assert not any("copied" in line for line in toys.lines) and "resuming from step 12" in toys.lines


def test_what_is_not_whole_there_is_none(toys, tmp_path):
    """A copy without its end, and one with a damaged file: the one before is taken."""
    mirror = tmp_path / "mirror"
    toys.train(recipe(toys, tmp_path / "run", mirror, train__mirror={"url": str(mirror), "keep": 9}))
    (mirror / "checkpoints" / "step-000012" / "meta.json").unlink()
    damaged = mirror / "checkpoints" / "step-000008" / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    toys.train(recipe(toys, tmp_path / "new", mirror))
    assert any("step-000008" in line and "is damaged" in line for line in toys.lines)
    assert "resuming from step 4" in toys.lines


def test_another_recipe_is_refused_before_anything_is_copied(toys, tmp_path):
    toys.train(recipe(toys, tmp_path / "run", tmp_path / "mirror"))
    with pytest.raises(MaemmError, match=r"holds a run with another recipe \(train.lr"):
        toys.train(recipe(toys, tmp_path / "new", tmp_path / "mirror", train__lr=0.1))
    assert not list((tmp_path / "new").rglob("step-*"))


def test_a_place_that_cannot_be_written_is_told_before_training(toys, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MaemmError, match=r"checkpoints cannot be copied to .*/file/x \(.*\); mend that, or leave"):
        toys.train(recipe(toys, tmp_path / "run", tmp_path / "file" / "x"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    with pytest.raises(MaemmError, match="nowhere:// is no known storage"):
        Mirror({"url": "nowhere://bucket", **CONFIG}, print)


def test_one_that_refuses_later_costs_a_line_and_is_tried_again(toys, tmp_path, monkeypatch):
    from fsspec.implementations.local import LocalFileSystem

    put, count = LocalFileSystem.put_file, [0]

    def refuse(self, *args, **options):
        count[0] += 1
        if count[0] <= 2:
            raise PermissionError(13, "Access Denied")
        return put(self, *args, **options)

    monkeypatch.setattr(LocalFileSystem, "put_file", refuse)
    toys.train(recipe(toys, tmp_path / "run", tmp_path / "mirror"))
    warnings = [line for line in toys.lines if line.startswith("warning")]
    assert [line.split()[1] for line in warnings] == ["step-000004", "step-000008"]
    assert all("Access Denied" in line or "permission" in line.lower() for line in warnings)
    assert [path.name for path in (tmp_path / "mirror" / "checkpoints").glob("*/meta.json")] == ["meta.json"]
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2


def test_names_that_lead_out_of_the_folder_are_refused(toys, tmp_path):
    import json

    toys.train(recipe(toys, tmp_path / "run", tmp_path / "mirror"))
    meta = tmp_path / "mirror" / "checkpoints" / "step-000012" / "meta.json"
    content = json.loads(meta.read_text())
    content["files"]["../../../evil"] = {"bytes": 0, "sha256": ""}
    meta.write_text(json.dumps(content))
    with pytest.raises(MaemmError, match="names a file"):
        toys.train(recipe(toys, tmp_path / "new", tmp_path / "mirror"))
    assert not (tmp_path / "evil").exists()


@pytest.mark.slow
def test_a_bucket(toys, tmp_path):
    """Of a real server."""
    pytest.importorskip("moto.server")
    from servers import s3

    with s3(tmp_path / "nothing", bucket="runs") as options:
        mirror = {"url": "s3://runs/toy", "options": options, "patience": 5}
        toys.train(toys.recipe(tmp_path / "run", **SHORT, train__mirror=mirror))
        shutil.rmtree(tmp_path / "run")
        toys.train(toys.recipe(tmp_path / "run", **{**SHORT, "train__epochs": 4}, train__mirror=mirror))
        assert "resuming from step 12" in toys.lines
        with pytest.raises(MaemmError, match="checkpoints cannot be copied to s3://missing"):
            Mirror({"url": "s3://missing/toy", **{**CONFIG, "options": options}}, print)
