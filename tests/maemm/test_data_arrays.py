"""Sources of arrays, and what a grid modality loads from them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from maemm.contract.errors import MaemmError
from maemm.contract.grid import GridModality
from maemm.contract.rng import Rng
from maemm.data.arrays import array_key, open_array_file, open_arrays

DRAW = Rng(("test",))


def write(folder, count=4):
    for label in "ab":
        (folder / label).mkdir(parents=True)
        for index in range(count // 2):
            np.save(folder / label / f"{index}.npy", np.full((2, 8), index, np.float32))


def test_a_folder_of_files_with_classes(tmp_path):
    write(tmp_path / "data")
    source = open_arrays(str(tmp_path / "data"), None, "wave")
    assert len(source) == 4 and source.classes == ["a", "b"]
    sample = source.read(3, DRAW)
    assert (sample.id, sample.label, sample.raw["wave"].shape) == ("b/1.npy", 1, (2, 8))
    again = pickle.loads(pickle.dumps(source))
    assert again.read(1, DRAW).raw["wave"].tolist() == source.read(1, DRAW).raw["wave"].tolist()
    (tmp_path / "data").rename(tmp_path / "moved")
    assert open_arrays(str(tmp_path / "moved"), None, "wave").fingerprint() == source.fingerprint()
    (tmp_path / "moved" / "b" / "1.npy").unlink()
    assert open_arrays(str(tmp_path / "moved"), None, "wave").fingerprint() != source.fingerprint()


def test_one_file_holds_samples_along_its_first_axis(tmp_path):
    x = np.random.default_rng(0).random((5, 2, 8)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "xy.npz", x=x, y=np.arange(5), other=np.zeros(1))
    np.savez(tmp_path / "one.npz", anything=x)
    for file, label in (("x.npy", None), ("xy.npz", 3), ("one.npz", None)):
        source = pickle.loads(pickle.dumps(open_arrays(str(tmp_path / file), None, "wave")))
        sample = source.read(3, DRAW)
        assert len(source) == 5 and (sample.id, sample.label) == (f"{file}#3", label)
        assert (sample.raw["wave"] == x[3]).all() and sample.raw["wave"].flags.writeable
    np.save(tmp_path / "x.npy", x + 1)
    assert open_arrays(str(tmp_path / "x.npy"), None, "wave").fingerprint() != source.fingerprint()


@pytest.mark.parametrize("kind", [">f4", "u2", "i8", "f8", "f2", "?", "u1"])
def test_all_plain_numbers_can_be_loaded(tmp_path, kind):
    np.save(tmp_path / "x.npy", np.ones((3, 1, 4), kind))
    (tmp_path / "f").mkdir()
    np.save(tmp_path / "f" / "0.npy", np.ones((1, 4), kind))
    grid = GridModality(size=(4,), patch=2)
    for root in ("x.npy", "f"):
        raw = open_arrays(str(tmp_path / root), None, "wave").read(0, DRAW).raw["wave"]
        assert grid.load(raw, None)["x"].dtype == (torch.uint8 if kind == "u1" else torch.float32)


def test_a_list_and_a_reader_of_other_files(tmp_path):
    write(tmp_path / "data")
    (tmp_path / "list.csv").write_text("path,label\ndata/a/1.npy,up\ndata/b/0.npy,down\n")
    source = open_arrays(None, str(tmp_path / "list.csv"), "wave")
    assert [source.read(i, DRAW).label for i in range(2)] == [1, 0] and source.classes == ["down", "up"]
    (tmp_path / "data" / "c.txt").write_text("1 2 3")
    texts = open_arrays(str(tmp_path / "data"), None, "wave", read=np.loadtxt, endings=(".txt",))
    assert texts.read(0, DRAW).raw["wave"].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (None, "no data are given"),
        ("nothing", "data.root cannot be opened"),
        ("empty", "no file below the folder"),
        ("text.txt", "no known kind"),
        ("text.npy", "cannot read the array"),
        ("short.npy", "cannot read the array"),
        ("objects.npy", "cannot read the array"),
        ("texts.npy", "not plain numbers"),
        ("scalar.npy", "first axis must be the samples"),
        ("none.npy", "first axis must be the samples"),
        ("two.npz", "cannot tell which array is meant of a, b"),
        ("labels.npz", "labels have shape"),
    ],
)
def test_what_cannot_be_opened_is_named(tmp_path, what, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    (tmp_path / "text.npy").write_text("x")
    np.save(tmp_path / "short.npy", np.zeros((100, 100)))
    with open(tmp_path / "short.npy", "r+b") as file:
        file.truncate(1000)
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    np.save(tmp_path / "texts.npy", np.array([["a"], ["b"]]))
    np.save(tmp_path / "scalar.npy", np.zeros(3))
    np.save(tmp_path / "none.npy", np.zeros((0, 3)))
    np.savez(tmp_path / "two.npz", a=np.zeros((2, 2)), b=np.zeros((2, 2)))
    np.savez(tmp_path / "labels.npz", x=np.zeros((2, 2)), y=np.zeros(3, int))
    with pytest.raises(MaemmError, match=message) as caught:
        open_arrays(None if what is None else str(tmp_path / what), None, "wave")
    assert "\n" not in str(caught.value)


def test_a_file_of_a_folder_that_cannot_be_read_is_its_own_mistake(tmp_path):
    write(tmp_path)
    (tmp_path / "a" / "0.npy").write_bytes(b"\x93NUMPY")
    np.savez(tmp_path / "b" / "0.npz", a=np.zeros(2), b=np.zeros(2))
    source = open_arrays(str(tmp_path), None, "wave")
    for index, message in ((0, "."), (3, "call it x")):
        with pytest.raises((ValueError, OSError), match=message):
            source.read(index, DRAW)
    assert source.read(1, DRAW).label == 0


def test_a_grid_takes_a_part_of_longer_signals():
    grid = GridModality(size=(4, 4), patch=2, channels=2)
    x = np.arange(2 * 6 * 9).reshape(2, 6, 9)
    middle = grid.load(x, None)["x"]
    assert torch.equal(middle, torch.as_tensor(x[:, 1:5, 3:7]))
    parts = {tuple(grid.load(x, Rng(("t", key)))["x"][0, 0].tolist()) for key in range(400)}
    assert len(parts) == 18  # 3 x 6 places
    assert torch.equal(grid.load(x, DRAW)["x"], grid.load(x, DRAW)["x"])
    flat = GridModality(size=(4,), patch=2)
    assert flat.load(np.zeros(4), None)["x"].shape == (1, 4)


@pytest.mark.parametrize("shape", [(3, 4, 4), (4, 4), (2, 3, 4), (2, 4, 4, 1)])
def test_a_grid_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="the model expects \\(2, 4, 4\\) or longer sides"):
        GridModality(size=(4, 4), patch=2, channels=2).load(np.zeros(shape), None)


def test_a_grid_refuses_what_is_not_finite():
    with pytest.raises(ValueError, match="NaN or infinity"):
        GridModality(size=(2, 2), patch=2).load(np.full((1, 2, 2), np.nan), None)


def test_an_array_file_is_mapped_or_an_archive(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(4))
    with (tmp_path / "b.data").open("wb") as file:
        np.savez_compressed(file, points=np.arange(3), y=np.zeros(1))
    with open_array_file(tmp_path / "a.npy") as stored:
        assert isinstance(stored, np.memmap) and stored.tolist() == [0, 1, 2, 3]
    with open_array_file(tmp_path / "a.npy", mmap=False) as stored:
        assert not isinstance(stored, np.memmap)
    with open_array_file(tmp_path / "b.data") as stored:  # what counts is the content, not the ending
        assert array_key(stored) == array_key(stored, ("xyz", "points")) == "points"
        with pytest.raises(ValueError, match="cannot tell which array is meant of points, y: call it x"):
            array_key(stored, ignore=())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty file"),
        (b"hello world", "not an array file .starts with b'hello '"),
        (b"PK\x03\x04 and no more", "the archive is cut off or damaged"),
        (b"\x93NUMPY", "."),
    ],
)
def test_a_damaged_array_file_is_a_value_error_in_one_line(tmp_path, content, reason):
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(ValueError, match=reason) as caught, open_array_file(tmp_path / "a.npy"):
        pass
    assert "\n" not in str(caught.value)


def test_what_breaks_while_an_archive_is_read_is_a_value_error_too(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.array([{}]), z=np.zeros(1000))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[-1500] ^= 1  # within z
    (tmp_path / "a.npz").write_bytes(data)
    for key, reason in (("x", "Python objects, which may run code"), ("z", "damaged"), ("none", "none")):
        with pytest.raises(ValueError, match=reason), open_array_file(tmp_path / "a.npz") as stored:
            stored[key]
