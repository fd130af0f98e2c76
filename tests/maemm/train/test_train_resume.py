"""Whatever ends a run, the same command goes on as if nothing had been: bit for bit."""

import os
import random
import signal

import pytest
import torch

from maemm.contract.errors import MaemmError
from maemm.train.loop import Run
from maemm.train.signals import Interrupted

HARD = {  # everything that could carry hidden state from one step to the next
    "encoder__drop_path": 0.3,
    "modalities__toy__norm": True,
    "train__ema": 0.9,
    "train__micro_batch": 8,
    "train__log_every": 2,
    "train__save_every": 3,
    "train__clip_grad": 1.0,
}


def equal_runs(toys, one, other):
    assert toys.metrics(one) == toys.metrics(other)
    for name in ("model.safetensors", "ema.safetensors"):
        ours, theirs = toys.weights(one, name), toys.weights(other, name)
        assert ours.keys() == theirs.keys()
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_killed_at_random_steps(toys):
    whole = toys.train(toys.recipe(toys.out / "whole", **HARD))
    rows = toys.metrics(whole)
    assert len(rows) == 16 and len({row["loss"] for row in rows}) == 16
    broken = toys.recipe(toys.out / "broken", **HARD, data__source__delay=0.002)
    for start in (0, 12):
        at = random.SystemRandom().randrange(start + 4, start + 14, 2)
        other = toys.start(broken)
        other.until(f"step {at} ")
        other.kill()
        print("killed after step", at)
    last = toys.start(broken)
    assert last.wait() == 0, last.said()
    assert "resuming from step" in last.said()
    equal_runs(toys, whole, toys.out / "broken")


def test_a_signal_saves_and_the_same_command_continues(toys, monkeypatch):
    whole = toys.train(toys.recipe(toys.out / "whole", **HARD))
    recipe = toys.recipe(toys.out / "broken", **HARD)
    signals = {7: signal.SIGINT, 14: signal.SIGTERM, 15: signal.SIGUSR1, 16: signal.SIGHUP}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where it is ignored (nohup) it stays so
    handlers = [signal.getsignal(number) for number in signals.values()]
    original = Run._next_micro_batches

    def interrupted(self, *rest):
        if self.step in signals:
            os.kill(os.getpid(), signals.pop(self.step))
        return original(self, *rest)

    monkeypatch.setattr(Run, "_next_micro_batches", interrupted)
    for step, number in list(signals.items()):
        with pytest.raises(Interrupted) as stopped:
            toys.train(recipe)
        assert stopped.value.status == 128 + number
        where = toys.out / f"broken/checkpoints/step-{step:06d}"
        assert toys.lines[-1] == f"Stopped at step {step}; saved to {where}. The same command continues."
    toys.train(recipe)
    assert "resuming from step 16" in toys.lines
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
    assert handlers == [signal.getsignal(number) for number in numbers]
    equal_runs(toys, whole, toys.out / "broken")


def test_a_second_interrupt_ends_at_once(toys):
    other = toys.start(toys.recipe(data__source__delay=1.5, train__batch=2))
    other.until("steps/epoch")
    other.process.join(0.3)
    os.kill(other.pid, signal.SIGINT)
    other.process.join(1.2)
    os.kill(other.pid, signal.SIGINT)
    assert other.wait(20) != 0
    assert "KeyboardInterrupt" in other.said()
    assert not list((toys.out / "checkpoints").glob("*"))


def test_workers_change_nothing_and_stop_with_the_run(toys):
    hard = {**HARD, "train__epochs": 4}
    alone = toys.train(toys.recipe(toys.out / "alone", **hard))
    other = toys.start(toys.recipe(toys.out / "workers", **hard, data__workers=2, data__source__delay=0.005))
    other.until("step 6 ")
    os.kill(other.pid, signal.SIGTERM)
    assert other.wait() == 143, other.said()
    toys.train(toys.recipe(toys.out / "workers", **hard, data__workers=1, data__source__delay=0.005))
    equal_runs(toys, alone, toys.out / "workers")


def test_two_processes_killed_go_on_as_two(toys):
    slow = {"train__save_every": 3, "train__epochs": 3, "data__source__delay": 0.002}
    assert [one.wait() for one in toys.start(toys.recipe(toys.out / "whole", **slow), 2)] == [0, 0]
    first, second = toys.start(toys.recipe(toys.out / "broken", **slow), 2)
    first.until("step 5 ")
    first.kill()
    second.wait()
    pair = toys.start(toys.recipe(toys.out / "broken", **slow), 2)
    assert [one.wait() for one in pair] == [0, 0], pair[0].said()
    assert "resuming from step 3" in pair[0].said()
    assert toys.metrics(toys.out / "whole") == toys.metrics(toys.out / "broken")


def test_a_run_of_two_processes_goes_on_in_one(toys):
    whole = toys.train(toys.recipe(toys.out / "whole"))
    pair = toys.start(toys.recipe(toys.out / "broken", train__save_every=3, data__source__delay=0.002), 2)
    pair[0].until("step 5 ")
    os.kill(pair[0].pid, signal.SIGTERM)
    assert [one.wait() for one in pair] == [143, 143]
    toys.train(toys.recipe(toys.out / "broken", data__source__delay=0.002))
    for row, other in zip(toys.metrics(whole), toys.metrics(toys.out / "broken"), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=2e-5)


def test_a_run_that_drew_other_random_numbers_is_refused(toys, monkeypatch):
    toys.train(train__epochs=1, train__warmup_epochs=0)
    monkeypatch.setattr("maemm.train.run_folder.RNG_VERSION", 3)
    with pytest.raises(MaemmError, match=r"in another way \(version 2, now 3\).*init="):
        toys.train(train__epochs=2, train__warmup_epochs=0)
