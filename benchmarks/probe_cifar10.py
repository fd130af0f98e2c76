"""Linear probe and kNN of frozen mean-pooled features on CIFAR-10: raw pixels, untrained encoder, pre-trained encoder.

    python benchmarks/probe_cifar10.py cifar10/ --run runs/cifar10 [--out benchmarks/results/probe_cifar10.json]

``cifar10/`` holds train/ and test/, each with a folder per class. Every row has the same protocol: z-scored features;
logistic regression (L2, converged, C chosen among five on a held-out tenth of the training part), and kNN (cosine,
k = 20, weights exp(s / 0.07)). Untrained encoders are drawn with several seeds.
"""

from __future__ import annotations

import argparse
import json
import platform
from datetime import date
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression

import maemm


def read(folder: Path) -> tuple[torch.Tensor, np.ndarray, list[str]]:
    """Images (n, 3, 32, 32) in 0..1, labels, class names."""
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir())
    files = [(p, i) for i, c in enumerate(classes) for p in sorted((folder / c).iterdir())]
    pixels = np.stack([np.asarray(Image.open(p).convert("RGB")) for p, _ in files])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, np.array([i for _, i in files]), classes


@torch.no_grad()
def embed(model: maemm.Model, images: torch.Tensor) -> np.ndarray:
    spec = model.recipe["modalities"]["image"]
    mean, std = (torch.tensor(spec[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    parts = [model.embed({"image": (part - mean) / std})["image"] for part in images.split(500)]
    return torch.cat(parts).numpy()


def knn(train: np.ndarray, labels: np.ndarray, test: np.ndarray, answers: np.ndarray) -> float:
    a, b = (torch.nn.functional.normalize(torch.from_numpy(x).float(), dim=1) for x in (train, test))
    score, index = (b @ a.T).topk(20)
    votes = torch.zeros(len(b), int(labels.max()) + 1)
    votes.scatter_add_(1, torch.from_numpy(labels)[index], (score / 0.07).exp())
    return float((votes.argmax(1).numpy() == answers).mean())


def linear(train: np.ndarray, labels: np.ndarray, test: np.ndarray, answers: np.ndarray) -> tuple[float, float]:
    """(test accuracy, C): C is chosen without the test part."""
    held = np.random.default_rng(0).permutation(len(train)) < len(train) // 10

    def fit(c: float, rows: np.ndarray) -> LogisticRegression:
        return LogisticRegression(C=c, max_iter=500).fit(train[rows], labels[rows])

    best = max((1e-4, 1e-3, 1e-2, 1e-1, 1.0), key=lambda c: fit(c, ~held).score(train[held], labels[held]))
    return fit(best, np.ones(len(train), bool)).score(test, answers), best


def row(name: str, train: np.ndarray, labels: np.ndarray, test: np.ndarray, answers: np.ndarray) -> dict:
    mean, std = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / std, (test - mean) / std
    accuracy, c = linear(train, labels, test, answers)
    found = {"features": name, "linear": accuracy, "C": c, "knn": knn(train, labels, test, answers)}
    print(f"{name:24s} linear {accuracy:.3f} (C {c:g})   kNN {found['knn']:.3f}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--run", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--raw", action="store_true", help="raw pixels too (minutes)")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    (images, labels, _), (tests, answers, _) = read(args.data / "train"), read(args.data / "test")
    model = maemm.load(args.run)
    rows = []
    if args.raw:
        rows.append(row("raw pixels", images.flatten(1).numpy(), labels, tests.flatten(1).numpy(), answers))
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        fresh = maemm.build(model.recipe).eval()
        rows.append(row(f"untrained, seed {seed}", embed(fresh, images), labels, embed(fresh, tests), answers))
    rows.append(row("pre-trained", embed(model, images), labels, embed(model, tests), answers))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        about = {"date": str(date.today()), "torch": torch.__version__, "machine": platform.processor() or "x86-64"}
        about |= {"train": len(images), "test": len(tests), "run": Path(args.run).name}
        args.out.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
