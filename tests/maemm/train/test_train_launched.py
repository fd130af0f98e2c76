"""Runs that torchrun, the script for SLURM and the file for Kubernetes start, cut short and started again: for real.

Each process imports torch anew, so these take minutes.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import pytest
import yaml

from maemm import config
from tests.maemm.launch.controller import REPOSITORY, Slurm

pytestmark = pytest.mark.slow
OPTIONS = {"train__epochs": 6, "train__save_every": 5, "train__ema": 0.9}
SLOW = {"data__source__delay": 0.05}  # seconds for a sample: time to interrupt
TORCHRUN = f"{sys.executable} -m torch.distributed.run"


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def written(toys, name, **overrides):
    """(file of a slow recipe, its run folder)"""
    recipe = toys.recipe(toys.out / name, **OPTIONS, **SLOW, **overrides)
    path = toys.out.parent / f"{name}.yaml"
    path.write_text(config.dump(recipe))
    return path, toys.out / name


def whole(toys):
    """The run that nobody interrupts, in the same world."""
    pair = toys.start(toys.recipe(toys.out / "whole", **OPTIONS), 2)
    assert [rank.wait(300) for rank in pair] == [0, 0], pair[0].said()
    return toys.out / "whole"


def equal(toys, run, other):
    assert toys.metrics(run) == toys.metrics(other)
    for name in ("model.safetensors", "ema.safetensors"):
        ours, theirs = toys.weights(run, name), toys.weights(other, name)
        assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)


class Node:
    """A shell with a torchrun, as on a machine of its own; ``log`` has all that it and its ranks say."""

    def __init__(self, folder, name, command, **environment):
        self.log = folder / f"{name}.log"
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                ["bash", "-c", command], env=os.environ | environment, stdout=log, stderr=log, start_new_session=True
            )

    def said(self):
        return self.log.read_text()

    def ranks(self):
        """The processes of its ranks, the children of torchrun."""
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(self.process.pid)], capture_output=True, text=True)
        return [int(number) for number in listed.stdout.split()]

    def until(self, pattern, times=1, timeout=500):
        end = time.monotonic() + timeout
        while len(re.findall(pattern, self.said())) < times:
            assert self.process.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.05)

    def end(self):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture
def node(tmp_path):
    """``node(name, command, **environment)``"""
    nodes = []

    def start(*args, **environment):
        nodes.append(Node(tmp_path, *args, **environment))
        return nodes[-1]

    yield start
    for each in nodes:
        each.end()


def who_says(text, *nodes, timeout=500):
    """The first of these nodes that has said ``text``."""
    end = time.monotonic() + timeout
    while not (those := [each for each in nodes if text in each.said()]):
        assert time.monotonic() < end, "".join(each.said() for each in nodes)
        time.sleep(0.05)
    return those[0]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def scalars(run):
    """{step: how often} of the losses that TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return Counter(event.step for event in events.Scalars("loss"))


def test_pods_of_which_a_rank_is_killed_and_one_is_sent_away(toys, node):
    """The command of the job file, on this machine: two torchruns that restart together, and one that comes back."""
    file, run = written(toys, "pods", train__tensorboard=True)
    *_, job = yaml.safe_load_all((REPOSITORY / "docs/launch/kubernetes.yaml").read_text())
    (container,) = job["spec"]["template"]["spec"]["containers"]
    (command,) = container["args"]
    command, number = re.subn(
        r"-m maemm pretrain .*", f"-m maemm pretrain {file}", command.replace("torchrun", TORCHRUN)
    )
    assert number == 1
    pod = {row["name"]: row["value"] for row in container["env"]}
    pod |= {"GPUS": "1", "MEETING_POINT": f"localhost:{free_port()}", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "60"}

    def start(index):
        return node(f"pod{index}", command, JOB_COMPLETION_INDEX=str(index), **pod)

    first, second = start(0), start(1)
    speaker = who_says("step 7 ", first, second)  # either may have become rank 0
    (rank,) = second.ranks()
    os.kill(rank, signal.SIGKILL)
    killed = time.monotonic()
    speaker.until("resuming from step")
    print("resumed after", round(time.monotonic() - killed, 1), "s")
    speaker.until("step 12 ")
    second.process.terminate()  # as a pod that is evicted: its ranks save, and it comes back under its name
    second.process.wait(120)
    second = start(1)
    assert (first.process.wait(500), second.process.wait(60)) == (0, 0), first.said() + second.said()
    said = first.said() + second.said()
    assert said.count("resuming from step") == 2 and "saved to" in said
    equal(toys, run, whole(toys))
    assert scalars(run) == {step: 1 for step in range(1, 25)}  # those that were done again are shown once


def test_a_machine_that_is_lost_for_good(toys, node):
    """--nnodes 1:2: the others go on without it, with all of the batch."""
    file, run = written(toys, "elastic", train__micro_batch=8)
    command = (
        f"exec {TORCHRUN} --nnodes 1:2 --nproc-per-node 1 --max-restarts 3 --rdzv-backend c10d --rdzv-id toys"
        f" --rdzv-endpoint localhost:{free_port()} --rdzv-conf is_host=$HOST,last_call_timeout=5"
        f" -m maemm pretrain {file}"
    )
    first = node("first", command, HOST="1")
    second = node("second", command, HOST="0")
    who_says("step 7 ", first, second)
    assert "2 CPU processes" in first.said() + second.said()
    second.end()
    assert first.process.wait(500) == 0, first.said()
    assert "1 CPU process," in first.said() and "resuming from step" in first.said()
    alone = toys.train(toys.recipe(toys.out / "alone", **OPTIONS, train__micro_batch=8))
    losses = [[row["loss"] for row in toys.metrics(out)] for out in (alone, run)]
    assert losses[0] == pytest.approx(losses[1], abs=2e-5)


def test_a_job_of_slurm_is_queued_again_before_its_limit_and_goes_on(toys, tmp_path):
    """The shipped script, with ranks that srun starts: announced, saved, queued again, finished."""
    file, run = written(toys, "slurm")
    slurm = Slurm(tmp_path / "slurm")
    slurm.environment["PYTHON"] = sys.executable
    try:
        slurm.start(str(file))
        slurm.until("step 7 ")
        slurm.announce()
        assert slurm.job.wait(300) == 0, slurm.said()
        assert slurm.calls()[-1] == "scontrol requeue 4711"
        step = int(re.search(r"Stopped at step (\d+); saved to", slurm.said())[1])
        assert 7 <= step < 24
        assert slurm.start(str(file)).wait(500) == 0, slurm.said()
        assert f"resuming from step {step}" in slurm.said() and slurm.said().count("2 CPU processes") == 2
        assert slurm.calls().count("scontrol requeue 4711") == 1
    finally:
        slurm.end()
    equal(toys, run, whole(toys))


def test_a_job_of_slurm_with_torchrun_does_so_too(toys, tmp_path):
    file, run = written(toys, "slurm")
    slurm = Slurm(tmp_path / "slurm", tasks=1)
    slurm.environment |= {"PYTHON": sys.executable, "LAUNCHER": "torchrun", "GPUS": "2"}
    slurm.environment["SLURM_JOB_ID"] = str(free_port())
    try:
        slurm.start(str(file))
        slurm.until("step 7 ")
        slurm.announce()
        assert slurm.job.wait(300) == 0, slurm.said()
        assert slurm.calls()[-1].startswith("scontrol requeue ") and "Stopped at step" in slurm.said()
        assert slurm.start(str(file)).wait(500) == 0, slurm.said()
        assert slurm.said().count("resuming from step") == 1
    finally:
        slurm.end()
    equal(toys, run, whole(toys))
