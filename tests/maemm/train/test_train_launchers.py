"""Ranks that srun or mpirun started, and ranks whose launcher has ended."""

from __future__ import annotations

import os

import pytest
import torch

from maemm.contract.errors import MaemmError
from maemm.train import distributed
from maemm.train.signals import Interrupted, Interrupts
from maemm.ui.launchers import Place


def as_task(rank):
    """What srun tells each of two tasks on one machine, of whose name nobody knows the address."""
    return {
        "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2",
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_STEP_NODELIST": "nowhere07",
    }  # fmt: skip


def as_process(rank):
    """What Open MPI's mpirun tells each of two processes."""
    names = ("RANK", rank), ("SIZE", 2), ("LOCAL_RANK", rank), ("LOCAL_SIZE", 2)
    return {f"OMPI_COMM_WORLD_{name}": str(number) for name, number in names} | {"PMIX_NAMESPACE": str(os.getpid())}


@pytest.mark.parametrize("environment", [as_task, as_process])
def test_two_ranks_without_torchrun_equal_one(toys, environment):
    options = {"train__epochs": 2, "train__micro_batch": 4}
    pair = toys.start(toys.recipe(toys.out / "two", **options), 2, environment)
    assert [rank.wait() for rank in pair] == [0, 0], pair[0].said() + pair[1].said()
    assert "2 CPU processes" in pair[0].said() and not pair[1].said()
    toys.train(toys.recipe(toys.out / "one", **options))
    rows, others = toys.metrics(toys.out / "one"), toys.metrics(toys.out / "two")
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in others], abs=2e-5)


def test_a_run_whose_launcher_has_ended_saves_and_ends(toys, monkeypatch):
    """Nobody would see it, and the next start would find its folder in use."""
    ended = iter([False] * 3)
    monkeypatch.setattr("maemm.train.signals.launcher_ended", lambda: next(ended, True))
    with pytest.raises(Interrupted) as stopped:
        toys.train()
    assert stopped.value.status == 129
    assert toys.lines[-1].startswith("Stopped at step 3; saved to ")


def test_a_signal_goes_before_the_end_of_the_launcher(monkeypatch):
    monkeypatch.setattr("maemm.train.signals.launcher_ended", lambda: True)
    interrupts = Interrupts()
    interrupts.handle(15, None)
    assert interrupts() == 15


@pytest.mark.parametrize(
    ("gpus", "where", "variables", "expected"),
    [
        (8, Place(11, 16, 3, "srun"), {}, 3),
        (8, Place(11, 16, 3, "srun"), {"SLURM_GPUS_PER_TASK": "1"}, 3),  # bound by nothing: all are seen
        (1, Place(11, 16, 3, "srun"), {"SLURM_GPUS_PER_TASK": "1"}, 0),  # a task sees its own alone
        (1, Place(11, 16, 3, "srun"), {}, None),
        (2, Place(3, 4, 3), {}, None),
    ],
)
def test_the_gpu_of_a_rank(gpus, where, variables, expected, monkeypatch):
    for name in distributed._GPU_OF_TASK:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    if expected is not None:
        assert distributed._gpu_of(where) == expected
        return
    with pytest.raises(MaemmError, match=rf"local rank 3 has no GPU, this machine has {gpus}; .*--ntasks-per-node"):
        distributed._gpu_of(where)
