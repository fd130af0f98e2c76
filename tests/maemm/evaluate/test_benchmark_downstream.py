"""The table of benchmarks/downstream.py, on the toy modality."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from maemm.tasks._shared.embedding import raw_values

HOME = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def downstream(monkeypatch):
    if not HOME.is_dir():
        pytest.skip("the benchmarks are not installed")
    monkeypatch.syspath_prepend(str(HOME))
    names = {"_probe", "downstream", "probe_esc10", "probe_grid", "probe_modelnet10"}
    yield importlib.import_module("downstream")
    for name in names & set(sys.modules):
        del sys.modules[name]


def test_rows_of_a_data_set(world, downstream, tmp_path):
    parts = [world.source(samples=40), world.source(samples=16, seed=1, prefix="t")]
    data = downstream.Data("toy", parts, "raw", lambda model: data.features(model, raw_values), downstream._whole)
    rows = downstream.rows_of(data, [world.model(seed=0), world.model(seed=1)], seeds=3)
    assert [one["features"] for one in rows] == ["raw", "untrained encoder, 3 seeds", "pre-trained encoder, 2 runs"]
    assert [len(one["linear"]["values"]) for one in rows] == [1, 3, 2] and rows[0]["linear"]["mean"] > 0.6
    assert rows[0]["knn"]["std"] is None and rows[0]["width"] == 64 and rows[1]["width"] == 16
    table = downstream.markdown(rows)
    assert table.count("\n") == 4 and "| toy | classes | raw |" in table
    downstream.save(tmp_path / "x" / "y.json", {"rows": rows})
    assert json.loads((tmp_path / "x/y.json").read_text())["about"]["torch"]


def test_files_of_the_parts(downstream, tmp_path):
    import numpy as np

    split = np.array(["train", "test", "train", "test", "train"])
    np.savez(tmp_path / "m.npz", points=np.arange(15.0).reshape(5, 1, 3), labels=np.arange(5), classes=np.array(["a"]),
             split=split)  # fmt: skip
    train, test = downstream.split_files(tmp_path / "m.npz", tmp_path / "work", None)
    with np.load(train) as stored:
        assert stored["labels"].tolist() == [0, 2, 4] and stored["points"].shape == (3, 1, 3)
    with np.load(test) as stored:
        assert stored["labels"].tolist() == [1, 3] and "split" not in stored.files
