"""Muon against AdamW: loss and frozen features after equal steps and equal CPU seconds on CIFAR-10, several seeds.

    OMP_NUM_THREADS=1 python benchmarks/muon.py cifar10/ [--seeds 3] [--steps 300] [--batch 64] [--lr 1e-3]
        [--only adamw;muon] [--out benchmarks/results/muon.json]

``cifar10/`` holds train/ and test/, each with a folder per class. All rows train the same model with the same learning
rate, weight decay and schedule on the same order of batches; only the optimiser differs. Muon's products are in
bfloat16, as published, for which the processor should have instructions. "adamw, seconds of muon" has
as many more steps, with a schedule as long, as fit into the CPU seconds of that seed's row of Muon, so it needs the two
others. Seconds are those of the whole training, of one thread. Of each: the mean reconstruction loss of the last 50
steps, logistic regression and kNN on mean-pooled features, as in ``probe_cifar10.py``. Rows that the file has already
are not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from _machine import about
from probe_cifar10 import embed, row

import maemm
from maemm.data.atomic import write_json
from maemm.tasks._shared.inputs import open_data

RECIPE = "image/mae_tiny_cifar10"
LONGER = "adamw, seconds of muon"
VARIANTS = ("adamw", "muon", LONGER)
OPTIMIZERS: dict[str, dict[str, Any]] = {"muon": {"type": "muon", "weight_decay": 0.05, "precision": "bf16"}}
LAST = 50  # steps, over which the loss is averaged
COLUMNS = {
    "loss": ("loss", 4),
    "linear": ("linear", 3),
    "knn": ("kNN", 3),
    "steps": ("steps", 0),
    "cpu_seconds": ("CPU s", 0),
}


def measured(name: str, seed: int, data: Path, steps: int, batch: int, lr: float) -> dict[str, Any]:
    """Train with an optimiser ("untrained": not at all) and measure the features."""
    answer: dict[str, Any] = {"variant": name, "seed": seed, "steps": steps, "batch": batch, "lr": lr}
    with tempfile.TemporaryDirectory() as folder:
        settings = {"data.root": str(data / "train"), "data.workers": 0, "out": f"{folder}/run", "train.seed": seed}
        settings |= {"train.batch": batch, "train.epochs": None, "train.steps": steps, "train.warmup_epochs": 0.5}
        settings |= {"train.log_every": 1, "train.picture_every": 10**6, "train.save_every": 10**6, "train.lr": lr}
        settings["train.optimizer"] = OPTIMIZERS.get(name, {"type": "adamw", "weight_decay": 0.05})
        recipe = maemm.config.load(RECIPE, settings, training=True)
        start = time.process_time()
        if name == "untrained":
            torch.manual_seed(seed)
            model = maemm.build(recipe).eval()
        else:
            model = maemm.load(maemm.pretrain(recipe))
            answer["cpu_seconds"] = time.process_time() - start
            lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
            answer["loss"] = statistics.mean(json.loads(line)["loss"] for line in lines[-LAST:])
        train, test = embed(model, [open_data(model.recipe, data / part) for part in ("train", "test")])
    of_pool = row(f"{name}, seed {seed}", train, test)
    return answer | {key: of_pool[key] for key in ("linear", "knn")}


def steps_in_equal_seconds(rows: list[dict[str, Any]]) -> int:
    """How many steps of AdamW take as long as the steps of Muon, given a row of each."""
    adamw, muon = (next(entry for entry in rows if entry["variant"] == name) for name in ("adamw", "muon"))
    return round(adamw["steps"] * muon["cpu_seconds"] / adamw["cpu_seconds"])


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in Markdown."""
    titles = [title for title, _ in COLUMNS.values()]
    lines = [f"| optimiser | {' | '.join(titles)} |", f"|---{'|---' * len(titles)}|"]
    for name in dict.fromkeys(entry["variant"] for entry in rows):
        own = [entry for entry in rows if entry["variant"] == name]
        cells = [_spread([entry[key] for entry in own if key in entry], digits) for key, (_, digits) in COLUMNS.items()]
        lines.append(f"| {name} ({len(own)}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    spread = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 and max(values) > min(values) else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--only", help="variants, with semicolons between them")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/muon.json"))
    args = parser.parse_args(argv)
    names = args.only.split(";") if args.only else ["untrained", *VARIANTS]
    if unknown := [name for name in names if name not in ("untrained", *VARIANTS)]:
        parser.error(f"no variant {unknown[0]!r}; choose among untrained, {', '.join(VARIANTS)}")
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    for seed in range(args.seeds):
        for name in names:
            setting = {"seed": seed, "batch": args.batch, "lr": args.lr, "compared_at": args.steps}
            of_setting = [entry for entry in rows if setting.items() <= entry.items()]
            if any(entry["variant"] == name for entry in of_setting):
                continue
            steps = steps_in_equal_seconds(of_setting) if name == LONGER else args.steps
            new = measured(name, seed, args.data, steps, args.batch, args.lr)
            rows.append({**new, "compared_at": args.steps})
            write_json(args.out, {"about": about(), "recipe": RECIPE, "rows": rows}, "results")
    print(table(rows))


if __name__ == "__main__":
    main()
