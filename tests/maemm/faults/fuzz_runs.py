"""Seeded damage to run folders, and the verbs that read them; see :mod:`fuzz_bench`."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.maemm.faults.fuzz import Case
from tests.maemm.faults.fuzz_damage import (
    BIG_FILE,
    Damage,
    add_line,
    change_bytes,
    change_values,
    replace_file,
    restamp,
    swap_file,
)

TUNE = ["out=new", "data.classes=2", "train.epochs=1", "train.warmup_epochs=0"]
COMMANDS = {
    "run": (
        ["pretrain", "run", "train.steps=6"],
        ["pretrain", "tiny.yaml", "out=run"],
        ["embed", "run", "few.npz", "-o", "x.npz"],
        ["knn", "run", "few.npz", "-k", "3", "--folds", "2", "--seeds", "1"],
        ["score", "run", "few.npz", "-o", "x.csv", "--plans", "1"],
        ["export", "run", "--to", "safetensors", "-o", "x.safetensors"],
        ["finetune", "run", "few.npz", *TUNE],
        ["convert", "run", "x.safetensors"],
        ["config", "show", "run"],
        ["data", "stats", "few.npz", "--recipe", "run"],
        ["reconstruct", "run", "few.npz", "-o", "x.png", "count=1"],
        ["show", "few.npz", "--recipe", "run", "--count", "1", "-o", "x.png"],
        ["diagnose", "run", "--samples", "16", "--alone", "--ratios", "0.5"],
    ),
    "tuned": (
        ["evaluate", "tuned", "few.npz"],
        ["pretrain", "tuned", "train.epochs=2"],
        ["embed", "tuned", "few.npz", "-o", "x.npz"],
        ["finetune", "tuned", "few.npz", *TUNE],
    ),
}
DRAWING = ("reconstruct", "show", "diagnose")  # verbs that take seconds, and so are rarer
STEPS = ("step-999999", "step-000000", "step-1", "step-000010.bak", "step-99999999999999999999")
META = ("{}", "[]", '{"step": 9, "format": 1, "files": {}}', '{"step": 9}', "")


def run_folders(seed: int, count: int) -> Iterator[Case]:
    """Run folders with one to three kinds of damage, and a command for each."""
    for number in range(count):
        yield run_folder(seed, number)


def run_folder(seed: int, number: int) -> Case:
    """The run folder ``number`` of a seed."""
    draw = random.Random(f"run {seed} {number}")
    name = "run" if number % 3 else "tuned"
    argv = draw.choice(COMMANDS[name])
    if argv[0] in DRAWING and draw.random() < 0.6:
        argv = draw.choice(COMMANDS[name][:2])
    state, count = draw.getrandbits(64), draw.choice((1, 1, 2, 3))

    def do(folder: Path) -> None:
        inner = random.Random(state)
        for _ in range(count):
            damage_run(folder / name, inner)

    return Case(number, f"{count} changes in {name} ({state}): {argv}", Damage(do, argv))


def damage_run(run: Path, draw: random.Random) -> None:
    """Damage one thing in a run folder."""
    files = sorted(path for path in run.rglob("*") if path.is_file() and path.stat().st_size < BIG_FILE)
    if draw.random() < 0.1 or not files:
        strange_entry(run, draw)
        return
    path = draw.choice(files)
    if (texts := [file for file in files if file.suffix in (".yaml", ".json", ".jsonl")]) and draw.random() < 0.5:
        path = draw.choice(texts)
    changes: list[Callable[[Path, random.Random], Any]] = [change_bytes, replace_file, swap_file]
    if path.suffix in (".yaml", ".json", ".jsonl"):
        changes += [change_values, change_values, add_line]
    draw.choice(changes)(path, draw)
    small = all(file.stat().st_size < BIG_FILE for file in path.parent.iterdir() if file.is_file())
    if path.parent.name.startswith("step-") and path.name != "meta.json" and small and draw.random() < 0.6:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # meta.json is damaged too
            restamp(path.parent)


def strange_entry(run: Path, draw: random.Random) -> None:
    """A file or folder that does not belong there, or a whole folder gone or in the wrong place."""
    steps, kind = run / "checkpoints", draw.randrange(10)
    if kind == 0:
        (run / ".lock").write_text(draw.choice(("", "pid 1 on elsewhere\n", "x" * 10**6)))
    elif kind == 1:
        (steps / ".step-000004.tmp").mkdir(parents=True, exist_ok=True)
    elif kind == 2:
        (steps / draw.choice(STEPS)).mkdir(parents=True, exist_ok=True)
    elif kind == 3 and (steps / "step-000002").is_dir():
        new = steps / draw.choice(("step-000008", "step-000003", "step-x", ".step-000005.tmp"))
        if not new.exists():
            (steps / "step-000002").rename(new)
    elif kind == 4:
        shutil.rmtree(steps, ignore_errors=True)
    elif kind == 5:
        (steps / "step-000009").mkdir(parents=True, exist_ok=True)
        (steps / "step-000009/meta.json").write_text(draw.choice(META))
    elif kind == 6:
        (run / "best").mkdir(exist_ok=True)
    elif kind == 7:
        steps.mkdir(exist_ok=True)
        (steps / "step-000011").touch()
    elif kind == 8 and steps.is_dir():
        shutil.rmtree(steps)
        steps.write_text("a file")
    else:
        for name in (".metrics.jsonl.99.tmp", ".recipe.yaml.1.tmp"):
            (run / name).write_text("half")
