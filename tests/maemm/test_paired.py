from pathlib import Path

import numpy as np
import pytest

from maemm import MaemmError, Rng
from maemm.config.options import check
from maemm.data.paired import open_paired

DRAW = Rng((0,))


def sounds_and_pictures(root: Path, sounds, pictures):
    from PIL import Image

    for name in sounds:
        path = root / "signal" / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.random.default_rng(len(name)).standard_normal((2, 64)).astype(np.float32))
    for name in pictures:
        path = root / "image" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10, 20, 30)).save(path)


PARTS = {"signal": {}, "image": {}}


def test_names_without_their_endings_are_matched(tmp_path):
    names = ["cat/1", "cat/2", "dog/1"]
    sounds_and_pictures(tmp_path, names, names)
    source = open_paired(str(tmp_path), parts=PARTS)
    assert [source.name(i) for i in range(len(source))] == names
    sample = source.read(2, DRAW)
    assert set(sample.raw) == {"signal", "image"} and sample.id == "dog/1"
    assert source.classes[sample.label] == "dog"
    assert source.fingerprint() == open_paired(str(tmp_path), parts=PARTS).fingerprint()


def test_a_sample_without_a_partner_is_refused_or_skipped(tmp_path):
    sounds_and_pictures(tmp_path, ["a/1", "a/2"], ["a/1"])
    with pytest.raises(MaemmError, match="image lacks 1 of 2 samples .*a/2.*missing to skip"):
        open_paired(str(tmp_path), parts=PARTS)
    assert len(open_paired(str(tmp_path), parts=PARTS, missing="skip")) == 1


def test_samples_may_lack_a_part(tmp_path):
    sounds_and_pictures(tmp_path, ["a/1", "a/2"], ["a/1", "b/3"])
    source = open_paired(str(tmp_path), parts=PARTS, missing="allow")
    assert [source.name(i) for i in range(len(source))] == ["a/1", "a/2", "b/3"]
    assert [[*source.read(i, DRAW).raw] for i in range(3)] == [["signal", "image"], ["signal"], ["image"]]
    assert source.read(2, DRAW).label == source.label(2) and source.name(2) == source.read(2, DRAW).id


def test_labels_of_parts_that_know_different_classes_have_one_numbering(tmp_path):
    sounds_and_pictures(tmp_path, ["a/1", "c/2"], ["a/1", "b/3", "c/4"])
    source = open_paired(str(tmp_path), parts=PARTS, missing="allow")
    assert source.classes == ["a", "b", "c"]
    assert {source.name(i): source.label(i) for i in range(len(source))} == {"a/1": 0, "b/3": 1, "c/2": 2, "c/4": 2}


def test_stems_match_across_folders(tmp_path):
    sounds_and_pictures(tmp_path, ["left/1"], ["right/1"])
    with pytest.raises(MaemmError, match="no name is in all.*by=stem"):
        open_paired(str(tmp_path), parts=PARTS)
    assert len(open_paired(str(tmp_path), parts=PARTS, by="stem")) == 1
    sounds_and_pictures(tmp_path, ["other/1"], [])
    with pytest.raises(MaemmError, match="signal has two samples called '1'"):
        open_paired(str(tmp_path), parts=PARTS, by="stem")


def test_a_broken_half_makes_the_sample_bad_and_says_which(tmp_path):
    sounds_and_pictures(tmp_path, ["a/1"], ["a/1"])
    (tmp_path / "image" / "a" / "1.png").write_bytes(b"no picture")
    source = open_paired(str(tmp_path), parts=PARTS)
    with pytest.raises(ValueError, match="^image: "):
        source.read(0, DRAW)


@pytest.mark.parametrize(
    "parts, what",
    [
        ({"image": {}}, "2 or more"),
        ({"image": {}, "signal": {"sort": 1}}, "unknown key.*data.source.parts.signal.sort"),
        ({"image": {}, "picture": {}}, "unknown source 'picture'"),
    ],
)
def test_impossible_pairs_are_refused(tmp_path, parts, what):
    sounds_and_pictures(tmp_path, ["a/1"], ["a/1"])
    with pytest.raises(MaemmError, match=what):
        open_paired(str(tmp_path), **check(open_paired, {"parts": parts}, "data.source"))


def test_samples_of_array_files_are_matched_by_file_and_number(tmp_path):
    """``a.npz#1`` of one part belongs to ``a.npy#1`` of the other; the numbers of another file do not."""
    for part, ending, count in (("signal", ".npy", 3), ("image", ".npz", 2)):
        (tmp_path / part).mkdir()
        rows = np.zeros((count, 2, 64) if part == "signal" else (count, 8, 8, 3), np.uint8)
        (np.save if ending == ".npy" else np.savez)(tmp_path / part / f"a{ending}", rows)
    parts = {name: {"root": str(tmp_path / name / f"a{end}")} for name, end in (("signal", ".npy"), ("image", ".npz"))}
    for by in ("path", "stem"):
        source = open_paired(None, parts=parts, missing="skip", by=by)
        assert [source.name(i) for i in range(len(source))] == ["a#0", "a#1"]
    with pytest.raises(MaemmError, match=r"image lacks 1 of 3 samples \(first: a#2\)"):
        open_paired(None, parts=parts)
