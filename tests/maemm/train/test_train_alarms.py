"""The rules of the alarm on made-up courses: each speaks of its own fault, just past its threshold, and of no other."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from maemm.train.alarm_rules import Course, Setting
from maemm.train.alarms import RULES, alarms_of

DOCS = Path(__file__).parents[3] / "docs" / "monitors.md"
SETTING = Setting(steps=300, warmup=40, clip=None, masked=True, samples=64, adaptive=True, trained_encoder=1.0)
START = {
    "relative_loss": 1.5,
    "weights": 0.065,
    "weight_decay": 0.05,
    "image.effective_rank": 22.0,
    "image.variance": 0.08,
    "image.cosine": 0.9,
    "image.target_variance": 0.99,
    "image.target_mean_square": 0.003,
    "image.prediction_spread": 0.8,
    "image.leak": 0.0,
    "image.input_mean": 0.35,
    "image.input_std": 0.66,
    "image.constant_channels": 0.0,
    "image.channels": 3.0,
    "image.different": 1.0,
}
ROW = {
    **START,
    "step": 100,
    "lr": 1.5e-3,
    "grad_norm": 0.5,
    "train_loss": 0.7,
    "train_baseline": 0.97,
    "nonfinite_steps": 0,
    "relative_loss": 0.72,
    "image.effective_rank": 9.0,
    "image.variance": 0.3,
    "image.prediction_spread": 0.04,
    "repeated_batches": 0.0,
}
# {cause: (what differs from a healthy course, where it is just not enough)}: of the setting, the start and the rows.
CASES = {
    "same_samples": ({"image.different": 0.45}, {"image.different": 0.5}),
    "same_batch": ({"repeated_batches": 0.5}, {"repeated_batches": 0.4}),
    "constant_channel": ({"image.constant_channels": 1.0}, {"image.constant_channels": 3.0}),
    "input_scale": ({"image.input_std": 0.04, "image.input_mean": 0.0}, {"image.input_mean": 3.0}),
    "leak": ({"image.leak": 2e-4}, {"image.leak": 1e-6}),
    "constant_target": (
        {"start image.target_variance": 0.0, "image.target_variance": 0.0},
        {"start image.target_variance": 1e-3, "image.target_variance": 1e-3, "image.variance": 0.3},
    ),
    "target_scale": (
        {"image.target_variance": 101.0, "start image.target_variance": 90.0},
        {"image.target_variance": 24.0},
    ),
    "no_positions": (
        {"start image.prediction_spread": 1e-8, "image.prediction_spread": 1e-8},
        {"start image.prediction_spread": 1e-3, "image.prediction_spread": 1e-8},
    ),
    "frozen_encoder": ({"setting trained_encoder": 0.05}, {"setting trained_encoder": 0.0, "setting freezes": True}),
    "skipped_steps": ({"nonfinite_steps": 6}, {"nonfinite_steps": 5}),
    "clipping": ({"setting clip": 0.004}, {"setting clip": 0.006}),
    "ema_momentum": (
        {"momentum": 0.4, "image.target_variance": 0.4},
        {"momentum": 0.6, "image.target_variance": 0.4},
    ),
    "weight_decay": (
        {"weights": 0.02, "weight_decay": 10.0},
        {"weights": 0.02, "weight_decay": 1.0},
    ),
    "learning_rate": ({"lr": 0.0066, "relative_loss": 0.99}, {"lr": 0.0064, "relative_loss": 0.99}),
    "collapse": ({"image.effective_rank": 1.4, "image.variance": 0.09}, {"image.effective_rank": 1.6}),
}


def course(changes, rows=2, step=100):
    """A healthy course, but for the changes."""
    setting = replace(SETTING, **{key.split()[1]: x for key, x in changes.items() if key.startswith("setting ")})
    start = START | {key.split()[1]: x for key, x in changes.items() if key.startswith("start ")}
    row = ROW | {key: x for key, x in changes.items() if " " not in key}
    return Course(setting, start, [row | {"step": step - 50 * number} for number in reversed(range(rows))])


def causes(seen):
    return [alarm.cause for alarm in alarms_of(seen)]


def test_every_rule_is_tried():
    assert [rule.cause for rule in RULES] == [*CASES]
    assert alarms_of(course({})) == []


@pytest.mark.parametrize("cause", CASES)
def test_a_rule_speaks_of_its_own_fault(cause):
    fault, almost = CASES[cause]
    assert causes(course(fault)) == [cause]
    assert causes(course(almost)) == []
    (alarm,) = alarms_of(course(fault))
    what, likely, todo = alarm.text.split("; ")
    assert what.endswith(")") and "(" in what and likely.startswith("likely ") and todo and "\n" not in alarm.text
    assert alarms_of(course(fault), without={cause}) == []  # once in a run


@pytest.mark.parametrize("cause", CASES)
def test_figures_that_are_missing_or_not_finite_are_no_evidence(cause):
    fault, _ = CASES[cause]
    setting = {key: x for key, x in fault.items() if key.startswith("setting ")}
    bare = course(setting)
    nothing = Course(bare.setting, {}, [{"step": 50}, {"step": 100}])
    assert set(causes(nothing)) <= {"frozen_encoder"}
    odd = [{key: math.nan if isinstance(x, float) else x for key, x in row.items()} for row in bare.rows]
    assert set(causes(Course(bare.setting, START, odd))) <= {"frozen_encoder"}


def test_a_general_cause_waits_for_those_that_say_more():
    gone = {"image.target_variance": 0.09}
    assert causes(course(gone)) == ["collapse"]
    assert causes(course(gone, rows=1)) == []  # seen once, it may be the beginning
    assert causes(course({"image.variance": 1e-6})) == []  # as of clouds at 50 steps
    assert causes(course({**gone, "momentum": 0.0})) == ["ema_momentum"]
    assert alarms_of(course(gone), without={"learning_rate"}) == []


def test_a_high_learning_rate_needs_a_symptom_after_the_warmup():
    fast = {"lr": 0.02, "image.effective_rank": 9.0}
    assert causes(course(fast)) == ["learning_rate"]
    assert causes(course({**fast, "image.effective_rank": 12.0})) == []
    assert causes(course({**fast, "setting adaptive": False})) == []
    assert causes(course({**fast, "setting warmup": 100})) == []


def test_the_table_of_causes_is_documented():
    text = DOCS.read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip(" `") for line in text.splitlines() if line.startswith("| `")]
    assert rows[-len(RULES) :] == [rule.cause for rule in RULES]
    assert all(rule.evidence.__doc__ for rule in RULES)
