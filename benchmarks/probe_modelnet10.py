"""Linear probe and kNN of frozen features on ModelNet10 point clouds: raw, untrained encoder, pre-trained encoder.

    maemm pretrain pointcloud/point_mae_tiny_modelnet10 modelnet10.npz out=runs/modelnet10
    python benchmarks/probe_modelnet10.py modelnet10.npz --run runs/modelnet10 [--out FILE.json]

``modelnet10.npz`` holds ``points`` (n, 1024, 3) in the unit sphere, ``labels``, ``classes`` and ``split``. Every row
has the same protocol: z-scored features; logistic regression (L2, converged, C chosen among six inside the training
part) with all labels and with 10 of each class (five draws), and kNN (cosine, k = 20, weights exp(s / 0.07)). Features
are the mean of all tokens beside their maximum, with as many groups as in training and with more: farthest points
start from a random one, and more groups depend less on it. Untrained encoders are drawn with several seeds; their
batch statistics are first taken from the training clouds, since an untrained batch normalisation would pass its input
through unscaled. The test part of the shapes was not seen in pre-training.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _probe import save

import maemm
from maemm import registry
from maemm.contract.rng import Rng, seeded
from maemm.data.shots import Shots
from maemm.tasks._shared.embedding import features
from maemm.tasks._shared.features import Features
from maemm.tasks.probe.linear import linear
from maemm.tasks.probe.neighbours import knn_accuracy

FEW, DRAWS = "10", 5  # labels of each class, and how often they are drawn
CELLS = 12  # a side of the occupancy grid


def occupancy(source: maemm.Source) -> Features:
    """Which cells of a grid over [-1, 1]^3 hold at least one point: (n, CELLS^3) of 0 and 1."""
    samples = [source.read(index, Rng(("occupancy", index))) for index in range(len(source))]
    x = np.zeros((len(samples), CELLS**3), np.float32)
    for row, sample in enumerate(samples):
        cell = np.clip(((sample.raw["pointcloud"].astype(np.float64) + 1) / 2 * CELLS).astype(int), 0, CELLS - 1)
        x[row, np.ravel_multi_index(cell.T, (CELLS,) * 3)] = 1
    return Features(x, np.array([one.label for one in samples]), [one.id for one in samples])


def embedded(model: maemm.Model, source: maemm.Source, groups: int) -> Features:
    """Mean and maximum of the tokens side by side, with that many groups."""
    model.modalities["pointcloud"].groups = groups

    def both(one: maemm.Model, batch: dict[str, maemm.Preprocessed]) -> dict[str, torch.Tensor]:
        tokens = one.embed(batch, tokens=True)["pointcloud"]
        return {"pointcloud": torch.cat([tokens.mean(1), tokens.amax(1)], 1)}

    return features(model, source, embed=both, batch=32)["pointcloud"]


@torch.no_grad()
def untrained(recipe: dict, source: maemm.Source, seed: int, batches: int = 10) -> maemm.Model:
    """A fresh model whose batch normalisations know the training clouds."""
    with seeded(seed, "weights"):
        model = maemm.build(recipe)
    model.train()
    modality = model.modalities["pointcloud"]
    for k in range(batches):
        rows = [(k * 64 + i) * 7 % len(source) for i in range(64)]
        loaded = [modality.load(source.read(row, Rng((seed, row))).raw["pointcloud"], None) for row in rows]
        model(model.preprocess({"pointcloud": modality.collate(loaded)}), rng=Rng((seed, k), range(64), 64))
    return model.eval()


def figures(train: Features, test: Features) -> dict[str, float]:
    few = [linear(train.select(Shots.parse(FEW).choose(train.labels, seed)), test, seed=seed) for seed in range(DRAWS)]
    return {"linear": linear(train, test), "few": float(np.mean(few)), "knn": knn_accuracy(train, test)}


def row(name: str, values: Sequence[dict[str, float]], **about: Any) -> dict[str, Any]:
    """Means over seeds with their standard deviation, printed."""
    found: dict[str, Any] = {"features": name, **about}
    for key in values[0]:
        each = [one[key] for one in values]
        found[key] = {"mean": float(np.mean(each)), "values": each}
        found[key]["std"] = float(np.std(each, ddof=1)) if len(each) > 1 else None
    text = [f"{key} {found[key]['mean']:.3f}" + (f" ± {found[key]['spread']:.3f}" if len(values) > 1 else "")
            for key in values[0]]  # fmt: skip
    print(f"{name:24s} {about.get('groups', ''):>4}  " + "   ".join(text), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--run", type=Path, action="append", required=True, help="one for each seed of pre-training")
    parser.add_argument("--groups", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--seeds", type=int, default=3, help="untrained encoders")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    opened = registry.find("sources", "pointcloud")
    train, test = (opened(str(args.data), split=part) for part in ("train", "test"))
    trained = [maemm.load(run).eval() for run in args.run]
    fresh = [untrained(trained[0].recipe, train, seed) for seed in range(args.seeds)]
    rows = [row(f"occupancy {CELLS}^3", [figures(occupancy(train), occupancy(test))])]
    for groups in args.groups:
        for name, models in (("untrained encoder", fresh), ("pre-trained encoder", trained)):
            values = [figures(embedded(one, train, groups), embedded(one, test, groups)) for one in models]
            rows.append(row(name, values, groups=groups))
    if args.out:
        runs = [(run / "metrics.jsonl").read_text().splitlines()[-1] for run in args.run]
        kept = {key: trained[0].recipe[key] for key in ("modalities", "encoder", "decoder", "objectives", "train")}
        sizes = {"train": len(train), "test": len(test), "few": f"{FEW} labels of each class, {DRAWS} draws"}
        save(args.out, {**sizes, "recipe": kept, "last step of each run": runs, "rows": rows})


if __name__ == "__main__":
    main()
