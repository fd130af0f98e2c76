"""The benchmark of motion sensors runs from end to end on a made-up data set of the same shape."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest

SMALL = ["train.epochs=1", "train.warmup_epochs=0", "train.batch=16", "encoder.dim=24", "encoder.depth=1"]


@pytest.mark.slow
def test_probe_har_runs(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    path = Path(__file__).parents[3] / "benchmarks" / "probe_har.py"
    spec = importlib.util.spec_from_file_location("probe_har", path)
    probe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(probe)
    rng, y = np.random.default_rng(0), np.arange(60) % 6
    x = (rng.standard_normal((60, 9, 128)) * (1 + y)[:, None, None]).astype(np.float16)
    np.savez(tmp_path / "har.npz", x_train=x, y_train=y.astype(np.int8), x_test=x[:30], y_test=y[:30].astype(np.int8))
    monkeypatch.chdir(tmp_path)
    given = ["har.npz", "--seeds", "1", "--steps", "3", "--unseen", "5", "--out", "out.json", "--set", *SMALL]
    monkeypatch.setattr(sys, "argv", ["probe_har.py", *given])
    probe.main()
    found = json.loads((tmp_path / "out.json").read_text())
    assert [row["features"] for row in found["rows"][3:]] == ["untrained", "pre-trained"]
    assert 0 <= found["unseen"][0]["reconstruction"] <= 1 and found["unseen"][0]["activity"] == "lying"
    assert set(found["few_labels"][0]) == {"seed", "1%", "10%"}
    assert found["about"]["recipe"]["encoder"]["dim"] == 24
