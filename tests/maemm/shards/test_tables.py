"""Rows of Parquet files and of the library `datasets`."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maemm.contract.errors import DataLost, MaemmError
from maemm.contract.rng import Rng
from maemm.data.shards.columns import member_of
from maemm.data.shards.datasets import open_datasets
from maemm.data.shards.source import open_shards

from .servers import serving

pyarrow = pytest.importorskip("pyarrow")


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(file, "png")
    return file.getvalue()


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """Two files of three row groups; the label is a text."""
    import pyarrow.parquet as parquet

    folder = tmp_path_factory.mktemp("table")
    for number in range(2):
        rows = range(number * 10, number * 10 + 10)
        columns = {
            "image": [{"bytes": picture(row), "path": f"{row}.png"} for row in rows],
            "kind": ["dog" if row % 3 else "cat" for row in rows],
        }
        parquet.write_table(pyarrow.table(columns), folder / f"{number}.parquet", row_group_size=4)
    return folder


def value_of(source, index: int) -> int:
    return int(source.read(index, Rng((0,))).raw["image"][0, 0, 0])


def test_rows_in_order(table):
    source = open_shards(str(table), name="image", label="kind")
    assert [value_of(source, index) for index in range(20)] == [*range(20)]
    assert source.shard_sizes.tolist() == [4, 4, 2, 4, 4, 2]
    assert source.classes == ["cat", "dog"] and [source.label(index) for index in range(4)] == [0, 1, 1, 0]
    assert source.name(13) == "1.parquet#3"
    assert len(open_shards(f"{table}/1.parquet", name="image")) == 10


def test_rows_of_a_web_server(table):
    pytest.importorskip("aiohttp")
    with serving(table) as server:
        source = open_shards(f"{server.url}/{{0..1}}.parquet", name="image", label="kind")
        assert [value_of(source, index) for index in (17, 2)] == [17, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": {"image": "photo"}}, "there is no column 'photo' .*image, kind"),
        ({"label": "class"}, "there is no column 'class'"),
        ({"name": "audio"}, "no column is called 'audio'"),
    ],
)
def test_wrong_columns(table, options, message):
    with pytest.raises(MaemmError, match=message):
        open_shards(str(table), **{"name": "image", **options})


def test_broken_files(table, tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(MaemmError, match="no Parquet file"):
        open_shards(str(tmp_path), name="image")


def test_a_file_that_changed(table, tmp_path):
    import shutil

    import pyarrow.parquet as parquet

    folder = shutil.copytree(table, tmp_path / "copy")
    source = open_shards(str(folder), name="image")
    parquet.write_table(pyarrow.table({"image": [picture(1)], "kind": ["cat"]}), folder / "1.parquet")
    with pytest.raises(DataLost, match="a file has changed"):
        source.read(19, Rng((0,)))


def test_values():
    assert member_of({"bytes": picture(1), "path": None})[0] == "png"
    assert member_of(b"RIFF\0\0\0\0WAVEfmt ")[0] == "wav"
    ending, content = member_of([[1.0, 2.0], [3.0, 4.0]])
    assert ending == "npy" and np.load(io.BytesIO(content)).tolist() == [[1, 2], [3, 4]]
    for value in ("text", None, {"bytes": None, "path": "/a.png"}, b"nothing known"):
        with pytest.raises(ValueError):
            member_of(value)


# -------------------------------------------------------------------------------------------------------- `datasets`
@pytest.fixture(scope="module")
def stored(tmp_path_factory) -> Path:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"]), "other": datasets.Value("string")}
    )
    rows = {
        "image": [{"bytes": picture(row), "path": None} for row in range(6)],
        "label": [0, 1] * 3,
        "other": ["x"] * 6,
    }
    table = datasets.Dataset.from_dict(rows, features=features)
    folder = tmp_path_factory.mktemp("stored")
    datasets.DatasetDict({"train": table, "test": table.select([3, 4])}).save_to_disk(str(folder / "disk"))
    (folder / "parquet").mkdir()
    table.to_parquet(str(folder / "parquet" / "train-00000-of-00001.parquet"))
    return folder


def test_a_data_set_on_disk(stored):
    source = open_datasets(str(stored / "disk"), name="image")
    assert [value_of(source, index) for index in range(6)] == [*range(6)]
    assert source.classes == ["a", "b"] and source.label(3) == 1
    assert len(open_datasets(str(stored / "disk"), name="image", split="test")) == 2
    with pytest.raises(MaemmError, match="there is no split 'valid' .*train, test"):
        open_datasets(str(stored / "disk"), name="image", split="valid")


def test_streaming_reads_the_same(stored):
    near = open_datasets(str(stored / "parquet"), name="image")
    far = open_datasets(str(stored / "parquet"), name="image", streaming=True)
    assert len(near) == len(far) == 6
    assert [value_of(far, index) for index in range(6)] == [value_of(near, index) for index in range(6)]
    assert far.classes == near.classes == ["a", "b"] and far.label(5) == near.label(5) == 1
    assert far.shard_sizes.sum() == 6


def test_what_is_no_data_set(stored, tmp_path):
    with pytest.raises(MaemmError, match="the data set cannot be opened"):
        open_datasets(str(tmp_path), name="image")
    with pytest.raises(MaemmError, match="no data set is given"):
        open_datasets(None, name="image")
