"""A package outside the repository does what a bundled plugin does: installed by pip, used by ordinary commands."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import maemm
from maemm import registry
from maemm.__main__ import main
from maemm.contract.rng import Rng
from maemm.model.build import build_model
from maemm.testing import checks_of
from maemm.testing.suite import result_of

RUN = ["data.workers=0", "train.log_every=1"]


@pytest.fixture(scope="module")
def target(install) -> Path:
    return install("outside_package")


@pytest.fixture
def weather(target, use):
    """The installed package in this process, and data in ``maps``."""
    use(target)
    registry.find("samples", "weather")(Path("maps"))
    return registry.get("weather")


def test_it_is_small(code_lines):
    assert code_lines("outside_package") <= 160


def test_another_process_finds_it_by_its_entry_point(target, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(target)}
    command = [sys.executable, "-m", "maemm", "plugins", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=tmp_path, timeout=300)
    found = {one["name"]: one for one in json.loads(done.stdout)}
    assert found["weather"]["origin"] == "installed: maemm-weather 0.1.0" and found["weather"]["error"] is None
    assert {"weather"} == set(found) - {one.name for one in registry.all_plugins()}


def test_it_keeps_all_rules(weather):
    slow = ("manifest_is_light", "another_process_reads_the_same")  # processes, seconds each; run for other plugins
    checks = [one for one in checks_of(weather.plugin) if one.name not in slow]
    results = [result_of(one) for one in checks]
    assert [one.message for one in results if one.message and one.used] == []
    assert len({one.part for one in results}) == 11 + 1  # its parts, and the manifest


def test_its_recipe_trains_and_goes_on_with_ordinary_commands(weather, capsys):
    np.save("maps/calm/gaps.npy", np.full((2, 8, 8, 8), np.nan, np.float32))
    assert main(["pretrain", "weather/tiny", "maps", *RUN, "out=run", "data.max_bad_fraction=0.1"]) == 0
    assert (
        main(["pretrain", "weather/tiny", "maps", *RUN, "out=run", "data.max_bad_fraction=0.1", "train.epochs=3"]) == 0
    )
    assert "resuming from step 4" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert set(rows[0]["terms"]) == {"reconstruct.weather", "evenness"}
    (bad,) = [json.loads(line) for line in Path("run/bad_samples.jsonl").read_text().splitlines()]
    assert bad["id"] == "calm/gaps.npy" and "mostly gaps" in bad["reason"]
    assert list(Path("run/pictures").glob("*.png")) and Path("run/report.html").is_file()


def test_the_modality_neither_shows_nor_predicts_gaps(weather):
    model = build_model(maemm.config.load("weather/tiny"))
    source = registry.find("sources", "weather")("maps")
    modality = model.modalities["weather"]
    raw = modality.collate([modality.load(source.read(index, Rng((0,))).raw["weather"], None) for index in (0, 15)])
    tokens = modality.tokenize(modality.preprocess(raw, None))
    assert tokens.grid == (4, 2, 2) and tokens.valid.sum(1).tolist() == [16, 15]
    assert source.read(15, Rng((0,))).label == 1 and source.classes == ["calm", "storm"]


def test_the_masking_hides_places_at_all_hours(weather):
    model = build_model(maemm.config.load("weather/tiny"))
    preprocessed = model.modalities["weather"].example(3, Rng((1,)))
    plan = model.plan({"weather": preprocessed}, Rng((1,), range(3), 3))["weather"].plan
    places = (plan.predict % 4).unique(dim=1) if plan.predict.shape[1] else None
    hidden = [sorted(set((row % 4).tolist())) for row in plan.predict]
    assert places is not None and plan.predict.shape == (3, 8) and all(len(one) == 2 for one in hidden)


def test_encoder_and_decoder_serve_another_modality(weather):
    recipe = {
        "modalities": {"image": {"size": 16, "patch": 4, "masking": {"type": "random", "ratio": 0.5}}},
        "encoder": {"type": "deepsets", "dim": 24, "depth": 1},
        "decoder": {"type": "pointwise", "dim": 12},
    }
    model = build_model(recipe)
    out = model({"image": torch.rand(2, 3, 16, 16)}, rng=Rng((0,), range(2), 2))
    assert out.encoded["image"].shape == (2, 8, 24) and out.pred["image"].shape == (2, 8, 48)
    assert type(model.encoder).__name__ == "DeepSets" and type(model.decoder).__name__ == "Pointwise"


def test_the_objective_spreads_samples(weather):
    objective = registry.find("objectives", "evenness")("evenness")

    def value(rows: torch.Tensor) -> float:
        plan = maemm.Plan(torch.zeros(len(rows), 1, dtype=torch.long), torch.zeros(len(rows), 0, dtype=torch.long))
        out = maemm.Output({"m": plan}, {}, {}, {}, {"m": rows[:, None]}, {}, {})
        return float(objective(out, model=None)["evenness"].mean)

    assert value(torch.eye(4)) == pytest.approx(-4.0)  # all pairs at a squared distance of 2: log exp(-2 * 2)
    assert value(torch.ones(4, 4)) == pytest.approx(0.0, abs=1e-5)
    assert objective.coupled


def test_weights_of_its_kind_are_recognised(weather, capsys):
    model = build_model(maemm.config.load("weather/tiny")).eval()
    maemm.save(model, "ours.safetensors")
    assert main(["convert", "ours.safetensors", "old.pth", "--to", "weather_old"]) == 0
    assert all(key.startswith("net.") for key in torch.load("old.pth")["model"])
    again = maemm.load("old.pth")
    assert again.kind == "weather_old"
    x = {"weather": model.modalities["weather"].example(2, Rng((0,)))}
    assert torch.equal(again.embed(x)["weather"], model.embed(x)["weather"])


def test_joint_training_with_a_bundled_modality_from_a_recipe_alone(weather):
    shutil.copytree("maps", "clips/weather")
    for index in range(16):
        folder = Path("clips/signal") / ("calm", "storm")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / f"{index:02d}.npy", np.random.default_rng(index).normal(size=(1, 64)).astype(np.float32))
    assert main(["pretrain", "weather/with_signal", "clips", *RUN, "out=both"]) == 0
    rows = [json.loads(line) for line in Path("both/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 4 and set(rows[0]["terms"]) == {"reconstruct.weather", "reconstruct.signal"}
    assert not Path("both/bad_samples.jsonl").exists()
    model = maemm.load("both")
    assert list(model.modalities) == ["weather", "signal"] and model.encoder.vectors.keys() == {"weather", "signal"}


def test_missing_pixels_change_nothing(weather):
    """Clips of 8 x 64 x 64 with 3 % of their pixels missing: what stands there is in no loss and no feature."""
    registry.find("samples", "radar")(Path("clips"))
    model = build_model(maemm.config.load("weather/radar"))
    source, modality = registry.find("sources", "radar")("clips"), model.modalities["radar"]
    samples = [modality.load(source.read(index, Rng((0,))).raw["radar"], None) for index in range(4)]
    clean = modality.preprocess(modality.collate(samples), None)
    assert clean.valid is not None and 0.02 < float((~clean.valid).float().mean()) < 0.04
    losses, features = [], []
    for filling in (0.0, 1e6, float("nan"), float("-inf")):
        filled = maemm.Preprocessed(clean.x.masked_fill(~clean.valid, filling), clean.valid)
        out = model({"radar": filled}, rng=Rng((7,), range(4), 4))
        model.zero_grad()
        out.total.backward()
        grad = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        losses.append(torch.cat([out.total.detach()[None], grad, model.baseline(out, "radar").flatten()]))
        features.append(model.embed({"radar": filled})["radar"])
    assert all(torch.equal(loss, losses[0]) and torch.isfinite(loss).all() for loss in losses)
    assert all(torch.equal(x, features[0]) for x in features)


def test_a_radar_model_trains(weather, capsys):
    registry.find("samples", "radar")(Path("clips"))
    assert main(["pretrain", "weather/radar", "clips", *RUN, "out=run", "train.epochs=4"]) == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and all(math.isfinite(row["loss"]) and row["baseline"] > 0 for row in rows)
    assert not Path("run/bad_samples.jsonl").exists() and list(Path("run/pictures").glob("*.png"))
