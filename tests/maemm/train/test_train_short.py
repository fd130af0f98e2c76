"""Short trials work, what a run leaves out is said, and what it shows never costs what it learns."""

import json

import pytest
import torch

from maemm.contract.errors import MaemmError
from maemm.train.callback import Callback
from maemm.train.loop import train
from maemm.train.schedules import learning_rate, shortened_warmup, warmup_epochs


# -------------------------------------------------------------------------------------------------------- warmup
def rates(steps, per_epoch=4, **settings):
    rate = learning_rate({"lr": 1.0, "warmup_epochs": 5, **settings}, per_epoch, steps)
    return [rate(step) for step in range(steps)]


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 19, 20])
@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_a_warmup_longer_than_the_training_ends_with_it(steps, schedule):
    found = rates(steps, schedule=schedule)
    assert found == pytest.approx([step / max(steps - 1, 1) for step in range(steps)] if steps > 1 else [1.0])
    assert shortened_warmup({"warmup_epochs": 5}, 4, steps)


@pytest.mark.parametrize(
    ("per", "expected"), [("epoch", [0.0, 0.5, 1.0]), ("epoch_before", [0.0, 0.0, 1.0])]
)  # fmt: skip
def test_also_where_the_rate_changes_by_epoch(per, expected):
    found = rates(12, lr_per=per)
    assert found == pytest.approx([rate for rate in expected for _ in range(4)])
    assert rates(4, lr_per=per) == [1.0] * 4  # of one epoch none is spent at 0


def test_a_warmup_that_fits_stays_as_it_is():
    for steps in (21, 400):
        assert warmup_epochs({"warmup_epochs": 5}, 4, steps) == 5.0
        assert shortened_warmup({"warmup_epochs": 5}, 4, steps) is None
    assert shortened_warmup({"warmup_epochs": 0}, 4, 1) is None and shortened_warmup({}, 4, 1) is None


def test_a_schedule_that_ends_within_the_warmup_is_at_its_end():
    found = rates(40, schedule={"type": "cosine", "over": 2, "min_lr": 0.25})
    assert found[20:] == [0.25] * 20 and found[19] == pytest.approx(19 / 20)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"train__epochs": 2, "train__warmup_epochs": 5}, "warmup of 5 epochs (train.warmup_epochs) is shortened to"),
        ({"train__epochs": 2, "train__warmup_epochs": 2}, "this training of 2 (8 steps)"),
        ({"train__epochs": None, "train__steps": 3, "train__warmup_epochs": 40}, "this training of 0.75 (3 steps)"),
    ],
)
def test_a_short_run_says_so_in_a_line_and_learns(toys, overrides, said):
    toys.train(train__lr=1e-2, **overrides)
    assert len([line for line in toys.lines if said in line and "rises until its end" in line]) == 1
    rows = toys.metrics()
    assert rows[-1]["lr"] == 1e-2 and rows[0]["lr"] == 0.0
    toys.train(toys.recipe(toys.out / "long", train__epochs=2, train__warmup_epochs=1))
    assert not any("shortened" in line for line in toys.lines)


# ----------------------------------------------------------------------------------------------- samples left out
MIX = {
    "modalities": {"toy": {"type": "toy"}, "other": {"type": "toy"}},
    "data__source": None,
    "data__mix": {
        "a": {"modalities": ["toy"], "source": {"type": "toy", "samples": 19}},
        "b": {"modalities": ["other"], "source": {"type": "toy", "samples": 33}},
    },
}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({}, None),
        ({"data__source__samples": 71}, "7 samples are left out of each epoch, others each time, as batches are of 16"),
        ({"data__source__samples": 65}, "1 sample is left out of each epoch, others each time, as batches are of 16"),
        ({"data__source__samples": 71, "data__aug_repeats": 2}, "7 samples are left out of each epoch"),
        ({"data__epoch": 40}, "8 samples are left out of each epoch"),
        (MIX, "4 samples are left out of each pass over the data sets"),
    ],
)
def test_what_fills_no_batch_is_said_once(toys, overrides, said):
    toys.train(train__epochs=2, **overrides)
    lines = [line for line in toys.lines if "left out" in line]
    assert len(lines) == (said is not None) and (said is None or lines[0].startswith(said))


