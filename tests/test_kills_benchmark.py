"""benchmarks/kills.py: twenty different kills of recipes that load, and one of them for real."""

from __future__ import annotations

import json

import kills
import pytest


def test_twenty_kills_of_every_kind(tmp_path):
    assert len({case.title for case in kills.CASES}) == 20
    for values, name in (
        ({"rank 0", "rank 1", "all ranks", "launcher"}, "whom"),
        ({kills.KILL, kills.TERM, kills.STOP}, "signal"),
        ({"start", "step", "save", "border"}, "when"),
        (set(kills.RECIPES), "recipe"),
    ):
        assert {getattr(case, name) for case in kills.CASES} == values
    for name in kills.RECIPES:
        recipe = kills.recipe_of(name, tmp_path, {"train.seed": 5})
        assert recipe["train"]["seed"] == 5 and recipe["train"]["save_every"] == kills.SAVE_EVERY


def test_other_losses_or_weights_are_not_equal(tmp_path):
    import torch
    from safetensors.torch import save_file

    def run(name, loss, weight):
        folder = tmp_path / name
        (folder / "checkpoints/step-000001").mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": loss, "seconds": weight}) + "\n")
        save_file({"w": torch.tensor([weight])}, folder / "checkpoints/step-000001/model.safetensors")
        return folder

    whole = run("whole", 1.5, 2.0)
    assert kills.equal(run("same", 1.5, 2.0), whole)
    assert not kills.equal(run("other loss", 1.5000001, 2.0), whole)
    assert not kills.equal(run("other weights", 1.5, 2.0000002), whole)


@pytest.mark.slow
def test_a_launcher_and_a_rank_that_are_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(kills, "PLACES", {})
    numbers = [n for n, case in enumerate(kills.CASES, 1) if case.recipe == "points" and case.signal == kills.KILL]
    kills.main(["--cases", *map(str, numbers), "--set", "train.seed=1", "--out", str(tmp_path / "made.json")])
    made = json.loads((tmp_path / "made.json").read_text())
    assert made["passed"] == "2 of 2" and made["settings"] == {"train.seed": 1}
