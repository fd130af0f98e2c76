"""The benchmark of the family's costs: parts against plain MAE, on the CPU and on the pretended GPU."""

import importlib.util
import json
from pathlib import Path

import pytest


@pytest.mark.slow
def test_parts_are_measured_against_plain_mae(monkeypatch, tmp_path, capsys):
    folder = Path(__file__).parents[1] / "benchmarks"
    monkeypatch.syspath_prepend(str(folder))
    spec = importlib.util.spec_from_file_location("family", folder / "family.py")
    family = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(family)
    small = {"encoder.dim": 24, "encoder.depth": 1, "encoder.heads": 2, "decoder.dim": 24, "decoder.depth": 1}
    monkeypatch.setattr(family, "TINY", {**family.TINY, **small})
    monkeypatch.setattr(family, "PICTURES", 4)
    monkeypatch.setattr(family, "ON_GPU", family.ON_CPU)
    names = "attention, share 0", "attention of tokens", "teacher of the same size"
    family.main(["--rounds", "1", "--batch", "4", "--only", ";".join(names), "--out", str(tmp_path / "cost.json")])
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert set(rows) == {"plain", *names} and all(row["cpu_seconds"] > 0 == row["waits"] for row in rows.values())
    plain, share_zero, attention, teacher = (rows[name] for name in ("plain", *names))
    assert share_zero["launches"] == plain["launches"] and share_zero["bytes"] == plain["bytes"] > 1e6
    assert attention["launches"] > plain["launches"] and teacher["bytes"] > plain["bytes"]
    assert "| plain |" in capsys.readouterr().out
