"""One command, several processes: a verb that does not share its work is done once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from maemm.ui.launchers import hidden, place


@contextmanager
def only_rank0() -> Iterator[bool]:
    """Whether this process has to work: one alone, or rank 0 of several, which is one alone within the block.

    The other ranks leave with success, and the launcher waits for rank 0: its failure is that of the command. Raises
    :class:`MaemmError` where the environment contradicts itself.
    """
    where = place()
    if where.world_size == 1:
        yield True
        return
    if where.rank != 0:
        yield False
        return
    # Rank 0 that works alone must not find what launchers tell each process, or it would wait for the others.
    before = {name: os.environ.pop(name) for name in list(os.environ) if hidden(name)}
    try:
        yield True
    finally:
        os.environ.update(before)
