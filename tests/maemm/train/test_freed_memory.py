"""Freed memory stays with a process that trains on a CPU."""

import os
import subprocess
import sys

import pytest

PAGES = """
import ctypes, resource, sys
sys.path.insert(0, sys.argv[1])
from maemm.train.freed_memory import keep_freed_memory
if sys.argv[2] == "keep":
    keep_freed_memory()
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [c.malloc(16 * 2**20) for _ in range(12)]
    for block in blocks:
        ctypes.memset(block, 1, 16 * 2**20)
    for block in reversed(blocks):
        c.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([step() for _ in range(3)][-1])
"""


def pages(how, **environment):
    """Pages that the third of equal steps asks the system for; each step uses 192 MiB."""
    importable = os.path.dirname(os.path.dirname(__import__("maemm").__file__))
    env = {key: value for key, value in os.environ.items() if not key.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PAGES, importable, how]
    return int(subprocess.run(command, env={**env, **environment}, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc")
def test_the_next_step_uses_what_the_last_one_freed():
    assert pages("leave") > 20_000 > 1_000 > pages("keep")
    assert pages("keep", MALLOC_TRIM_THRESHOLD_="131072") > 20_000  # what the environment says counts
