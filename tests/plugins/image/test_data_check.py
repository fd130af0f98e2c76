"""``maemm data check`` on files, broken ones among them, killed in the middle."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image as Pillow

import maemm

RECIPE = """
modalities:
  image: {size: 8, patch: 4, mean: [0.5, 0.5, 0.5], std: [0.25, 0.25, 0.25]}
encoder: {type: vit, dim: 16, depth: 1, heads: 2}
decoder: {type: full, dim: 16, depth: 1, heads: 2}
"""


def png(index):
    pixels = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue(), pixels


class Folder:
    """``total`` pictures in two classes; of 40 one is broken (empty, cut off or a text), of 66 one repeats another."""

    def __init__(self, home, total):
        self.home, self.total, self.broken, self.repeated = home, total, total // 40, total // 66
        used = []
        for index in range(total):
            file = home / "data" / ("cat", "dog")[index % 2] / f"{index:04d}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            data, pixels = png(index - 2 if index % 66 == 65 else index)
            if index % 40 == 0:
                data = (b"", b"", data[: len(data) // 2], data[: len(data) // 2], b"no picture")[index // 40 % 5]
            else:
                used.append(pixels)
            file.write_bytes(data)
        self.mean, self.std = (np.stack(used) / 255).mean((0, 1, 2)), (np.stack(used) / 255).std((0, 1, 2))
        (home / "r.yaml").write_text(RECIPE)

    def check(self, out, said, workers):
        return maemm.data_check(self.home / "data", out, recipe=self.home / "r.yaml", workers=workers, echo=said.append)


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return Folder(tmp_path_factory.mktemp("few"), 400)


def assert_exact(folder, checked):
    found = checked.as_dict()
    assert (found["samples"], found["broken"], found["repeated"]) == (folder.total, folder.broken, folder.repeated)
    assert found["reasons"] == {
        "ValueError: empty file (0 bytes)": folder.broken // 5 * 2,
        "OSError: image file is truncated": folder.broken // 5 * 2,
        "ValueError: not a readable image (starts with b'no pictu')": folder.broken // 5,
    }
    half = folder.total // 2
    assert found["labels"] == {"cat": half - folder.broken, "dog": half} and found["repeated_other_label"] == 0
    one = found["modalities"]["image"]
    np.testing.assert_allclose(one["mean"], folder.mean, atol=1e-7)
    np.testing.assert_allclose(one["std"], folder.std, atol=1e-7)
    assert one["facts"]["height"] == {"low": 8, "median": 8, "high": 8}
    rows = list(csv.DictReader(checked.path.read_text().splitlines()))
    good = folder.total - folder.broken - folder.repeated
    assert [row["status"] for row in rows] == (
        ["broken"] * folder.broken + ["repeated"] * folder.repeated + ["ok"] * good
    )
    first = rows[folder.broken]
    assert first["id"] == "dog/0065.png" and first["reason"] == "same content as dog/0063.png"


def assert_same(one, other):
    assert one.path.read_bytes() == other.path.read_bytes()
    assert {**one.as_dict(), "list": ""} == {**other.as_dict(), "list": ""}


def test_exact_counts_and_twice_the_same(few, tmp_path):
    said = []
    one, other = few.check(tmp_path / "a.csv", said, 2), few.check(tmp_path / "b.csv", said, 0)
    assert_exact(few, one)
    assert_same(one, other)
    assert said == [] and sorted(file.name for file in tmp_path.iterdir()) == ["a.csv", "b.csv"]


def killed(folder, out):
    """Start the command and kill it after some samples; -> how many it has noted."""
    part = out.with_name(f"{out.name}.part")
    command = [sys.executable, "-m", "maemm", "data", "check", str(folder.home / "data"), "--recipe"]
    command += [str(folder.home / "r.yaml"), "-o", str(out), "--workers", "1", "--json"]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    until = time.monotonic() + 240
    while not (part.exists() and part.read_bytes().count(b"\n") > 300) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return part.read_bytes().count(b"\n") - 1 if part.exists() else None  # None: it was faster


@pytest.mark.slow
def test_2000_files_of_which_50_are_broken_killed_in_the_middle(tmp_path):
    folder, said = Folder(tmp_path, 2000), []
    seen = next(seen for seen in (killed(folder, tmp_path / "b.csv") for _ in range(3)) if seen is not None)
    assert 299 <= seen < 2000 and not (tmp_path / "b.csv").exists()
    resumed = folder.check(tmp_path / "b.csv", said, 0)
    assert said == [f"resuming after {seen:,} samples that were read before"]
    whole = folder.check(tmp_path / "a.csv", said, 2)
    assert len(said) == 1 and not list(tmp_path.glob("*.part")) and (folder.broken, folder.repeated) == (50, 30)
    assert_exact(folder, whole)
    assert_same(whole, resumed)


def test_the_lines_for_a_recipe_are_a_recipe(few, tmp_path):
    home = few.home
    files = sorted((home / "data" / "dog").iterdir())[:20]
    for file in files:
        (tmp_path / "few").mkdir(exist_ok=True)
        (tmp_path / "few" / file.name).write_bytes(file.read_bytes())
    found = maemm.data_stats(tmp_path / "few", recipe=home / "r.yaml", workers=0)
    (tmp_path / "more.yaml").write_text("\n".join([f"_base_: {home / 'r.yaml'}", *found.yaml()]) + "\n")
    recipe = maemm.config.load(tmp_path / "more.yaml")
    statistics = found.findings.modalities["image"].statistics
    np.testing.assert_allclose(recipe["modalities"]["image"]["mean"], statistics.mean, atol=1e-4)
    again = maemm.data_stats(tmp_path / "few", recipe=tmp_path / "more.yaml", workers=0)
    np.testing.assert_allclose(again.findings.modalities["image"].statistics.std, statistics.std, atol=1e-6)
    assert json.dumps(found.as_dict())


def test_one_file_is_shown_with_the_recipe_of_its_ending(few, tmp_path):
    shown = maemm.show(few.home / "data" / "dog" / "0001.png", tmp_path / "x.html", count=1)
    assert (shown.opened.name, shown.ids) == ("image/mae_base", ["0001.png"])
    assert shown.parts["image"].facts == [{"height": 8, "width": 8, "channels": 3, "type": "uint8"}]
    with pytest.raises(maemm.MaemmError, match=r"0000.png cannot be read \(ValueError: empty file \(0 bytes\)\)"):
        maemm.show(few.home / "data" / "cat" / "0000.png", tmp_path / "y.html")


def test_the_manifest_names_the_endings_that_are_read():
    from maemm_plugins._images.load import EXTENSIONS
    from maemm_plugins.image import plugin

    assert set(plugin.files["image/mae_base"].split()) == {*EXTENSIONS, ".npz"}


def test_a_stray_file_that_costs_the_classes_is_told(tmp_path):
    folder = Folder(tmp_path, 6)
    assert "no labels" not in str(folder.check(tmp_path / "a.csv", [], 0))
    (folder.home / "data" / "stray.png").write_bytes(png(9)[0])
    told = str(folder.check(tmp_path / "b.csv", [], 0))
    assert "no labels: 1 file does not lie in a folder of exactly one level" in told and "first: stray.png" in told
