import os
import pickle
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from maemm.config.options import check
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.loader import Loader
from maemm.data.order import SequentialBatches
from maemm_plugins.signal.modality import Signal
from maemm_plugins.signal.sources import open_signals

SHARED = Path(os.environ.get("MAEMM_SHARED", Path(__file__).parents[4] / "shared"))
DRAW = Rng((0,))
RATE = 50.0


def wave(channels=2, length=400, seed=0):
    time = np.arange(length) / RATE
    return np.stack([np.sin(2 * np.pi * (seed + k + 1) * 0.4 * time) for k in range(channels)]).astype(np.float32)


def read(source, index=0):
    return source.read(index, DRAW).raw["signal"]


def reason(source, index=0):
    with pytest.raises((ValueError, OSError)) as caught:
        source.read(index, DRAW)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 300
    return text


# One function per format: write the same two channels (a, b) at 50 per second.
def write_npy(path, x):
    np.save(path, x)


def write_npz(path, x):
    np.savez(path, x=x, channels=np.array(["a", "b"]), rate=RATE)


def write_csv(path, x):
    table = np.column_stack([np.arange(x.shape[1]) / RATE, x.T])
    np.savetxt(path, table, fmt="%.7f", delimiter=",", header="time,a,b", comments="")


def write_wav(path, x):
    pytest.importorskip("soundfile").write(path, x.T, int(RATE), subtype="FLOAT")


def write_edf(path, x):
    pyedflib = pytest.importorskip("pyedflib")
    with pyedflib.EdfWriter(str(path), 2, file_type=pyedflib.FILETYPE_EDF) as file:
        file.setSignalHeaders([edf_channel(name, RATE) for name in "ab"])
        file.writeSamples(list(x.astype(np.float64)))


def edf_channel(name, rate):
    return {
        "label": name, "dimension": "mV", "sample_frequency": rate, "transducer": "", "prefilter": "",
        "physical_min": -2.0, "physical_max": 2.0, "digital_min": -32768, "digital_max": 32767,
    }  # fmt: skip


