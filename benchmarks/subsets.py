"""What each modality is worth after real training: every subset of inputs of MultiMAE, several seeds.

    OMP_NUM_THREADS=1 python benchmarks/subsets.py [--seeds 3] [--epochs 60] [--out benchmarks/results/subsets.json]

Trains ``multimae/tiny_cpu`` on the sample set (pictures, depth, label maps of drawn objects) and calls
``maemm.modalities``: kNN and linear probe on frozen features of each of the seven subsets of inputs, beside the
untrained network and the raw values (folds of the sample set, whose pictures the pre-training has seen without their
labels), and the loss of every output from each subset with half of its tokens visible, divided by that of predicting
the mean target. Every seed is another training; the folds and the untrained network are the same. Seeds that the file
has already are not measured again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _machine import about

import maemm
from maemm.data.atomic import write_json

RECIPE = "multimae/tiny_cpu"
KINDS = ("raw", "untrained", "trained")


def measured(seed: int, epochs: int) -> dict[str, Any]:
    """Train with a seed and compare all subsets."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"out": f"{folder}/run", "train.seed": seed, "train.epochs": epochs, "data.workers": 0}
        start = time.process_time()
        run = maemm.pretrain(maemm.config.load(RECIPE, settings, training=True))
        trained = time.process_time()
        result = maemm.modalities(str(run), workers=0, out=f"{folder}/page", echo=lambda *_: None)
        done = time.process_time()
        answer = json.loads((Path(folder) / "page" / "results.json").read_text())
    return {
        "seed": seed,
        "epochs": epochs,
        "training_cpu_seconds": trained - start,
        "comparison_cpu_seconds": done - trained,
        "worth": result.worth(),
        "adds": {name: result.adds(name) for name in result.inputs},
        "results": answer,
    }


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation."""
    if not values or any(math.isnan(value) for value in values):
        return "-"
    return f"{statistics.mean(values):.{digits}f}" + (
        f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    )


def main(argv: list[str] | None = None, table: Callable[[list[dict[str, Any]]], str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/subsets.json"))
    args = parser.parse_args(argv)
    rows = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    for seed in range(args.seeds):
        if not any(row["seed"] == seed and row["epochs"] == args.epochs for row in rows):
            rows.append(measured(seed, args.epochs))
            write_json(args.out, {"about": about(), "recipe": RECIPE, "rows": rows}, "results")
    print(json.dumps(rows[-1], indent=1)[:6000])


if __name__ == "__main__":
    main()
