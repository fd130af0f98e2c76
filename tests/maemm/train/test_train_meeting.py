"""Ranks that are started again meet in a store that still holds what the start before has written there."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from maemm.train.meeting import fresh


@pytest.fixture
def store():
    """As torchrun keeps it, over all starts of its ranks."""
    return dist.TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=30), wait_for_workers=False)


def meet(store, ranks, world_size, timeout_s=20.0):
    """What each of these ranks, which are threads with connections of their own, gets from :func:`fresh`."""
    answers = {}

    def join(rank):
        own = dist.TCPStore("127.0.0.1", store.port, None, False, timedelta(seconds=30), wait_for_workers=False)
        try:
            answers[rank] = fresh(own, rank, world_size, timeout_s)
        except RuntimeError as error:
            answers[rank] = error

    threads = [threading.Thread(target=join, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
        time.sleep(0.05)  # in this order
    for thread in threads:
        thread.join()
    return answers


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0)])
def test_every_start_has_a_place_of_its_own(store, order):
    for _ in range(3):
        stores = meet(store, order, 3)
        assert not stores[1].check(["address"])
        stores[0].set("address", "mine")
        assert all(stores[rank].get("address") == b"mine" for rank in range(3))


def test_a_start_that_was_cut_short_leaves_nothing_that_misleads(store):
    """Ranks of it greeted and died, each at another moment; the next start has fewer, and then more."""
    for late in ((1,), (2, 1), (0,)):
        assert all(isinstance(answer, RuntimeError) for answer in meet(store, late, 3, timeout_s=0.3).values())
    for world_size in (2, 3):
        stores = meet(store, reversed(range(world_size)), world_size)
        stores[0].set("who", str(world_size))
        assert all(stores[rank].get("who") == str(world_size).encode() for rank in range(world_size))


def test_who_has_not_come_is_named(store):
    answers = meet(store, (0, 2), 4, timeout_s=0.4)
    assert str(answers[0]) == "after 0.4 s there is still no rank 1, 3"


# --------------------------------------------------------------------------------------------- ranks of real starts
def two_starts(environment, folder):
    """A rank that is started twice in one store, and hangs in the second: first itself, then in a step of all."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    from maemm.contract.errors import MaemmError
    from maemm.train.distributed import start

    with start() as ranks:
        first = int(ranks.all_reduce_sum(torch.tensor(1 + ranks.rank)))
    start()  # of all stages of a run
    ranks = start(rank_timeout_s=2.0)  # of one of them
    second = int(ranks.all_reduce_sum(torch.tensor(1 + ranks.rank)))
    ranks.on_all_ranks(lambda: None)
    said = ""
    try:
        time.sleep(8.0 * (ranks.rank == 1))
        with ranks.explain_errors():
            ranks.all_reduce_sum(torch.ones(4))
    except MaemmError as error:
        said = str(error)
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps([first, second, said]))
    os._exit(0)


def test_ranks_start_again_in_the_store_of_torchrun_and_a_step_names_the_one_that_hangs(store, tmp_path):
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
    shared |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    context = multiprocessing.get_context("forkserver")
    ranks = [
        context.Process(target=two_starts, args=({**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, str(tmp_path)))
        for r in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(120)
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert [row[:2] for row in said] == [[3, 3], [3, 3]]
    line = "rank 1 did not answer for 2 s: it works on something alone, or hangs (train.rank_timeout)"
    assert said[0][2].startswith(line), said


GLOO = "[third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:129] "


def test_work_that_waits_for_weights_of_a_rank_that_hangs_is_not_waited_for_again(monkeypatch):
    """With weights in shards, plans gather them. Rank 0 of two, whose agreements are written down."""
    from maemm.contract.errors import MaemmError
    from maemm.train import distributed

    agreed = []
    monkeypatch.setattr(distributed, "missing_ranks", lambda *args: [1])
    monkeypatch.setattr(distributed.DistContext, "_agree", lambda self, error, signum: agreed.append(str(error)))
    ranks = distributed.DistContext(0, 2, control_group=SimpleNamespace(group_name="0"), step_timeout_s=15.0)

    def refused(error):
        def work():
            raise error

        with pytest.raises(Exception) as raised:
            ranks.on_all_ranks(work)
        return raised.value

    hangs = refused(RuntimeError(GLOO + "Timed out waiting 15000ms for send operation to complete"))
    assert isinstance(hangs, distributed.PeerFailed) and str(hangs).startswith("rank 1 did not answer for 15 s")
    gone = refused(RuntimeError(GLOO + "Connection closed by peer [127.0.0.1]:3141"))
    assert str(gone) == "another rank exited; see its log" and not agreed
    for error in (
        RuntimeError("its own"),
        MaemmError("of a user"),
        distributed.PeerFailed("rank 1 failed", gone=False),
    ):
        assert refused(error) is error  # the others do not know of it
    assert agreed == ["its own", "of a user", "rank 1 failed"]


def test_ranks_that_nobody_answers_end_in_one_line(monkeypatch):
    """Rank 1 of two where there is no rank 0."""
    from maemm.contract.errors import MaemmError
    from maemm.train.distributed import start

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    variables = {
        "WORLD_SIZE": "2",
        "RANK": "1",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(MaemmError, match=r"^the 2 ranks cannot connect to each other \(.*\); start them") as refused:
        start(timeout_s=1.0)
    assert "\n" not in str(refused.value)
