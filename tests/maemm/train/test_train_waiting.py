"""Ranks that wait for one of them: validation is dealt out, and what rank 0 does alone may take its time."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import time
from pathlib import Path

import pytest
import torch

PLUGIN = Path(__file__).parents[2] / "toy_plugin"
PAIR = {
    "modalities": {"toy": {"type": "toy"}, "other": {"type": "toy"}},
    "encoder": {"type": "streams", "dim": 16, "depth": 1, "joint_depth": 1, "heads": 2, "streams": ["toy", "other"]},
    "decoder__prefix": "none",
    "objectives": {"reconstruct": {}, "contrastive": {"pair": ["toy", "other"], "weight": 1.0, "both": True}},
    "train__optimizer": "sgd",
    "train__lr": 0.02,
}
MIXTURE = {
    "modalities": PAIR["modalities"],
    "data__source": None,
    "data__mix": {
        "first": {"modalities": ["toy"], "source": {"type": "toy", "samples": 9}},
        "second": {"modalities": ["other"], "source": {"type": "toy", "samples": 21, "bad": [3]}},
    },
}
CLASSIFIER = {"decoder": None, "head": {"type": "linear", "classes": 3}, "objectives": {"classify": {}}}


def in_processes(count, target, *arguments, timeout=120):
    """Exit codes of ``target(*arguments)`` on each of ``count`` ranks."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    shared["MAEMM_PLUGIN_PATH"] = str(PLUGIN)
    context = multiprocessing.get_context("forkserver")
    ranks = [
        context.Process(target=target, args=({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, *arguments))
        for rank in range(count)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(timeout)
    codes = [rank.exitcode for rank in ranks]
    for rank in ranks:
        rank.kill()
    return codes


# ----------------------------------------------------------------------------------------------------- validation
def metrics_of(recipe, dist_context):
    """The metrics of a validation with fresh weights."""
    from maemm.contract.rng import seeded
    from maemm.data.open import open_parts
    from maemm.model.build import build_model
    from maemm.train.validation import validate

    with seeded(1):
        model = build_model(recipe)
    source = open_parts(recipe)[0]
    if recipe["objectives"].get("classify"):
        source.label = lambda index: index % 3
        read = source.read
        source.read = lambda index, rng: _labelled(read(index, rng), index)
    return validate(model, source, recipe, dist_context=dist_context)


def _labelled(sample, index):
    from dataclasses import replace

    return replace(sample, label=index % 3)


def validate_on_rank(environment, recipes, folder):
    os.environ.update(environment)
    torch.set_num_threads(1)
    from maemm.train.distributed import start

    with start() as dist_context:
        answers = {name: metrics_of(recipe, dist_context) for name, recipe in recipes.items()}
        Path(folder, f"rank{dist_context.rank}.json").write_text(json.dumps(answers))


def test_a_validation_is_dealt_out_and_equals_that_of_one_rank(toys, tmp_path):
    """The same bits: also where samples, or batches, are not divisible by ranks, and where samples are compared."""
    from maemm.train.distributed import DistContext

    def case(samples, batch=4, **overrides):
        source = {"type": "toy", "samples": samples, **overrides.pop("source", {})}
        return toys.recipe(**{"data__source": source, "train__batch": batch, **overrides})

    recipes = {
        "even": case(16),
        "samples left over": case(23),
        "a batch left over": case(20),
        "fewer batches than ranks": case(3),
        "one sample": case(1, batch=1),
        "unreadable": case(23, source={"bad": [0, 1, 2, 3, 9]}),
        "not finite": case(12, source={"nan": [5]}),
        "pairs": case(22, **PAIR),
        "classes": case(23, **CLASSIFIER),
        "a batch norm": case(23, modalities__toy__norm=True),
        "a mixture": case(0, **MIXTURE),
    }
    expected = {name: metrics_of(recipe, DistContext()) for name, recipe in recipes.items()}
    assert in_processes(3, validate_on_rank, recipes, str(tmp_path)) == [0, 0, 0]
    for rank in range(3):
        answers = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert json.dumps(answers) == json.dumps(expected)  # NaN equals NaN here
    assert expected["unreadable"]["unreadable_samples"] == 5 and "accuracy" in expected["classes"]


def test_a_run_of_two_ranks_validates_pairs(toys):
    """What compares samples over ranks in training compares those of a batch in validation, as with one rank."""
    options = {**PAIR, "data__validation": 0.25, "train__epochs": 2, "data__source__samples": 88, "train__batch": 16}
    one = toys.train(toys.recipe(toys.out / "one", **options))
    ranks = toys.start(toys.recipe(toys.out / "two", **options), processes=2)
    assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].said() + ranks[1].said()
    rows, others = (
        [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        for out in (one, toys.out / "two")
    )
    losses = [[row["validation"]["loss"] for row in each if "validation" in row] for each in (rows, others)]
    assert len(losses[0]) == 2 and losses[0] == pytest.approx(losses[1], rel=1e-3)


# --------------------------------------------------------------------------------------- what rank 0 does alone
def train_slowly(environment, recipe, group_timeout_s, alone_s, folder):
    """Train with a callback that takes its time on rank 0; what is said goes to a file."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    from maemm.contract.errors import MaemmError
    from maemm.train import distributed, loop

    class Slow(loop.Callback):
        def draw_pictures(self, step):
            time.sleep(alone_s)

    start = distributed.start
    distributed.start = lambda seconds: start(seconds, timeout_s=group_timeout_s)
    with Path(folder, f"rank{environment['RANK']}.log").open("w", buffering=1) as said:
        try:
            loop.train(recipe, echo=lambda line: print(line, file=said), callback=Slow())
        except MaemmError as error:
            print("maemm: error:", error, file=said)
            raise SystemExit(2) from None


def test_rank_0_may_work_longer_than_a_step_may_take(toys, tmp_path):
    recipe = toys.recipe(train__steps=1, train__epochs=None, train__warmup_epochs=0, train__rank_timeout=60.0)
    codes = in_processes(2, train_slowly, recipe, 1.5, 3.0, str(tmp_path))
    assert codes == [0, 0], [path.read_text() for path in tmp_path.glob("*.log")]
    assert "Finished 1 steps" in (tmp_path / "rank0.log").read_text()


def test_who_waits_too_long_says_for_what(toys, tmp_path):
    recipe = toys.recipe(train__steps=1, train__epochs=None, train__warmup_epochs=0, train__rank_timeout=1.5)
    codes = in_processes(2, train_slowly, recipe, 60.0, 4.0, str(tmp_path))
    said = (tmp_path / "rank1.log").read_text().strip()
    assert codes == [2, 2]
    assert said == (
        "maemm: error: rank 0 did not answer for 1.5 s: it works on something alone, or hangs "
        "(train.rank_timeout); look at its log, or raise it"
    )


def test_the_timeout_may_change_in_a_run(toys):
    toys.train(train__epochs=2)
    toys.train(train__epochs=3, train__rank_timeout=5.0)
    assert "resuming from step 8" in toys.lines


# ------------------------------------------------------------------------------------ validations that say nothing
@pytest.fixture
def validations(monkeypatch):
    """``validations(metrics, ...)``: what the validations of the next run measure, one after the other."""

    def prepare(*metrics):
        left = list(metrics)
        monkeypatch.setattr("maemm.train.validation.validate", lambda *a, **o: dict(left.pop(0)))

    return prepare


NAN, INF = float("nan"), float("inf")
VALIDATED = {"data__validation": 0.25, "data__source__samples": 88, "train__epochs": 4}


@pytest.mark.parametrize(
    ("measured", "best_step"),
    [
        ([{"loss": NAN}, {"loss": 2.0}, {"loss": 1.0}, {"loss": NAN}], 12),
        ([{"loss": NAN}, {"loss": INF}, {"loss": 1.0}, {"loss": 2.0}], 12),
        ([{"loss": -INF}, {"loss": 3.0}, {"loss": 4.0}, {"loss": 5.0}], 8),
        ([{"loss": NAN, "accuracy": 0.9}, {"loss": 1.0, "accuracy": 0.5}] + [{"loss": 1.0, "accuracy": 0.2}] * 2, 8),
        ([{"loss": 1, "mAP": NAN}, {"loss": 1, "mAP": 0.1}, {"loss": 1, "mAP": 0.2}, {"loss": NAN, "mAP": 1.0}], 12),
        ([{"loss": NAN}] * 4, None),
    ],
)  # fmt: skip
def test_a_validation_that_is_not_finite_is_never_the_best(toys, validations, measured, best_step):
    validations(*measured)
    toys.train(**VALIDATED)
    best = toys.out / "best/meta.json"
    assert (json.loads(best.read_text())["step"] if best.exists() else None) == best_step
    bad = [step for step, metrics in zip((4, 8, 12, 16), measured, strict=True) if not _finite(metrics)]
    said = [line for line in toys.lines if line.startswith("warning: the validation after step")]
    assert [int(line.split("step ")[1].split(" ")[0]) for line in said] == bad


def _finite(metrics):
    return all(abs(value) < INF for value in metrics.values())


def test_patience_counts_from_the_first_finite_validation(toys, validations):
    """A NaN is no improvement, and no reason not to see later ones."""
    validations({"loss": NAN}, {"loss": 3.0}, {"loss": 2.0}, {"loss": 1.0})
    toys.train(**VALIDATED, train__patience=2)
    assert any(line.startswith("Finished 16 steps") for line in toys.lines)
    validations({"loss": 3.0}, {"loss": NAN}, {"loss": NAN})
    toys.train(toys.recipe(toys.out / "other", **VALIDATED, train__patience=2))
    assert any(line.startswith("Finished 12 steps") for line in toys.lines)


def test_a_run_whose_best_was_nan_continues_with_a_number(toys, validations):
    """A state of an older version."""
    from maemm.train.validation import Validator

    validator = Validator({"train": {}}, None, 1, toys.out, print)
    validator.load_state_dict({"best": NAN, "without_improvement": 3, "best_text": "; best validation loss nan"})
    assert validator.best_score is None and validator._improves({"loss": 5.0})


def test_a_diverged_run_validates_to_nan_and_keeps_no_best(toys):
    """The real thing: weights that are not finite."""
    toys.train(**VALIDATED, train__lr=1e30, train__warmup_epochs=0, train__max_nonfinite=1000)
    rows = [json.loads(line) for line in (toys.out / "metrics.jsonl").read_text().splitlines()]
    assert all(row["validation"]["loss"] is None for row in rows if "validation" in row)
    assert not (toys.out / "best").exists()
