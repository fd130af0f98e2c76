"""Which of several processes this is: what torchrun, srun and mpirun say, and what contradicts itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from maemm.contract.errors import MaemmError
from maemm.ui import launchers
from maemm.ui.launchers import Place, hosts, meeting_point, place
from maemm.ui.processes import only_rank0

# The shell of a job and an interactive step know the size of the allocation; neither is one of several processes.
SHELL = {"SLURM_JOB_ID": "81", "SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0",
         "SLURM_JOB_NODELIST": "node[01-03,7]"}  # fmt: skip
INTERACTIVE = {**SHELL, "SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_NODELIST": "node01"}
TASK = {**SHELL, "SLURM_STEP_ID": "2", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8", "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1", "SLURM_STEP_NODELIST": "node[02-03]"}  # fmt: skip
TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "first",
            "MASTER_PORT": "1234"}  # fmt: skip
OPEN_MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "prterun-a-77@1"}  # fmt: skip
HYDRA = {"PMI_RANK": "1", "PMI_SIZE": "4", "MPI_LOCALRANKID": "0", "MPI_LOCALNRANKS": "1", "MASTER_ADDR": "a"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, Place()),
        ({"PATH": "/bin", "LOCAL_RANK": "7", "MASTER_ADDR": "somewhere", "RANK": "0"}, Place()),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Place()),
        ({"WORLD_SIZE": "", "RANK": ""}, Place()),
        (TORCHRUN, Place(3, 4, 1)),
        (SHELL, Place()),
        (INTERACTIVE, Place()),
        (TASK, Place(5, 8, 1, "srun")),
        ({**TASK, "MASTER_ADDR": "mine", "MASTER_PORT": "77"}, Place(5, 8, 1, "srun")),
        ({key: TASK[key] for key in TASK if key != "SLURM_STEP_NUM_TASKS"}, Place(5, 8, 1, "srun")),  # an old SLURM
        ({**TASK, **TORCHRUN, "WORLD_SIZE": "64", "RANK": "63", "LOCAL_RANK": "7"}, Place(63, 64, 7)),  # in each task
        ({**TASK, "WORLD_SIZE": "8", "RANK": "5", "LOCAL_RANK": "1"}, Place(5, 8, 1)),  # by the task's own shell
        ({**TASK, "WORLD_SIZE": "64", "RANK": "43", "LOCAL_RANK": "3"}, Place(43, 64, 3)),  # others in each task
        ({**SHELL, **TORCHRUN}, Place(3, 4, 1)),
        (OPEN_MPI, Place(1, 2, 1, "mpirun")),
        ({**TASK, **OPEN_MPI}, Place(1, 2, 1, "mpirun")),  # its daemons are the tasks
        (HYDRA, Place(1, 4, 0, "mpirun")),
        ({"PMI_RANK": "3", "PMI_SIZE": "4", "PMI_LOCAL_RANK": "1"}, Place(3, 4, 1, "mpirun")),
        ({**TASK, "PMI_RANK": "5", "PMI_SIZE": "8"}, Place(5, 8, 1, "srun")),  # srun --mpi=pmi2
    ],
)  # fmt: skip
def test_the_place_of_a_process(environment, expected):
    assert place(environment) == expected


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"WORLD_SIZE": "two"}, "the environment variable WORLD_SIZE is 'two', not a number"),
        ({"WORLD_SIZE": "-2", "RANK": "0"}, "WORLD_SIZE is '-2', not a number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is 2, and WORLD_SIZE is 2; ranks count from 0"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, and RANK is not set"),
        ({"RANK": "1"}, "RANK is 1, and WORLD_SIZE is not set"),
        ({**TASK, "WORLD_SIZE": "8", "RANK": "0"}, "says WORLD_SIZE=8 RANK=0, and srun started this process as task 5"),
        ({**TASK, "WORLD_SIZE": "8"}, "says WORLD_SIZE=8, and srun started this process as task 5 of 8; unset"),
        ({**TASK, "WORLD_SIZE": "1", "RANK": "0"}, "says WORLD_SIZE=1 RANK=0, and srun started"),
        ({**TASK, "SLURM_PROCID": "8"}, "SLURM_PROCID is 8, and SLURM_STEP_NUM_TASKS is 8"),
        ({**TASK, "SLURM_PROCID": ""}, "srun started 8 tasks, and SLURM_PROCID is not set"),
        ({**SHELL, "SLURM_PROCID": "3"}, "SLURM_PROCID is 3, and SLURM_STEP_NUM_TASKS is not set"),
        ({**TASK, "SLURM_LOCALID": "x"}, "SLURM_LOCALID is 'x', not a number"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_RANK": "2"}, "OMPI_COMM_WORLD_RANK is 2, and OMPI_COMM_WORLD_SIZE is 2"),
    ],
)  # fmt: skip
def test_an_environment_that_contradicts_itself_is_one_line(environment, said):
    with pytest.raises(MaemmError) as refused:
        place(environment)
    assert said in str(refused.value) and "\n" not in str(refused.value) and "; " in str(refused.value)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        (TORCHRUN, ("first", 1234)),
        (TASK, ("node02", 15000 + (16 * 81 + 2) % 15000)),
        ({**TASK, "SLURM_STEP_NODELIST": ""}, ("node01", 16298)),
        (
            {**TASK, "SLURM_STEP_NODELIST": "node7"},
            ("127.0.0.1", 16298),
        ),  # all on one machine, whose name may not resolve
        ({**TASK, "MASTER_ADDR": "mine"}, ("mine", 16298)),
        ({**TASK, "MASTER_PORT": "9"}, ("node02", 9)),
        (OPEN_MPI, ("127.0.0.1", 15000 + launchers.zlib.crc32(b"prterun-a-77@1") % 15000)),
        (HYDRA, ("a", 29500)),
    ],
)
def test_where_ranks_meet(environment, expected):
    assert meeting_point(place(environment), environment) == expected


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({**HYDRA, "MASTER_ADDR": ""}, "the 4 ranks do not know where to meet (MASTER_ADDR is not set); export"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "(MASTER_ADDR is not set); start them with torchrun"),
        ({**TASK, "SLURM_JOB_ID": ""}, "(MASTER_PORT is not set); export MASTER_PORT to all"),
        ({**TASK, "SLURM_STEP_NODELIST": "node[1-"}, "list of machines of the job cannot be read ('node[1-')"),
    ],
)
def test_no_place_to_meet_is_one_line(environment, said, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))  # no scontrol
    with pytest.raises(MaemmError) as refused:
        meeting_point(place(environment), environment)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("login", "login"),
        ("node[01-03,7]", "node01 node02 node03 node7"),
        ("a,b-[2-3],c[08-11].cluster", "a b-2 b-3 c08.cluster c09.cluster c10.cluster c11.cluster"),
        ("rack[1-2]node[01,03]-ib", "rack1node01-ib rack1node03-ib rack2node01-ib rack2node03-ib"),
        ("n[9-10]", "n9 n10"),
    ],
)
def test_lists_of_machines(text, names):
    assert list(hosts(text)) == names.split()


@pytest.mark.parametrize("text", ["", "a,,b", "n[1-", "n[3-1]", "n[a-b]", "n]1[", "a b", "n[[1-2]]", "n[]"])
def test_other_lists_of_machines_are_refused(text):
    with pytest.raises(ValueError):
        list(hosts(text))


def test_scontrol_is_asked_about_other_lists(monkeypatch, tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/sh\n[ "$1 $2" = "show hostnames" ] && echo "$3" | tr "%" "\\n"\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    environment = {**TASK, "SLURM_STEP_NODELIST": "n[1%2"}
    assert meeting_point(place(environment), environment)[0] == "n[1"


@pytest.mark.parametrize("environment", [TORCHRUN, TASK, OPEN_MPI, HYDRA], ids=["torchrun", "srun", "openmpi", "hydra"])
def test_rank_0_that_works_alone_hears_of_no_launcher(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with only_rank0() as works:
        assert not works
    for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        if name in environment:
            monkeypatch.setenv(name, "0")
    with only_rank0() as works:
        assert works and place() == Place()
    assert place().world_size > 1


CHILD = """
import sys, time
from maemm.ui.launchers import launcher_ended
print("up", flush=True)
end = time.monotonic() + float(sys.argv[1])
while not launcher_ended() and time.monotonic() < end:
    time.sleep(0.02)
print(launcher_ended(), flush=True)
"""
PARENT = """
import subprocess, sys, time
said = sys.argv[1]
subprocess.Popen([sys.executable, "-c", *sys.argv[2:]], stdout=open(said, "w"))
while not open(said).read():
    time.sleep(0.02)
"""


@pytest.mark.parametrize(
    ("environment", "ended", "seconds"), [({"TORCHELASTIC_RUN_ID": "x"}, True, 60), ({}, False, 1)]
)
def test_a_launcher_that_has_ended_is_noticed(environment, ended, seconds, tmp_path):
    """The parent ends once the child is up; a shell that starts one process in the background may do so."""
    said = tmp_path / "said"
    command = [sys.executable, "-c", PARENT, str(said), CHILD, str(seconds)]
    subprocess.run(command, env=os.environ | environment, check=True, timeout=60)
    end = time.monotonic() + 60
    while said.read_text().count("\n") < 2 and time.monotonic() < end:
        time.sleep(0.02)
    assert said.read_text() == f"up\n{ended}\n"
