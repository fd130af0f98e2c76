"""Ranks meet in the store of their launcher, which may hold what an earlier start of them has written there.

torchrun keeps one store over all its restarts, and its count of restarts differs between machines
(github.com/pytorch/pytorch/issues/135712): process groups that are made in it anew would read the addresses of ranks
that are dead. So the ranks first agree on a name that no start before has used, and make their groups below that.
"""

from __future__ import annotations

import time
import uuid
from datetime import timedelta

import torch.distributed as dist

_OFTEN_S = 0.02


def fresh(store: dist.Store, rank: int, world_size: int, timeout_s: float) -> dist.Store:
    """The part of ``store`` that belongs to this start of the ranks alone; all of them call this.

    Rank 0 answers greetings. One that an earlier start has left is answered too, and nobody reads that. Raises
    :class:`RuntimeError` that names the ranks which have not come within ``timeout_s``.
    """
    if rank == 0:
        name = _welcome(store, world_size, timeout_s)
    else:
        greeting = uuid.uuid4().hex
        store.set(f"maemm/greeting/{rank}", greeting)
        store.wait([f"maemm/welcome/{greeting}"], timedelta(seconds=timeout_s))
        name = store.get(f"maemm/welcome/{greeting}").decode()
        store.set(f"maemm/{name}/{rank}", "here")
    return dist.PrefixStore(f"maemm/{name}", store)


def _welcome(store: dist.Store, world_size: int, timeout_s: float) -> str:
    """On rank 0: tell every rank the name of this start, until all have said that they know it."""
    name, end = uuid.uuid4().hex, time.monotonic() + timeout_s
    missing, greetings = set(range(1, world_size)), dict[int, bytes]()
    while True:
        for rank in missing:
            if store.check([f"maemm/greeting/{rank}"]):
                greeting = store.get(f"maemm/greeting/{rank}")
                if greeting != greetings.get(rank):
                    greetings[rank] = greeting
                    store.set(f"maemm/welcome/{greeting.decode()}", name)
        missing = {rank for rank in missing if not store.check([f"maemm/{name}/{rank}"])}
        if not missing:
            return name
        if time.monotonic() > end:
            listed = ", ".join(map(str, sorted(missing)[:8])) + (", ..." if len(missing) > 8 else "")
            raise RuntimeError(f"after {timeout_s:g} s there is still no rank {listed}")
        time.sleep(_OFTEN_S)
