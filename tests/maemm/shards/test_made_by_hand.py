"""Shards and tables as other programs write them: folders between files, hidden files, nothing at all, odd names."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import maemm
from maemm.contract.errors import MaemmError
from maemm.contract.rng import Rng
from maemm.data.shards import tar
from maemm.data.shards.columns import label_of
from maemm.data.shards.datasets import open_datasets
from maemm.data.shards.source import open_shards
from maemm.data.shards.storage import Storage
from maemm.tasks.data.pack import data_index

from .conftest import write_sound
from .test_source import batches, same, write_video


@pytest.fixture
def pictures_of_classes(tmp_path):
    """A folder of two classes with .cls files beside the pictures, as one makes by hand."""
    folder, numbers = tmp_path / "photos", np.random.default_rng(0)
    for label, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.fromarray(numbers.integers(0, 255, (24, 24, 3), np.uint8)).save(folder / name / f"{number}.png")
            (folder / name / f"{number}.cls").write_text(f"{label}\n")
            (folder / name / f"._{number}.png").write_bytes(b"what a Mac leaves")
    return folder


def archived(folder: Path, path: Path, mode: str = "w") -> Path:
    """What ``tar --sort=name -cf PATH -C FOLDER .`` writes: a member for each folder, hidden files too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        archive.add(folder, ".")
    return path


def written(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_a_folder_as_tar_writes_it(pictures_of_classes, tmp_path):
    """Folders stand between the samples, and hidden files between their members."""
    shards = tmp_path / "shards [1]*"  # a name that means something in patterns
    archived(pictures_of_classes, shards / "a.tar")
    written(shards / "b.tar")  # the last shard of a writer that had nothing more
    (shards / "._a.tar").write_bytes(b"hidden")
    done = data_index(shards, workers=0)
    assert (done.shards, done.samples) == (1, 8)
    source = open_shards(str(shards), name="image")
    assert [source.label(index) for index in range(8)] == [0] * 4 + [1] * 4
    assert [source.read(index, Rng((0,))).id for index in (0, 7)] == ["./cat/0.png", "./dog/3.png"]
    plain = pictures_of_classes
    for path in [*plain.rglob("*.cls"), *plain.rglob("._*")]:
        path.unlink()
    folder = batches("image/mae_tiny_cpu", {"root": str(plain), "source": None}, steps=2)
    same(
        folder, batches("image/mae_tiny_cpu", {"root": str(shards), "source": "shards"}, steps=2, workers=2), ids=False
    )


def test_sounds_videos_and_points(tmp_path):
    numbers = np.random.default_rng(0)
    for number in range(5):
        write_sound(tmp_path / "audio" / f"{number}.wav", number)
        (tmp_path / "video").mkdir(exist_ok=True)
        write_video(tmp_path / "video" / f"{number}.mp4", number)
        (tmp_path / "pointcloud").mkdir(exist_ok=True)
        np.save(tmp_path / "pointcloud" / f"{number}.npy", numbers.normal(size=(300, 3)).astype(np.float32))
    for kind, recipe in (
        ("audio", "audio/audiomae_tiny_cpu"),
        ("video", "video/videomae_tiny_cpu"),
        ("pointcloud", "pointcloud/point_mae_tiny_cpu"),
    ):
        archived(tmp_path / kind, tmp_path / f"{kind} shards" / "0.tar")
        assert data_index(tmp_path / f"{kind} shards", workers=0).samples == 5
        folder = batches(recipe, {"root": str(tmp_path / kind), "source": None}, batch=2, steps=2)
        packed = {"root": str(tmp_path / f"{kind} shards"), "source": "shards"}
        same(folder, batches(recipe, packed, batch=2, steps=2), ids=False)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda path: path.write_bytes(b""),
            r"cannot be indexed .*x.tar: ValueError: empty file \(0 bytes\)\); remove it",
        ),
        (
            lambda path: written(path, ("a.cls", b"1"), ("b.cls", b"2"), ("a.png", b"x"), ("b.png", b"y")),
            r"the files of a are no neighbours; write it with sorted names \(tar --sort=name\)",
        ),
        (lambda path: written(path), "there are no samples to index"),
        (lambda path: written(path, ("._a.png", b"x"), (".DS_Store", b"y")), "there are no samples to index"),
    ],
    ids=["0 bytes", "not sorted", "empty", "hidden alone"],
)
def test_what_cannot_be_indexed(tmp_path, write, message):
    write(tmp_path / "x.tar")
    with pytest.raises(MaemmError, match=message):
        data_index(tmp_path, workers=0)
    assert not list(tmp_path.glob("*index*"))


