"""Collapse with and without uniformity: frozen features after equal steps on CIFAR-10, several seeds.

    OMP_NUM_THREADS=1 python benchmarks/uniformity.py cifar10/ [--seeds 3] [--steps 300] [--batch 128]
        [--only plain,...] [--out benchmarks/results/uniformity.json]

``cifar10/`` holds train/ and test/, each with a folder per class. All rows train the same encoder with the same
optimiser for the same steps on the same batches, plain MAE and with the objective ``uniformity`` (U-MAE) of the
published weight and of a larger one. Of each: logistic regression and kNN on mean-pooled features and on the class
token, as in ``probe_cifar10.py``, and what ``maemm diagnose`` finds on 512 pictures of the test part: effective rank,
uniformity (log of the mean of exp(-2 d^2) over pairs; lower is better spread), and the distance of two views over that
of two pictures (lower is better aligned). Rows that the file has already are not measured again.
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
from maemm.tasks._shared.embedding import embedder
from maemm.tasks._shared.inputs import open_data

RECIPE = "image/mae_tiny_cifar10"
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "uniformity 0.01": {"objectives": {"reconstruct": {}, "uniformity": {"weight": 0.01}}},
    "uniformity 0.1": {"objectives": {"reconstruct": {}, "uniformity": {"weight": 0.1}}},
    "uniformity 0.1, means": {
        "objectives": {"reconstruct": {}, "uniformity": {"weight": 0.1, "pool": "mean", "norm": "own"}}
    },
}
COLUMNS = {  # key: (title, digits)
    "linear": ("linear", 3),
    "knn": ("kNN", 3),
    "cls_linear": ("linear, class token", 3),
    "cls_knn": ("kNN, class token", 3),
    "rank": ("effective rank", 1),
    "cls_rank": ("rank, class token", 1),
    "uniformity": ("uniformity", 2),
    "alignment": ("views / pictures", 3),
    "loss": ("reconstruction loss", 3),
}


def measured(name: str, seed: int, data: Path, steps: int, batch: int) -> dict[str, Any]:
    """Train a variant ("untrained": not at all) and measure its features."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"data.root": str(data / "train"), "data.workers": 0, "out": f"{folder}/run", "train.seed": seed}
        settings |= {"train.batch": batch, "train.epochs": None, "train.steps": steps, "train.warmup_epochs": 0.5}
        settings |= {"train.log_every": min(50, steps), "train.picture_every": 10**6, "train.save_every": 10**6}
        recipe = maemm.config.load(RECIPE, {**settings, **VARIANTS.get(name, {})}, training=True)
        answer: dict[str, Any] = {"variant": name, "seed": seed, "steps": steps, "batch": batch}
        start = time.process_time()
        if name == "untrained":
            torch.manual_seed(seed)
            model = maemm.build(recipe).eval()
        else:
            model = maemm.load(maemm.pretrain(recipe))
            last = json.loads((Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()[-1])
            answer["loss"] = last["terms"]["reconstruct.image"]
            answer["cpu_seconds_per_step"] = (time.process_time() - start) / steps
        parts = [open_data(model.recipe, data / part) for part in ("train", "test")]
        for prefix, how in (("", None), ("cls_", embedder(pool="cls"))):
            train, test = embed(model, parts, how)
            of_pool = row(f"{name}, seed {seed}{', class token' if prefix else ''}", train, test)
            answer |= {f"{prefix}{key}": of_pool[key] for key in ("linear", "knn")}
            answer[f"{prefix}rank"] = spectrum(np.asarray(test.x)).effective_rank
        page = Path(folder) / "diagnose.html"
        diagnosis = maemm.diagnose(model, str(data / "test"), page, baseline=False, workers=0, seed=0)
        sphere = diagnosis.findings["trained"]["image"].sphere
        answer |= {"uniformity": sphere.uniformity, "alignment": sphere.relative_alignment}
    return answer


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds, in Markdown."""
    titles = [title for title, _ in COLUMNS.values()]
    lines = [f"| variant | {' | '.join(titles)} |", f"|---{'|---' * len(titles)}|"]
    for name in dict.fromkeys(entry["variant"] for entry in rows):
        own = [entry for entry in rows if entry["variant"] == name]
        cells = [_spread([entry[key] for entry in own if key in entry], digits) for key, (_, digits) in COLUMNS.items()]
        lines.append(f"| {name} ({len(own)}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], digits: int) -> str:
    if not values:
        return "-"
    spread = f" +- {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--only", help="variants, with semicolons between them")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/uniformity.json"))
    args = parser.parse_args(argv)
    names = args.only.split(";") if args.only else ["untrained", *VARIANTS]
    if unknown := [name for name in names if name not in ("untrained", *VARIANTS)]:
        parser.error(f"no variant {unknown[0]!r}; choose among untrained, {', '.join(VARIANTS)}")
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
