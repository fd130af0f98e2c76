"""Which ranks are missing where others waited for them in vain. Asked after a failure alone: a step pays nothing."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

PATIENCE_S = 3.0  # until the ranks that wait have said so: when one gives up, gloo ends the waiting of the others
GONE_S = 1.0  # until a rank whose connection broke knows that another one gave up, and is not gone


def missing_ranks(group: str, rank: int, ranks: int, gave_up: bool) -> list[int]:
    """Of ``ranks`` those that were not waiting when one gave up waiting for them in a collective of ``group``.

    Called by each rank that waited for long and whose collective failed; ``gave_up``: because its time was over, not
    because a connection broke. Empty where nobody gave up, where all say that they waited, and where the store of the
    process group does not answer.
    """
    missing: list[int] = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError, ValueError):  # the store is gone with its process
            store = dist.distributed_c10d._get_default_store()
            store.set_timeout(timedelta(seconds=PATIENCE_S))
            missing[:] = _missing(store, f"maemm/{group}", rank, ranks, gave_up, missing)

    thread = threading.Thread(target=ask, daemon=True)  # a store in a process that is stopped never answers
    thread.start()
    thread.join(3 * PATIENCE_S)
    return list(missing)


def _missing(store: Any, name: str, rank: int, ranks: int, gave_up: bool, latest: list[int]) -> list[int]:
    """``latest``: who was missing so far, for one that gave up: the process that holds the store may end meanwhile."""

    def missing() -> list[int]:
        latest[:] = [other for other in range(ranks) if not store.check([f"{name}/{other}"])]
        return latest

    if gave_up:
        store.set(f"{name}/over", "yes")
    elif not _until(lambda: store.check([f"{name}/over"]), GONE_S):
        return []
    store.set(f"{name}/{rank}", "waits")
    told = f"{name}/missing"
    _until(lambda: store.check([told]) or (gave_up and not missing()), PATIENCE_S + GONE_S * (not gave_up))
    if gave_up and not store.check([told]):
        store.set(told, ",".join(map(str, missing())))
        time.sleep(GONE_S)  # the store may be in this process, which ends now
    if not store.check([told]):
        return []
    return [int(number) for number in store.get(told).decode().split(",") if number]


def _until(done: Callable[[], bool], seconds: float) -> bool:
    """Ask until it is so, at most so long."""
    end = time.monotonic() + seconds
    while not (ready := done()) and time.monotonic() < end:
        time.sleep(0.05)
    return ready
