"""Linear probe and kNN of frozen features on ModelNet10 point clouds: raw, untrained encoder, pre-trained encoder.

    maemm pretrain pointcloud/point_mae_tiny_cpu modelnet10.npz "data.source={type: pointcloud, split: train}" \\
        modalities.pointcloud.up=z out=runs/modelnet10
    python benchmarks/probe_modelnet10.py modelnet10.npz --run runs/modelnet10 [--out FILE.json]

``modelnet10.npz`` holds ``points`` (n, 1024, 3) in the unit sphere, ``labels``, ``classes`` and ``split``. Every row
has the same protocol: z-scored features; logistic regression (L2, converged, C chosen among five on a held-out tenth
of the training part), and kNN (cosine, k = 20, weights exp(s / 0.07)). Features are the mean of all tokens, their
maximum, and both side by side. Untrained encoders are drawn with several seeds; their batch statistics are first
taken from the training clouds, since an untrained batch normalisation would pass its input through unscaled.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import torch

import maemm
from maemm import plugins
from maemm.draws import Draw, seeded
from maemm.evaluate.features import Features, features
from maemm.evaluate.knn import knn
from maemm.evaluate.probe import linear

CELLS = 12  # a side of the occupancy grid


def occupancy(source: maemm.Source) -> Features:
    """Which cells of a grid over [-1, 1]^3 hold at least one point: (n, CELLS^3) of 0 and 1."""
    samples = [source.read(index, Draw(("occupancy", index))) for index in range(len(source))]
    x = np.zeros((len(samples), CELLS**3), np.float32)
    for row, sample in enumerate(samples):
        cell = np.clip(((sample.raw["pointcloud"].astype(np.float64) + 1) / 2 * CELLS).astype(int), 0, CELLS - 1)
        x[row, np.ravel_multi_index(cell.T, (CELLS,) * 3)] = 1
    return Features(x, np.array([one.label for one in samples]), [one.id for one in samples])


def embedded(model: maemm.Model, source: maemm.Source) -> dict[str, Features]:
    """{pool: features}"""
    found = {pool: features(model, source, pool=pool, batch=32)["pointcloud"] for pool in ("mean", "max")}
    both = np.concatenate([found["mean"].x, found["max"].x], axis=1)
    return found | {"mean+max": replace(found["mean"], x=both)}


@torch.no_grad()
def untrained(recipe: dict, source: maemm.Source, seed: int, batches: int = 10) -> maemm.Model:
    """A fresh model whose batch normalisations know the training clouds."""
    with seeded(seed, "weights"):
        model = maemm.build(recipe)
    model.train()
    modality = model.modalities["pointcloud"]
    for k in range(batches):
        rows = [(k * 64 + i) * 7 % len(source) for i in range(64)]
        loaded = [modality.load(source.read(row, Draw((seed, row))).raw["pointcloud"], None) for row in rows]
        model(model.prepare({"pointcloud": modality.collate(loaded)}), draw=Draw((seed, k), range(64), 64))
    return model.eval()


def row(name: str, train: Features, test: Features) -> dict:
    found = {"features": name, "width": train.x.shape[1], "linear": linear(train, test), "knn": knn(train, test)}
    print(f"{name:32s} {found['width']:5d} numbers   linear {found['linear']:.3f}   kNN {found['knn']:.3f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    opened = plugins.find("sources", "pointcloud")
    train, test = (opened(str(args.data), split=part) for part in ("train", "test"))
    model = maemm.load(args.run).eval()
    rows = [row(f"occupancy {CELLS}^3", occupancy(train), occupancy(test))]
    for name, one in [
        *((f"untrained, seed {seed}", untrained(model.recipe, train, seed)) for seed in range(args.seeds)),
        ("pre-trained", model),
    ]:
        a, b = embedded(one, train), embedded(one, test)
        rows += [row(f"{name}, {pool}", a[pool], b[pool]) for pool in a]
    if args.out:
        last = (args.run / "metrics.jsonl").read_text().splitlines()[-1]
        about = {"date": str(date.today()), "torch": torch.__version__, "machine": platform.processor() or "x86-64"}
        about |= {"cores": os.cpu_count(), "threads": torch.get_num_threads(), "train": len(train), "test": len(test)}
        about |= {"run": args.run.name, "recipe": model.recipe, "last step": json.loads(last)}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
