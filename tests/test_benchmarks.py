"""Benchmarks run everywhere, with tiny sizes on a CPU."""

import importlib.util
import json
from pathlib import Path


def test_the_cifar_probe_runs(tmp_path, monkeypatch, capsys):
    import numpy as np
    from PIL import Image

    import maemm

    path = Path(__file__).parents[1] / "benchmarks" / "probe_cifar10.py"
    spec = importlib.util.spec_from_file_location("probe_cifar10", path)
    probe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(probe)
    drawn = np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 8)):
        for name, level in (("dark", 60), ("light", 190)):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(level + 30 * drawn.standard_normal((32, 32, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / name / f"{i}.png")
    small = {"encoder.dim": 16, "encoder.depth": 1, "encoder.heads": 2, "decoder": None}
    maemm.save(maemm.build("image/mae_tiny_cifar10", **small), tmp_path / "model.safetensors")
    words = [str(tmp_path), "--run", str(tmp_path / "model.safetensors"), "--raw", "--seeds", "1"]
    probe.main([*words, "--out", str(tmp_path / "made.json")])
    made = json.loads((tmp_path / "made.json").read_text())
    assert [row["features"] for row in made["rows"]] == ["raw pixels", "untrained, seed 0", "pre-trained"]
    assert made["rows"][0]["linear"] == 1.0 and made["about"]["train"] == 48


def test_the_points_step_compares_the_same_numbers():
    """The published order and ours, on the same weights, have the same loss; other statistics have another."""
    path = Path(__file__).parents[1] / "benchmarks" / "points_step.py"
    spec = importlib.util.spec_from_file_location("points_step", path)
    points = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(points)
    found = points.measure(2, 1, tiny=True)
    losses = {name: one["loss"] for name, one in found.items()}
    assert abs(losses["all fp32"] - losses["published fp32"]) < 1e-5 < abs(losses["visible fp32"] - losses["all fp32"])
    assert all(one["cpu_s"] > 0 for one in found.values())


def test_augmentations_are_measured(monkeypatch):
    path = Path(__file__).parents[1] / "benchmarks" / "augment.py"
    spec = importlib.util.spec_from_file_location("augment", path)
    augment = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(augment)
    monkeypatch.setattr(augment, "DRAWS", ((1, 40), (64, 33)))
    rows = augment.measure(4, 32)
    assert all(row["cpu_ms"] > 0 and len(set(row["launches"])) == 1 for row in rows.values()) and len(rows) == 8
