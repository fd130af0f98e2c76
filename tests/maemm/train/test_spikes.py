"""The guard against loss spikes: what is one, what a skipped step leaves behind, and going back behind its samples."""

import math
import re
import shutil

import pytest
import torch

from maemm.contract.errors import MaemmError
from maemm.data.order import permutation
from maemm.train.restore import Unusable
from maemm.train.spikes import Guard, Spikes, is_state

OPTIONS = {"action": "skip", "factor": 6.0, "window": 8, "most_in_a_row": 3, "most_rewinds": 5}
CALM = [1.0, 1.02, 0.99, 1.01, 0.98]


def judged(losses, guard=None, **options):
    """(guard, [spike or not], [new level or not]); a loss that is not finite counts as a bad step."""
    guard = guard or Guard(OPTIONS | options, torch.device("cpu"))
    verdicts = [guard.judge(torch.tensor(x), torch.tensor(not math.isfinite(x))) for x in losses]
    return guard, [bool(v.spike) for v in verdicts], [bool(v.new_level) for v in verdicts]


# --------------------------------------------------------------------------------------------- what is a spike
def test_a_jump_is_one_and_noise_is_not():
    _, spikes, levels = judged([*CALM, 5.0, 1.03, 0.97, 1.4])
    assert spikes == [False] * 5 + [True, False, False, True] and not any(levels)


def test_half_a_window_is_needed_first():
    assert judged([1.0, 1.0, 1.0, 50.0])[1] == [False] * 4
    assert judged([1.0, 1.0, 1.0, 1.0, 50.0])[1][-1]


def test_losses_that_fall_are_none():
    assert not any(judged([10 * 0.9**k for k in range(60)])[1])


def test_quiet_losses_may_move_by_a_few_percent():
    assert judged([1.0] * 8 + [1.05, 1.07])[1][-2:] == [False, True]
    assert judged([-1.0] * 8 + [-0.95, -0.9])[1][-2:] == [False, True]  # of a loss below 0 too


def test_what_is_skipped_or_not_finite_is_not_compared_with():
    plain, _, _ = judged(CALM)
    other, spikes, _ = judged([*CALM[:4], 9.0, math.nan, math.inf, *CALM[4:]])
    assert spikes == [False] * 4 + [True] + [False] * 3
    assert plain.state_dict() == other.state_dict()


def test_a_new_level_is_accepted():
    guard, spikes, levels = judged([*CALM, *[3.0] * 12])
    assert spikes == [False] * 5 + [True] * 3 + [False] * 9
    assert levels == [False] * 8 + [True] + [False] * 8
    assert judged([9.0], guard)[1] == [True]  # the new level has a window of its own


def test_a_loss_that_is_back_after_the_last_skip_keeps_the_window():
    assert judged([*CALM, 9.0, 9.0, 9.0, 1.0, 9.0])[1:] == (
        [False] * 5 + [True] * 3 + [False, True],
        [False] * 10,
    )


def test_data_sets_of_a_mixture_have_windows_of_their_own():
    guard = Guard(OPTIONS, torch.device("cpu"), sets=2)
    good = torch.tensor(False)
    for _ in range(6):
        verdicts = [guard.judge(torch.tensor(level), good, number) for number, level in ((0, 1.0), (1, 20.0))]
        assert not any(bool(v.spike) for v in verdicts)
    assert bool(guard.judge(torch.tensor(20.0), good, 0).spike)


def test_the_state_goes_on():
    losses = [*CALM, 9.0, 1.0, 1.01, 1.02, 1.03, 0.98, 4.0, 4.0]
    whole, spikes, _ = judged(losses)
    first, before, _ = judged(losses[:6])
    second = Guard(OPTIONS, torch.device("cpu"))
    second.load_state_dict(first.state_dict())
    assert before + judged(losses[6:], second)[1] == spikes and second.state_dict() == whole.state_dict()
    other = Guard(OPTIONS | {"window": 16}, torch.device("cpu"))
    judged([1.0, 2.0], other)
    other.load_state_dict(first.state_dict())  # of another window
    assert other.state_dict() == Guard(OPTIONS | {"window": 16}, torch.device("cpu")).state_dict()


@pytest.mark.parametrize(
    "change",
    [
        {"skipped": -1}, {"skipped": True}, {"rewinds": [[1]]}, {"rewinds": 3}, {"guard": None},
        {"guard": {"losses": [1.0], "accepted": [0], "in_a_row": [0]}},
        {"guard": {"losses": [[math.nan]], "accepted": [0], "in_a_row": [0]}},
        {"guard": {"losses": [[1.0]], "accepted": [0, 1], "in_a_row": [0]}},
    ],
)  # fmt: skip
def test_other_states_are_not_taken(change):
    spikes = Spikes(OPTIONS, judged(CALM)[0], print)
    spikes.rewinds = [[4, 2]]
    state = spikes.state_dict()["spikes"]
    assert is_state(state) and is_state({}) and not is_state({**state, **change})