def write_hea(path, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of wfdb and pandas
        wfdb = pytest.importorskip("wfdb")
        wfdb.wrsamp(
            path.stem, fs=RATE, units=["mV", "mV"], sig_name=["a", "b"], p_signal=x.T.astype(np.float64),
            fmt=["16", "16"], adc_gain=[10000.0, 10000.0], baseline=[0, 0], write_dir=str(path.parent),
        )  # fmt: skip


FORMATS = {
    ".npy": write_npy, ".npz": write_npz, ".csv": write_csv, ".wav": write_wav, ".edf": write_edf, ".hea": write_hea
}  # fmt: skip
NAMED = (".npz", ".csv", ".edf", ".hea")


# ------------------------------------------------------------------------------------------------------- formats
@pytest.mark.parametrize("ending", FORMATS)
def test_every_format_reads_whole_and_by_windows(tmp_path, ending):
    x = wave()
    FORMATS[ending](tmp_path / f"one{ending}", x)
    whole = read(open_signals(str(tmp_path)))
    np.testing.assert_allclose(whole["x"], x, atol=1e-4)
    assert whole["x"].dtype == np.float32 and whole["channels"] == (("a", "b") if ending in NAMED else None)
    source = open_signals(str(tmp_path), window=150, stride=100)
    assert len(source) == 3
    for number in range(3):
        np.testing.assert_allclose(read(source, number)["x"], x[:, number * 100 :][:, :150], atol=1e-4)
    assert source.name(1) == f"one{ending}@100"
    again = pickle.loads(pickle.dumps(source))
    assert again.fingerprint() == source.fingerprint() != open_signals(str(tmp_path), window=150).fingerprint()
    np.testing.assert_array_equal(read(again, 2)["x"], read(source, 2)["x"])


@pytest.mark.parametrize("ending", FORMATS)
def test_windows_of_a_resampled_recording_are_those_of_the_whole(tmp_path, ending):
    FORMATS[ending](tmp_path / f"one{ending}", wave(length=1000))
    options = {"rate": 80, "recorded_rate": RATE}
    whole = read(open_signals(str(tmp_path), **options))["x"]
    assert whole.shape == (2, 1600)
    time = np.arange(1600) / 80
    np.testing.assert_allclose(whole[0, 50:-50], np.sin(2 * np.pi * 0.4 * time)[50:-50], atol=2e-3)
    source = open_signals(str(tmp_path), window=333, **options)
    assert len(source) == 4
    for number in range(4):
        np.testing.assert_allclose(read(source, number)["x"], whole[:, number * 333 :][:, :333], atol=1e-4)


def test_only_the_window_is_read_of_a_long_array(tmp_path):
    long = np.lib.format.open_memmap(
        tmp_path / "long.npy", mode="w+", dtype=np.float32, shape=(4, 2**28)
    )  # 4 GiB, holes
    long[:, -5:] = 7
    del long
    source = open_signals(str(tmp_path / "long.npy"), array="recording", window=1000)
    assert len(source) == 2**28 // 1000
    assert read(source, len(source) - 1)["x"].shape == (4, 1000)
    assert "too many for one sample; set data.source.window" in reason(open_signals(str(tmp_path)))


def test_orders_of_axes(tmp_path):
    x = wave()
    np.save(tmp_path / "a.npy", x.T)
    np.testing.assert_array_equal(read(open_signals(str(tmp_path)))["x"], x)
    assert read(open_signals(str(tmp_path), time_first=False))["x"].shape == (400, 2)
    np.save(tmp_path / "a.npy", x[0].astype(">i2"))
    assert read(open_signals(str(tmp_path)))["x"].shape == (1, 400)


def test_tables_of_other_shapes(tmp_path):
    x = wave(length=5)
    plain = "\n".join(f"{a};{b}" for a, b in x.T)
    (tmp_path / "a.csv").write_text(plain)  # no header
    np.testing.assert_allclose(read(open_signals(str(tmp_path)))["x"], x, atol=1e-6)
    (tmp_path / "a.csv").write_text("\ufeffp,q\n1,2\n\n,4\n")  # BOM, an empty line, an empty cell
    found = read(open_signals(str(tmp_path)))
    assert found["channels"] == ("p", "q") and np.isnan(found["x"][0, 1]) and found["x"][1].tolist() == [2, 4]
    (tmp_path / "a.csv").rename(tmp_path / "a.tsv")
    (tmp_path / "a.tsv").write_text("Seconds\tp\tp\n0\t1\t2\n0.5\t3\t4\n1.0\t5\t6\n")
    found = read(open_signals(str(tmp_path), rate=4))
    assert found["channels"] == ("p", "p#2") and found["x"].shape == (2, 6)


def test_tables_are_read_once_within_a_limit(tmp_path, monkeypatch):
    from maemm_plugins.signal import recordings

    for i in range(3):
        write_csv(tmp_path / f"{i}.csv", wave(seed=i))
    calls, real = [], recordings._table
    monkeypatch.setattr(recordings, "_table", lambda path: calls.append(path) or real(path))
    source = open_signals(str(tmp_path), window=100)
    for index in range(len(source)):
        read(source, index)
    assert len(calls) == 3
    monkeypatch.setattr(recordings, "CACHE_BYTES", 1)
    for index in (0, 4, 8, 0):
        read(source, index)
    assert len(calls) == 3 + 3  # the last file was still there
    write_csv(tmp_path / "0.csv", wave(seed=9) + 1)
    np.testing.assert_allclose(read(source)["x"], wave(seed=9)[:, :100] + 1, atol=1e-4)


def test_channels_with_different_rates(tmp_path):
    pyedflib = pytest.importorskip("pyedflib")
    with pyedflib.EdfWriter(str(tmp_path / "a.edf"), 2, file_type=pyedflib.FILETYPE_EDF) as file:
        file.setSignalHeaders([edf_channel("ECG I", 100), edf_channel("Resp", 25)])
        file.writeSamples([np.zeros(1000), np.ones(250)])
    assert "different rates (25, 100 per second); set data.source.rate" in reason(open_signals(str(tmp_path)))
    both = read(open_signals(str(tmp_path), rate=50, window=200))
    assert both["x"].shape == (2, 200) and abs(both["x"][1, 50:150] - 1).max() < 1e-2
    one = read(open_signals(str(tmp_path), channels={"ecg i": "I", "other": "II"}))
    assert one["channels"] == ("I",) and one["x"].shape == (1, 1000)
    assert "only ECG I, Resp" in reason(open_signals(str(tmp_path), channels=["V1"]))


def test_names_for_files_without_names(tmp_path):
    np.save(tmp_path / "a.npy", wave())
    assert read(open_signals(str(tmp_path), channels=["p", "q"]))["channels"] == ("p", "q")
    assert "2 channels without names, data.source.channels gives 3" in reason(
        open_signals(str(tmp_path), channels=list("pqr"))
    )


# -------------------------------------------------------------------------------------------- folders and lists
def test_class_folders_and_lists(tmp_path):
    for number, name in enumerate(["calm/a.npy", "calm/b.csv", "rough/c.npz"]):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        FORMATS[Path(name).suffix](tmp_path / name, wave(seed=number))
    source = open_signals(str(tmp_path))
    assert [source.read(i, DRAW).label for i in range(3)] == [0, 0, 1] and source.classes == ["calm", "rough"]
    windows = open_signals(str(tmp_path), window=200)
    assert [windows.read(i, DRAW).label for i in range(6)] == [0, 0, 0, 0, 1, 1]
    (tmp_path / "list.csv").write_text("file,label\ncalm/b.csv,up\nrough/c.npz,down\n")
    listed = open_signals(None, str(tmp_path / "list.csv"))
    assert [listed.read(i, DRAW).label for i in range(2)] == [1, 0] and listed.name(0) == "calm/b.csv"
    assert len(open_signals(str(tmp_path), extensions=["csv"])) == 2  # a list is a table too, if one asks for it


def test_lists_of_wfdb_name_records_without_ending(tmp_path):
    write_hea(tmp_path / "r1.hea", wave())
    (tmp_path / "RECORDS").write_text("r1\n")
    source = open_signals(None, str(tmp_path / "RECORDS"))
    assert read(source)["x"].shape == (2, 400) and source.name(0) == "r1.hea"


def test_samples_in_one_array(tmp_path):
    x = np.random.default_rng(0).standard_normal((6, 3, 40)).astype(np.float16)
    np.savez(tmp_path / "a.npz", x_train=x, x_test=x[:2] + 1, y_train=np.arange(6), y_test=[1, 0])
    source = open_signals(str(tmp_path / "a.npz"))
    assert len(source) == 6 and source.read(4, DRAW).label == 4 and source.name(4) == "a.npz#4"
    np.testing.assert_array_equal(read(source, 4)["x"], x[4])
    test = pickle.loads(pickle.dumps(open_signals(str(tmp_path / "a.npz"), part="test", channels=["p", "q", "r"])))
    assert len(test) == 2 and read(test)["channels"] == ("p", "q", "r") and test.read(1, DRAW).label == 0
    np.save(tmp_path / "b.npy", np.swapaxes(x, 1, 2))
    np.testing.assert_array_equal(read(open_signals(str(tmp_path / "b.npy")), 1)["x"], x[1])
    np.save(tmp_path / "c.npy", x[:, 0])
    source = open_signals(str(tmp_path / "c.npy"), recorded_rate=40, rate=20)
    assert read(source)["x"].shape == (1, 20)


# --------------------------------------------------------------------------------------------------- what is wrong
BROKEN = {
    "empty.npy": (b"", "empty file"),
    "text.npy": (b"hello hello", "not an array file"),
    "empty.csv": (b"", "empty file"),
    "words.csv": (b"a,b\n1,2\n3,four\n", "four"),
    "short.csv": (b"a,b,c\n1,2\n", "2 columns below a header of 3"),
    "ragged.csv": (b"a,b\n1,2\n1,2,3\n", "columns"),
    "header.csv": (b"a,b\n", "no samples"),
    "binary.csv": (b"\0\1\2\xff" * 50, "no text|decode"),
    "jumps.csv": (b"t,a\n0,1\n1,1\n5,1\n", "not evenly spaced"),
    "empty.wav": (b"", "empty file"),
    "noise.wav": (bytes(range(256)) * 8, "not a readable sound"),
    "empty.edf": (b"", "empty file"),
    "noise.edf": (bytes(range(256)) * 8, "EDF"),
    "noise.hea": (bytes(range(256)) * 8, "not a readable record"),
    "alone.hea": (b"alone 2 50 400\nalone.dat 16 1000 16 0 0 0 0 a\nalone.dat 16 1000 16 0 0 0 0 b\n", "missing"),
    "zero.hea": (b"zero 0 50 400\n", "no channels"),
    "absurd.hea": (b"absurd 1 9999999999 10\nabsurd.dat 16 1000 16 0 0 0 0 a\n", "missing|rate"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_have_a_reason_whole_and_by_windows(tmp_path, name):
    content, text = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    for options in ({}, {"window": 10}):
        source = open_signals(str(tmp_path), **options)
        assert len(source) == 1
        with pytest.raises((ValueError, OSError, EOFError), match=text):
            source.read(0, DRAW)


@pytest.mark.parametrize("ending", [one for one in FORMATS if one != ".csv"])  # half a table is a table
def test_truncated_files_are_refused(tmp_path, ending):
    path = tmp_path / f"one{ending}"
    FORMATS[ending](path, wave())
    path = path.with_suffix(".dat") if ending == ".hea" else path
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2 + 1])
    with pytest.raises((ValueError, OSError, EOFError)):
        open_signals(str(tmp_path)).read(0, DRAW)


def test_broken_ones_among_good_ones_are_counted(tmp_path):
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", wave(seed=i))
    (tmp_path / "3.npy").write_bytes(b"")
    bad = wave()
    bad[0, 3] = np.nan
    np.save(tmp_path / "4.npy", bad)
    np.save(tmp_path / "5.npy", wave(3))
    source = open_signals(str(tmp_path), window=200)
    assert len(source) == 3 * 2 + 1 + 2 + 2
    modality = Signal(size=200, patch=20, channels=2)
    loader = Loader(
        source, {"signal": modality}, SequentialBatches(len(source), 11), seed=0, augment=False, substitute=False
    )
    (batch,) = loader.batches(0, 1)
    assert batch.raw["signal"]["x"].shape == (7, 2, 200)
    assert {one.id for one in batch.bad} == {"3.npy@0", "4.npy@0", "5.npy@0", "5.npy@200"}
    assert "1 samples are not finite" in next(one.reason for one in batch.bad if one.id == "4.npy@0")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"window": 0}, "window must be int >= 1"),
        ({"stride": 5}, "stride needs a window"),
        ({"rate": -1.0}, "rate must be float > 0"),
        ({"channels": []}, "names none"),
    ],
)
def test_wrong_options(tmp_path, options, text):
    np.save(tmp_path / "a.npy", wave())
    with pytest.raises(MaemmError, match=text):
        open_signals(str(tmp_path), **check(open_signals, options, "data.source"))


