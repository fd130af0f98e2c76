"""One training step on a CPU core, of several checkouts in turns: image, video, audio, points at published sizes.

    python benchmarks/step_cpu.py before=CHECKOUT after=. [--rounds 5] [--recipe audio/audiomae_base]
        [--out benchmarks/results/step_cpu.json]

A step is what the loop does with a raw batch: preprocess, plan, forward, backward, update. Every checkout has a process
of its own and the processes take turns, so that a busy machine slows all; the figures are CPU seconds, the smallest of
all rounds, and the median over the rounds of the ratio to the first checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from _machine import about

RECIPES = {  # {recipe: samples of a step}
    "image/mae_base": 8,
    "video/videomae_base": 1,
    "audio/audiomae_base": 4,
    "pointcloud/point_mae": 16,
}

# In a checkout: the lines that it reads are numbers of recipes, of each it takes one step and prints the CPU seconds.
DRIVER = """
import json, sys, tempfile, time
from pathlib import Path
import torch
from maemm import config
from maemm.train.distributed import DistContext
from maemm.train.optim import set_lr
from maemm.train.setup import make_train_state
from maemm.train.step import plan_micro_batches, take_step
from tests.pretended_gpu import recipes

torch.set_num_threads(1)
samples = recipes.Samples(Path(tempfile.mkdtemp()))
runs = []
for name, batch in json.loads(sys.argv[1]).items():
    recipes.BATCH = batch
    options = {"train.batch": batch, "train.micro_batch": None, "train.compile": False, "train.precision": "fp32"}
    recipe = config.load(name, options)
    state = make_train_state(recipe, 1000, 1, DistContext(), steps_per_epoch=100)
    set_lr(state.optimizer, 1e-5)
    runs.append((state, samples.batch(recipe, 0)))
steps = [0] * len(runs)
print("ready", flush=True)
for line in sys.stdin:
    number = int(line)
    state, batch = runs[number]
    start = time.process_time()
    take_step(state, plan_micro_batches(state, steps[number], [batch]))
    print(time.process_time() - start, flush=True)
    steps[number] += 1
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkouts", nargs="+", metavar="NAME=CHECKOUT")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--recipe", action="append", choices=RECIPES, help="of these alone; more than once for several")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    checkouts = dict(word.split("=", 1) for word in args.checkouts)
    recipes = {name: RECIPES[name] for name in args.recipe or RECIPES}
    processes = {name: _start(Path(path).resolve(), recipes) for name, path in checkouts.items()}
    for process in processes.values():
        if process.stdout.readline().strip() != "ready":  # type: ignore[union-attr]  # a pipe
            raise SystemExit("a checkout cannot take a step; its message is above")
    seconds: dict[str, dict[str, list[float]]] = {recipe: {name: [] for name in checkouts} for recipe in recipes}
    for turn in range(args.rounds + 1):
        for number, recipe in enumerate(recipes):
            names = list(checkouts) if turn % 2 else list(reversed(checkouts))
            for name in names:
                answer = _step(processes[name], number)
                if turn:  # the first step of all computes tables and allocates
                    seconds[recipe][name].append(answer)
    for process in processes.values():
        process.stdin.close()  # type: ignore[union-attr]
        process.wait()
    first = next(iter(checkouts))
    record: dict[str, Any] = {"machine": about(), "rounds": args.rounds, "recipes": {}}
    print(f"{'CPU seconds of a step':28}" + "".join(f"{name:>10}" for name in checkouts) + "     ratio")
    for recipe, by_name in seconds.items():
        ratios = {
            name: statistics.median(own / other for own, other in zip(values, by_name[first], strict=True))
            for name, values in by_name.items()
        }
        smallest = {name: min(values) for name, values in by_name.items()}
        record["recipes"][recipe] = {"batch": RECIPES[recipe], "seconds": smallest, "ratio": ratios}
        last = list(checkouts)[-1]
        print(f"{recipe:28}" + "".join(f"{value:10.3f}" for value in smallest.values()) + f"{ratios[last]:10.3f}")
    if args.out is not None:
        args.out.write_text(json.dumps(record, indent=1) + "\n")


def _start(checkout: Path, recipes: dict[str, int]) -> subprocess.Popen[str]:
    paths = [str(checkout / "importable"), str(checkout)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, json.dumps(recipes)],
        cwd=checkout,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _step(process: subprocess.Popen[str], number: int) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{number}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


if __name__ == "__main__":
    main()