# ------------------------------------------------------------------------------------------------ nothing to learn
def masked(ratio, **options):
    return {"modalities__toy__masking": {"type": "random", "ratio": ratio}, **options}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (masked(0.0), "no token is hidden"),
        (masked(0.05, modalities__toy__masking__count="floor_hidden"), "no token is hidden"),
        (masked(0.95), "no token is visible"),
        (masked(0.8, modalities__toy__patch=4), "no token is visible"),
        (masked(0.75, modalities__toy__patch=8), "no token is visible"),
        ({"modalities__toy__masking": {"type": "block", "ratio": 0.0}}, "no token is hidden"),
        ({"modalities__toy__masking": {"type": "inverse_block", "ratio": 0.99}}, "no token is visible"),
        (
            {"modalities__toy__masking": {"type": "multi_mask", "masking": {"type": "random", "ratio": 0.95}}},
            "no token is visible",
        ),
        ({**masked(0.95), "encoder__prefix": 4}, "no token is visible"),
    ],
)
def test_a_masking_that_teaches_nothing_ends_the_run_at_once(toys, overrides, message):
    with pytest.raises(MaemmError, match=message) as caught:
        toys.train(train__epochs=2, **overrides)
    assert "\n" not in str(caught.value) and "; " in str(caught.value)
    assert not (toys.out / "checkpoints").exists()


RECIPES = [
    "image/mae_tiny_cpu",
    "audio/audiomae_tiny_cpu",
    "video/videomae_tiny_cpu",
    "pointcloud/point_mae_tiny_cpu",
    "signal/tiny_cpu",
]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize(("ratio", "message"), [(0.9999, "no token is visible"), (0.0, "no token is hidden")])
def test_in_every_modality(name, ratio, message):
    from maemm import config
    from maemm.contract.rng import Rng
    from maemm.model.build import build_model
    from maemm.model.nothing_to_learn import check_plans

    (modality,) = config.load(name)["modalities"]
    if ratio and modality in ("video", "pointcloud"):  # whose count of hidden tokens is rounded down
        ratio, message = 1.0, "no token of any modality is visible"
    small = {"encoder.dim": 16, "encoder.depth": 1, "encoder.heads": 2, "decoder.dim": 16, "decoder.depth": 1}
    with pytest.raises(MaemmError, match=message):
        model = build_model(config.load(name, {**small, f"modalities.{modality}.masking.ratio": ratio}))
        batch = {modality: model.modalities[modality].example(2, Rng((0,)))}
        inputs = model.plan(batch, Rng((0, 0), range(2), 2))
        check_plans(model, [inputs], model.counts(inputs))


PAIR = {
    "modalities": {"toy": {"type": "toy"}, "other": {"type": "toy"}},
    "encoder": {"type": "streams", "dim": 16, "depth": 1, "joint_depth": 1, "heads": 2, "streams": ["toy", "other"]},
    "decoder__prefix": "none",
    "objectives": {"reconstruct": {}, "contrastive": {"pair": ["toy", "other"], "weight": 1.0}},
}


def test_an_objective_that_gets_nothing_beside_one_that_does(toys):
    ratios = {f"modalities__{name}__masking": {"type": "random", "ratio": 0.0} for name in ("toy", "other")}
    toys.train(**PAIR, **ratios, train__epochs=2)
    said = [line for line in toys.lines if line.startswith("warning:")]
    assert len(said) == 2 and "objective 'reconstruct' has nothing to learn" in said[0]
    assert "parameters get no gradient" in said[1]  # of the joint pass, which the reconstruction alone would need


def test_what_is_only_seen_or_only_predicted_is_no_mistake(toys):
    options = {**PAIR, "objectives": {"reconstruct": {}}, "modalities__toy__masking": {"type": "random", "ratio": 0.0}}
    toys.train(**options, modalities__other__masking={"type": "random", "ratio": 1.0}, train__epochs=2)
    assert not any(line.startswith("warning: objective") or "visible" in line for line in toys.lines)


