"""Steps that are read and copied ahead: pinned by a thread, copied on a stream of their own, awaited on the device."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time

import pytest
import torch

from maemm.contract.errors import MaemmError
from maemm.data.loader import Batch
from maemm.data.on_device import StepsOnDevice
from maemm.data.read_ahead import ReadAhead, Stopped, asked_to_stop
from maemm.train.loop import Run, train
from maemm.train.signals import Interrupted
from tests.pretended_gpu.device import gpu

SMALL = {"train__epochs": 2, "train__precision": "fp32", "train__compile": False, "data__workers": 1}
HERE = "maemm/data/loader.py"  # where Batch.to is


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "reads ahead"]


def train_on_gpu(toys, recipe):
    """Its folder, and what the pretended GPU has seen. Without pictures, whose samples are copied in another way."""
    toys.lines = []
    with gpu() as seen:
        try:
            return train(recipe, echo=toys.lines.append), seen
        finally:
            assert threads() == []


@pytest.fixture
def no_gpu(monkeypatch):
    """The thread of :class:`ReadAhead` sets its device."""
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


# ---------------------------------------------------------------------------------------------------- the copies
def faults(seen) -> list[str]:
    """What is wrong with the copies of the batches, in words."""
    copies = [copy for copy in seen.copies if copy.file == HERE]
    assert len(copies) >= 8
    return [
        *("not pinned" for copy in copies if not copy.pinned),
        *("blocking" for copy in copies if copy.blocking),
        *("on the stream of the computation" for copy in copies if copy.stream is seen.streams.default),
        *map(str, seen.streams.too_early),
        *map(str, seen.streams.unrecorded),
    ]


def test_copies_are_asynchronous_and_waited_for_on_the_device(toys):
    _, seen = train_on_gpu(toys, toys.recipe(**SMALL))
    assert faults(seen) == []
    assert seen.streams._uses, "nothing was used on another stream"
    on_gpu = toys.metrics()
    toys.train(toys.recipe(toys.out / "cpu", **SMALL))
    for row, other in zip(on_gpu, toys.metrics(toys.out / "cpu"), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], rel=1e-4)


@pytest.mark.parametrize(
    ("owner", "name", "instead", "fault"),
    [
        ("tests.pretended_gpu.streams.Stream", "wait_event", lambda self, event: None, "used before it is there"),
        ("maemm.data.loader.Batch", "record_stream", lambda self, stream: None, "used on another stream"),
        ("maemm.data.loader.Batch", "pin_memory", lambda self: self, "not pinned"),
        ("tests.pretended_gpu.streams.Streams", "on", lambda self, stream: threading.Lock(), "of the computation"),
    ],
)  # fmt: skip
def test_planted_faults_are_seen(toys, monkeypatch, owner, name, instead, fault):
    monkeypatch.setattr(f"{owner}.{name}", instead)
    _, seen = train_on_gpu(toys, toys.recipe(**SMALL))
    assert any(fault in text for text in faults(seen))


def test_the_next_step_is_copied_while_this_one_is_used():
    """And not more than that one."""
    read = []

    def steps():
        for step in range(9):
            read.append(step)
            x = torch.full((4,), float(step))
            yield step, [Batch({"toy": {"x": x}}, ["a"], None, [0], [], step, 0)]

    with gpu() as seen:
        batches = StepsOnDevice(steps(), torch.device("cuda", 0), in_thread=True)
        for step in range(6):
            current = next(batches)
            assert current.step == step and float(current.device[0].raw["toy"]["x"][0]) == step
            copied = [copy for copy in seen.copies if copy.file == HERE]
            assert len(copied) == step + 2 if step else len(copied) in (1, 2)
            until(lambda: batches._ahead.ready)
            time.sleep(0.01)
            assert len(read) <= step + 4
        batches.close()
    assert threads() == []


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


# ---------------------------------------------------------------------------------------------------- whole runs
def test_an_interrupted_run_goes_on_bit_for_bit(toys, monkeypatch):
    """With bad samples, several data sets, and a thread that has read further than the run came."""
    mixed = {
        "modalities": {"toy": {"type": "toy"}, "other": {"type": "toy"}},
        "data__source": None,
        "data__mix": {
            "first": {"modalities": ["toy"], "source": {"type": "toy", "samples": 32}},
            "second": {"modalities": ["other"], "source": {"type": "toy", "samples": 32, "salt": 1, "bad": [3]}},
        },
    }  # fmt: skip
    whole, _ = train_on_gpu(toys, toys.recipe(toys.out / "whole", **SMALL, **mixed))
    broken = toys.recipe(toys.out / "broken", **SMALL, **mixed)
    signals, original = {3: signal.SIGTERM}, Run._next_micro_batches

    def interrupted(self, *rest):
        if self.step in signals:
            os.kill(os.getpid(), signals.pop(self.step))
        return original(self, *rest)

    monkeypatch.setattr(Run, "_next_micro_batches", interrupted)
    with pytest.raises(Interrupted):
        train_on_gpu(toys, broken)
    train_on_gpu(toys, broken)
    assert "resuming from step 3" in toys.lines
    assert toys.metrics(whole) == toys.metrics(toys.out / "broken")
    weights = toys.weights(toys.out / "broken")
    assert all(torch.equal(value, weights[name]) for name, value in toys.weights(whole).items())
    names = [(toys.out / run / "bad_samples.jsonl").read_text() for run in ("whole", "broken")]
    assert names[0] == names[1] and names[0]


def test_errors_are_those_of_the_cpu_and_come_in_their_turn(toys):
    bad = {**SMALL, "data__source__bad": list(range(64)), "data__max_bad_fraction": 1.0}
    texts = []
    for run in (toys.train, lambda recipe: train_on_gpu(toys, recipe)):
        with pytest.raises(MaemmError) as error:
            run(toys.recipe(toys.out / str(len(texts)), **bad))
        texts.append(str(error.value))
    assert texts[0] == texts[1] and "in a row are unreadable" in texts[0]


def test_a_worker_that_dies_is_named_after_the_steps_before_it(toys, monkeypatch):
    original = Run._train_step

    def step(self, micro_batches):
        original(self, micro_batches)
        for process in multiprocessing.active_children():
            process.kill()

    monkeypatch.setattr(Run, "_train_step", step)
    with pytest.raises(MaemmError, match="a data worker died of SIGKILL"):
        train_on_gpu(toys, toys.recipe(**SMALL, data__prefetch=1))
    assert toys.metrics()[-1]["step"] < 8 and list((toys.out / "checkpoints").glob("step-*"))


# ------------------------------------------------------------------------------------------------------ the thread
def test_items_and_errors_in_order(no_gpu):
    def items():
        yield from (1, 2)
        raise ValueError("third")

    ahead = ReadAhead(items(), torch.device("cpu"), "reads ahead", 1)
    assert next(ahead) == 1
    until(lambda: ahead.ready)
    assert next(ahead) == 2
    until(lambda: not ahead._outcomes.empty())
    assert not ahead.ready  # an error waits until it is asked for
    for _ in range(2):
        with pytest.raises(ValueError, match="third"):
            next(ahead)
    ahead.close()
    ends = ReadAhead(iter([1]), torch.device("cpu"), "reads ahead", 2)
    assert list(ends) == [1] and list(ends) == []
    ends.close()
    assert threads() == []


def test_a_thread_that_waits_for_data_can_be_ended(no_gpu):
    """As while workers are slow: they look whether they are to stop."""

    def waits_for_ever():
        yield 1
        while not asked_to_stop():
            time.sleep(0.01)
        raise Stopped

    assert asked_to_stop() is None
    ahead = ReadAhead(waits_for_ever(), torch.device("cpu"), "reads ahead", 2)
    assert next(ahead) == 1
    ahead.close()
    assert threads() == []


def test_a_run_that_waits_for_slow_workers_ends_at_once(toys, monkeypatch):
    """A step goes wrong while the thread waits for the next one."""

    def step(self, micro_batches):
        raise ZeroDivisionError

    monkeypatch.setattr(Run, "_train_step", step)
    start = time.monotonic()
    slow = {**SMALL, "train__batch": 2, "data__source__delay": 1.5, "data__prefetch": 1}
    with pytest.raises(ZeroDivisionError):
        train_on_gpu(toys, toys.recipe(**slow))
    assert time.monotonic() - start < 20


def test_a_cpu_has_no_thread(toys, monkeypatch):
    monkeypatch.setattr("maemm.data.on_device.ReadAhead", None)
    toys.train(toys.recipe(**{**SMALL, "train__epochs": 1}))
    assert len(toys.metrics()) == 4
