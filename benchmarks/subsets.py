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
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from _machine import about

import maemm
from maemm.data.atomic import write_json

RECIPE = "multimae/tiny_cpu"
FIXED = ("raw values", "untrained")  # the same for all seeds


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


def table(rows: list[dict[str, Any]]) -> str:
    """Of all subsets, and what each modality is worth, in Markdown: means and standard deviations over seeds."""
    outputs = list(rows[0]["results"]["subsets"][0]["loss"])
    heads = ["inputs", "linear: raw", "untrained", "trained", "kNN: raw", "untrained", "trained"]
    lines = [f"| {' | '.join([*heads, *(f'loss of {output}' for output in outputs)])} |"]
    lines.append("|---" * (len(heads) + len(outputs)) + "|")
    for number, subset in enumerate(rows[0]["results"]["subsets"]):
        of_seeds = [row["results"]["subsets"][number] for row in rows]
        cells = [" + ".join(subset["inputs"])]
        for classifier in ("linear", "knn"):
            fixed = [f"{subset['scores'][kind][classifier]:.3f}" for kind in FIXED]
            cells += [*fixed, spread([part["scores"]["trained"][classifier] for part in of_seeds])]
        cells += [spread([part["loss"][key] / part["baseline"][key] for part in of_seeds], 2) for key in outputs]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| modality | worth, linear | worth, kNN | adds to the others, linear | noise of one comparison |"]
    lines.append("|---" * 5 + "|")
    for name in rows[0]["worth"]:
        worth = [spread([row["results"]["worth"][key][name] for row in rows]) for key in ("linear", "knn")]
        adds = spread([row["adds"][name][0] for row in rows])
        noise = statistics.mean(row["adds"][name][1] for row in rows)
        lines.append(f"| {name} | {' | '.join(worth)} | {adds} | {noise:.3f} |")
    return "\n".join(lines)


def spread(values: list[float], digits: int = 3) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def main(argv: list[str] | None = None) -> None:
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
    print(table(rows))


if __name__ == "__main__":
    main()
