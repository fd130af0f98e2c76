"""Monitors: what they measure, that training does not notice them, that a resumed run says the same."""

import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch

from maemm.contract import Plan
from maemm.contract.errors import MaemmError
from maemm.contract.rng import seeded
from maemm.model.masking.random import Random
from maemm.model.measures import mean_cosine, spectrum
from maemm.model.probes import neighbour_votes, ridge_scores, two_halves
from maemm.train import monitor as monitors
from maemm.train.signals import Interrupted

HARD = {  # everything that could carry hidden state from one step to the next
    "encoder__drop_path": 0.3,
    "modalities__toy__norm": True,
    "train__micro_batch": 8,
    "train__clip_grad": 1.0,
    "train__epochs": 4,
    "train__save_every": 3,
}
WATCHED = {"train__monitor": {"every": 4, "samples": 16}}


def rows(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def steady(out):
    """What time does not change."""
    return [
        {key: row.get(key) for key in ("step", "loss", "grad_norm", "lr", "baseline", "monitor", "alarms")}
        for row in rows(out)
    ]


def same_weights(toys, first, second):
    ours, theirs = toys.weights(first), toys.weights(second)
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def figures_of(model, source, recipe):
    from maemm.train.distributed import DistContext
    from maemm.train.measuring import measure

    return measure(model, source, recipe, ranks=DistContext())


def built(recipe):
    from maemm.data.open import open_parts
    from maemm.model.build import build_model

    with seeded(1):
        return build_model(recipe).train(), open_parts(recipe)[0]


# ------------------------------------------------------------------------------------------------- what is measured
def test_figures_are_those_of_the_features(toys):
    recipe = toys.recipe(data__source={"type": "toy", "samples": 20}, train__batch=8)
    model, source = built(recipe)
    source.label = lambda index: index % 2
    read = source.read
    source.read = lambda index, rng: replace(read(index, rng), label=index % 2)
    figures = figures_of(model, source, recipe)
    assert model.training
    model.eval()
    loaded = [model.modalities["toy"].load(source.read(index, None).raw["toy"], None)["x"] for index in range(20)]
    with torch.no_grad():
        x = model.embed({"toy": torch.stack(loaded)})["toy"].numpy()
    assert figures["toy.effective_rank"] == pytest.approx(spectrum(x).effective_rank, rel=1e-4)
    assert figures["toy.variance"] == pytest.approx(x.var(0).mean(), rel=1e-4)
    assert figures["toy.cosine"] == pytest.approx(mean_cosine(x), rel=1e-4)
    hot = np.eye(2)[np.arange(20) % 2]
    assert figures["toy.knn"] == two_halves(x, hot, neighbour_votes)
    assert figures["toy.ridge"] == two_halves(x, hot, ridge_scores)
    assert figures["relative_loss"] == pytest.approx(figures["loss"] / figures["baseline"])
    pixels = torch.stack(loaded)
    assert figures["toy.input_mean"] == pytest.approx(float(pixels.mean()), abs=1e-5)
    assert figures["toy.input_std"] == pytest.approx(float(pixels.std(correction=0)), rel=1e-4)
    assert figures["toy.leak"] == 0.0 and figures["toy.different"] == 1.0 and figures["toy.constant_channels"] == 0.0
    again = figures_of(model, source, recipe)
    assert again == figures  # not even rounding differs


def test_figures_without_labels_or_without_a_mask(toys):
    recipe = toys.recipe()
    figures = figures_of(*built(recipe), recipe)
    assert not any(name.endswith(("knn", "ridge")) for name in figures)
    classifier = toys.recipe(
        decoder=None, objectives={"classify": {}}, head={"type": "linear", "classes": 3}, modalities={"toy": {}}
    )
    model, source = built(classifier)
    read = source.read
    source.read = lambda index, rng: replace(read(index, rng), label=index % 3)
    figures = figures_of(model, source, classifier)
    assert {"loss", "toy.effective_rank", "toy.knn"} <= figures.keys() and "toy.leak" not in figures


def test_samples_that_lack_modalities_and_mixtures_are_measured(toys):
    names = {"toy": {"type": "toy"}, "other": {"type": "toy"}}
    lacks = toys.recipe(
        modalities=names,
        data__missing="allow",
        data__source={"type": "toy", "samples": 24, "lacks": {"other": [*range(0, 24, 3)], "toy": [1]}},
    )
    figures = figures_of(*built(lacks), lacks)
    assert all(np.isfinite(value) for value in figures.values())
    toys.train(
        modalities=names,
        data__source=None,
        data__mix={
            "one": {"modalities": ["toy"], "source": {"type": "toy", "samples": 32}},
            "two": {"modalities": ["other"], "source": {"type": "toy", "samples": 32, "salt": 1}},
        },
        train__epochs=1,
        **WATCHED,
    )
    measured = [row["monitor"] for row in rows(toys.out) if "monitor" in row]
    assert measured and all({"toy.effective_rank", "other.effective_rank"} <= figures.keys() for figures in measured)


@pytest.mark.parametrize("classes", [False, True])
def test_variance_of_targets(classes):
    """Also of classes, whose numbers are no values; tokens that are not counted are left out, batches add up."""
    from maemm.contract import Output
    from maemm.model.targets.codes import Codes
    from maemm.train import measuring

    rng = np.random.default_rng(0)
    values = rng.integers(5, size=(6, 4, 1)).astype(np.float32) * (1 if classes else 1000.0)
    counted = (rng.random((6, 4)) < 0.7).astype(np.float32)
    index = torch.arange(4).expand(3, -1)
    parts = []
    for rows in (slice(0, 3), slice(3, 6)):
        plan = Plan(index[:, :0], index, counted=torch.from_numpy(counted[rows]))
        target = torch.from_numpy(values[rows])
        out = Output({"x": plan}, {}, {"x": torch.zeros(3, 4, 2)}, {"x": target}, {}, {}, {})
        model = type("", (), {"targets": {"x": Codes(["x"], 8, vocab=5)} if classes else {}})
        blank = {"count": torch.ones(3, 1), "mean": torch.zeros(3, 1), "squares": torch.ones(3, 1)}
        stamp = {"stamp": torch.zeros(3, 2), "spread": measuring._spread(out, "x")}
        parts.append(measuring._of_targets(model, out, "x") | blank | stamp)
    seen = values[counted > 0][:, 0]
    shares = np.bincount(seen.astype(int)) / len(seen) if classes else None
    expected = 1 - (shares**2).sum() if classes else seen.var()
    assert measuring._of_statistics(parts)["target_variance"] == pytest.approx(expected, rel=1e-5)


def test_inputs_of_any_layout():
    """Channels in front, behind, or none; what is padded or missing is in no figure; batches may differ in length."""
    from maemm.contract import Preprocessed
    from maemm.train import measuring

    def figures(batches, channels, grid):
        modality = type(
            "", (), {"by_channel": lambda self, x: None if channels is None else torch.zeros(channels, 1)}
        )()
        tokens = type("", (), {"grid": grid})()
        inputs = type("", (), {"tokens": tokens})()
        return measuring._of_channels([measuring._of_input(modality, x, inputs) for x in batches])

    rng = torch.Generator().manual_seed(0)
    picture = torch.randn(4, 3, 5, 5, generator=rng)
    picture[:, 1] = 0.3
    assert figures([Preprocessed(picture)], 3, (1, 1))["constant_channels"] == 1
    valid = torch.ones(4, 5, 5, dtype=torch.bool)
    valid[:, 3:] = False
    padded = figures([Preprocessed(picture.masked_fill(~valid[:, None], 99.0), valid)], 3, (1, 1))
    assert padded["input_mean"] == pytest.approx(float(picture[:, :, :3].mean()), abs=1e-5)
    points = torch.randn(4, 7, 3, generator=rng)
    points[..., 2] = 0.0
    all_there = Preprocessed(points, torch.ones(4, 7, dtype=torch.bool))
    assert figures([Preprocessed(points)], None, None) == figures([all_there], None, None)
    assert figures([Preprocessed(points)], None, None)["constant_channels"] == 1
    sounds = [
        Preprocessed(torch.randn(2, length, 6, generator=rng), torch.ones(2, length, dtype=torch.bool))
        for length in (8, 4)
    ]
    assert figures(sounds, 1, (2, 2))["channels"] == 1
    assert figures([Preprocessed(x.x) for x in sounds], 2, (2, 2)) == {}  # no layout that can be told
    assert figures([Preprocessed(torch.randn(4, 9, generator=rng))], None, None)["channels"] == 1


def test_probes_against_scikit_learn():
    from sklearn.linear_model import Ridge

    rng = np.random.default_rng(0)
    for samples, width in ((40, 6), (10, 30)):
        x, queries = rng.normal(size=(samples, width)), rng.normal(size=(7, width))
        labels = np.eye(3)[rng.integers(3, size=samples)]
        fitted = Ridge(alpha=samples).fit(x, labels)
        np.testing.assert_allclose(ridge_scores(x, labels, queries), fitted.predict(queries), atol=1e-8)
    assert two_halves(x[:6], labels[:6], ridge_scores) is None  # too few
    assert two_halves(x, np.eye(3)[np.zeros(10, int)], ridge_scores) is None  # a single class
    several = np.stack([np.arange(40) % 2, np.ones(40), np.zeros(40)], 1)
    separable = np.stack([np.arange(40) % 2, rng.normal(size=40)], 1)
    assert two_halves(separable, several, ridge_scores) == 1.0  # mAP, but for the class that nobody has


def test_mean_cosine():
    x = np.random.default_rng(0).normal(size=(9, 4))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    assert mean_cosine(x) == pytest.approx((unit @ unit.T)[np.triu_indices(9, 1)].mean())
    assert mean_cosine(np.ones((3, 2))) == pytest.approx(1.0) and np.isnan(mean_cosine(np.zeros((3, 2))))


# ---------------------------------------------------------------------------------------------------- in a run
def test_training_does_not_notice(toys):
    plain = toys.train(toys.recipe(toys.out / "plain", **HARD))
    watched = toys.train(toys.recipe(toys.out / "watched", **HARD, **WATCHED))
    assert toys.metrics(plain) == toys.metrics(watched)
    same_weights(toys, plain, watched)
    assert [row["step"] for row in rows(watched) if "monitor" in row] == [4, 8, 12, 16]
    assert not any("monitor" in row or "alarms" in row for row in rows(plain))


def test_killed_between_and_during_measurements_it_says_the_same(toys, monkeypatch):
    recipe = {**HARD, **WATCHED, "modalities__toy__position": "none"}  # an alarm at the first measurement
    whole = toys.train(toys.recipe(toys.out / "whole", **recipe))
    assert [alarm["cause"] for row in rows(whole) for alarm in row.get("alarms", [])] == ["no_positions"]
    broken, original = toys.recipe(toys.out / "broken", **recipe), monitors.Monitor._figures
    ends = {0: RuntimeError("killed"), 4: signal.SIGTERM, 8: RuntimeError("killed"), 12: RuntimeError("killed")}

    def figures(self, step):
        end = ends.pop(step, None)
        if isinstance(end, Exception):
            raise end
        if end is not None:
            os.kill(os.getpid(), end)
        return original(self, step)

    monkeypatch.setattr(monitors.Monitor, "_figures", figures)
    for expected in (RuntimeError, Interrupted, RuntimeError, RuntimeError):
        with pytest.raises(expected):
            toys.train(broken)
    toys.train(broken)
    assert not ends
    assert steady(toys.out / "broken") == steady(whole)
    same_weights(toys, whole, toys.out / "broken")


def test_two_processes_measure_as_one(toys):
    recipe = {"train__optimizer": "sgd", "train__lr": 0.02, "train__epochs": 2, "train__batch": 4, **WATCHED}
    one = toys.train(toys.recipe(toys.out / "one", **recipe))
    pair = toys.start(toys.recipe(toys.out / "two", **recipe), 2)
    assert [process.wait() for process in pair] == [0, 0], pair[0].said()
    for first, second in zip(rows(one), rows(toys.out / "two"), strict=True):
        assert first.get("alarms") == second.get("alarms")
        assert first.get("monitor", {}) == pytest.approx(second.get("monitor", {}), rel=1e-3, abs=1e-5)


def test_which_samples(toys):
    held = toys.recipe(data__validation=0.5, train__monitor={"samples": 16})
    from maemm.data.open import open_parts

    source, held_out = open_parts(held)
    chosen = monitors._samples(held, held["train"]["monitor"], source, held_out)
    assert len(chosen) == 16 and {chosen.name(i) for i in range(16)} <= {held_out.name(i) for i in range(32)}
    chosen = monitors._samples(held, held["train"]["monitor"], source, None)
    assert {chosen.name(i) for i in range(16)} <= {source.name(i) for i in range(32)}
    other = toys.recipe(train__monitor={"data": "elsewhere", "samples": 99})
    assert len(monitors._samples(other, other["train"]["monitor"], source, held_out)) == 64


def test_an_alarm_in_log_console_page_and_at_the_end(toys):
    toys.train(train__epochs=2, modalities__toy__position="none", train__tensorboard=False, **WATCHED)
    (line,) = (line for line in toys.lines if line.startswith("alarm"))
    assert line.startswith("alarm after step 4: predictions do not differ between places (toy: ")
    assert any("  rank " in line for line in toys.lines)
    page = (toys.out / "report.html").read_text()
    assert "Step 4: predictions do not differ between places" in page
    assert "Measured on the same samples" in page and "effective rank" in page


def test_a_run_that_stops_at_an_alarm(toys):
    options = {"train__epochs": 2, "modalities__toy__position": "none"}
    recipe = toys.recipe(**options, train__monitor={"every": 4, "samples": 16, "stop_on_alarm": True})
    for _ in range(2):  # the same command again says the same, and trains nothing
        with pytest.raises(MaemmError, match=r"^stopped at step 4 \(train.monitor.stop_on_alarm\), saved to \S+step-0"):
            toys.train(recipe)
    assert [row["step"] for row in rows(toys.out)] == [1, 2, 3, 4]
    toys.train(**options, train__monitor={"every": 4, "samples": 16})
    assert rows(toys.out)[-1]["step"] == 8
    assert sum(bool(row.get("alarms")) for row in rows(toys.out)) == 1


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"every": 0}, r"train\.monitor\.every must be .*got 0"),
        ({"evry": 5}, r"unknown key 'train\.monitor\.evry'.*did you mean 'train\.monitor\.every'"),
        ({"samples": 3}, r"train\.monitor\.samples must be .*got 3"),
        (True, r"train\.monitor must be .*got true"),
    ],
)
def test_keys_are_checked(toys, value, message):
    with pytest.raises(MaemmError, match=message):
        toys.recipe(train__monitor=value)


