import json
import math
import os
import re
import signal

import pytest
import torch
import yaml

from maemm.contract.errors import MaemmError
from maemm.data.locks import folder_locked
from maemm.train import loop
from maemm.ui.pictures import save_pictures


def same(one, other, tolerance=0.0):
    assert one.keys() == other.keys()
    for name in one:
        a, b = one[name], other[name]
        if tolerance and name.endswith("qkv.bias"):  # the gradient of the keys' bias is 0: Adam amplifies its rounding
            a, b = (torch.cat(value.chunk(3)[::2]) for value in (a, b))
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0, msg=lambda text, name=name: f"{name}: {text}")


def optimizer_state(out):
    path = sorted((out / "checkpoints").glob("step-*"))[-1] / "optimizer.pt"
    return torch.load(path, weights_only=True)["optimizer"]["state"]


def close(rows, others, tolerance):
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        for key in ("loss", "grad_norm", "lr"):
            assert row[key] == pytest.approx(other[key], abs=tolerance), (row["step"], key)


def test_a_run_learns_and_leaves_its_folder(toys, monkeypatch):
    monkeypatch.setattr("maemm.tasks.pretrain.report.save_pictures", save_pictures)
    out = toys.train(train__epochs=10, train__lr=1e-2)
    rows = toys.metrics()
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert rows[0]["lr"] == 0 and rows[4]["lr"] == pytest.approx(1e-2)
    assert (out / "report.html").is_file() and list((out / "pictures").glob("step-000040.png"))
    meta = json.loads((out / "checkpoints/step-000040/meta.json").read_text())
    assert meta["step"] == 40 and meta["data"] == "toys:64:0" and meta["recipe"]["train"]["lr"] == 1e-2
    assert meta["versions"]["torch"] == torch.__version__ and meta["plugins"]["toy"] == "0.1.0"
    assert "10.4 k parameters" in toys.lines[0] and "4 steps/epoch" in toys.lines[0]
    assert toys.lines[-1].startswith("Finished 40 steps")


def test_a_finished_run_says_so_and_may_be_made_longer(toys):
    toys.train()
    toys.train()
    assert len(toys.lines) == 1 and "is finished (32 steps)" in toys.lines[0]
    toys.train(train__epochs=9)
    assert "train.epochs: 8 -> 9" in toys.lines[0] and "resuming from step 32" in toys.lines[2]
    assert [row["step"] for row in toys.metrics()] == list(range(1, 37))


def test_a_changed_recipe_is_an_error_that_lists_the_keys(toys):
    toys.train(train__epochs=2)
    with pytest.raises(MaemmError, match=r"encoder\.depth: 2 -> 3, train\.lr: 0\.001 -> 0\.002"):
        toys.train(train__epochs=2, encoder__depth=3, train__lr=2e-3, data__workers=1)
    toys.train(train__epochs=2, data__workers=1, train__log_every=7, train__keep=5)
    assert "is finished" in toys.lines[0]


def test_other_data_are_an_error(toys):
    toys.train(train__epochs=2)
    path = toys.out / "checkpoints/step-000008/meta.json"
    path.write_text(path.read_text().replace("toys:64:0", "toys:64:1"))
    with pytest.raises(MaemmError, match=r"have changed since step 8 \(toys:64:1 -> toys:64:0\)"):
        toys.train(train__epochs=2)


def test_before_the_first_checkpoint_any_recipe_may_begin(toys):
    with pytest.raises(MaemmError, match="train.batch 128 is larger"):
        toys.train(train__batch=128)
    toys.train(train__epochs=2)
    assert len(toys.metrics()) == 8


def test_two_runs_in_one_folder(toys):
    other = toys.start(toys.recipe(data__source__delay=0.02, train__epochs=100))
    other.until("10.4 k parameters")
    with pytest.raises(MaemmError, match=rf"in use by another run \(pid {other.pid} on"):
        toys.train(data__source__delay=0.02, train__epochs=100)
    other.kill()
    with folder_locked(toys.out, user="run", log=print):  # a dead process holds nothing
        pass


