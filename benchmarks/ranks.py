"""What agreement between ranks costs: collectives of a step and of a log line, with 2 to 16 processes (gloo, CPU).

python benchmarks/ranks.py NAME=CHECKOUT... [--out benchmarks/results/ranks.json]

Each checkout trains the toy of its tests. Counted are the collectives that Python calls, by kind and group, and the
bytes that rank 0 receives in them. Those of DDP in the backward pass are not among them: the same for any number of
ranks. Times are those of an agreement, of a log line's agreement and of a result of rank 0 that goes to all, of the
process and by the clock: where processes share cores, the clock shows that too.
"""

from __future__ import annotations

import argparse
import inspect
import json
import multiprocessing
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from _machine import about
from torch.distributed import distributed_c10d

RANKS = (2, 4, 8, 16)
LOG_EVERY, STEPS = 4, 12
ROUNDS, CALLS = 7, 50
KINDS = [
    "all_reduce", "reduce", "broadcast", "all_gather", "all_gather_single", "all_gather_into_tensor", "gather",
    "scatter", "reduce_scatter_tensor", "barrier",
]  # fmt: skip
OBJECTS = ["all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"]


class Collectives:
    """The collectives of each step of a run: ``steps[n]`` is {"GROUP KIND": how many, "GROUP bytes": received}."""

    def __init__(self) -> None:
        self.steps: list[Counter[str]] = []

    def count(self, kind: str, arguments: dict[str, Any]) -> None:
        if self.steps:
            group = "step" if arguments.get("group") is None else "control"  # of the device, of the host
            self.steps[-1][f"{group} {kind}"] += 1
            if kind not in OBJECTS:
                self.steps[-1][f"{group} bytes"] += _received(kind, arguments)


def _received(kind: str, arguments: dict[str, Any]) -> int:
    names = {"all_gather": "tensor_list", "gather": "gather_list"}
    value = arguments.get("output_tensor", arguments.get(names.get(kind, "tensor")))
    tensors = value if isinstance(value, list) else [] if value is None else [value]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@contextmanager
def counted() -> Iterator[Collectives]:
    """Count the collectives of a run within the block. A step begins where its batch is loaded."""
    from maemm.train.loop import Run

    seen = Collectives()
    patches = [mock.patch.object(Run, "_next_micro_batches", _beginning(seen, Run._next_micro_batches))]
    for kind in filter(partial(hasattr, dist), [*KINDS, *OBJECTS]):  # some are new in a version of torch
        function = _counting(seen, kind, getattr(dist, kind))
        patches += [mock.patch.object(module, kind, function) for module in (dist, distributed_c10d)]
    for patch in patches:
        patch.start()
    try:
        yield seen
    finally:
        for patch in patches:
            patch.stop()


def _counting(seen: Collectives, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        seen.count(kind, signature.bind(*args, **kwargs).arguments)
        return function(*args, **kwargs)

    return call


def _beginning(seen: Collectives, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        seen.steps.append(Counter())
        return function(*args)

    return call


# -------------------------------------------------------------------------------------------- in a rank of a checkout
def recipe(folder: str) -> dict[str, Any]:
    from maemm import config

    return config.load(
        {
            "modalities": {"toy": {"masking": {"type": "random", "ratio": 0.5}}},
            "encoder": {"type": "vit", "dim": 16, "depth": 2, "heads": 2},
            "decoder": {"type": "full", "dim": 16, "depth": 1, "heads": 2},
            "data": {"workers": 0, "source": {"type": "toy"}},
            "train": {"steps": STEPS, "batch": 16, "lr": 1e-3, "warmup_epochs": 0, "log_every": LOG_EVERY,
                      "save_every": 1000, "picture_every": 1000},
            "out": folder,
        },
        training=True,
    )  # fmt: skip


def of_rank(environment: dict[str, str], folder: str) -> None:
    """Train and time on one rank; rank 0 writes what it has counted."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    from maemm.train.distributed import joined
    from maemm.train.loop import train

    with joined() as ranks:
        with counted() as seen:
            train(recipe(f"{folder}/run"), echo=lambda line: None)
        # A middle step, and one with a log line: neither the first, which prepares, nor the last, which saves.
        plain, logging = seen.steps[LOG_EVERY], seen.steps[2 * LOG_EVERY - 1]
        log_line = getattr(ranks, "on_rank0_alone", ranks.on_rank0)
        answer = {
            "step": dict(plain),
            "log line adds": {kind: count - plain[kind] for kind, count in logging.items() if count > plain[kind]},
            "agreement": timed(lambda: ranks.on_all_ranks(lambda: None)),
            "log line": timed(lambda: log_line(lambda: None)),
            "result of rank 0": timed(lambda: ranks.on_rank0(lambda: "text")),
        }
        ranks.on_all_ranks(lambda: None)
        if ranks.is_rank0:
            Path(folder, "answer.json").write_text(json.dumps(answer))


def timed(call: Callable[[], Any]) -> dict[str, float]:
    """Microseconds of a call: median of rounds."""
    rounds = []
    for _ in range(ROUNDS):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(CALLS):
            call()
        rounds.append(((time.process_time() - cpu) / CALLS * 1e6, (time.perf_counter() - wall) / CALLS * 1e6))
    cpu_us, wall_us = (statistics.median(values) for values in zip(*rounds, strict=True))
    return {"cpu_us": round(cpu_us, 1), "wall_us": round(wall_us, 1)}


def with_ranks(count: int) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["ranks", "maemm.train.loop", "maemm.model.encoders.vit", "maemm.model.decoders.full"]
    )
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=of_rank, args=({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}, folder))
            for rank in range(count)
        ]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
        if any(rank.exitcode for rank in ranks):
            raise SystemExit(f"a rank of {count} failed")
        return json.loads(Path(folder, "answer.json").read_text())


# ------------------------------------------------------------------------------------------------- over the checkouts
def of_checkout(checkout: Path, ranks: list[int]) -> dict[str, Any]:
    """{"N ranks": what rank 0 counted} of the code in ``checkout``."""
    paths = [str(checkout / "importable"), str(Path(__file__).resolve().parent)]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "MAEMM_PLUGIN_PATH": str(checkout / "tests" / "toy_plugin"),
        "OMP_NUM_THREADS": "1",
    }
    words = [sys.executable, str(Path(__file__).resolve()), "--measure", *map(str, ranks)]
    with tempfile.TemporaryDirectory() as elsewhere:  # the current folder may be a checkout, which would be imported
        done = subprocess.run(words, env=environment, cwd=elsewhere, check=True, stdout=subprocess.PIPE)
    return json.loads(done.stdout)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="*", metavar="NAME=CHECKOUT")
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=int, nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args(words)
    if args.measure:
        print(json.dumps({f"{count} ranks": with_ranks(count) for count in args.measure}))
        return
    pairs = [text.partition("=")[::2] for text in args.checkouts]
    rows = {name: of_checkout(Path(folder).resolve(), args.ranks) for name, folder in pairs}
    text = json.dumps({"about": about(), **rows}, indent=1)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
