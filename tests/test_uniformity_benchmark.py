"""The benchmark of collapse: its rows, and the table that is printed."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def uniformity(monkeypatch):
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("uniformity", folder / "uniformity.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_has_means_and_spreads(uniformity):
    keys = dict.fromkeys(uniformity.COLUMNS, 0.5)
    rows = [{"variant": "plain", **keys, "rank": rank} for rank in (2.0, 4.0)] + [
        {"variant": "untrained", "linear": 0.25}
    ]
    table = uniformity.table(rows).splitlines()
    assert table[2].startswith("| plain (2) | 0.500 +- 0.000 |") and "3.0 +- 1.4" in table[2]
    assert table[3].startswith("| untrained (1) | 0.250 | - |")


@pytest.mark.slow
def test_variants_are_trained_and_measured(uniformity, tmp_path, capsys):
    drawn = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 12)):
        for name, level in (("dark", 60), ("light", 190)):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(level + 30 * drawn.standard_normal((32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    words = [str(tmp_path), "--seeds", "1", "--steps", "2", "--batch", "8", "--only", "plain;uniformity 0.1"]
    for _ in range(2):  # what is there is not measured again
        uniformity.main([*words, "--out", str(tmp_path / "made.json")])
    rows = json.loads((tmp_path / "made.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["plain", "uniformity 0.1"]
    assert all(set(uniformity.COLUMNS) <= set(row) and row["rank"] > 0 for row in rows)
    assert rows[0]["uniformity"] != rows[1]["uniformity"] and "| plain (1) |" in capsys.readouterr().out