class Ragged:
    """Plans of a ragged batch by hand: numbers of visible and predicted tokens of each row."""

    masked = True

    def __init__(self, visible, predicted):
        from maemm.contract import Plan
        from maemm.model.objectives.reconstruct import Reconstruct

        def part(counts, start):
            index = torch.arange(4).expand(len(counts), 4)
            return start + index, index < torch.tensor(counts)[:, None]

        (shown, shown_valid), (hidden, hidden_valid) = part(visible, 0), part(predicted, 4)
        self.plan = Plan(shown, hidden, visible_valid=shown_valid, predict_valid=hidden_valid)
        self.objectives = {"reconstruct": Reconstruct("reconstruct")}

    def lines(self):
        from types import SimpleNamespace

        from maemm.model.nothing_to_learn import check_plans

        return check_plans(self, [{"x": SimpleNamespace(plan=self.plan)}], {})


@pytest.mark.parametrize(
    ("visible", "predicted", "said"),
    [
        ([1, 2, 4], [3, 2, 1], []),
        ([1, 0, 4], [3, 2, 1], ["1 of 3 samples of the first batch have no visible token"]),
        ([0, 0, 0], [3, 2, 1], ["no sample of the first batch has a visible token"]),
        ([1, 2, 4], [0, 2, 0], []),
        ([1, 2, 4], [0, 0, 0], ["objective 'reconstruct' has nothing to learn"]),
        ([0, 0, 0], [0, 0, 0], ["no sample of the first batch", "objective 'reconstruct'"]),
    ],
)
def test_ragged_batches_are_warned_of(visible, predicted, said):
    lines = Ragged(visible, predicted).lines()
    assert len(lines) == len(said)
    for line, text in zip(lines, said, strict=True):
        assert line.startswith("warning: ") and text in line and "\n" not in line


def test_a_validation_in_which_nothing_is_compared_is_no_best(toys, monkeypatch):
    """Its loss would be 0: the best that there can be."""
    from maemm.contract import Plan
    from maemm.model.masking.random import Random

    plan = Random.plan

    def hides_in_training_alone(self, name, tokens, rng):
        if "validation" not in rng.key:
            return plan(self, name, tokens, rng)
        index = torch.arange(tokens.count).expand(tokens.batch, -1)
        return Plan(index, index[:, :0])

    monkeypatch.setattr(Random, "plan", hides_in_training_alone)
    toys.train(train__epochs=2, data__validation=0.25, data__source__samples=88)
    rows = [json.loads(line) for line in (toys.out / "metrics.jsonl").read_text().splitlines()]
    assert [row["validation"]["loss"] for row in rows if "validation" in row] == [None, None]
    assert not (toys.out / "best").exists()
    assert sum(line.startswith("warning: the validation after step") for line in toys.lines) == 2


# --------------------------------------------------------------------------------------------------- side products
class Broken(Callback):
    def __init__(self, where, error):
        self.where, self.error = where, error

    def fail(self, where):
        if self.where == where:
            raise self.error

    def begin(self, *arguments):
        self.fail("begin")

    def draw_pictures(self, step):
        self.fail("draw")

    def finish(self):
        self.fail("finish")


ERRORS = [ValueError("nan"), MemoryError(), SystemExit(3), RuntimeError("CUDA out of memory"), MaemmError("no; do")]


@pytest.mark.parametrize("where", ["begin", "draw", "finish"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_pictures_and_report_never_end_a_run(toys, where, error):
    lines = []
    recipe = toys.recipe(train__epochs=None, train__steps=3, train__warmup_epochs=0, train__picture_every=1)
    train(recipe, echo=lines.append, callback=Broken(where, error))
    said = [line for line in lines if line.startswith("no ")]
    assert len(said) == (3 if where == "draw" else 1) and any("Finished 3 steps" in line for line in lines)
    assert (toys.out / "checkpoints/step-000003").is_dir()


def test_a_diverged_run_ends_with_its_report(toys):
    toys.train(train__epochs=2, train__lr=1e30, train__warmup_epochs=0, train__max_nonfinite=1000)
    assert any(line.startswith("Finished 8 steps") for line in toys.lines)
