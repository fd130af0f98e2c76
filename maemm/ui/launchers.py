"""Which of several processes of one command this is, from what their launcher tells each: torchrun, srun, mpirun.

torch is not imported: every verb asks at its start.
"""

from __future__ import annotations

import os
import re
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product

from maemm.contract.errors import MaemmError

DEFAULT_PORT = 29500  # torchrun's
_TORCHRUN = "TORCHELASTIC_RUN_ID"
# What tells a process that it is one of several. Where one works alone, it and what it starts must find none of these.
_VARIABLES = re.compile(
    r"RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE|(GROUP|ROLE)_(RANK|WORLD_SIZE|NAME)|MASTER_(ADDR|PORT)"
    r"|TORCHELASTIC_(RUN_ID|USE_AGENT_STORE)"
    r"|SLURM_(PROCID|LOCALID|NTASKS|NPROCS|STEP_NUM_TASKS|STEP_ID|STEPID)"
    r"|OMPI_COMM_WORLD_(RANK|SIZE|LOCAL_RANK|LOCAL_SIZE)|PMIX?_(RANK|SIZE|LOCAL_RANK|LOCAL_SIZE)"
    r"|MPI_(LOCALRANKID|LOCALNRANKS)"
)
_parent = os.getppid()  # read as early as can be: a launcher that ends leaves its processes to another parent


@dataclass(frozen=True)
class Place:
    """One process among those of a command. ``local_rank`` counts those on the same machine."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    launcher: str = ""  # "" where the variables of torchrun say it, whoever set them


def place(environment: Mapping[str, str] = os.environ) -> Place:
    """Which process this is; one alone where no launcher has started several.

    The variables of torchrun (``RANK``, ``WORLD_SIZE``) come first, as torchrun itself may be started by srun; then
    those of MPI, whose launchers may use srun too; then those of a step of SLURM. An allocation of many tasks in which
    one shell runs is no step of many. Raises :class:`MaemmError` where the variables contradict each other.
    """
    for read in (_of_torchrun, _of_mpi, _of_slurm):
        if (answer := read(environment)) is not None:
            return answer
    return Place()


def meeting_point(where: Place, environment: Mapping[str, str] = os.environ) -> tuple[str, int]:
    """Address and port at which rank 0 waits for the others.

    ``MASTER_ADDR`` and ``MASTER_PORT`` where they are set. Otherwise the first machine of the step (srun), or this one
    where it is the only one, and a port that follows from the job. Raises :class:`MaemmError`.
    """
    address, port = environment.get("MASTER_ADDR") or "", _number(environment, "MASTER_PORT")
    if where.launcher == "srun":
        address = address or _first_machine(environment)
        port = port or _port_of_job(environment)
    elif where.launcher == "mpirun":
        local = _first_number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE")
        if not address and local == where.world_size:
            address = "127.0.0.1"
        port = port or _free_of_others(environment.get("PMIX_NAMESPACE") or environment.get("PMI_JOBID") or "")
    if not address or not port:
        name = "MASTER_PORT" if address else "MASTER_ADDR"
        advice = f"export {name} to all of them" if where.launcher else "start them with torchrun"
        raise MaemmError(f"the {where.world_size} ranks do not know where to meet ({name} is not set); {advice}")
    return address, port


def hidden(name: str) -> bool:
    """Whether an environment variable says that this process is one of several."""
    return _VARIABLES.fullmatch(name) is not None


def launcher_ended(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process was started by torchrun, which is gone, so that nobody will start the run again."""
    return _TORCHRUN in environment and os.getppid() != _parent


def _remember_parent() -> None:
    global _parent
    _parent = os.getppid()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_remember_parent)


# ------------------------------------------------------------------------------------------------------- launchers
def _of_torchrun(environment: Mapping[str, str]) -> Place | None:
    rank, world_size = _number(environment, "RANK"), _number(environment, "WORLD_SIZE")
    if world_size is None:
        if rank:
            raise MaemmError(f"the environment variable RANK is {rank}, and WORLD_SIZE is not set; start with torchrun")
        return None
    step = _of_slurm(environment) if _TORCHRUN not in environment else None
    if step is not None:
        _refuse_contradiction(rank, world_size, step)
    if world_size > 1 and rank is None:
        raise MaemmError(
            f"the environment variable WORLD_SIZE is {world_size}, and RANK is not set; start with torchrun"
        )
    return _checked("WORLD_SIZE", "RANK", Place(rank or 0, world_size, _number(environment, "LOCAL_RANK") or 0))


def _refuse_contradiction(rank: int | None, world_size: int, step: Place) -> None:
    """Variables of torchrun that a job script has exported are the same for all tasks of a step, which are ranks.

    Another launcher in each task may make several ranks of it.
    """
    if world_size % step.world_size or (world_size == step.world_size and rank != step.rank):
        said = f"WORLD_SIZE={world_size}" + ("" if rank is None else f" RANK={rank}")
        raise MaemmError(
            f"the environment says {said}, and srun started this process as task {step.rank} of {step.world_size}; "
            "unset WORLD_SIZE and RANK in the job script, or start with torchrun"
        )


