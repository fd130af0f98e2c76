"""The benchmark of Muon: its rows, the steps that fit into equal seconds, and the table that is printed."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def muon(monkeypatch):
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("muon_benchmark", folder / "muon.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_equal_seconds_and_the_table(muon):
    rows = [
        {"variant": "adamw", "steps": 300, "cpu_seconds": 60.0, "loss": 0.5, "linear": 0.4, "knn": 0.3},
        {"variant": "muon", "steps": 300, "cpu_seconds": 90.0, "loss": 0.4, "linear": 0.5, "knn": 0.4},
    ]
    assert muon.steps_in_equal_seconds(rows) == 450
    table = muon.table([*rows, {**rows[0], "loss": 0.7}]).splitlines()
    assert table[2].startswith("| adamw (2) | 0.6000 +- 0.1414 | 0.400 |")
    assert table[3].startswith("| muon (1) | 0.4000 | 0.500 |")


@pytest.mark.slow
def test_optimisers_are_trained_and_measured(muon, tmp_path, capsys):
    drawn = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 12)):
        for name, level in (("dark", 60), ("light", 190)):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.clip(level + 30 * drawn.standard_normal((32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    words = [str(tmp_path), "--seeds", "1", "--steps", "2", "--batch", "8"]
    for _ in range(2):  # what is there is not measured again
        muon.main([*words, "--out", str(tmp_path / "made.json")])
    rows = json.loads((tmp_path / "made.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["untrained", *muon.VARIANTS]
    assert [row["steps"] for row in rows[:3]] == [2, 2, 2] and rows[1]["loss"] != rows[2]["loss"]
    assert "| muon (1) |" in capsys.readouterr().out
