"""How much memory this machine has, and numbers of bytes in words."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a container, v2 and v1


@cache
def machine_memory() -> int | None:
    """Bytes of memory of this machine, or of the container this process runs in; None where that is not known."""
    sizes = []
    with suppress(AttributeError, ValueError, OSError):  # Windows has no sysconf
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _LIMITS:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
        if text.isdigit():  # "max": no limit
            sizes.append(int(text))
    return min((size for size in sizes if size > 0), default=None)


def bytes_text(count: float) -> str:
    """A number of bytes in words: ``512 MB``, ``28 PB``."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB", "EB")
    number = 0
    while count >= 1000 and number < len(units) - 1:
        count, number = count / 1000, number + 1
    return f"{count:.3g} {units[number]}"
