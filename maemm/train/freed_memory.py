"""What a step frees on a CPU is kept for the next one."""

from __future__ import annotations

import ctypes
import os

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # parameters of mallopt, of <malloc.h>
_LARGEST, _KEPT = 32 * 2**20, 2**31 - 1  # bytes: the most that glibc accepts for each


def keep_freed_memory() -> None:
    """Let the C library keep freed memory up to 2 GiB, blocks above 32 MiB aside.

    By default it gives the activations back to the system at the end of most steps, and the next step waits until the
    system has filled as many pages with zeros: up to a tenth of a step. Nothing changes where the C library is not
    glibc, or where the environment sets its memory allocator itself.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(_MMAP_THRESHOLD, _LARGEST)
    mallopt(_TRIM_THRESHOLD, _KEPT)