def test_a_monitor_may_come_and_go(toys):
    """Nothing of the training depends on it: a run goes on with another one, or without."""
    toys.train(train__epochs=1, **WATCHED)
    toys.train(train__epochs=2)
    toys.train(train__epochs=3, train__monitor={"every": 2, "samples": 32})
    assert [row["step"] for row in rows(toys.out) if "monitor" in row] == [4, 10, 12]


# ------------------------------------------------------------------------------------------------------- faults
def test_a_mask_that_leaks_is_named(toys, monkeypatch):
    original = Random.__call__

    def leaking(self, tokens, *rest):
        plans = original(self, tokens, *rest)
        every = {name: tokens[name].all_indices() for name in plans}
        return {
            name: Plan(plan.visible, every[name], counted=torch.ones(every[name].shape)) for name, plan in plans.items()
        }

    monkeypatch.setattr(Random, "__call__", leaking)
    toys.train(train__epochs=1, **WATCHED)
    assert any("the encoder sees what it has to predict" in line for line in toys.lines)


@pytest.mark.parametrize("everywhere", [True, False])
def test_tokens_that_are_shown_and_predicted_on_purpose_are_no_leak(toys, everywhere):
    masking = {"type": "predict_all", "masking": {"type": "random", "ratio": 0.5}}
    of_all = {"masking": masking, "modalities": {"toy": {}}}
    recipe = toys.recipe(**(of_all if everywhere else {"modalities__toy__masking": masking}))
    model, source = built(recipe)
    assert figures_of(model, source, recipe)["toy.leak"] == 0.0
    monkey, embed = model.modalities["toy"], type(model.modalities["toy"]).embed
    monkey.embed = lambda tokens, index: embed(  # hidden tokens still may not be seen
        monkey, replace(tokens, values=tokens.values + tokens.values.mean(1, keepdim=True)), index
    )
    assert figures_of(model, source, recipe)["toy.leak"] > 1e-3


def test_copies_are_named(toys, monkeypatch):
    from maemm_plugins.toy_plugin.parts import Toys

    read = Toys.read
    monkeypatch.setattr(Toys, "read", lambda self, index, rng: replace(read(self, 3, rng), id=self.name(index)))
    toys.train(train__epochs=1, **WATCHED)
    (line,) = (line for line in toys.lines if line.startswith("alarm"))
    assert "copies of each other (toy: 6% of the samples differ); likely a source" in line