def test_accumulation_equals_one_batch(toys):
    one = toys.train(toys.recipe(toys.out / "one"))
    four = toys.train(toys.recipe(toys.out / "four", train__micro_batch=4))
    assert "in 4 micro-batches" in toys.lines[0]
    close(toys.metrics(one), toys.metrics(four), 2e-5)
    same(toys.weights(one), toys.weights(four), 2e-4)


def test_coupled_objectives_refuse_micro_batches(toys):
    coupled = {"objectives": {"coupled": {}}, "train__micro_batch": 4, "train__epochs": 2}
    with pytest.raises(MaemmError, match=r"objectives\.coupled\.per_micro_batch=true"):
        toys.train(**coupled)
    toys.train(**coupled, objectives__coupled__per_micro_batch=True)
    assert len(toys.metrics()) == 8


def test_two_processes_equal_one(toys):
    status, said = toys.torchrun(toys.recipe(toys.out / "two", train__micro_batch=4), 2)
    assert status == 0, said
    assert said.count("2 CPU processes") == 1
    one = toys.train(toys.recipe(toys.out / "one"))
    close(toys.metrics(one), toys.metrics(toys.out / "two"), 2e-5)
    same(toys.weights(one), toys.weights(toys.out / "two"), 2e-4)


def test_a_failure_in_one_process_ends_all(toys):
    # One sample cannot be read, and none may be bad: the process that meets it says so, and ends the other.
    pair = toys.start(toys.recipe(data__source__bad=[3], data__max_bad_fraction=0.0), 2)
    assert [one.wait() for one in pair] == [2, 2]
    said = sorted((one.said() for one in pair), key=len)
    assert "maemm: error: 1 of 64 samples are unreadable" in said[0] + said[1]
    assert sum("failed: 1 of 64 samples are unreadable" in one for one in said) == 1


def test_a_process_that_dies_ends_the_others(toys):
    first, second = toys.start(toys.recipe(data__source__delay=0.02, train__epochs=100), 2)
    first.until("step 2 ")
    second.kill()
    assert first.wait() == 2
    assert "error: another rank exited" in first.said()


def test_a_loss_that_is_not_finite_in_one_process_skips_the_step_in_both(toys):
    nan = {"data__source__nan": [5], "train__epochs": 2}
    pair = toys.start(toys.recipe(toys.out / "two", **nan), 2)
    toys.train(toys.recipe(toys.out / "one", **nan))
    assert [one.wait() for one in pair] == [0, 0], pair[0].said()
    assert len(re.findall(r"skipped: loss not finite .*\btoy-5\b", pair[0].said())) == 2
    ours, theirs = toys.metrics(toys.out / "one"), toys.metrics(toys.out / "two")
    for row, other in zip(ours, theirs, strict=True):
        assert row["loss"] == (None if other["loss"] is None else pytest.approx(other["loss"], abs=2e-5))
    assert sum(row["loss"] is None for row in ours) == 2


def test_an_interrupt_of_one_process_stops_all_at_one_step(toys):
    first, second = toys.start(toys.recipe(data__source__delay=0.02, train__epochs=100), 2)
    first.until("step 2 ")
    os.kill(second.pid, signal.SIGTERM)
    assert [first.wait(), second.wait()] == [143, 143]
    step = toys.metrics()[-1]["step"]
    assert f"Stopped at step {step}; saved to {toys.out}/checkpoints/step-{step:06d}" in first.said()


def test_non_finite_steps_are_skipped_and_named(toys):
    toys.train(
        train__epochs=2, train__max_nonfinite=2, data__source__nan=[5], train__ema=0.9, modalities__toy__norm=True
    )
    skipped = [line for line in toys.lines if "skipped: " in line]
    assert len(skipped) == 2 and all("(samples: " in line and "toy-5" in line for line in skipped)
    rows = toys.metrics()
    assert [row["loss"] is None for row in rows].count(True) == 2 and rows[-1]["nonfinite_steps"] == 2
    for name in ("model.safetensors", "ema.safetensors"):
        assert all(torch.isfinite(value).all() for value in toys.weights(name=name).values())