def test_a_sample_that_comes_twice_is_two_samples():
    """As when a loader repeats some: no file is lost that way."""
    data = io.BytesIO()
    tar.write(data, iter([("a", {"png": b"1", "cls": b"0"}), ("b", {"png": b"2"}), ("a", {"png": b"1", "cls": b"0"})]))
    assert [span.key for span in tar.spans(data.getvalue())] == ["a", "b", "a"]


def test_an_index_needs_a_place_that_can_be_written(shards, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MaemmError, match="cannot write the index .*; give another folder for it: --out FOLDER"):
        data_index(shards, tmp_path / "file" / "index", workers=0)


def test_shards_without_their_source_are_recognised(shards):
    for root in (str(shards), "https://host/shards"):
        with pytest.raises(MaemmError, match="the data are in shards, or elsewhere .*; set data.source=shards"):
            maemm.pretrain("image/mae_tiny_cpu", **{"data.root": root})


def test_patterns_leave_out_folders(tmp_path):
    (tmp_path / "x.tar").mkdir()
    written(tmp_path / "deep" / "y.tar", ("a.png", b"1"))
    assert Storage(str(tmp_path)).find("**/*.tar") == ["deep/y.tar"]


def test_categories_and_columns_in_another_order(tmp_path):
    """As pandas writes them."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    content = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(content, "png")
    for number, names in enumerate((["photo", "label"], ["label", "photo"])):
        labels = arrow.array(["dog", "cat", None]).dictionary_encode()
        columns = {"photo": arrow.array([content.getvalue()] * 3), "label": labels}
        parquet.write_table(arrow.table({name: columns[name] for name in names}), tmp_path / f"{number}.parquet")
    source = open_shards(str(tmp_path), name="image", columns={"image": "photo"})
    assert source.classes == ["cat", "dog"]
    assert [source.read(index, Rng((0,))).label for index in range(6)] == [1, 0, None] * 2


@pytest.mark.parametrize(
    ("labels", "classes", "expected"),
    [
        ([["x", "y"], [], ["y"], None], ["x", "y"], [(0, 1), (), (1,), None]),
        ([[3], [0, 2], [], None], None, [(3,), (0, 2), (), None]),
        ([1.0, 0.0, float("nan"), None], None, [1, 0, None, None]),
        (["b", "a", None, "b"], ["a", "b"], [1, 0, None, 1]),
        ([True, False, None, True], None, [1, 0, None, 1]),
    ],
    ids=["lists of texts", "lists", "floats", "texts", "truths"],
)
def test_labels_of_every_kind(tmp_path, labels, classes, expected):
    """From Parquet and from a folder of the library alike."""
    library = pytest.importorskip("datasets")
    library.disable_progress_bars()
    content = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(content, "png")
    table = library.Dataset.from_dict({"image": [content.getvalue()] * 4, "label": labels})
    table.to_parquet(tmp_path / "0.parquet")
    table.save_to_disk(tmp_path / "disk")
    for source in (open_shards(str(tmp_path), name="image"), open_datasets(str(tmp_path / "disk"), name="image")):
        assert source.classes == classes
        assert [source.read(index, Rng((0,))).label for index in range(4)] == expected
        assert [source.label(index) for index in range(4)] == expected
    with pytest.raises(MaemmError, match="the folder holds one part, which has no splits"):
        open_datasets(str(tmp_path / "disk"), name="image", split="train[:2]")
    with pytest.raises(MaemmError, match="a part of a split cannot be streamed"):
        open_datasets(str(tmp_path), name="image", split="train[:2]", streaming=True)


def test_a_label_that_is_no_whole_number():
    with pytest.raises(ValueError, match="its label 2.5 is no whole number"):
        label_of(2.5, None)
