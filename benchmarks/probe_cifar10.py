"""Linear probe and kNN of frozen mean-pooled features on CIFAR-10: raw pixels, untrained encoder, pre-trained encoder.

    python benchmarks/probe_cifar10.py cifar10/ --run runs/cifar10 [--out benchmarks/results/probe_cifar10.json]

``cifar10/`` holds train/ and test/, each with a folder per class. Every row has the same protocol: z-scored features;
logistic regression (L2, converged, C chosen among six on a held-out tenth of the training part), and kNN (cosine,
k = 20, weights exp(s / 0.07)). Untrained encoders are drawn with several seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from _machine import about as where

import maemm
from maemm.contract import Source
from maemm.tasks._shared.embedding import Embed, features, raw_values
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.inputs import open_data
from maemm.tasks._shared.tables import tables
from maemm.tasks.probe.linear import choose_l2_c, logistic_scores
from maemm.tasks.probe.neighbours import knn_scores


def embed(model: maemm.Model, parts: list[Source], how: Embed | None = None) -> list[Features]:
    return [features(model, part, batch=500, embed=how)["image"] for part in parts]


def row(name: str, train: Features, test: Features) -> dict:
    a, b = tables(train, test)
    c = choose_l2_c(a)
    linear, near = (float((scores.argmax(1) == b.y).mean()) for scores in (
        logistic_scores(a, b, l2_c=c), knn_scores(a, b)
    ))  # fmt: skip
    print(f"{name:24s} linear {linear:.3f} (C {c:g})   kNN {near:.3f}", flush=True)
    return {"features": name, "linear": linear, "C": c, "knn": near}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--run", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--raw", action="store_true", help="raw pixels too (minutes)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(argv)
    model = maemm.load(args.run)
    parts = [open_data(model.recipe, args.data / part) for part in ("train", "test")]
    rows = []
    if args.raw:
        rows.append(row("raw pixels", *embed(model, parts, raw_values)))
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        rows.append(row(f"untrained, seed {seed}", *embed(maemm.build(model.recipe).eval(), parts)))
    rows.append(row("pre-trained", *embed(model, parts)))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        about = where() | {"train": len(parts[0]), "test": len(parts[1]), "run": Path(args.run).name}
        args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
