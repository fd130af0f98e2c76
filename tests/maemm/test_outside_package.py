"""A package outside the repository does what a bundled plugin does: installed by pip, used by ordinary commands."""

from __future__ import annotations

import ast
import json
import os
import shutil
import site
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

PACKAGE = Path(__file__).parents[1] / "outside_package"
RUN = ["data.workers=0", "train.log_every=1"]


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    """``pip install --target``, without a network, of a copy: building leaves files behind."""
    home = tmp_path_factory.mktemp("outside")
    shutil.copytree(PACKAGE, home / "package", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation", "-q"]
    env = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    command = [*pip, "--target", str(home / "site"), str(home / "package")]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "site"


@pytest.fixture
def weather(target, tmp_path, monkeypatch):
    """The installed package in this process, data in ``maps``, and an empty current folder but for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    site.addsitedir(str(target))
    registry.clear_cache()
    registry.find("samples", "weather")(Path("maps"))
    yield registry.get("weather")
    monkeypatch.undo()
    for name in [one for one in sys.modules if one.split(".")[0] == "maemm_weather"]:
        del sys.modules[name]
    registry.clear_cache()


def test_it_is_small():
    """At most 120 lines of code, without docstrings and blank lines."""
    assert sum(len(code_lines(path)) for path in PACKAGE.rglob("maemm_weather/*.py")) <= 120


def code_lines(path: Path) -> set[int]:
    text = path.read_text()
    docs: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False):
            docs |= set(range(body[0].lineno, body[0].end_lineno + 1))
    return {number for number, line in enumerate(text.splitlines(), 1) if line.strip()} - docs


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
    assert [one.message for one in results if one.message] == []
    assert len({one.part for one in results}) == 8 + 1  # its parts, and the manifest


def test_its_recipe_trains_and_goes_on_with_ordinary_commands(weather, capsys):
    np.save("maps/calm/gaps.npy", np.full((2, 8, 8, 8), np.nan, np.float32))
    assert main(["pretrain", "weather/tiny", "maps", *RUN, "out=run", "data.max_bad_fraction=0.1"]) == 0
    assert (
        main(["pretrain", "weather/tiny", "maps", *RUN, "out=run", "data.max_bad_fraction=0.1", "train.epochs=3"]) == 0
    )
    assert "resuming from step 4" in capsys.readouterr().out
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert set(rows[0]["terms"]) == {"reconstruct.weather", "uniformity"}
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
    objective = registry.find("objectives", "uniformity")("uniformity")

    def value(rows: torch.Tensor) -> float:
        plan = maemm.Plan(torch.zeros(len(rows), 1, dtype=torch.long), torch.zeros(len(rows), 0, dtype=torch.long))
        out = maemm.Output({"m": plan}, {}, {}, {}, {"m": rows[:, None]}, {}, {})
        return float(objective(out, model=None)["uniformity"].mean)

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
