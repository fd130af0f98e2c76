import numpy as np

from maemm.contract.rng import Rng
from maemm_plugins._objects.objects import SHAPES, make_object
from maemm_plugins.signal.modality import Signal
from maemm_plugins.signal.samples import LENGTH, open_samples, vibration, write


def test_sample_set_is_ordinary_files_written_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "set", count=12)
    files = sorted((tmp_path / "set").rglob("*.csv"))
    assert len(files) == 12 and {one.parent.name for one in files} == set(SHAPES)
    before = [one.stat().st_mtime_ns for one in files]
    write(tmp_path / "set", count=12)
    assert [one.stat().st_mtime_ns for one in files] == before
    source = open_samples(str(tmp_path / "set"))
    sample = source.read(0, Rng((0,)))
    assert sample.raw["signal"]["channels"] == ("x", "y", "z") and sample.label == 0
    np.testing.assert_allclose(sample.raw["signal"]["x"], vibration(make_object(0)), atol=1e-4)
    one = Signal(size=LENGTH, patch=16, channels=["x", "y", "z"]).load(sample.raw["signal"], None)
    assert one["valid"].all()


def test_vibrations_are_repeatable_and_differ():
    first, again, other = vibration(make_object(0)), vibration(make_object(0)), vibration(make_object(6))
    assert first.shape == (3, LENGTH) and np.array_equal(first, again) and abs(first - other).max() > 0.1
