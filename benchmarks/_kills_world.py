"""Ranks of a run under torchrun's own agent, forked from a process that has imported all: a start costs no imports.

The agent watches its ranks, ends all where one ends, and starts them again, as ``torchrun --max-restarts`` does.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from maemm.contract.errors import MaemmError
from maemm.train.loop import train
from maemm.train.signals import Interrupted
from maemm.train.stages import train_stages

FORK = multiprocessing.get_context("fork")
RANKS = 2
PATIENCE_S = 600.0


class World:
    """Runs of one recipe in one folder: each start is a launcher with its ranks; ``log`` has all that they say."""

    def __init__(self, recipe: dict[str, Any], folder: Path, restarts: int = 3):
        self.recipe, self.folder, self.restarts = recipe, folder, restarts
        folder.mkdir(parents=True, exist_ok=True)
        self.log, self._pids = folder / "log.txt", folder / "pids.jsonl"
        self.sessions: list[int] = []

    def start(self) -> None:
        """What an operator, a batch system or a pod does again after the launcher has ended."""
        self.launcher = FORK.Process(target=_launch, args=(self.recipe, str(self.folder), self.restarts))
        self.launcher.start()
        self.sessions.append(self.launcher.pid or 0)

    def ranks(self) -> list[dict[str, int]]:
        """The ranks of the newest start, once all have begun; [] before."""
        rows = [json.loads(line) for line in _lines(self._pids) if json.loads(line)["launcher"] == self.launcher.pid]
        newest = max((row["restart"] for row in rows), default=0)
        rows = sorted((row for row in rows if row["restart"] == newest), key=lambda row: row["rank"])
        return rows if len(rows) == RANKS else []

    def starts(self) -> int:
        """How often the ranks have been started, over all launchers."""
        return len(_lines(self._pids)) // RANKS

    def steps_said(self) -> int:
        """How many lines of the log tell of a step, or of the end."""
        return sum("  loss " in line or line.startswith("Finished ") for line in _lines(self.log))

    def until(self, ready: Callable[[], Any], title: str, *, every: float = 0.02, alive: bool = True) -> Any:
        """The first answer of ``ready()`` that is true. Raises where it does not come, or the launcher ends before."""
        end = time.monotonic() + PATIENCE_S
        while not (answer := ready()):
            if time.monotonic() > end or (alive and not self.launcher.is_alive() and not ready()):
                raise RuntimeError(f"no {title}; see {self.log}")
            time.sleep(every)
        return answer

    def wait(self) -> int:
        """Wait until the launcher and the ranks that it has left behind have ended; its exit status."""
        self.launcher.join(PATIENCE_S)
        self.until(lambda: not self.left(), "end of the ranks", alive=False)
        assert self.launcher.exitcode is not None
        return self.launcher.exitcode

    def left(self) -> list[int]:
        """Processes of the starts that still run, those of loaders too."""
        return [pid for pid, session in _sessions() if session in self.sessions]

    def end(self) -> None:
        """End all that is left."""
        for pid in self.left():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.launcher.join()


def _lines(path: Path) -> list[str]:
    """The whole lines of a file that others write."""
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def _sessions() -> list[tuple[int, int]]:
    """(process, session) of all processes that run."""
    answers = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(OSError):
                state, _, _, session, *_ = (entry / "stat").read_text().rpartition(")")[2].split()
                if state not in "ZX":
                    answers.append((int(entry.name), int(session)))
    return answers


# ------------------------------------------------------------------------------------------------ in other processes
def _launch(recipe: dict[str, Any], folder: str, restarts: int) -> None:
    os.setsid()
    log = open(Path(folder, "log.txt"), "a", buffering=1)  # noqa: SIM115  for as long as this process lives
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log  # which may have been something else in the process that was forked
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=RANKS, run_id="kills", rdzv_backend="c10d",
        rdzv_endpoint="localhost:0", max_restarts=restarts, monitor_interval=0.1, start_method="fork",
    )  # fmt: skip
    elastic_launch(config, _rank)(recipe, folder, os.getpid())


def _rank(recipe: dict[str, Any], folder: str, launcher: int) -> None:
    # Functions get a signal when the agent ends; commands, which torchrun starts for a user, do not.
    torch.multiprocessing._prctl_pr_set_pdeathsig(0)
    torch.set_num_threads(1)
    row = {"launcher": launcher, "restart": int(os.environ["TORCHELASTIC_RESTART_COUNT"]), "pid": os.getpid()}
    with open(Path(folder, "pids.jsonl"), "a") as file:
        file.write(json.dumps({**row, "rank": int(os.environ["RANK"])}) + "\n")
    try:
        (train_stages if recipe.get("stages") else train)(recipe, echo=lambda line: print(line, flush=True))
    except MaemmError as error:
        print("maemm: error:", error, flush=True)
        sys.exit(2)
    except Interrupted as stopped:
        sys.exit(stopped.status)