def test_a_skipped_step_changes_nothing(toys):
    """After four good steps the samples turn bad; two more steps, and all is as it was."""
    toys.train(train__epochs=1, train__warmup_epochs=0, train__ema=0.9)
    before, average, moments = toys.weights(), toys.weights(name="ema.safetensors"), optimizer_state(toys.out)
    recipe, nan = toys.out / "recipe.yaml", list(range(64))
    stored = yaml.safe_load(recipe.read_text())
    stored["data"]["source"]["nan"] = nan
    recipe.write_text(yaml.safe_dump(stored))
    toys.train(train__epochs=2, train__warmup_epochs=0, train__ema=0.9, data__source__nan=nan)
    assert sum("skipped: " in line for line in toys.lines) == 4
    same(before, toys.weights())
    same(average, toys.weights(name="ema.safetensors"))
    assert optimizer_state(toys.out).keys() == moments.keys() != set()
    for key, moment in optimizer_state(toys.out).items():
        same(moment, moments[key])


def test_too_many_non_finite_steps_end_the_run(toys):
    with pytest.raises(MaemmError, match=r"not finite in 3 steps in a row, the last one step 3 \(samples: toy-"):
        toys.train(data__source__nan=list(range(64)), train__max_nonfinite=3)


def test_too_many_bad_samples_end_the_run_and_the_next_start(toys):
    bad = {"data__source__bad": list(range(0, 64, 8)), "data__max_bad_fraction": 0.07}
    for _ in range(2):
        with pytest.raises(MaemmError, match=r"\d of 64 samples are unreadable"):
            toys.train(**bad)
        assert [path.name for path in (toys.out / "checkpoints").iterdir()] == [
            f"step-{toys.metrics()[-1]['step']:06d}"
        ]
    toys.train(**bad | {"data__max_bad_fraction": 0.2})
    assert len((toys.out / "bad_samples.jsonl").read_text().splitlines()) == 8


def test_an_interrupt_before_the_first_step_keeps_nothing(toys, monkeypatch):
    def interrupted(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return make_loader(*args)

    make_loader = loop.make_loader
    monkeypatch.setattr(loop, "make_loader", interrupted)
    with pytest.raises(loop.Interrupted, match="Stopped at step 0; there is nothing to save"):
        toys.train()
    assert not (toys.out / "checkpoints").exists()


def test_a_moving_average_follows_the_weights(toys):
    toys.train(train__ema=0.5, train__epochs=2)
    model, average = toys.weights(), toys.weights(name="ema.safetensors")
    trained = [name for name in model if not torch.equal(model[name], average[name])]
    assert "encoder.blocks.0.mlp.fc1.weight" in trained
    assert all((model[name] - average[name]).abs().max() < 1e-2 for name in model)


def test_pictures_that_fail_cost_a_line(toys, monkeypatch):
    def fail(*args, **options):
        raise RuntimeError("no ink")

    monkeypatch.setattr("maemm.tasks.pretrain.report.save_pictures", fail, raising=False)
    monkeypatch.setattr("maemm.tasks.pretrain.report.write_page", fail, raising=False)
    toys.train(train__epochs=1, train__warmup_epochs=0)
    assert "no pictures of step 4 (RuntimeError: no ink)" in toys.lines
    assert "no report (RuntimeError: no ink)" in toys.lines


def test_tensorboard_missing_is_said_at_the_start(toys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    with pytest.raises(MaemmError, match=r"pip install 'maemm\[tensorboard\]'"):
        toys.train(train__tensorboard=True)
    assert not (toys.out / "metrics.jsonl").exists()


def test_the_mean_predictor_is_the_loss_of_the_mean(toys):
    """With patches of 4 normalised values the mean target is near 0, whose loss is (4 - 1) / 4."""
    toys.train(train__epochs=2)
    assert all(row["baseline"] == pytest.approx(0.75, abs=0.02) for row in toys.metrics())
    assert all(math.isfinite(row["grad_norm"]) for row in toys.metrics())


@pytest.mark.slow  # the compiler takes a minute
def test_compiled_equals_eager(toys):
    eager = toys.train(toys.recipe(toys.out / "eager"))
    compiled = toys.train(toys.recipe(toys.out / "compiled", train__compile=True))
    close(toys.metrics(eager), toys.metrics(compiled), 2e-5)
    same(toys.weights(eager), toys.weights(compiled), 2e-4)
