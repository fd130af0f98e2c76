"""Lines for whoever watches a run, from where data are read: in the main process or in its workers."""

from __future__ import annotations

import multiprocessing
import os
import sys


def worker_name(number: int) -> str:
    """The name of a worker process."""
    return f"data worker {number}"


def say(text: str) -> None:
    """Print a line to stderr, in one process of the run: that of rank 0, or the first of its workers."""
    if multiprocessing.current_process().name not in ("MainProcess", worker_name(0)):
        return
    if os.environ.get("RANK", "0") != "0":
        return
    start = "\r\033[K" if sys.stderr.isatty() else ""  # a progress bar may stand there
    print(f"{start}{text}", file=sys.stderr, flush=True)
