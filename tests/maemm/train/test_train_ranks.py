"""What ranks tell each other: one integer in a step for any number of ranks, texts and results where there are some."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import socket
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import OBJECTS, counted


# --------------------------------------------------------------------------------------------- the costs of a step
@pytest.fixture
def as_rank0(monkeypatch):
    """``as_rank0(n)``: this process is the first of n ranks, of which the others say nothing."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from maemm.train.distributed import DistContext

    new_group = dist.new_group
    monkeypatch.setattr(dist, "new_group", lambda **options: new_group(**{**options, "backend": "fake"}))
    monkeypatch.setattr(DistContext, "wrap", lambda self, model, without=(): model)  # DDP does not run on such a group

    def begin(count):
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=count)

    yield begin
    if dist.is_initialized():
        dist.destroy_process_group()


def collectives(toys, count, **overrides):
    """The collectives of each step of a run of ``count`` ranks."""
    recipe = toys.recipe(toys.out / f"{count:02}", train__epochs=2, **{"train__log_every": 2, **overrides})
    with counted() as seen:
        toys.train(recipe)
    dist.destroy_process_group()
    return seen.steps


def test_a_step_costs_the_same_for_any_number_of_ranks(toys, as_rank0):
    as_rank0(2)
    two = collectives(toys, 2)
    as_rank0(16)
    assert collectives(toys, 16) == two and len(two) == 8
    for number, step in enumerate(two[1:-1], 1):  # the first prepares, the last ends the run with a checkpoint
        control = {kind: count for kind, count in step.items() if kind.startswith("control")}
        assert control == {"control all_reduce": 1, "control bytes": 8}
        assert step["step all_reduce"] == (3 if number % 2 else 2)  # counts, terms, and for a log line baselines
    assert not any(name in kind for step in two for kind in step for name in OBJECTS)


def test_so_does_one_that_compares_all_samples_but_for_what_it_receives(toys, as_rank0):
    names = ["toy", "other"]
    pair = {
        "modalities": {"toy": {"type": "toy"}, "other": {"type": "toy"}},
        "encoder": {"type": "streams", "dim": 16, "depth": 1, "joint_depth": 1, "heads": 2, "streams": names},
        "decoder__prefix": "none",
        "objectives": {"reconstruct": {}, "contrastive": {"pair": names, "weight": 1.0, "both": True}},
    }  # fmt: skip
    as_rank0(2)
    two = collectives(toys, 2, **pair)[3]
    as_rank0(4)
    assert collectives(toys, 4, **pair)[3] == two  # of the same global batch
    gathered = [count for kind, count in two.items() if kind.startswith("step all_gather")]
    assert gathered == [3] and "step all_gather" not in two  # into one tensor each, not one for each rank


# ------------------------------------------------------------------------------------------------- what they tell
def _three_ranks(environment, folder):
    os.environ.update(environment)
    torch.set_num_threads(1)
    from maemm.contract.errors import MaemmError
    from maemm.train.distributed import start
    from maemm.train.signals import Interrupted

    said = {}
    with start() as ranks:

        def fail(*failing):
            if ranks.rank in failing:
                raise MaemmError(f"Größe {'x' * ranks.rank * 100}") if ranks.rank < 2 else ValueError("broken\nhere")

        def tell(case, work):
            try:
                said[case] = work()
            except (Exception, Interrupted) as error:
                said[case] = f"{type(error).__name__}: {error}"

        tell("a result", lambda: ranks.on_rank0(lambda: {"rank": ranks.rank, "much": "y" * 1000}))
        tell("no result", lambda: ranks.on_rank0(lambda: None))
        tell("all", lambda: ranks.on_all_ranks(lambda: ranks.rank * 10))
        tell("the last fails", lambda: ranks.on_all_ranks(lambda: fail(2)))
        tell("two fail", lambda: ranks.on_all_ranks(lambda: fail(1, 2)))
        tell("rank 0 fails", lambda: ranks.on_rank0(lambda: fail(0)))
        tell("a result and a failure", lambda: ranks.on_rank0(lambda: lambda: 0))  # which cannot be pickled
        tell("a signal", lambda: ranks.on_all_ranks(lambda: None, stop=lambda: 15 * (ranks.rank == 1)))
        tell("a failure and a signal", lambda: ranks.on_all_ranks(lambda: fail(1), stop=lambda: 15))
        tell("the same", lambda: ranks.same_on_all_ranks(2**63 - 1))
        tell("not the same", lambda: ranks.same_on_all_ranks(2**63 - 1 - ranks.rank))
        tell("alone", lambda: ranks.on_rank0_alone(lambda: fail(0)))
        tell("after it", lambda: ranks.on_all_ranks(lambda: ranks.rank))
        tell("all is well again", lambda: ranks.on_all_ranks(lambda: ranks.rank))
        Path(folder, f"{ranks.rank}.json").write_text(json.dumps(said))