def test_what_cannot_be_opened(tmp_path):
    with pytest.raises(MaemmError, match="no signals are given"):
        open_signals(None)
    with pytest.raises(MaemmError, match="no recording below"):
        open_signals(str(tmp_path))
    with pytest.raises(MaemmError, match="data.root cannot be opened"):
        open_signals(str(tmp_path / "no"))
    (tmp_path / "a.xyz").write_text("x")
    with pytest.raises(MaemmError, match="no known kind"):
        open_signals(str(tmp_path / "a.xyz"))
    for array, text in (
        (np.zeros(3), "n, channels, length"), (np.zeros((2, 0, 4)), "n, channels"), (np.zeros((2, 3), "U1"), "<U1")
    ):  # fmt: skip
        np.save(tmp_path / "a.npy", array)
        with pytest.raises(MaemmError, match=text):
            open_signals(str(tmp_path / "a.npy"))
    np.save(tmp_path / "a.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(MaemmError, match="Python objects"):
        open_signals(str(tmp_path / "a.npy"))
    np.savez(tmp_path / "a.npz", p=np.zeros((2, 3)), q=np.zeros((2, 3)))
    with pytest.raises(MaemmError, match="p, q.*call it 'x'"):
        open_signals(str(tmp_path / "a.npz"))
    with pytest.raises(MaemmError, match="array: recording"):
        open_signals(str(tmp_path / "a.npz"), window=10)


def test_pipes_are_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.npy")
    (tmp_path / "list.txt").write_text("a.npy\n")
    for options in ({}, {"window": 5}):
        assert reason(open_signals(str(tmp_path / "list.txt"), **options)) == "not an ordinary file"
    with pytest.raises(MaemmError, match="neither a folder nor an ordinary file"):
        open_signals(str(tmp_path / "a.npy"))


def test_a_rate_is_needed_to_resample(tmp_path):
    np.save(tmp_path / "a.npy", wave())
    assert "set data.source.recorded_rate" in reason(open_signals(str(tmp_path), rate=10))
    with pytest.raises(MaemmError, match="cannot resample from 50 to 0.001"):
        read(open_signals(str(tmp_path), rate=0.001, recorded_rate=50))


def test_missing_packages_say_what_to_install(tmp_path, monkeypatch):
    import importlib

    real = importlib.import_module
    names = {"pyedflib", "wfdb"}

    def without(name, *rest):
        if name in names:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", without)
    for ending in (".edf", ".bdf", ".hea"):
        (tmp_path / f"a{ending}").write_bytes(b"x")
        with pytest.raises(MaemmError, match=r"pip install 'maemm\[signal\]'"):
            open_signals(str(tmp_path / f"a{ending}"))


def test_awkward_sound_files(tmp_path):
    odd = SHARED / "data" / "odd.tar"
    if not odd.exists():
        pytest.skip("shared data are not here")
    with tarfile.open(odd) as tar:
        tar.extractall(tmp_path, [one for one in tar.getmembers() if one.name.startswith("odd/a_")], filter="data")
    source = open_signals(str(tmp_path / "odd"), extensions=["wav", "flac"])
    modality, verdict = Signal(size=8000, patch=100, channels=1), {}
    for index in range(len(source)):
        try:
            sample = modality.load(source.read(index, DRAW).raw["signal"], None)
            assert sample["x"].isfinite().all()
            verdict[source.name(index)] = ""
        except (ValueError, OSError) as error:
            verdict[source.name(index)] = str(error)
    expected = {
        "a_ok_16k.wav": "", "a_ok.flac": "", "a_u8.wav": "", "a_s24.wav": "", "a_f32.wav": "", "a_silent.wav": "",
        "a_5ch.wav": "has 5 channels", "a_empty.wav": "no samples", "a_zero_bytes.wav": "empty file",
        "a_cut.wav": "cut off", "a_nan.wav": "not finite",
    }  # fmt: skip
    for name, text in expected.items():
        assert (text in verdict[name]) and bool(text) == bool(verdict[name]), (name, verdict[name])


def test_batches_are_the_same_with_workers(tmp_path):
    write_csv(tmp_path / "a.csv", wave(length=900))
    source = open_signals(str(tmp_path), window=100)
    modality = Signal(size=80, patch=20, channels=["a", "b"])
    found = []
    for workers in (0, 1):
        loader = Loader(source, {"signal": modality}, SequentialBatches(len(source), 4), seed=0, workers=workers)
        found.append([one.raw["signal"]["x"] for one in loader.batches(0, 3)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
