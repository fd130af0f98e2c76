"""Command lines with mistakes, damaged checkpoints and damaged run folders, drawn from a seed.

Each command works, or ends with status 2 and lines for its user; none hangs, crashes or takes much memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.maemm.faults.fuzz import Case
from tests.maemm.faults.fuzz_bench import Bench
from tests.maemm.faults.fuzz_checkpoints import checkpoints
from tests.maemm.faults.fuzz_commands import commands, workplace
from tests.maemm.faults.fuzz_process import Ended, complaint
from tests.maemm.faults.fuzz_runs import run_folders

SEED = 21


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Iterator[Bench]:
    folder: Path = tmp_path_factory.mktemp("fuzz")
    with Bench(workplace(folder / "workplace"), folder) as bench:
        yield bench


def check(bench: Bench, make: Callable[[int, int], Iterator[Case]], count: int) -> None:
    statuses = bench.run_all(SEED, make(SEED, count))
    assert statuses[0] >= count // 20 and statuses[2] >= count // 20, f"some must work and some be refused: {statuses}"


@pytest.mark.parametrize("make", [commands, checkpoints, run_folders])
def test_fifty(bench, make):
    check(bench, make, 50)


@pytest.mark.slow
@pytest.mark.parametrize(("make", "count"), [(commands, 300), (checkpoints, 150), (run_folders, 100)])
def test_many(bench, make, count):
    check(bench, make, count)


@pytest.mark.parametrize("make", [commands, checkpoints, run_folders])
def test_cases_are_the_same_every_time(make):
    first, again, other = ([str(case) for case in make(seed, 5)] for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize(
    ("ended", "text"),
    [
        (Ended(0, "", ""), ""),
        (Ended(2, "", "maemm: error: x; y\n"), ""),
        (Ended(0, "", "maemm: warning: x\n"), ""),
        (Ended(1, "", "maemm: error: internal: x\n"), "exit status 1"),
        (Ended(2, "", "maemm: error: internal: x\n"), "not for a user"),
        (Ended(2, "", ""), "0 lines"),
        (Ended(0, "", "maemm: error: x\n"), "1 lines"),
        (Ended(0, "", "x.py:3: UserWarning: y\n"), "not for a user"),
        (Ended(2, "", "maemm: error: a\x07\n"), "not a line"),
        (Ended(0, "", "", peak=2 * 10**9), "2000 MB"),
        (Ended(None, "", "", problem="ended by SIGSEGV"), "SIGSEGV"),
    ],
)
def test_what_a_user_may_not_see_is_told(ended, text):
    assert text in complaint(ended) and bool(complaint(ended)) == bool(text)
