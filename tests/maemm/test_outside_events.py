"""Ragged sets outside the repository: numbers and classes, groups hidden as a whole, an encoder of their own."""

from __future__ import annotations

import json
import math
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
    return install("outside_events")


@pytest.fixture
def events(target, use):
    """The installed package in this process, and data in ``data``."""
    use(target)
    registry.find("samples", "events")(Path("data"))
    return registry.get("events")


@pytest.fixture
def model(events):
    torch.manual_seed(0)
    return build_model(maemm.config.load("events/tiny"))


def batch(model, indices=range(8)) -> dict[str, maemm.Preprocessed]:
    source, modality = registry.find("sources", "events")("data"), model.modalities["events"]
    samples = [modality.load(source.read(index, Rng((0,))).raw["events"], None) for index in indices]
    return {"events": modality.preprocess(modality.collate(samples), None)}


def test_it_is_small(code_lines):
    assert code_lines("outside_events") < 200


def test_it_keeps_all_rules(events):
    slow = ("manifest_is_light", "another_process_reads_the_same")  # processes, seconds each; run for other plugins
    results = [result_of(check) for check in checks_of(events.plugin) if check.name not in slow]
    assert [result.message for result in results if not result.passed] == []
    assert len({result.part for result in results}) == 5 + 1  # its parts, and the manifest


def test_whole_jets_are_hidden_and_one_stays(model):
    x = batch(model, range(16))
    inputs = model.plan(x, Rng((3,), range(16), 16))["events"]
    jets, plan = inputs.tokens.context["jet"], inputs.plan
    assert len({int(row.sum()) for row in inputs.tokens.valid}) > 4  # ragged
    for row in range(16):
        visible = set(jets[row][plan.visible[row][plan.visible_valid[row]]].tolist())
        hidden = set(jets[row][plan.predict[row][plan.predict_valid[row]]].tolist())
        present = set(jets[row][inputs.tokens.valid[row]].tolist())
        assert visible and not visible & hidden and visible | hidden == present
        assert bool(hidden) == (len(present) > 1)


def test_the_baseline_is_the_best_constant(model):
    """Squared errors and cross entropies together: no constant found by descent is better, and its loss is reached."""
    out = model(batch(model, range(32)), rng=Rng((3,), range(32), 32))
    counted, target = out.plans["events"].counted, out.target["events"]

    def mean(loss: torch.Tensor) -> torch.Tensor:
        return (loss * counted).sum() / counted.sum()

    constant = torch.zeros(target.shape[-1], requires_grad=True)
    descent = torch.optim.LBFGS([constant], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        descent.zero_grad()
        loss = mean(model.modalities["events"].loss(constant.expand_as(target), target))
        loss.backward()
        return loss

    descent.step(closure)
    assert float(mean(model.baseline(out, "events"))) == pytest.approx(float(closure().detach()), rel=1e-4)


def test_its_recipe_trains_and_continues(events, capsys):
    assert main(["pretrain", "events/tiny", "data", *RUN, "out=run", "train.epochs=20"]) == 0
    assert main(["pretrain", "events/tiny", "data", *RUN, "out=run", "train.epochs=30"]) == 0
    text = capsys.readouterr().out
    assert "resuming from step 80" in text and "(mean-predictor " in text
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    mean = {key: np.mean([row[key] for row in rows[-20:]]) for key in ("loss", "baseline")}
    assert mean["loss"] < mean["baseline"] < rows[0]["loss"]
    assert list(Path("run/pictures").glob("*.png")) and Path("run/report.html").is_file()
    assert main(["probe", "run", "data", "--folds", "2", "--seeds", "1"]) == 0


def test_broken_files_are_named(events, capsys):
    Path("broken").mkdir()
    np.savez("broken/a.npz", particles=np.ones((5, 7)), counts=[2, 2], y=[0, 1])
    assert main(["pretrain", "events/tiny", "broken", *RUN, "out=run"]) == 2
    error = capsys.readouterr().err
    assert "broken/a.npz" in error and "do not fit 5 particles" in error and len(error.splitlines()) == 1


def test_particles_out_of_range_are_counted(events):
    stored = dict(np.load("data/events.npz"))
    stored["particles"][0, 4] = 9
    np.savez("data/events.npz", **stored)
    assert main(["pretrain", "events/tiny", "data", *RUN, "out=run", "data.max_bad_fraction=0.1"]) == 0
    (bad,) = {line for line in Path("run/bad_samples.jsonl").read_text().splitlines()}
    assert json.loads(bad)["id"] == "events.npz#0" and "types outside 0 to 4" in bad
    assert all(math.isfinite(json.loads(row)["loss"]) for row in Path("run/metrics.jsonl").read_text().splitlines())


def test_joint_training_with_a_bundled_modality_from_a_recipe_alone(events):
    Path("both/events").mkdir(parents=True)
    Path("data/events.npz").rename("both/events/a.npz")
    signal = np.random.default_rng(0).normal(size=(64, 1, 64)).astype(np.float32)
    Path("both/signal").mkdir()
    np.savez("both/signal/a.npz", x=signal)
    run = [*RUN, "out=run", "data.source.parts.signal.root=both/signal/a.npz"]
    assert main(["pretrain", "events/with_signal", "both", *run]) == 0
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 8 and set(rows[0]["terms"]) == {"reconstruct.events", "reconstruct.signal"}
    assert rows[0]["baseline"] > 0 and not Path("run/bad_samples.jsonl").exists()
    model = maemm.load("run")
    assert list(model.modalities) == ["events", "signal"] and model.encoder.kinds.keys() == {"events", "signal"}


def test_an_exported_graph_equals_the_model_on_padded_sets(events, model, capsys):
    maemm.save(model, "events.safetensors")
    assert main(["export", "events.safetensors", "--to", "torch", "-o", "events.pt2"]) == 0
    capsys.readouterr()
    graph = torch.export.load("events.pt2").module()
    model.eval()
    for indices in (range(8), [3], [0, 1, 5]):  # of other sizes than the graph was made with
        x = batch(model, indices)
        valid = x["events"].valid
        expected = model.embed(x)["events"]
        for filling in (0.0, 1e6):
            padded = torch.where(valid[..., None], x["events"].x, filling)
            (features,) = graph(padded, valid)
            assert torch.allclose(features, expected, atol=1e-5)


def test_a_batch_size_that_became_a_number_is_named(events, model, monkeypatch, capsys):
    module = sys.modules[type(model.encoder).__module__]
    forward = module.InducedBlock.forward

    def constant(self, x, padding):
        return forward(self, x, padding) + x.new_zeros(int(x.shape[0]), 1, 1)

    monkeypatch.setattr(module.InducedBlock, "forward", constant)
    maemm.save(model, "events.safetensors")
    assert main(["export", "events.safetensors", "--to", "torch", "-o", "events.pt2"]) == 2
    assert (
        "as int() and range() do; use x.shape[0] as it is" in capsys.readouterr().err
        and not Path("events.pt2").exists()
    )
