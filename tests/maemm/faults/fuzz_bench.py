"""Runs cases of the seeded generators, each in a copy of the small workplace; what all their tests share."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.maemm.faults import fuzz_commands
from tests.maemm.faults.fuzz import Case
from tests.maemm.faults.fuzz_damage import Damage
from tests.maemm.faults.fuzz_process import Commands, Ended, complaint

MOST_STEPS = 2  # that a command trains, whatever it asks for
INCOMPLETE = 3  # exit status of data pack


def prepare() -> None:
    """In the process of the commands: no pictures of a run, no demo, and no more than a few steps."""
    import torch

    from maemm.tasks.demo import run as demo_run
    from maemm.tasks.pretrain import report
    from maemm.tasks.pretrain import run as pretrain_run

    torch.set_num_threads(1)
    original = pretrain_run.train

    def short(recipe: dict[str, Any], **options: Any) -> Path:
        steps = recipe["train"].get("steps") or MOST_STEPS
        done = [path.name[5:] for path in Path(recipe["out"]).glob("checkpoints/step-*") if path.name[5:].isdecimal()]
        most = max((number for number in map(int, done) if number < 100), default=0) + MOST_STEPS
        recipe["train"] |= {"steps": min(steps, most), "epochs": None}
        return original(recipe, **options)

    pretrain_run.train = short
    report.save_pictures = lambda *args, **options: None
    demo_run._shows = lambda: []


class Bench:
    """Runs cases and collects what is wrong."""

    def __init__(self, workplace: Path, folder: Path):
        self.workplace, self.folder = workplace, folder
        self.home = folder / "home"
        self.home.mkdir()
        environment = {"HOME": str(self.home), "XDG_CACHE_HOME": str(self.home / "cache"), "OMP_NUM_THREADS": "1"}
        self.commands = Commands(folder, prepare, environment)

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *error: Any) -> None:
        self.commands.close()

    def run(self, case: Case) -> tuple[Ended, str]:
        """How a case ended, and what is wrong with that; "" where nothing is."""
        copy = self.folder / "case"
        copy.mkdir()
        try:
            here = fuzz_commands.copied(self.workplace, copy)
            argv = case.value
            if isinstance(case.value, Damage):
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of odd tensors, which are made on purpose
                    case.value.do(here)
                argv = case.value.argv
            ended = self.commands.run(argv, here)
        finally:
            shutil.rmtree(copy)
        return ended, complaint(ended, (0, 2, INCOMPLETE) if argv[:1] == ["data"] else (0, 2))

    def run_all(self, seed: int, cases: Iterable[Case]) -> Counter[int | None]:
        """{exit status: how many}. Raises :class:`AssertionError` that lists each case that must not end as it does."""
        wrong, statuses = [], Counter[int | None]()
        for case in cases:
            ended, problem = self.run(case)
            statuses[ended.status] += 1
            if problem:
                wrong.append(f"seed {seed}, {case}\n    {problem}")
        assert not wrong, f"{len(wrong)} of {sum(statuses.values())} cases:\n" + "\n".join(wrong)
        return statuses