def _one_of_three_comes_too_late(environment, folder):
    os.environ.update(environment)
    torch.set_num_threads(1)
    from maemm.contract.errors import MaemmError
    from maemm.train.distributed import start

    ranks = start(rank_timeout_s=2.0)
    ranks.on_all_ranks(lambda: None)
    time.sleep((0.0, 9.0, 0.4)[ranks.rank])
    try:
        said = ranks.on_all_ranks(lambda: "all is well")
    except MaemmError as error:
        said = str(error)
    Path(folder, f"{ranks.rank}.json").write_text(json.dumps(said))
    os._exit(0)  # nothing is left to say good-bye with


def test_the_rank_that_others_wait_for_in_vain_is_named(tmp_path):
    said = _in_three_processes(_one_of_three_comes_too_late, tmp_path)
    line = "rank 1 did not answer for 2 s: it works on something alone, or hangs (train.rank_timeout); look at its log"
    assert [text.startswith(line) for text in (said[0], said[2])] == [True] * 2, said
    assert said[1] == "another rank exited; see its log"


def test_results_errors_and_signals_of_three_ranks(tmp_path):
    said = _in_three_processes(_three_ranks, tmp_path)
    answers = {case: [each[case] for each in said] for case in said[0]}
    _check_answers(answers)


def _in_three_processes(work, folder):
    """What ``work(environment, folder)`` wrote on each rank."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    context = multiprocessing.get_context("forkserver")
    ranks = [
        context.Process(target=work, args=({**shared, "RANK": str(r), "LOCAL_RANK": str(r)}, str(folder)))
        for r in range(3)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


def _check_answers(answers):
    assert answers["a result"] == [{"rank": 0, "much": "y" * 1000}] * 3 and answers["no result"] == [None] * 3
    assert answers["all"] == [0, 10, 20] and answers["all is well again"] == [0, 1, 2]
    heard = "PeerFailed: rank 2 failed: ValueError: broken here"
    assert answers["the last fails"] == [heard, heard, "ValueError: broken\nhere"]
    words = f"Größe {'x' * 100}"
    heard = f"PeerFailed: rank 1 failed: {words}"  # the first of two
    assert answers["two fail"] == [heard, f"MaemmError: {words}", "ValueError: broken\nhere"]
    assert answers["rank 0 fails"] == ["MaemmError: Größe ", *["PeerFailed: rank 0 failed: Größe"] * 2]
    assert all(text.startswith("PeerFailed: rank 0 failed: ") for text in answers["a result and a failure"][1:])
    assert answers["a signal"] == ["Interrupted: interrupted"] * 3
    assert answers["a failure and a signal"] == [heard, f"MaemmError: {words}", heard]
    assert answers["the same"] == [True] * 3 and answers["not the same"] == [False] * 3
    assert answers["alone"] == [None] * 3 and answers["after it"] == answers["rank 0 fails"]


def test_a_log_line_that_cannot_be_written_ends_both(toys):
    first, second = toys.start(toys.recipe(data__source__delay=0.02, train__epochs=100), 2)
    first.until("step 2 ")
    metrics = toys.out / "metrics.jsonl"
    metrics.rename(toys.out / "before.jsonl")
    metrics.mkdir()
    assert (first.wait(), second.wait()) == (2, 2)
    line = re.search(r"maemm: error: (cannot write \S+metrics\.jsonl \(Is a directory\); .*)", first.said())
    assert line is not None and f"maemm: error: rank 0 failed: {line[1]}" in second.said()
    (saved,) = (toys.out / "checkpoints").glob("step-*")  # what has been learned until then is kept
    assert (saved / "model.safetensors").is_file()