def _of_mpi(environment: Mapping[str, str]) -> Place | None:
    for size, rank, local in (
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK"),
        ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID"),
        ("PMI_SIZE", "PMI_RANK", "PMI_LOCAL_RANK"),
    ):
        here, of, on_machine = (_number(environment, name) for name in (rank, size, local))
        if here is not None and of is not None and on_machine is not None:
            return _checked(size, rank, Place(here, of, on_machine, "mpirun"))
    return None


def _of_slurm(environment: Mapping[str, str]) -> Place | None:
    """A task of a step of several. The shell of a job is no step, and an interactive one is a step of one task."""
    tasks, rank = _number(environment, "SLURM_STEP_NUM_TASKS"), _number(environment, "SLURM_PROCID")
    size = "SLURM_STEP_NUM_TASKS"
    if tasks is None and (environment.get("SLURM_STEP_ID") or environment.get("SLURM_STEPID")):
        tasks, size = _first_number(environment, "SLURM_NTASKS", "SLURM_NPROCS"), "SLURM_NTASKS"
    if tasks is None and rank:
        raise MaemmError(
            f"the environment variable SLURM_PROCID is {rank}, and SLURM_STEP_NUM_TASKS is not set; hand on the "
            "variables of SLURM to the process, or start with torchrun"
        )
    if tasks is None or tasks == 1:
        return None
    if rank is None:
        raise MaemmError(f"srun started {tasks} tasks, and SLURM_PROCID is not set; hand on the variables of SLURM")
    return _checked(size, "SLURM_PROCID", Place(rank, tasks, _number(environment, "SLURM_LOCALID") or 0, "srun"))


def _checked(size: str, rank: str, where: Place) -> Place:
    if where.rank >= where.world_size:
        raise MaemmError(
            f"the environment variable {rank} is {where.rank}, and {size} is {where.world_size}; ranks count from 0: "
            "start with torchrun, srun or mpirun"
        )
    return where


# --------------------------------------------------------------------------------------------------- meeting points
def _first_machine(environment: Mapping[str, str]) -> str:
    """Where rank 0 of a step runs; 127.0.0.1 where all of it is on one machine."""
    text = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    text = text or environment.get("SLURM_NODELIST", "")
    machines = _machines(text) if text else []
    if len(machines) == 1:
        return "127.0.0.1"
    return machines[0] if machines else ""


def _machines(text: str) -> list[str]:
    try:
        return list(hosts(text))
    except ValueError:
        pass
    try:
        command = ["scontrol", "show", "hostnames", text]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.split()
    except (OSError, subprocess.SubprocessError):
        raise MaemmError(
            f"the list of machines of the job cannot be read ({text!r}); export MASTER_ADDR, the name of the first"
        ) from None


def hosts(text: str) -> Iterator[str]:
    """The names in a node list of SLURM: ``"node[01-03,7],login"`` is node01, node02, node03, node7 and login.

    Raises :class:`ValueError` for text of another form.
    """
    if not re.fullmatch(r"(?:[^\[\],\s]|\[[^\[\]\s]+\])+(?:,(?:[^\[\],\s]|\[[^\[\]\s]+\])+)*", text):
        raise ValueError(f"{text!r} is no list of machines")
    for names in re.findall(r"(?:[^\[\],]|\[[^\[\]]+\])+", text):
        pieces = re.findall(r"\[[^\]]+\]|[^\[]+", names)
        yield from map(
            "".join, product(*[[*_numbers(piece[1:-1])] if piece[0] == "[" else [piece] for piece in pieces])
        )


def _numbers(text: str) -> Iterator[str]:
    """``"01-03,7"`` is 01, 02, 03 and 7."""
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"{part!r} is no range of numbers")
        yield from (f"{n:0{len(match[1])}}" for n in range(int(match[1]), int(match[2] or match[1]) + 1))


def _port_of_job(environment: Mapping[str, str]) -> int | None:
    """The same for all tasks of a step, another for the next one, below the ports that systems give out."""
    job = _first_number(environment, "SLURM_JOB_ID", "SLURM_JOBID")
    step = environment.get("SLURM_STEP_ID") or environment.get("SLURM_STEPID") or "0"
    return None if job is None else 15000 + (16 * job + (int(step) if step.isdecimal() else 0)) % 15000


def _free_of_others(job: str) -> int:
    """A port that follows from the name of a job, the default without one."""
    return 15000 + zlib.crc32(job.encode()) % 15000 if job else DEFAULT_PORT


def _first_number(environment: Mapping[str, str], *names: str) -> int | None:
    return next((number for name in names if (number := _number(environment, name)) is not None), None)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name) or ""
    if not text:
        return None
    if not re.fullmatch(r"\d{1,9}", text):
        raise MaemmError(f"the environment variable {name} is {text!r}, not a number; start with torchrun")
    return int(text)