def test_nothing_waits_on_the_pretended_gpu():
    from tests.pretended_gpu.device import gpu

    with gpu() as seen:
        guard = Guard(OPTIONS, torch.device("cuda", 0))
        loss, bad = torch.ones(()).to("cuda"), torch.zeros((), dtype=torch.bool).to("cuda")
        seen.clear()
        for _ in range(6):
            verdict = guard.judge(loss, bad)
        assert [*map(str, seen.waits)] == [] and [*map(str, seen.blocking_copies)] == []
        assert not bool(verdict.spike.cpu()) and bool(guard.judge(loss * 9, bad).spike.cpu())


# ----------------------------------------------------------------------------------------------------- in a run
SPIKES = {"factor": 8.0, "window": 8}
CALM_RUN = {
    "train__warmup_epochs": 0, "train__lr": 1e-4, "train__save_every": 3, "train__keep": 9, "train__ema": 0.9,
    "modalities__toy__norm": True, "modalities__toy__normalize": "none",
}  # fmt: skip


def loud_at(step, seed=0):
    """The index of a sample of ``step`` (of 4 in an epoch), so that each epoch has one loud step."""
    epoch, position = divmod(step, 4)
    return int(permutation(64, seed, epoch)[16 * position])


def steps_with(index, epochs):
    return [
        4 * epoch + [*map(int, permutation(64, 0, epoch))].index(index) // 16
        for epoch in range(epochs)
    ]  # fmt: skip


def equal(toys, one, other):
    assert toys.metrics(one) == toys.metrics(other)
    for name in ("model.safetensors", "ema.safetensors"):
        first, second = toys.weights(one, name), toys.weights(other, name)
        assert [key for key in first if not torch.equal(first[key], second[key])] == []


def spikes_of(toys, out=None):
    import json

    lines = ((out or toys.out) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line).get("spikes") for line in lines]


def test_nothing_happens_where_nothing_jumps(toys):
    plain = toys.train(toys.recipe(toys.out / "plain", train__epochs=3, **CALM_RUN))
    state = torch.load(plain / "checkpoints/step-000012/optimizer.pt", weights_only=True)
    assert "spikes" not in state and spikes_of(toys, plain) == [None] * 12
    for action in ("skip", "rewind"):
        guarded = toys.train(
            toys.recipe(toys.out / action, train__epochs=3, train__spikes={**SPIKES, "action": action}, **CALM_RUN)
        )
        assert any("steps whose loss is 8 deviations above the median of the last 8" in line for line in toys.lines)
        equal(toys, plain, guarded)
        assert spikes_of(toys, guarded) == [{"skipped": 0, "rewinds": 0}] * 12


def test_a_spike_is_skipped_and_changes_nothing(toys):
    """The same weights as where the samples of that step are not finite, which is the other way not to take it."""
    loud = loud_at(6)
    options = {"train__epochs": 2, "train__spikes": SPIKES, **CALM_RUN}
    assert steps_with(loud, 2)[1] == 6
    first = steps_with(loud, 2)[0]
    skipped = toys.train(toys.recipe(toys.out / "loud", data__source__loud=[loud], **options))
    told = [line for line in toys.lines if "jumped" in line]
    assert len(told) == 1 and told[0].startswith("step 7: the loss jumped to ") and "skipped" in told[0]
    assert spikes_of(toys, skipped)[-1] == {"skipped": 1, "rewinds": 0}
    assert toys.metrics(skipped)[6]["loss"] is None and toys.metrics(skipped)[6]["nonfinite_steps"] == 0
    assert toys.metrics(skipped)[first]["loss"] > 5  # too early to tell
    page = (skipped / "report.html").read_text()
    assert "steps skipped, as their loss jumped" in page
    before, after = (
        torch.load(skipped / f"checkpoints/step-{step:06d}/optimizer.pt", weights_only=True)["optimizer"]["state"]
        for step in (6, 8)
    )
    assert [after[key]["step"] - before[key]["step"] for key in after] == [1] * len(after)


