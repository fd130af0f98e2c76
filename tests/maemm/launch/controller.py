"""SLURM as far as one machine allows: srun starts tasks here with the variables of a step, scontrol writes down."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
SLURM_SCRIPT = REPOSITORY / "docs/launch/slurm.sh"

SRUN = """#!/bin/bash
# Tasks of a step, all on this machine; hands SIGUSR1 on, and ends with the highest status.
echo "srun $*" >> "$SLURM_TEST/calls"
while [[ $1 == -* ]]; do shift; done
step=$(($(grep -c ^srun "$SLURM_TEST/calls") - 1))
tasks=()
for ((task = 0; task < SLURM_NTASKS; task++)); do
    SLURM_STEP_ID=$step SLURM_STEP_NUM_TASKS=$SLURM_NTASKS SLURM_STEP_NODELIST=node01 SLURM_STEP_NUM_NODES=1 \\
        SLURM_PROCID=$task SLURM_LOCALID=$task "$@" &
    tasks+=($!)
done
echo "${tasks[@]}" > "$SLURM_TEST/tasks"
trap 'interrupted=yes; kill -USR1 "${tasks[@]}" 2>/dev/null' USR1
highest=0
for task in "${tasks[@]}"; do
    while
        interrupted=
        wait "$task"
        status=$?
        [ "$interrupted" ]
    do :; done
    ((status > highest)) && highest=$status
done
exit $highest
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >> "$SLURM_TEST/calls"
[ "$1 $2" = "show hostnames" ] && echo "${3%%,*}"
exit 0
"""


class Slurm:
    """A controller of one job: starts its script, announces time limits, and starts it again once it is queued."""

    def __init__(self, folder: Path, tasks: int = 2):
        folder.mkdir()
        self.folder, self.log, self.restarts = folder, folder / "job.log", 0
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        self.environment = {
            "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "SLURM_TEST": str(folder), "SLURM_JOB_ID": "4711",
            "SLURM_NTASKS": str(tasks), "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "localhost", "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
        }  # fmt: skip

    def start(self, *words: str, **environment: str) -> subprocess.Popen:
        """Start the script of the job with these words."""
        count = {"SLURM_RESTART_COUNT": str(self.restarts)} if self.restarts else {}
        self.restarts += 1
        self.began = len(self.said())
        with self.log.open("a") as log:
            command = ["bash", str(SLURM_SCRIPT), *words]
            everything = os.environ | self.environment | count | environment
            self.job = subprocess.Popen(command, env=everything, stdout=log, stderr=log, start_new_session=True)
        return self.job

    def said(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()

    def tasks(self) -> list[int]:
        """The processes of the newest step."""
        return [int(number) for number in (self.folder / "tasks").read_text().split()]

    def until(self, text: str, timeout: float = 600) -> None:
        """Wait until the newest start has said ``text``."""
        end = time.monotonic() + timeout
        while text not in self.said()[self.began :]:
            assert self.job.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.02)

    def announce(self) -> None:
        """What ``--signal=B:USR1@300`` does five minutes before the limit."""
        self.job.send_signal(signal.SIGUSR1)

    def end(self) -> None:
        job = getattr(self, "job", None)
        if job is not None and job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
