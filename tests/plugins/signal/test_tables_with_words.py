"""Tables of which some columns hold words, and values that float32 cannot hold."""

import numpy as np
import pytest

from maemm import Rng
from maemm.data.arrays import open_arrays
from maemm_plugins._images.load import read_image
from maemm_plugins.pointcloud.preprocess import load_cloud
from maemm_plugins.pointcloud.readers.pick import Reading
from maemm_plugins.pointcloud.readers.text import read as read_points
from maemm_plugins.signal.modality import Signal
from maemm_plugins.signal.sources import open_signals

TEXT = "time,x,activity,y\n" + "".join(f"{i / 10},{i},{'walk' if i < 4 else 'sit'},{-i}\n" for i in range(8))


def table(folder, text, **options):
    (folder / "a.csv").write_text(text)
    return open_signals(str(folder), **options)


def test_named_columns_are_read_beside_words(tmp_path):
    raw = table(tmp_path, TEXT, channels=["y", "x"]).read(0, Rng((0,))).raw["signal"]
    assert raw["channels"] == ("y", "x") and np.array_equal(raw["x"], [-np.arange(8.0), np.arange(8.0)])
    windows = table(tmp_path, TEXT, channels={"x": "east"}, window=4)
    assert len(windows) == 2 and windows.read(1, Rng((0,))).raw["signal"]["x"].tolist() == [[4, 5, 6, 7]]


@pytest.mark.parametrize("channels", [None, ["x", "activity"]])
def test_a_column_of_words_is_named(tmp_path, channels):
    with pytest.raises(ValueError, match=r"the column 'activity' holds words \('walk' in line 2\); name the channels"):
        table(tmp_path, TEXT, channels=channels).read(0, Rng((0,)))


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_quoted_words_gaps_and_dates(tmp_path, separator):
    """A date as time says no rate; a word further down, a quoted separator and empty cells keep their columns."""
    rows = [["time", "x", "remark", "y"], ["2024-01-01", "1", f'"a{separator} b"', "5"]]
    rows += [["2024-01-02", "", "c", "6"], ["2024-01-03", "3", "", "err"]]
    source = table(tmp_path, "\n".join(separator.join(row) for row in rows) + "\n", channels=["x"])
    x = source.read(0, Rng((0,))).raw["signal"]["x"]
    assert x[0, 0] == 1 and np.isnan(x[0, 1]) and x[0, 2] == 3
    with pytest.raises(ValueError, match=r"the column 'y' holds words \('err' in line 4\)"):
        table(tmp_path, "\n".join(separator.join(row) for row in rows) + "\n", channels=["y"]).read(0, Rng((0,)))


def test_rows_that_lack_cells(tmp_path):
    with pytest.raises(ValueError, match="2 columns below a header of 4"):
        table(tmp_path, TEXT + "9,9\n", channels=["x"]).read(0, Rng((0,)))


def test_one_endless_line(tmp_path):
    """40 MB in one line took half a minute and 2 GB to say that it is no table."""
    source = table(tmp_path, "1.5," * 2_000_000)
    with pytest.raises(ValueError, match="first line has more than 1,048,576 characters"):
        source.read(0, Rng((0,)))
    (tmp_path / "a.xyz").write_text("1.5 " * 2_000_000)
    with pytest.raises(ValueError, match="line 1 has more than 1,048,576 characters"):
        read_points(str(tmp_path / "a.xyz"), Reading(), Rng((0,)))


# ------------------------------------------------------------------------------------------------ beyond float32
HUGE = np.array([[1.0, 2, 3, 4], [1, -1e300, 3, 4]])


def test_signals_beyond_float32(tmp_path):
    """Any warning is an error in these tests: nothing but the reason may be said."""
    np.save(tmp_path / "a.npy", HUGE)
    raw = open_signals(str(tmp_path)).read(0, Rng((0,))).raw["signal"]
    options = {"size": 4, "patch": 2, "channels": 2}
    with pytest.raises(ValueError, match=r"1 values are too large for float32 \(up to -1e\+300\)"):
        Signal(**options).load(raw, None)
    loaded = Signal(**options, gaps="hide").load(raw, None)
    assert loaded["valid"].sum() == 7 and loaded["x"].isfinite().all()


def test_images_and_arrays_beyond_float32(tmp_path):
    np.save(tmp_path / "a.npy", np.full((4, 4), 1e39))
    with pytest.raises(ValueError, match="16 values are too large for float32"):
        read_image(tmp_path / "a.npy")
    source = open_arrays(str(tmp_path), None, "x")
    with pytest.raises(ValueError, match="16 values are too large for float32"):
        source.read(0, Rng((0,)))
    np.save(tmp_path / "b.npy", np.array([[1.0, np.inf], [0, 1]]))  # infinity was there before
    assert np.isinf(open_arrays(str(tmp_path / "b.npy"), None, "x").read(0, Rng((0,))).raw["x"]).any()


@pytest.mark.parametrize("normalize", ["none", "unit_sphere", "unit_cube", "center"])
def test_points_beyond_float32(normalize):
    cloud = np.random.default_rng(0).random((10, 3)) * 1e39
    with pytest.raises(ValueError, match="too large for float32"):
        load_cloud(cloud, None, normalize=normalize)