def test_a_run_with_skips_resumes_bit_for_bit(toys):
    recipe = {"train__epochs": 6, "train__spikes": SPIKES, "data__source__loud": [loud_at(6)], **CALM_RUN}
    whole = toys.train(toys.recipe(toys.out / "whole", **recipe))
    assert sum("skipped" in line for line in toys.lines) >= 3
    shutil.copytree(whole, toys.out / "parts")
    for path in (toys.out / "parts/checkpoints").glob("step-*"):
        if path.name != "step-000006":
            shutil.rmtree(path)
    parts = toys.train(toys.recipe(toys.out / "parts", **recipe))
    assert any("resuming from step 6" in line for line in toys.lines)
    equal(toys, whole, parts)
    assert spikes_of(toys, whole) == spikes_of(toys, parts)


def test_a_run_goes_back_behind_the_samples(toys):
    loud = loud_at(6)
    recipe = {"train__epochs": 3, "train__spikes": {**SPIKES, "action": "rewind"}, **CALM_RUN}
    out = toys.train(toys.recipe(toys.out / "loud", data__source__loud=[loud], **recipe))
    third = steps_with(loud, 4)[2]
    told = [line for line in toys.lines if "jumped" in line]
    assert told[0].endswith("back to step 6, from which the samples of 1 step are passed over")
    # From step 7 on every step has the samples of the next one, those of the third epoch too.
    assert told[1].startswith(f"step {third}: ")
    state = torch.load(out / "checkpoints/step-000012/optimizer.pt", weights_only=True)["spikes"]
    assert state["rewinds"][0] == [6, 1] and len(state["rewinds"]) == len(told) and state["skipped"] == 0
    assert [row["step"] for row in toys.metrics(out)] == list(range(1, 13))
    losses = [row["loss"] for row in toys.metrics(out)]
    assert max(losses[4:]) < 5  # no loud sample has been learned from since the guard could tell
    assert spikes_of(toys, out)[-1] == {"skipped": 0, "rewinds": len(told)}


@pytest.mark.parametrize("kept", [6, 9])
def test_a_run_that_went_back_resumes_bit_for_bit(toys, kept):
    """From the checkpoint to which it went back, as if killed there, and from one after it."""
    recipe = {
        "train__epochs": 4, "data__source__loud": [loud_at(6)],
        "train__spikes": {**SPIKES, "action": "rewind", "most_rewinds": 20}, **CALM_RUN,
    }  # fmt: skip
    whole = toys.train(toys.recipe(toys.out / "whole", **recipe))
    shutil.copytree(whole, toys.out / "parts")
    for path in (toys.out / "parts/checkpoints").glob("step-*"):
        if path.name != f"step-{kept:06d}":
            shutil.rmtree(path)
    parts = toys.train(toys.recipe(toys.out / "parts", **recipe))
    assert any(f"resuming from step {kept}" in line for line in toys.lines)
    equal(toys, whole, parts)
    assert spikes_of(toys, whole)[kept:] == spikes_of(toys, parts)[kept:]


# 7: a checkpoint is due while the spike of step 7 has not been read
@pytest.mark.parametrize(
    ("action", "save_every"), [("rewind", 3), ("rewind", 7), pytest.param("skip", 7, marks=pytest.mark.slow)]
)
def test_verdicts_that_come_a_step_late_change_nothing(toys, monkeypatch, action, save_every):
    """As they do on a GPU."""
    recipe = {
        "train__epochs": 3, "data__source__loud": [loud_at(6)], "train__spikes": {**SPIKES, "action": action},
        **CALM_RUN, "train__save_every": save_every,
    }  # fmt: skip
    whole = toys.train(toys.recipe(toys.out / "at_once", **recipe))
    told = [line for line in toys.lines if "jumped" in line]
    monkeypatch.setattr("maemm.train.on_host.OnHost.steps_late", 1)
    late = toys.train(toys.recipe(toys.out / "late", **recipe))
    assert told and [line for line in toys.lines if "jumped" in line] == told
    for name in ("model.safetensors", "ema.safetensors"):
        first, second = toys.weights(whole, name), toys.weights(late, name)
        assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert spikes_of(toys, whole)[-1] == spikes_of(toys, late)[-1]


