"""docs/launch/slurm.sh with ranks that are shell scripts: what it makes of each way in which they may end."""

from __future__ import annotations

import os
import re
import signal

import pytest

from tests.maemm.launch.controller import SLURM_SCRIPT, Slurm

# A rank: says that it runs, and ends as its first word tells; after SIGUSR1 it has saved.
RANK = """#!/bin/bash
shift 3   # -m maemm pretrain
trap 'echo "$SLURM_PROCID saved"; exit 138' USR1
echo "$SLURM_PROCID of $SLURM_STEP_NUM_TASKS: $*"
case $1 in
    ends) exit "$2" ;;
    killed)   # in as many starts
        [ "$SLURM_PROCID$SLURM_STEP_ID" -lt "1$2" ] && [ "$SLURM_PROCID" = 1 ] && kill -9 $$
        [ "$SLURM_STEP_ID" -lt "$2" ] && exit 2
        exit 0 ;;
    *) while :; do sleep 0.05; done ;;
esac
"""


@pytest.fixture
def job(tmp_path):
    """A controller whose tasks are such ranks."""
    controller = Slurm(tmp_path / "slurm")
    rank = controller.folder / "rank"
    rank.write_text(RANK)
    rank.chmod(0o755)
    controller.environment["PYTHON"] = str(rank)
    yield controller
    controller.end()


@pytest.mark.parametrize("status", [0, 1, 2, 143])
def test_the_status_of_a_run_that_ends_by_itself_is_that_of_the_job(job, status):
    assert job.start("ends", str(status)).wait(60) == status
    assert [call for call in job.calls() if "requeue" in call] == [] and len(job.calls()) == 1


def test_every_task_is_a_rank_with_the_words_of_the_job(job):
    job.start("ends", "0", "data.root=a b", "out=x").wait(60)
    assert sorted(job.said().splitlines()) == [f"{rank} of 2: ends 0 data.root=a b out=x" for rank in range(2)]


def test_the_announced_limit_is_handed_on_and_the_job_is_queued_again(job):
    job.start("runs")
    job.until("1 of 2: runs")
    job.until("0 of 2: runs")
    job.announce()
    assert job.job.wait(60) == 0
    assert job.calls()[1:] == ["scontrol requeue 4711"] and job.said().count("saved") == 2


def test_ranks_that_hear_of_the_limit_themselves_are_queued_again_too(job):
    """``--signal=USR1@300`` without B: signals the tasks alone."""
    job.start("runs")
    job.until("1 of 2: runs")
    job.until("0 of 2: runs")
    for task in job.tasks():
        os.kill(task, signal.SIGUSR1)
    assert job.job.wait(60) == 0 and job.calls()[1:] == ["scontrol requeue 4711"]


def test_a_run_is_not_queued_again_for_ever(job):
    job.restarts = 3
    assert job.start("ends", "138", MAX_REQUEUES="3").wait(60) == 138
    assert "not queued again after 3 times" in job.said() and len(job.calls()) == 1


@pytest.mark.parametrize(("times", "status", "starts"), [(1, 0, 2), (2, 0, 3), (9, 137, 4)])
def test_ranks_of_which_one_was_killed_start_again_in_the_job(job, times, status, starts):
    assert job.start("killed", str(times)).wait(60) == status
    assert [call.split()[0] for call in job.calls()] == ["srun"] * starts


def test_with_torchrun_each_task_is_one_torchrun(job):
    """Its words as torch's own parser reads them."""
    from torch.distributed.run import get_args_parser

    words = {"LAUNCHER": "torchrun", "SLURM_NTASKS": "1", "SLURM_NNODES": "3", "SLURM_JOB_NODELIST": "a1,a2,a3"}
    job.start("image/mae_tiny_cpu", "out=x", GPUS="8", PYTHON="echo", **words).wait(60)
    (line,) = [line for line in job.said().splitlines() if "torch.distributed.run" in line]
    args = get_args_parser().parse_args(line.split()[2:])
    assert (args.nnodes, args.nproc_per_node, args.rdzv_endpoint) == ("3", "8", "a1:19711")
    assert (args.rdzv_backend, args.rdzv_id, args.max_restarts) == ("c10d", "4711", 3)
    assert args.module and [args.training_script, *args.training_script_args] == [
        "maemm", "pretrain", "image/mae_tiny_cpu", "out=x",
    ]  # fmt: skip


def test_a_launcher_that_there_is_not_is_named(job):
    assert job.start("ends", "0", LAUNCHER="mpirun").wait(60) == 2
    assert "LAUNCHER is 'mpirun'; set it to srun or torchrun" in job.said()


def test_what_it_asks_slurm_for():
    text = SLURM_SCRIPT.read_text()
    options = dict(re.findall(r"(?m)^#SBATCH --([a-z-]+)(?:=(\S+))?$", text))
    assert options["signal"] == "B:USR1@300" and "requeue" in options and options["open-mode"] == "append"
    first_command = re.search(r"(?m)^[^#\n]", text)
    assert first_command is not None and "#SBATCH" not in text[first_command.start() :]  # those after it are not read
