"""One command, several processes: a verb that does not share its work is done once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from maemm.contract.errors import MaemmError

# What torchrun tells each process. Rank 0 that works alone must not find it, or it would wait for the others.
_VARIABLES = (
    "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "ROLE_NAME", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip


@contextmanager
def only_rank0() -> Iterator[bool]:
    """Whether this process has to work: one alone, or rank 0 of several, which is one alone within the block.

    The other ranks leave with success, and the launcher waits for rank 0: its failure is that of the command. Raises
    :class:`MaemmError` where the environment holds no numbers.
    """
    if _number("WORLD_SIZE", 1) == 1:
        yield True
        return
    if _number("RANK", 0) != 0:
        yield False
        return
    before = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
    try:
        yield True
    finally:
        os.environ.update(before)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    try:
        return int(text) if text else default
    except ValueError:
        raise MaemmError(f"the environment variable {name} is {text!r}, not a number; start with torchrun") from None