def test_the_samples_of_steps_are_those_further_on(toys):
    """What was passed over stays so where the guard is taken away."""
    seen = []

    def trained(out, epochs, **more):
        from maemm.train.loop import Run

        before = Run._train_step
        try:
            Run._train_step = lambda self, x: (seen.append((x.step, sorted(sum(x.ids, [])))), before(self, x))[1]
            return toys.train(toys.recipe(out, train__epochs=epochs, **CALM_RUN, **more))
        finally:
            Run._train_step = before

    guard = {"data__source__loud": [loud_at(6)]}
    trained(toys.out / "a", 2, train__spikes={**SPIKES, "action": "rewind"}, **guard)
    assert [step for step, _ in seen] == [0, 1, 2, 3, 4, 5, 6, 6, 7]
    of_order = [
        sorted(f"toy-{i}" for i in permutation(64, 0, step // 4)[16 * (step % 4) : 16 * (step % 4 + 1)])
        for step in range(14)
    ]
    assert [ids for _, ids in seen] == of_order[:9]
    trained(toys.out / "a", 3, **guard)
    assert any("another guard against loss spikes" in line for line in toys.lines)
    assert [ids for _, ids in seen[9:]] == of_order[9:13]


def test_a_run_goes_back_only_so_often(toys):
    recipe = {
        "train__epochs": 8, "data__source__loud": [loud_at(6)],
        "train__spikes": {**SPIKES, "action": "rewind", "most_rewinds": 2}, **CALM_RUN,
    }  # fmt: skip
    for _ in range(2):
        with pytest.raises(
            MaemmError, match=r"jumped to .* after 2 rewinds \(train\.spikes\.most_rewinds\); "
        ) as error:
            toys.train(**recipe)
        assert "\n" not in str(error.value)
    toys.train(**recipe | {"train__spikes": SPIKES})  # the guard may change within a run
    assert toys.metrics()[-1]["step"] == 32


def test_without_a_checkpoint_the_step_is_skipped(toys):
    toys.train(
        train__epochs=2, data__source__loud=[loud_at(6)], train__spikes={**SPIKES, "action": "rewind"},
        **CALM_RUN | {"train__save_every": 1000},
    )  # fmt: skip
    assert sum("skipped, as there is no checkpoint to go back to" in line for line in toys.lines) == 1
    assert len(toys.metrics()) == 8


@pytest.mark.parametrize("action", [pytest.param("skip", marks=pytest.mark.slow), "rewind"])
def test_two_processes_do_what_one_does(toys, action):
    recipe = {
        "train__epochs": 3, "data__source__loud": [loud_at(6)], "train__spikes": {**SPIKES, "action": action},
        **CALM_RUN, "modalities__toy__norm": False,
    }  # fmt: skip
    pair = toys.start(toys.recipe(toys.out / "two", **recipe), 2)
    one = toys.train(toys.recipe(toys.out / "one", **recipe))
    assert [process.wait() for process in pair] == [0, 0], pair[0].said()
    steps = lambda lines: [re.match(r"step \d+: the loss jumped", line)[0] for line in lines if "jumped" in line]  # noqa: E731
    told = steps(toys.lines)
    assert told and told == steps(pair[0].said().splitlines()) and not steps(pair[1].said().splitlines())
    for row, other in zip(toys.metrics(one), toys.metrics(toys.out / "two"), strict=True):
        assert row["loss"] == (None if other["loss"] is None else pytest.approx(other["loss"], abs=2e-5))
    assert spikes_of(toys, one) == spikes_of(toys, toys.out / "two")


@pytest.mark.slow
def test_a_run_that_is_killed_around_a_rewind(toys):
    recipe = {
        "train__epochs": 4, "data__source__loud": [loud_at(6)],
        "train__spikes": {**SPIKES, "action": "rewind", "most_rewinds": 20}, **CALM_RUN,
    }  # fmt: skip
    whole = toys.train(toys.recipe(toys.out / "whole", **recipe))
    broken = toys.recipe(toys.out / "broken", **recipe, data__source__delay=0.002)
    for text in ("back to step 6", "step 8 "):
        other = toys.start(broken)
        other.until(text)
        other.kill()
    last = toys.start(broken)
    assert last.wait() == 0, last.said()
    equal(toys, whole, toys.out / "broken")
    assert spikes_of(toys, whole) == spikes_of(toys, toys.out / "broken")


def test_a_checkpoint_with_other_counts_is_not_used(toys):
    toys.train(train__epochs=2, train__spikes=SPIKES, **CALM_RUN)
    from maemm.train.restore import _read
    from maemm.weights.checkpoints import latest

    newest = latest(toys.out / "checkpoints", print)
    state = torch.load(newest.path / "optimizer.pt", weights_only=True)
    state["spikes"]["skipped"] = -1
    torch.save(state, newest.path / "optimizer.pt")
    with pytest.raises(Unusable, match=r"holds other counts than a run writes \(spikes\)"):
        _read(newest)


def test_show_says_what_becomes_of_spikes(toys, tmp_path):
    import numpy as np

    import maemm

    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(3, 400)).astype("float32"))
    overrides = {"train.spikes.action": "rewind", "train.spikes.window": 50}
    shown = maemm.show(tmp_path, tmp_path / "x.html", recipe="signal/tiny_cpu", overrides=overrides)
    text = "above the median of the last 50 are passed over"
    assert text in str(shown) and text in (tmp_path / "x.html").read_text()
