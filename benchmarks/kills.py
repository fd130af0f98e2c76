"""Twenty kills of runs with two ranks, a full disk and a place that refuses: is every run resumed, bit for bit?

    OMP_NUM_THREADS=1 python benchmarks/kills.py --out benchmarks/results/kills.json

Each case trains a tiny recipe under torchrun's agent (``--max-restarts 3``) and kills something once: a rank, all ranks
or the launcher, at the start, in a step, during a save or between two stages. Where the launcher ends, the same command
starts again. Losses and weights at the end must be those of the run that nobody killed, in the same world, bit for bit.
``--parallel``, ``--set KEY=VALUE``: as in a recipe. Cases that are in the file already are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from _kills_left import checkpoints, equal, folders, rows, text_of, unfinished
from _kills_world import World
from _machine import about

from maemm import config

STEPS, SAVE_EVERY, KILLED_AT = 16, 3, 7
STEPS_OF_STAGES = {"mae": 6, "classify": 10}
TIMEOUT_S = 15.0  # train.rank_timeout: after which a rank that hangs is named
SMALL = {"encoder.dim": 32, "encoder.depth": 2, "encoder.heads": 2, "decoder.depth": 1}
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "image": ("image/mae_tiny_cpu", {**SMALL, "data.workers": 1}),
    "points": ("pointcloud/point_mae_tiny_cpu", {**SMALL, "modalities.pointcloud.width": 32, "decoder.dim": 32}),
    "ema": ("image/ijepa_tiny_cpu", {**SMALL, "train.ema": 0.9}),
    "stages": ("image/stages_tiny_cpu", SMALL),
}
KILL, TERM, STOP = signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP


@dataclass(frozen=True)
class Case:
    """A signal to somebody (``rank 0``, ``rank 1``, ``all ranks``, ``launcher``) at some moment of a run."""

    recipe: str
    whom: str
    signal: signal.Signals
    when: str  # start, step, save, border

    @property
    def title(self) -> str:
        return f"{self.recipe}: {self.signal.name} to {self.whom}, {self.when}"


RANK_0, RANK_1, ALL, LAUNCHER = "rank 0", "rank 1", "all ranks", "launcher"
CASES = [
    *(Case("image", whom, KILL, "step") for whom in (RANK_1, RANK_0, ALL, LAUNCHER)),
    *(Case("image", whom, TERM, "step") for whom in (RANK_1, LAUNCHER)),
    Case("image", RANK_1, KILL, "start"),
    Case("image", RANK_0, KILL, "save"),
    Case("points", LAUNCHER, KILL, "start"),
    Case("points", ALL, TERM, "step"),
    Case("points", RANK_1, STOP, "step"),
    Case("points", RANK_0, STOP, "save"),
    Case("points", RANK_0, KILL, "save"),
    *(Case("ema", whom, KILL, "save") for whom in (RANK_1, ALL, LAUNCHER)),
    Case("ema", RANK_0, TERM, "save"),
    *(Case("stages", whom, KILL, "border") for whom in (RANK_0, ALL)),
    Case("stages", LAUNCHER, TERM, "border"),
]


def recipe_of(name: str, out: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """A tiny recipe, with a log line for each step and a checkpoint for every third."""
    packaged, values = RECIPES[name]
    length = {"train.epochs": None, "train.steps": STEPS}
    if name == "stages":
        length = {
            f"stages.{stage}.train.{key}": value
            for stage, steps in STEPS_OF_STAGES.items()
            for key, value in {"epochs": None, "steps": steps, "batch": 8, "warmup_epochs": 0}.items()
        }
    else:
        length |= {"train.batch": 8, "train.warmup_epochs": 0}
    often = {"train.log_every": 1, "train.save_every": SAVE_EVERY, "train.picture_every": 10_000, "data.workers": 0}
    waits = {"train.rank_timeout": TIMEOUT_S, "out": str(out / "run")}
    return config.load(packaged, {**often, **length, **waits, **values, **changes}, training=True)


# --------------------------------------------------------------------------------------------------------- one case
def kill(case: Case, world: World, run: Path) -> dict[str, Any]:
    """Wait for the moment, send the signal, and see the run to its end."""
    ranks = world.until(world.ranks, "ranks")
    if case.when == "step":
        world.until(lambda: len(rows(run)) >= KILLED_AT, "step")
    elif case.when == "save":
        world.until(lambda: checkpoints(run), "checkpoint")
        world.until(lambda: unfinished(run), "save", every=0.001)
    elif case.when == "border":
        last = run / f"mae/checkpoints/step-{STEPS_OF_STAGES['mae']:06d}"
        world.until(last.exists, "last checkpoint of a stage", every=0.001)
    targets = {ALL: [row["pid"] for row in ranks], LAUNCHER: [world.launcher.pid]}
    targets |= {f"rank {row['rank']}": [row["pid"]] for row in ranks}
    starts, at = world.starts(), len(rows(run))
    for pid in targets[case.whom]:
        os.kill(pid, case.signal)
    answer = {
        "at_step": at,
        "checkpoint": ([""] + [path.name for part in folders(run) for path in checkpoints(part)])[-1],
        "half_written": unfinished(run),
        "before_the_next_stage": case.when == "border" and not checkpoints(run / "classify"),
    }
    began, by_hand = time.monotonic(), 0
    if not seen_to_go_on(world, starts):  # the launcher has ended; somebody starts the same command again
        while world.wait() and by_hand < 3:
            began, by_hand, starts = time.monotonic(), by_hand + 1, world.starts()
            world.start()
            if seen_to_go_on(world, starts):
                break
    return answer | {
        "seconds_to_step": round(time.monotonic() - began, 1),  # from the signal, or the new start
        "status": world.wait(),
        "started_by_hand": by_hand,
        "starts": world.starts(),
    }


def seen_to_go_on(world: World, starts: int) -> bool:
    """Wait until ranks have been started anew, and have said something of a step; False where the launcher ended."""
    try:
        world.until(lambda: world.starts() > starts, "start")
        said = world.steps_said()
        world.until(lambda: world.steps_said() > said, "step")
    except RuntimeError:
        return False
    return True


def no_step_to_resume(case: Case, answer: dict[str, Any]) -> bool:
    """Whether the run, or the stage that was to begin, had no checkpoint yet."""
    return not answer["checkpoint"] or case.when == "border"


def measure(number: int, folder: Path, whole: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """A case; one that should fall into a save is repeated where it did not."""
    case = CASES[number - 1]
    for attempt in range(5):
        place = folder / f"{number}-{attempt}"
        world = World(recipe_of(case.recipe, place, changes), place)
        try:
            world.start()
            answer = kill(case, world, place / "run")
            said = world.log.read_text()
            answer |= {
                "resumed": answer["status"] == 0 and ("resuming from step" in said or no_step_to_resume(case, answer)),
                "equal": equal(place / "run", whole),
                "named": "did not answer for" in said,
                "left_over": len(world.left()) + len(unfinished(place / "run")),  # processes, half-written files
                "attempts": attempt + 1,
            }
        except RuntimeError as error:
            answer = {
                "error": str(error),
                "resumed": False,
                "equal": False,
                "half_written": [],
                "log": text_of(world.log)[-3000:],
            }
        finally:
            world.end()
        if case.when != "save" or answer["half_written"] or case.signal == TERM:
            break
    return answer


# -------------------------------------------------------------------------------------------------- full or refusing
@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of its own in memory; needs root."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(disk: Path) -> Callable[[], Any]:
    """Leave less than a checkpoint needs; returns what undoes it."""
    ballast = disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return ballast.unlink


def refuse(place: Path) -> Callable[[], Any]:
    """Every write there is refused, as by a server that takes no more; returns what undoes it."""
    for words in (["--bind", str(place), str(place)], ["-o", "remount,bind,ro", str(place)]):
        subprocess.run(["mount", *words], check=True)
    return lambda: subprocess.run(["umount", str(place)], check=True)


PLACES: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "full disk": fill,
    "checkpoints refused": lambda disk: refuse(disk / "run/checkpoints"),
    "mirror refused": lambda disk: refuse(disk / "mirror"),
}


def disturbed(name: str, folder: Path, whole: Path, changes: dict[str, Any]) -> dict[str, Any]:
    """A run whose place refuses after the first checkpoint: what it says, what is kept, and whether it goes on."""
    with small_disk(folder / name.replace(" ", "-")) as disk:
        mirror = {"train.mirror": {"url": f"file://{disk}/mirror"}} if name == "mirror refused" else {}
        world = World(recipe_of("image", disk, {**changes, **mirror}), folder / f"{name}-log", restarts=0)
        try:
            world.start()
            world.until(lambda: checkpoints(disk / ("mirror" if mirror else "run")), "checkpoint")
            undo = PLACES[name](disk)
            kept, status = [path.name for path in checkpoints(disk / "run")], world.wait()
            lines = text_of(world.log).splitlines()
            said = [line for line in lines if line.startswith(("maemm: error:", "warning:"))]
            still = [path.name for path in checkpoints(disk / "run")]
            undo()
            world.start()
            again = world.wait()
            return {
                "status": status,
                "said": said[0] if said else "",
                "lines": len(said),
                "kept": set(kept) <= set(still) or status == 0,
                "resumed": again == 0,
                "equal": equal(disk / "run", whole),
            }
        finally:
            world.end()


# ------------------------------------------------------------------------------------------------------------- main
def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallel", help="train.parallel, such as fsdp")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of every recipe")
    parser.add_argument("--cases", type=int, nargs="+", default=list(range(1, len(CASES) + 1)), help="numbers from 1")
    parser.add_argument("--out", type=Path, default=Path("kills.json"))
    args = parser.parse_args(words)
    settings = {key: yaml.safe_load(value) for key, _, value in (text.partition("=") for text in args.set)}
    if args.parallel:
        settings["train.parallel"] = args.parallel
    result = json.loads(args.out.read_text()) if args.out.exists() else {}
    if result.get("settings") != settings:
        result = {"settings": settings, "cases": {}, "places": {}}
    with tempfile.TemporaryDirectory() as folder:
        wholes: dict[str, Path] = {}

        def whole(name: str) -> Path:
            if name not in wholes:
                place = Path(folder, f"whole-{name}")
                world = World(recipe_of(name, place, settings), place)
                world.start()
                if world.wait():
                    raise SystemExit(world.log.read_text())
                wholes[name] = place / "run"
            return wholes[name]

        def keep() -> None:
            cases = result["cases"].values()
            passed = sum(case["resumed"] and case["equal"] for case in cases)
            text = json.dumps({"about": about(), "passed": f"{passed} of {len(cases)}", **result}, indent=1)
            args.out.write_text(text + "\n")

        for number in args.cases:
            case = CASES[number - 1]
            if case.title not in result["cases"]:
                result["cases"][case.title] = measure(number, Path(folder), whole(case.recipe), settings)
                print(case.title, json.dumps(result["cases"][case.title]), flush=True)
                keep()
        for name in PLACES:
            if name not in result["places"] and os.geteuid() == 0:
                result["places"][name] = disturbed(name, Path(folder), whole("image"), settings)
                print(name, json.dumps(result["places"][name]), flush=True)
                keep()


if __name__ == "__main__":
    main()
