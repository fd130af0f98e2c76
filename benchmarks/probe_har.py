"""Signals: frozen features, few labels and unseen activities on motion sensors (HAR), beside raw and untrained ones.

    python benchmarks/probe_har.py har.npz --out benchmarks/results/probe_har.json

``har.npz`` holds x_train (2400, 9, 128), y_train, x_test (950, 9, 128), y_test of "Human Activity Recognition Using
Smartphones"; training and test windows are of different persons. Everything is chosen inside the training part.

- Features: ``signal/tiny_har`` pre-trained without labels, mean-pooled; kNN (cosine, k = 20) and logistic regression
  on z-scored features, beside the same network untrained and four raw baselines. Three seeds.
- Few labels: 1 % and 10 % of each class: logistic regression on the frozen features of both; all weights tuned from
  the pre-trained start and from scratch, by the same loop.
- Unseen activity: pre-trained without one activity; AUROC of the reconstruction error for its windows among the
  others of the test part, beside the distance to the nearest raw training window.

Runs lie below ``--work`` and are not trained again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import about as where
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy

import maemm
from maemm import config
from maemm.contract import Source
from maemm.contract.rng import seeded
from maemm.data.open import open_source
from maemm.data.shots import Shots
from maemm.data.subset import Subset
from maemm.tasks._shared.embedding import features
from maemm.tasks._shared.features import Features
from maemm.tasks._shared.scoring import score_samples
from maemm.tasks.pretrain.run import train_recipe
from maemm.tasks.probe.linear import linear
from maemm.tasks.probe.neighbours import knn_accuracy

RECIPE = "signal/tiny_har"
ACTIVITIES = ("walking", "upstairs", "downstairs", "sitting", "standing", "lying")
SHARES = ("1%", "10%")


def opened(root: Path, part: str) -> Source:
    recipe = config.load(RECIPE, {"data.root": str(root)})
    source = {**recipe["data"]["source"], "part": part}
    return open_source({**recipe, "data": {**recipe["data"], "source": source}})


def trained(root: Path, out: Path, seed: int, more: list[str]) -> tuple[maemm.Model, dict[str, Any]]:
    """A pre-trained model, and its seed and CPU seconds. What was trained before is not trained again."""
    began, spent = time.process_time(), out / "cpu_s.txt"
    fixed = {"data.root": str(root), "out": str(out), "train.seed": seed, "data.workers": 0}
    recipe = config.load(RECIPE, [*more, *(f"{key}={value}" for key, value in fixed.items())], training=True)
    train_recipe(recipe, echo=lambda line: None)
    if not spent.exists():
        spent.write_text(f"{time.process_time() - began:.0f}")
    return maemm.load(out).eval(), {"seed": seed, "cpu_s": int(spent.read_text())}


def untrained(recipe: dict[str, Any], seed: int) -> maemm.Model:
    with seeded(seed, "weights"):
        return maemm.build(recipe).eval()


# --------------------------------------------------------------------------------------------------- features
def table(x: np.ndarray, y: np.ndarray) -> Features:
    return Features(x.astype(np.float32), y.astype(np.int64), [str(i) for i in range(len(x))])


def raw_features(x: np.ndarray) -> dict[str, np.ndarray]:
    moments = np.concatenate([x.mean(2), x.std(2)], 1)
    power = np.abs(np.fft.rfft(x - x.mean(2, keepdims=True)))[..., 1:]
    bands = np.stack([np.log(part.mean(-1) + 1e-3) for part in np.array_split(power, 8, axis=-1)], -1)
    return {
        "raw values": x.reshape(len(x), -1),
        "mean, std": moments,
        "mean, std, bands": np.concatenate([moments, bands.reshape(len(x), -1)], 1),
    }


def raw_rows(data: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    rows = []
    train, test = raw_features(data["x_train"]), raw_features(data["x_test"])
    for name in train:
        mean, std = train[name].mean(0), train[name].std(0) + 1e-6
        a, b = (train[name] - mean) / std, (test[name] - mean) / std
        fitted = LogisticRegression(C=1.0, max_iter=1000).fit(a, data["y_train"])
        near = knn_accuracy(table(train[name], data["y_train"]), table(test[name], data["y_test"]))
        rows.append({"features": name, "linear": fitted.score(b, data["y_test"]), "knn": near})
    return rows


def probed(name: str, seed: int, train: Features, test: Features) -> dict[str, Any]:
    row: dict[str, Any] = {"features": name, "seed": seed}
    row |= {"linear": linear(train, test), "knn": knn_accuracy(train, test)}
    for fraction in SHARES:
        row[f"linear {fraction}"] = linear(train.select(Shots.parse(fraction).choose(train.labels, seed)), test)
    print({key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return row


# --------------------------------------------------------------------------------------------------- few labels
def tuned(model: maemm.Model, data: dict[str, np.ndarray], rows: np.ndarray, seed: int, steps: int) -> float:
    """Test accuracy after all weights were trained on the labelled ``rows``: AdamW, cosine, mean pool, one layer."""
    modality, batch = model.modalities["signal"], min(32, len(rows))
    x, y = torch.from_numpy(data["x_train"][rows]), torch.from_numpy(data["y_train"][rows]).long()
    with seeded(seed, "layer"):
        layer = torch.nn.Linear(model.encoder.dim, len(ACTIVITIES))
    weights = [*modality.parameters(), *model.encoder.parameters(), *layer.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    model.train()
    order = np.random.default_rng(seed)
    for _ in range(steps):
        some = order.choice(len(rows), batch, replace=False)
        preprocessed = modality.preprocess({"x": x[some]}, None)
        loss = cross_entropy(layer(model.embed({"signal": preprocessed})["signal"]), y[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()
    with torch.no_grad():
        parts = torch.from_numpy(data["x_test"]).split(200)
        found = [
            layer(model.embed({"signal": modality.preprocess({"x": part}, None)})["signal"]).argmax(1) for part in parts
        ]
    return float((torch.cat(found).numpy() == data["y_test"]).mean())


def few_labels(
    run: Path, recipe: dict[str, Any], data: dict[str, np.ndarray], seed: int, steps: int
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for fraction in SHARES:
        rows = Shots.parse(fraction).choose(data["y_train"].astype(np.int64), seed)
        found[fraction] = {
            "labels": len(rows),
            "scratch": tuned(untrained(recipe, seed), data, rows, seed, steps),
            "pre-trained": tuned(maemm.load(run), data, rows, seed, steps),
        }
        print("tuned", fraction, found[fraction], flush=True)
    return found


# -------------------------------------------------------------------------------------------- unseen activity
def unseen(
    root: Path, work: Path, data: dict[str, np.ndarray], label: int, seed: int, more: list[str]
) -> dict[str, Any]:
    kept = data["y_train"] != label
    part = without(root, work, kept, label)
    model, about = trained(part, work / f"without_{label}_{seed}", seed, more)
    novel = data["y_test"] == label
    errors = score_samples(model, opened(root, "test"), plans=4)
    usual = score_samples(model, Subset(opened(part, "train"), range(0, int(kept.sum()), 4)), plans=4)
    spread = np.nanmean(usual.tokens, 0)  # the usual error of each token
    relative = np.nanmean(errors.tokens / spread, 1)
    distances = nearest(data["x_train"][kept], data["x_test"])
    row = {"activity": ACTIVITIES[label], **about, "windows": int(novel.sum())}
    row |= {"reconstruction": roc_auc_score(novel, errors.samples), "relative": roc_auc_score(novel, relative)}
    row |= {f"distance, {name}": roc_auc_score(novel, one) for name, one in distances.items()}
    print(row, flush=True)
    return row


def without(root: Path, work: Path, kept: np.ndarray, label: int) -> Path:
    """The training part without one activity, as a file."""
    part = work / f"without_{label}.npz"
    if not part.exists():
        work.mkdir(parents=True, exist_ok=True)
        stored = np.load(root)
        np.savez(part, x_train=stored["x_train"][kept], y_train=stored["y_train"][kept])
    return part


def train_only(root: Path, work: Path, data: dict[str, np.ndarray], what: str, more: list[str]) -> None:
    label, _, seed = what.rpartition(":")
    if label:
        root = without(root, work, data["y_train"] != int(label), int(label))
        trained(root, work / f"without_{label}_{seed}", int(seed), more)
    else:
        trained(root, work / f"seed_{seed}", int(seed), more)


def nearest(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Distance of each test window to the nearest training window."""
    found = {}
    for name in ("raw values", "mean, std, bands"):
        a, b = raw_features(train)[name], raw_features(test)[name]
        mean, std = a.mean(0), a.std(0) + 1e-6
        a, b = (torch.from_numpy((one - mean) / std).float() for one in (a, b))
        found[name] = torch.cdist(b, a).amin(1).numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--unseen", type=int, nargs="*", default=[1, 5], help="activities held out, by number")
    parser.add_argument("--steps", type=int, default=300, help="of tuning on few labels")
    parser.add_argument("--set", nargs="*", default=[], help="changes of the recipe: train.epochs=2")
    parser.add_argument("--work", type=Path, default=Path("runs/probe_har"))
    parser.add_argument(
        "--train-only", help="seed, or activity:seed: train this run and stop (to train several at once)"
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    stored = np.load(args.data)
    data = {key: stored[key].astype(np.float32 if key[0] == "x" else np.int64) for key in stored.files}
    if args.train_only:
        return train_only(args.data, args.work, data, args.train_only, args.set)
    rows, few, runs = raw_rows(data), [], []
    for row in rows:
        print(row, flush=True)
    sources = [opened(args.data, part) for part in ("train", "test")]
    for seed in range(args.seeds):
        run = args.work / f"seed_{seed}"
        model, about = trained(args.data, run, seed, args.set)
        runs.append(about)
        for name, one in (("untrained", untrained(model.recipe, seed)), ("pre-trained", model)):
            rows.append(probed(name, seed, *(features(one, source)["signal"] for source in sources)))
        few.append({"seed": seed, **few_labels(run, model.recipe, data, seed, args.steps)})
    novel = [unseen(args.data, args.work, data, label, 0, args.set) for label in args.unseen]
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        about = where() | {"recipe": config.load(RECIPE, args.set), "threads": 1, "runs": runs}
        found = {"about": about, "rows": rows, "few_labels": few, "unseen": novel}
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
