"""What is hidden and what is predicted: frozen features after equal steps on CIFAR-10, several seeds.

    OMP_NUM_THREADS=1 python benchmarks/family_cifar10.py cifar10/ [--seeds 3] [--steps 400] [--only plain,hog]
        [--out benchmarks/results/family_cifar10.json]

``cifar10/`` holds train/ and test/, each with a folder per class. All rows train the same encoder with the same
optimiser for the same steps on the same batches. Features are mean-pooled and z-scored: logistic regression (L2, C
chosen among six on a held-out tenth of the training part), kNN (cosine, k = 20), and the effective rank of the test
part's features (exponential of the entropy of their normalised singular values). Rows that the file has already are
not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import about
from probe_cifar10 import embed, row

import maemm
from maemm.data.atomic import write_json
from maemm.model.measures import spectrum
from maemm.tasks._shared.inputs import open_data

RECIPE = "image/mae_tiny_cifar10"
IMAGE = "modalities.image"
COLUMNS = {"linear": 3, "knn": 3, "rank": 1}  # digits
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hog": {f"{IMAGE}.target": {"type": "hog", "cell": 4, "window": 8}},
    "ema latents": {
        f"{IMAGE}.target": {"type": "ema", "momentum": 0.99, "momentum_end": 1.0, "loss": "smooth_l1", "layers": 3}
    },
    **{
        f"scan {order}": {f"{IMAGE}.masking": {"type": "scan", "ratio": 0.75, "order": order}}
        for order in ("zigzag", "hilbert", "peano", "spiral")
    },
    "attention": {f"{IMAGE}.masking": {"type": "attention", "ratio": 0.75}},
}


def measured(name: str, seed: int, data: Path, steps: int, batch: int) -> dict[str, Any]:
    """Train a variant (None: not at all) and measure its features."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"data.root": str(data / "train"), "data.workers": 0, "out": f"{folder}/run", "train.seed": seed}
        settings |= {"train.batch": batch, "train.epochs": None, "train.steps": steps, "train.warmup_epochs": 0.5}
        settings |= {"train.log_every": steps, "train.picture_every": 10 * steps, "train.save_every": 10 * steps}
        recipe = maemm.config.load(RECIPE, {**settings, **VARIANTS.get(name, {})}, training=True)
        start = time.process_time()
        if name == "untrained":
            torch.manual_seed(seed)
            model = maemm.build(recipe).eval()
        else:
            model = maemm.load(maemm.pretrain(recipe))
        seconds = time.process_time() - start
        parts = embed(model, [open_data(model.recipe, data / part) for part in ("train", "test")])
    answer = row(f"{name}, seed {seed}", *parts)
    answer["rank"] = spectrum(np.asarray(parts[1].x)).effective_rank
    answer["cpu_seconds_per_step"] = seconds / steps
    return answer | {"variant": name, "seed": seed, "steps": steps, "batch": batch}


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in Markdown."""
    lines = ["| variant | linear | kNN | effective rank | CPU s a step |", "|---|---|---|---|---|"]
    for name in dict.fromkeys(entry["variant"] for entry in rows):
        own = [entry for entry in rows if entry["variant"] == name]
        cells = [_spread([entry[key] for entry in own], digits) for key, digits in COLUMNS.items()]
        step = statistics.mean(entry["cpu_seconds_per_step"] for entry in own)
        lines.append(f"| {name} ({len(own)}) | {' | '.join(cells)} | {step:.2f} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    spread = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--only", help="variants, with commas between them")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/family_cifar10.json"))
    args = parser.parse_args(argv)
    names = args.only.split(",") if args.only else ["untrained", *VARIANTS]
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    done = {(entry["variant"], entry["seed"], entry["steps"], entry["batch"]) for entry in rows}
    for seed in range(args.seeds):
        for name in names:
            if (name, seed, args.steps, args.batch) in done:
                continue
            rows.append(measured(name, seed, args.data, args.steps, args.batch))
            write_json(args.out, {"about": about(), "recipe": RECIPE, "rows": rows}, "results")
    print(table(rows))


if __name__ == "__main__":
    main()
